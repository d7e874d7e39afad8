"""Lattice sampling by nerfacc's kernels, on NVIDIA GPUs; the occupancy grid and the pruning stay ours.

The samples are those of `marching.TorchMarching` but for its rounding: nerfacc adds up a ray's lattice step by step in
float32.
"""

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.backends import MissingBackendError, install, require
from corrdream.rendering.marching import TorchMarching, no_samples
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.structures import RayBundle, RaySamples


def load_nerfacc(key: str) -> ModuleType:
    """The package with its kernels, which it compiles on first use; MissingBackendError says why there are none."""
    library = require("nerfacc", key)
    if require("nerfacc.cuda._backend", key)._C is None:
        raise MissingBackendError(
            f"{key} needs the kernels of nerfacc, which it compiles on first use, and there is no nvcc on the PATH; "
            f"install CUDA's compiler and a C++ compiler ({install('nerfacc')} has the rest)."
        )
    return library


class NerfaccMarching(TorchMarching):
    """The occupied intervals by nerfacc's traversal, pruned as TorchMarching does.

    Its OccGridEstimator does both, but makes the host wait seven times: this way it is twice for the traversal and once
    for the pruning.
    """

    def __init__(
        self,
        *,
        occupancy: OccupancyGrid,
        prune: bool = True,
        alpha_threshold: float = 0.01,
        early_stop_transmittance: float = 1e-4,
    ) -> None:
        super().__init__(
            occupancy=occupancy,
            prune=prune,
            alpha_threshold=alpha_threshold,
            early_stop_transmittance=early_stop_transmittance,
        )
        self._nerfacc = load_nerfacc("rendering.backend=nerfacc")

    def occupied(self, rays: RayBundle, jitter: Float[Tensor, " N"] | None) -> RaySamples:
        """Every lattice interval whose midpoint is in an occupied cell."""
        if len(rays.origins) == 0:
            return no_samples(rays)  # no kernel can be started on nothing
        step, grid = self.occupancy.step_size, self.occupancy
        corner = torch.full((1, 3), grid.radius, device=rays.origins.device)
        _, samples, _ = self._nerfacc.traverse_grids(
            rays.origins,
            rays.directions,
            grid.binary[None],
            torch.cat((-corner, corner), dim=1),
            near_planes=None if jitter is None else jitter.to(rays.origins) * step,
            step_size=step,
        )  # sync
        return RaySamples(
            ray_indices=samples.ray_indices, t_starts=samples.vals - step / 2, t_ends=samples.vals + step / 2
        )
