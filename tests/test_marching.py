"""Lattice sampling in an occupancy grid."""

import pytest
import torch

from corrdream.interfaces import Marching
from corrdream.rendering.marching import TorchMarching, intersect_box, sampling_step
from corrdream.rendering.occupancy import OccupancyGrid
from corrdream.structures import RayBundle
from tests.contracts.marching import MarchingContract


class TestTorchMarching(MarchingContract):
    def make(
        self, occupancy: OccupancyGrid, *, prune: bool, alpha_threshold: float, early_stop_transmittance: float
    ) -> Marching:
        return TorchMarching(
            occupancy=occupancy,
            prune=prune,
            alpha_threshold=alpha_threshold,
            early_stop_transmittance=early_stop_transmittance,
        )


def test_sampling_step_is_the_released_one() -> None:
    assert sampling_step(1.0, 512) == pytest.approx(0.006765625, rel=1e-12)


def test_box_is_entered_and_left_where_the_ray_meets_it() -> None:
    rays = RayBundle(
        origins=torch.tensor([[-3.0, 0.5, 0.5], [0.5, 0.5, 5.0]]),
        directions=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]),
    )
    enter, leave = intersect_box(rays, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 2.0]]))
    torch.testing.assert_close(enter, torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(leave, torch.tensor([4.0, 5.0]))


def test_ray_parallel_to_a_face_and_outside_it_misses() -> None:
    rays = RayBundle(origins=torch.tensor([[-3.0, 1.5, 0.5]]), directions=torch.tensor([[1.0, 0.0, 0.0]]))
    enter, leave = intersect_box(rays, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert leave < enter


def test_box_without_volume_is_missed_by_every_ray() -> None:
    generator = torch.Generator().manual_seed(0)
    rays = RayBundle(
        origins=torch.randn(50, 3, generator=generator),
        directions=torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=-1),
    )
    enter, leave = intersect_box(rays, torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
    assert bool((leave <= enter).all())
