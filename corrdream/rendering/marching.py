"""Where along each ray the field is evaluated: a lattice of equal steps, inside occupied cells, where it can be seen.

Symbols: N rays, S samples; lattice t_k = near + k step with near = jitter step, whatever the distance of the box;
interval k counts when its midpoint is inside the box and in an occupied cell.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.interfaces import DensityFunction
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.rendering.volume import render_weights
from corrdream.structures import RayBundle, RaySamples

BOX_DIAGONAL = 1.732  # of a unit cube, as the released code rounds it
MIN_DIRECTION = 1e-12  # components of a direction below this count as parallel to the box's faces


def sampling_step(radius: float, num_samples_per_ray: int) -> float:
    """Length of a step when `num_samples_per_ray` of them cross the diagonal of the box [-radius, radius]^3."""
    return BOX_DIAGONAL * 2 * radius / num_samples_per_ray


class TorchMarching:
    """Lattice sampling in torch: any device, no gradient."""

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

    @torch.no_grad()
    def sample(self, rays: RayBundle, *, density: DensityFunction, jitter: Float[Tensor, " N"] | None) -> RaySamples:
        """Intervals in occupied cells, sorted by ray; pruned, if asked for, to those that can be seen."""
        samples = self.occupied(rays, jitter)
        return self.visible(rays, samples, density) if self.prune and len(samples.ray_indices) else samples

    def occupied(self, rays: RayBundle, jitter: Float[Tensor, " N"] | None) -> RaySamples:
        """Every lattice interval whose midpoint is in an occupied cell."""
        step, grid = self.occupancy.step_size, self.occupancy
        near = torch.zeros_like(rays.origins[:, 0]) if jitter is None else jitter.to(rays.origins) * step
        enter, leave = intersect_box(rays, grid.bounds().to(rays.origins))
        first = ((enter.clamp_min(0) - near) / step - 0.5).ceil().clamp_min(0)
        count = ((leave - near) / step - 0.5).ceil() - first
        hit = (count > 0).nonzero().squeeze(1)  # sync
        if len(hit) == 0:
            return no_samples(rays)
        start, first, count = near[hit, None], first[hit, None], count[hit, None]
        index = first + torch.arange(int(count.max()), device=hit.device)  # sync
        middle = start + (index + 0.5) * step
        scale = grid.resolution / (2 * grid.radius)
        cell = torch.zeros_like(middle, dtype=torch.int64)
        for origin, direction in zip(rays.origins[hit].unbind(1), rays.directions[hit].unbind(1), strict=True):
            position = torch.addcmul((origin[:, None] + grid.radius) * scale, middle, direction[:, None] * scale)
            cell = cell * grid.resolution + position.clamp_(0, grid.resolution - 1).long()
        inside = index < first + count
        row, column = (grid.binary.flatten()[cell] & inside).nonzero().unbind(1)  # sync
        lattice = index[row, column]
        offset = near[hit][row]
        return RaySamples(ray_indices=hit[row], t_starts=offset + lattice * step, t_ends=offset + (lattice + 1) * step)

    def visible(self, rays: RayBundle, samples: RaySamples, density: DensityFunction) -> RaySamples:
        """The samples that light reaches and that are not transparent."""
        middle = (samples.t_starts + samples.t_ends) / 2
        ray = samples.ray_indices
        origin, direction = rays.origins.index_select(0, ray), rays.directions.index_select(0, ray)
        values = density(torch.addcmul(origin, direction, middle[:, None]))
        _, reached, alpha = render_weights(values, samples, len(rays.origins))
        threshold = self.occupancy.occs.mean().clamp(max=self.alpha_threshold)
        kept = ((reached >= self.early_stop_transmittance) & (alpha >= threshold)).nonzero().squeeze(1)  # sync
        return RaySamples(
            ray_indices=ray.index_select(0, kept),
            t_starts=samples.t_starts.index_select(0, kept),
            t_ends=samples.t_ends.index_select(0, kept),
        )


def intersect_box(rays: RayBundle, bounds: Float[Tensor, "2 3"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Distances at which rays enter and leave a box; a ray that misses it leaves before it enters."""
    parallel = rays.directions.abs() < MIN_DIRECTION
    inverse = 1 / rays.directions.masked_fill(parallel, MIN_DIRECTION)
    low, high = (bounds[0] - rays.origins) * inverse, (bounds[1] - rays.origins) * inverse
    enter = torch.minimum(low, high).amax(dim=1)
    leave = torch.maximum(low, high).amin(dim=1)
    empty = (bounds[0] >= bounds[1]).any()
    return enter, torch.where(empty, enter, leave)


def no_samples(rays: RayBundle) -> RaySamples:
    """What rays that meet nothing have."""
    empty = rays.origins.new_empty(0)
    return RaySamples(ray_indices=empty.long(), t_starts=empty, t_ends=empty)
