"""What every Marching must do. A subclass says how to make one, and on which device."""

import math

import pytest
import torch
from torch import Tensor

from corrdream.interfaces import Marching
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.structures import RayBundle, RaySamples

STEP = 0.05
RADIUS = 1.5


def transparent(points: Tensor) -> Tensor:
    """Nothing anywhere."""
    return torch.zeros_like(points[:, 0])


def wall(points: Tensor) -> Tensor:
    """Opaque where x < 0.2, seen from positive x."""
    return torch.where(points[:, 0] < 0.2, 1000.0, 0.5)


class MarchingContract:
    device = "cpu"

    def make(
        self, occupancy: OccupancyGrid, *, prune: bool, alpha_threshold: float, early_stop_transmittance: float
    ) -> Marching:
        """The marching over this grid."""
        raise NotImplementedError

    def occupancy(self, binary: Tensor | None = None) -> OccupancyGrid:
        """A grid of 8^3 cells over [-RADIUS, RADIUS]^3, all occupied unless told otherwise."""
        grid = OccupancyGrid(radius=RADIUS, resolution=8, step_size=STEP)
        grid.occs.fill_(1.0)
        if binary is not None:
            grid.binary.copy_(binary)
        return grid.to(self.device)

    def sample(self, occupancy: OccupancyGrid, rays: RayBundle, jitter: Tensor | None = None) -> RaySamples:
        """Without pruning."""
        marching = self.make(occupancy, prune=False, alpha_threshold=0.0, early_stop_transmittance=0.0)
        return marching.sample(rays, density=transparent, jitter=jitter)

    def rays(self, origins: list[list[float]], directions: list[list[float]]) -> RayBundle:
        """Rays with unit directions."""
        direction = torch.nn.functional.normalize(torch.tensor(directions, device=self.device), dim=-1)
        return RayBundle(origins=torch.tensor(origins, device=self.device), directions=direction)

    def random_rays(self, count: int) -> RayBundle:
        """Rays from outside towards the box; some miss it."""
        generator = torch.Generator().manual_seed(0)
        origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 4
        targets = (torch.rand(count, 3, generator=generator) - 0.5) * 4
        directions = torch.nn.functional.normalize(targets - origins, dim=-1)
        return RayBundle(origins=origins.to(self.device), directions=directions.to(self.device))

    def test_ray_through_a_full_box_is_covered_without_gaps(self) -> None:
        samples = self.sample(self.occupancy(), self.rays([[4.0, 0.1, 0.2]], [[-1.0, 0.0, 0.0]]))
        assert samples.t_starts[0].item() == pytest.approx(4 - RADIUS, abs=STEP)
        assert samples.t_ends[-1].item() == pytest.approx(4 + RADIUS, abs=STEP)
        torch.testing.assert_close(samples.t_ends[:-1], samples.t_starts[1:], atol=1e-5, rtol=0)
        assert len(samples.t_starts) == pytest.approx(2 * RADIUS / STEP, abs=1)

    def test_empty_grid_has_no_samples(self) -> None:
        samples = self.sample(self.occupancy(torch.zeros(8, 8, 8, dtype=torch.bool)), self.random_rays(20))
        assert samples.ray_indices.shape == samples.t_starts.shape == samples.t_ends.shape == (0,)
        assert samples.ray_indices.dtype == torch.int64

    def test_no_rays_have_no_samples(self) -> None:
        none = torch.zeros(0, 3, device=self.device)
        assert len(self.sample(self.occupancy(), RayBundle(origins=none, directions=none)).t_starts) == 0

    def test_ray_beside_the_box_or_behind_its_origin_has_no_sample(self) -> None:
        rays = self.rays([[4.0, 2.0, 0.0], [4.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        assert len(self.sample(self.occupancy(), rays).t_starts) == 0

    def test_ray_from_inside_begins_at_its_origin(self) -> None:
        samples = self.sample(self.occupancy(), self.rays([[0.0, 0.3, 0.1]], [[0.0, 1.0, 0.0]]))
        assert samples.t_starts[0].item() == pytest.approx(0.0, abs=1e-6)
        assert samples.t_ends[-1].item() == pytest.approx(RADIUS - 0.3, abs=STEP)

    def test_samples_are_sorted_by_ray_and_distance(self) -> None:
        samples = self.sample(self.occupancy(), self.random_rays(50))
        assert bool((samples.ray_indices.diff() >= 0).all())
        same_ray = samples.ray_indices.diff() == 0
        assert bool((samples.t_starts.diff()[same_ray] > 0).all())

    def test_jitter_shifts_each_rays_lattice(self) -> None:
        rays = self.random_rays(50)
        jitter = torch.rand(50, generator=torch.Generator().manual_seed(3)).to(self.device)
        samples = self.sample(self.occupancy(), rays, jitter)
        index = samples.t_starts / STEP - jitter[samples.ray_indices]
        torch.testing.assert_close(index, index.round(), atol=0.02, rtol=0)  # the lattice may be accumulated in float32

    def test_agrees_with_a_walk_along_each_ray(self) -> None:
        binary = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
        rays = self.random_rays(40)
        samples = self.sample(self.occupancy(binary), rays)
        found = {
            (ray, round(start / STEP))
            for ray, start in zip(samples.ray_indices.tolist(), samples.t_starts.tolist(), strict=True)
        }
        expected = set()
        for ray, (origin, direction) in enumerate(zip(rays.origins.tolist(), rays.directions.tolist(), strict=True)):
            for k in range(int(8 / STEP)):
                point = [o + (k + 0.5) * STEP * d for o, d in zip(origin, direction, strict=True)]
                cell = [math.floor((x / RADIUS + 1) / 2 * 8) for x in point]
                if all(0 <= c < 8 for c in cell) and bool(binary[tuple(cell)]):
                    expected.add((ray, k))
        assert expected
        # A midpoint on a cell's face may fall to either side.
        assert len(found ^ expected) <= max(1, len(expected) // 500)

    def test_pruning_drops_what_is_behind_an_opaque_wall(self) -> None:
        marching = self.make(self.occupancy(), prune=True, alpha_threshold=0.0, early_stop_transmittance=1e-4)
        rays = self.rays([[4.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0]])
        samples = marching.sample(rays, density=wall, jitter=None)
        x = 4 - (samples.t_starts + samples.t_ends) / 2
        assert int((x < 0.2).sum()) == 1
        assert x.max() > RADIUS - STEP

    def test_pruning_drops_transparent_samples(self) -> None:
        marching = self.make(self.occupancy(), prune=True, alpha_threshold=0.1, early_stop_transmittance=1e-4)
        rays = self.rays([[4.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0]])
        samples = marching.sample(rays, density=wall, jitter=None)  # alpha is 0.025 in front of the wall
        assert len(samples.t_starts) == 1

    def test_rays_that_miss_what_is_occupied_are_pruned_to_nothing(self) -> None:
        binary = torch.zeros(8, 8, 8, dtype=torch.bool)
        binary[0, 0, 0] = True
        marching = self.make(self.occupancy(binary), prune=True, alpha_threshold=0.01, early_stop_transmittance=1e-4)
        rays = self.rays([[4.0, 1.0, 1.0]], [[-1.0, 0.0, 0.0]])
        assert len(marching.sample(rays, density=wall, jitter=None).t_starts) == 0

    def test_occupancy_is_read_anew_for_every_sampling(self) -> None:
        occupancy, rays = self.occupancy(), self.random_rays(20)
        marching = self.make(occupancy, prune=False, alpha_threshold=0.0, early_stop_transmittance=0.0)
        assert len(marching.sample(rays, density=transparent, jitter=None).t_starts)
        occupancy.binary.zero_()
        assert len(marching.sample(rays, density=transparent, jitter=None).t_starts) == 0

    def test_alpha_threshold_never_exceeds_the_mean_occupancy(self) -> None:
        occupancy = self.occupancy()
        occupancy.occs.fill_(0.02)
        marching = self.make(occupancy, prune=True, alpha_threshold=0.1, early_stop_transmittance=1e-4)
        rays = self.rays([[4.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0]])
        assert len(marching.sample(rays, density=wall, jitter=None).t_starts) > 10

    def test_sampling_leaves_no_graph(self) -> None:
        strength = torch.ones((), device=self.device, requires_grad=True)
        marching = self.make(self.occupancy(), prune=True, alpha_threshold=0.0, early_stop_transmittance=1e-4)
        samples = marching.sample(self.random_rays(10), density=lambda p: strength * wall(p), jitter=None)
        assert len(samples.t_starts)
        assert not samples.t_starts.requires_grad
