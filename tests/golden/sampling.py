"""Occupancy-grid sampling and updates."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdream.rendering.marching import TorchMarching
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.structures import RayBundle
from tests.golden.helpers import assert_absolute, group, group_names, match_samples, tensor

FILE = "sampling.npz"
STEP_TOLERANCE = 0.03  # of a step
SHARE_OF_SAMPLES = 1e-3  # that may differ, on cell faces
OCCUPANCY_TOLERANCE = 1e-6
UPDATE_EVERY = 16


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        arrays = group(data, name)
        yield name, partial(compare_update if "in/global_steps" in arrays else compare_sampling, arrays)


def blob(points: Tensor, radius: float) -> Tensor:
    """softplus(10 (1 - |x| / radius))."""
    return F.softplus(10 * (1 - points.norm(dim=-1) / radius))


def compare_sampling(arrays: Mapping[str, np.ndarray]) -> None:
    cfg = group(arrays, "cfg")
    step = float(cfg["step"])
    binary = np.unpackbits(arrays["in/binary_bits"]).astype(bool)
    occupancy = OccupancyGrid(radius=float(cfg["radius"]), resolution=round(len(binary) ** (1 / 3)), step_size=step)
    occupancy.binary.copy_(tensor(binary).view_as(occupancy.binary))
    occupancy.occs.fill_(float(arrays["in/occs_mean"]))
    marching = TorchMarching(
        occupancy=occupancy,
        prune=bool(cfg["prune"]),
        alpha_threshold=float(cfg["alpha_threshold"]),
        early_stop_transmittance=float(cfg["early_stop_eps"]),
    )
    samples = marching.sample(
        RayBundle(origins=tensor(arrays["in/rays_o"]), directions=tensor(arrays["in/rays_d"])),
        density=partial(blob, radius=float(cfg["blob_radius"])),
        jitter=tensor(arrays["in/jitter"]) if bool(cfg["stratified"]) else None,
    )
    expected = group(arrays, "out")
    differing = match_samples(samples, expected, tolerance=STEP_TOLERANCE * step)
    assert differing <= SHARE_OF_SAMPLES * len(expected["t_starts"]), f"{differing} samples differ"


def compare_update(arrays: Mapping[str, np.ndarray]) -> None:
    num_cells = arrays["out/occs"].shape[1]
    occupancy = OccupancyGrid(
        radius=float(arrays["cfg/radius"]),
        resolution=round(num_cells ** (1 / 3)),
        step_size=float(arrays["cfg/step"]),
        update_every=UPDATE_EVERY,
    )
    jitters = iter(tensor(arrays["in/jitter"]))
    for index, step in enumerate(arrays["in/global_steps"].tolist()):
        if occupancy.is_due(step):
            assert step < occupancy.warmup_steps
            density = partial(blob, radius=float(arrays["in/blob_radius"][index]))
            occupancy.refresh(density, torch.arange(num_cells), next(jitters))
        assert_absolute(occupancy.occs, arrays["out/occs"][index], OCCUPANCY_TOLERANCE, f"occs at step {step}")
        assert np.array_equal(occupancy.binary.flatten().cpu().numpy(), arrays["out/binaries"][index]), (
            f"binary at {step}"
        )
    assert not list(jitters)
