"""The running maximum of the density on a grid."""

import torch
from torch import Tensor

from corrdream.rendering.occupancy import OccupancyGrid


def ball(points: Tensor) -> Tensor:
    """Density 1 inside a ball of radius 0.5."""
    return (points.norm(dim=-1) < 0.5).float()


def grid(**changes: object) -> OccupancyGrid:
    return OccupancyGrid(**({"radius": 1.0, "resolution": 8, "step_size": 0.1, "update_every": 16} | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_cell_counts_as_occupied_before_the_first_update() -> None:
    assert bool(grid().binary.all())


def test_first_update_finds_the_ball() -> None:
    occupancy = grid()
    occupancy.update(ball, 0, generator())
    assert bool(occupancy.binary[4, 4, 4])
    assert not bool(occupancy.binary[0, 0, 0])
    assert occupancy.occs.max() == torch.tensor(0.1)  # density times step


def test_cell_index_runs_slowest_along_x() -> None:
    occupancy = grid()
    occupancy.update(lambda points: (points[:, 0] > 0.75).float(), 0, generator())
    assert bool(occupancy.binary[7].all())
    assert not bool(occupancy.binary[:7].any())


def test_nothing_happens_between_updates() -> None:
    occupancy = grid()
    occupancy.update(ball, 0, generator())
    before, state = occupancy.occs.clone(), generator(1)
    untouched = state.get_state().clone()
    occupancy.update(lambda points: ball(points) * 9, 17, state)
    assert torch.equal(occupancy.occs, before)
    assert torch.equal(state.get_state(), untouched)


def test_occupancy_decays_where_the_density_is_gone() -> None:
    occupancy = grid(decay=0.5)
    occupancy.update(ball, 0, generator())
    occupancy.update(lambda points: torch.zeros_like(points[:, 0]), 16, generator())
    assert occupancy.occs.max() == torch.tensor(0.05)


def test_threshold_is_the_mean_where_that_is_lower() -> None:
    occupancy = grid(threshold=0.5)
    occupancy.update(lambda points: 0.1 + (points[:, 0] > 0).float() * 0.1, 0, generator())
    assert bool(occupancy.binary[4:].all())
    assert not bool(occupancy.binary[:4].any())


def test_after_the_warmup_only_some_cells_are_looked_at() -> None:
    occupancy = grid(warmup_steps=32)
    looked_at = []

    def density(points: Tensor) -> Tensor:
        looked_at.append(len(points))
        return ball(points)

    occupancy.update(density, 16, generator())
    occupied = int(occupancy.binary.sum())
    occupancy.update(density, 32, generator())
    assert looked_at == [512, 128 + occupied]


def test_after_the_warmup_at_most_a_quarter_of_the_cells_is_revisited_because_occupied() -> None:
    occupancy = grid(warmup_steps=0)
    looked_at = []

    def density(points: Tensor) -> Tensor:
        looked_at.append(len(points))
        return ball(points)

    occupancy.update(density, 0, generator())  # all cells still count as occupied
    assert looked_at == [256]


def test_cell_named_twice_decays_once_and_takes_the_larger_value() -> None:
    occupancy = grid(decay=0.5)
    occupancy.occs.fill_(1.0)
    cells, jitter = torch.tensor([3, 3]), torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.9]])
    occupancy.refresh(lambda points: torch.tensor([8.0, 2.0]), cells, jitter)
    assert occupancy.occs[3] == torch.tensor(0.8)
    occupancy.refresh(lambda points: torch.zeros(2), cells, jitter)
    assert occupancy.occs[3] == torch.tensor(0.4)
    assert occupancy.occs[4] == torch.tensor(1.0)


def test_same_generator_gives_the_same_grid() -> None:
    def run() -> Tensor:
        occupancy, state = grid(warmup_steps=16), generator(5)
        for step in range(64):
            occupancy.update(ball, step, state)
        return occupancy.occs

    assert torch.equal(run(), run())


def test_state_dict_restores_the_grid() -> None:
    occupancy, other = grid(), grid()
    occupancy.update(ball, 0, generator())
    other.load_state_dict(occupancy.state_dict())
    assert torch.equal(other.binary, occupancy.binary)
    assert torch.equal(other.occs, occupancy.occs)


def test_bounds_enclose_the_occupied_cells() -> None:
    occupancy = grid(radius=2.0)
    occupancy.binary.zero_()
    occupancy.binary[1, 2, 3] = occupancy.binary[2, 2, 7] = True
    torch.testing.assert_close(occupancy.bounds(), torch.tensor([[-1.5, -1.0, -0.5], [-0.5, -0.5, 2.0]]))


def test_bounds_of_nothing_are_inverted() -> None:
    occupancy = grid()
    occupancy.binary.zero_()
    low, high = occupancy.bounds()
    assert bool((low > high).all())
