"""nerfacc on a GPU: sampling in an occupancy grid, weights and their gradient, pruning by visibility."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from corrdream.interfaces import Marching
from corrdream.rendering.marching import TorchMarching
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.rendering.volume import accumulate, render_weights
from corrdream.structures import RayBundle, RaySamples
from tests.golden.helpers import assert_relative, match_samples, tensor

FILE = "nerfacc_gpu.npz"
TOLERANCE = 5e-6  # relative
STEP_TOLERANCE = 0.03  # of a step: the library's lattice is accumulated in float32
SHARE_OF_SAMPLES = 1e-3  # that may differ, on cell faces
EARLY_STOP = 1e-4
ALPHA_THRESHOLD = 0.01


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "sampling", lambda: compare_sampling(data)
    yield "weights", lambda: compare_weights(data)
    yield "pruning", lambda: compare_pruning(data)


def occupancy_of(data: Mapping[str, np.ndarray]) -> OccupancyGrid:
    occupancy = OccupancyGrid(
        radius=float(data["aabb"][3]),
        resolution=data["binaries"].shape[1],
        step_size=float(data["render_step_size"]),
    )
    occupancy.binary.copy_(tensor(data["binaries"][0]))
    occupancy.occs.copy_(tensor(data["occs"]))
    return occupancy.to(torch.get_default_device())


def rays_of(data: Mapping[str, np.ndarray]) -> RayBundle:
    return RayBundle(origins=tensor(data["rays_o"]), directions=tensor(data["rays_d"]))


def samples_of(data: Mapping[str, np.ndarray]) -> RaySamples:
    return RaySamples(
        ray_indices=tensor(data["ray_indices"]), t_starts=tensor(data["t_starts"]), t_ends=tensor(data["t_ends"])
    )


def compare_sampling(data: Mapping[str, np.ndarray], marching_kind: Callable[..., Marching] = TorchMarching) -> None:
    occupancy = occupancy_of(data)
    marching = marching_kind(occupancy=occupancy, prune=False)
    samples = marching.sample(rays_of(data), density=constant, jitter=None)
    expected = {name: data[name] for name in ("ray_indices", "t_starts", "t_ends")}
    differing = match_samples(samples, expected, STEP_TOLERANCE * occupancy.step_size)
    assert differing <= SHARE_OF_SAMPLES * len(expected["t_starts"]), f"{differing} samples differ"


def constant(points: Tensor) -> Tensor:
    return torch.ones_like(points[:, 0])


def compare_weights(data: Mapping[str, np.ndarray]) -> None:
    samples, density = samples_of(data), tensor(data["sigmas"]).requires_grad_()
    num_rays = len(data["rays_o"])
    weights, transmittance, alpha = render_weights(density, samples, num_rays)
    assert_relative(weights, data["weights"], TOLERANCE, "weights")
    assert_relative(transmittance, data["trans"], TOLERANCE, "trans")
    assert_relative(alpha, data["alphas"], TOLERANCE, "alphas")
    opacity = accumulate(weights[:, None], samples.ray_indices, num_rays)
    assert_relative(opacity, data["opacity"], TOLERANCE, "opacity")
    accumulated = accumulate(weights[:, None] * tensor(data["values"]), samples.ray_indices, num_rays)
    assert_relative(accumulated, data["accumulated"], TOLERANCE, "accumulated")
    (gradient,) = torch.autograd.grad((accumulated * tensor(data["w_rays"])).sum(), density)
    assert_relative(gradient, data["grad_sigmas"], TOLERANCE, "grad_sigmas")


def compare_pruning(data: Mapping[str, np.ndarray]) -> None:
    marching = TorchMarching(
        occupancy=occupancy_of(data), alpha_threshold=ALPHA_THRESHOLD, early_stop_transmittance=EARLY_STOP
    )
    samples = samples_of(data)
    kept = marching.visible(rays_of(data), samples, lambda points: tensor(data["sigmas"]))
    expected = {name: data[f"pruned_{name}"] for name in ("ray_indices", "t_starts", "t_ends")}
    differing = match_samples(kept, expected, tolerance=0.0)
    assert differing <= SHARE_OF_SAMPLES * len(expected["t_starts"]), f"{differing} samples differ"
