"""Lattice sampling by nerfacc's kernels, on NVIDIA GPUs; the occupancy grid stays ours.

The samples are those of `marching.TorchMarching` but for its rounding: nerfacc adds up a ray's lattice step by step in
float32.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.backends import MissingBackendError, install, require
from corrdream.interfaces import DensityFunction
from corrdream.rendering.marching import no_samples
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


class NerfaccMarching:
    """Sampling in occupied cells, pruned by visibility, by nerfacc's OccGridEstimator."""

    def __init__(
        self,
        *,
        occupancy: OccupancyGrid,
        prune: bool = True,
        alpha_threshold: float = 0.01,
        early_stop_transmittance: float = 1e-4,
    ) -> None:
        self.occupancy = occupancy
        self.prune = prune
        self.alpha_threshold = alpha_threshold
        self.early_stop_transmittance = early_stop_transmittance
        radius = occupancy.radius
        self.estimator = load_nerfacc("rendering.backend=nerfacc").OccGridEstimator(
            roi_aabb=[-radius] * 3 + [radius] * 3, resolution=occupancy.resolution
        )

    @torch.no_grad()
    def sample(self, rays: RayBundle, *, density: DensityFunction, jitter: Float[Tensor, " N"] | None) -> RaySamples:
        """Intervals in occupied cells, sorted by ray; pruned, if asked for, to those that can be seen."""
        if len(rays.origins) == 0:
            return no_samples(rays)  # no kernel can be started on nothing
        step = self.occupancy.step_size

        def density_between(starts: Tensor, ends: Tensor, ray: Int[Tensor, " S"]) -> Tensor:
            origin, direction = rays.origins.index_select(0, ray), rays.directions.index_select(0, ray)
            return density(torch.addcmul(origin, direction, ((starts + ends) / 2)[:, None]))

        ray_indices, t_starts, t_ends = self._estimator().sampling(
            rays.origins,
            rays.directions,
            sigma_fn=density_between if self.prune else None,
            t_min=None if jitter is None else jitter.to(rays.origins) * step,
            render_step_size=step,
            early_stop_eps=self.early_stop_transmittance,
            alpha_thre=self.alpha_threshold,
        )
        return RaySamples(ray_indices=ray_indices, t_starts=t_starts, t_ends=t_ends)

    def _estimator(self) -> Any:
        """nerfacc's estimator, which reads the occupancy where it is."""
        self.estimator.to(self.occupancy.binary.device)
        self.estimator.binaries = self.occupancy.binary[None]
        self.estimator.occs = self.occupancy.occs
        return self.estimator
