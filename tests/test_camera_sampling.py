"""Random cameras: the stated distributions, groups of views, and reproducibility."""

import dataclasses
import math

import pytest
import torch

from corrdream.camera_sampling import CameraDraws, CameraSettings, draw_cameras, place_cameras, sample_multiview_cameras
from corrdream.cameras import project
from corrdream.structures import CameraBatch, LightBatch


def settings(**changes: object) -> CameraSettings:
    base = CameraSettings(num_views=4, batch_size=8, resolution=16)
    return dataclasses.replace(base, **changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centred_draws(elevation_rule: float) -> CameraDraws:
    """One group in the middle of every range."""
    half, zero = torch.full((1,), 0.5), torch.zeros(1, 3)
    return CameraDraws(
        elevation_rule=elevation_rule,
        elevation=half,
        azimuth=half,
        fovy=half,
        distance=half,
        zoom=half,
        light_distance=half,
        camera_perturb=zero + 0.5,
        center_perturb=zero,
        up_perturb=zero,
        light=zero,
    )


def place(draws: CameraDraws, **changes: object) -> tuple[CameraBatch, LightBatch]:
    return place_cameras(settings(batch_size=4, **changes), draws)


def test_middle_of_every_range_gives_the_middle_camera() -> None:
    cameras, lights = place(centred_draws(0.0))
    torch.testing.assert_close(torch.rad2deg(cameras.elevation), torch.full((4,), 15.0))
    torch.testing.assert_close(torch.rad2deg(cameras.azimuth), torch.tensor([-135.0, -45, 45, 135]))
    fovy = math.radians(37.5)
    torch.testing.assert_close(cameras.distance, torch.full((4,), 0.9 / math.tan(fovy / 2)))
    torch.testing.assert_close(cameras.intrinsics[:, 0, 0], torch.full((4,), 8 / math.tan(fovy / 2)))
    torch.testing.assert_close(lights.position, cameras.c2w[:, :3, 3] * (1.15 / cameras.distance)[:, None])


def test_zoom_changes_the_field_of_view_and_not_the_distance() -> None:
    plain, _ = place(centred_draws(0.0))
    zoomed, _ = place(centred_draws(0.0), zoom_range=(0.5, 0.5))
    torch.testing.assert_close(zoomed.distance, plain.distance)
    expected = 8 / math.tan(math.radians(37.5) / 4)
    torch.testing.assert_close(zoomed.intrinsics[:, 1, 1], torch.full((4,), expected))


def test_absolute_distance_ignores_the_field_of_view() -> None:
    cameras, _ = place(centred_draws(0.0), relative_distance=False, distance_range=(2.0, 3.0))
    torch.testing.assert_close(cameras.distance, torch.full((4,), 2.5))


def test_aspect_widens_the_image_around_its_centre() -> None:
    cameras, _ = place(centred_draws(0.0), aspect=1.5)
    assert (cameras.height, cameras.width) == (16, 24)
    torch.testing.assert_close(cameras.intrinsics[0, :2, 2], torch.tensor([12.0, 8.0]))


def test_released_elevation_misses_the_top_of_the_range() -> None:
    top = dataclasses.replace(centred_draws(0.9), elevation=torch.ones(1))
    released, _ = place(top, elevation_sampling="released")
    torch.testing.assert_close(torch.rad2deg(released.elevation), torch.full((4,), 19.4712), atol=1e-3, rtol=0)
    area, _ = place(top, elevation_sampling="area_uniform")
    torch.testing.assert_close(torch.rad2deg(area.elevation), torch.full((4,), 30.0))


@pytest.mark.parametrize("sampling", ["released", "area_uniform"])
def test_first_elevation_rule_is_uniform_in_the_angle_for_both_settings(sampling: str) -> None:
    quarter = dataclasses.replace(centred_draws(0.49), elevation=torch.full((1,), 0.25))
    cameras, _ = place(quarter, elevation_sampling=sampling)
    torch.testing.assert_close(torch.rad2deg(cameras.elevation), torch.full((4,), 7.5))


def test_area_uniform_rule_covers_equal_areas_equally() -> None:
    """Archimedes: on a sphere, area is proportional to height."""
    many = settings(batch_size=40_000, elevation_range=(-30.0, 80.0))
    draws = dataclasses.replace(draw_cameras(many, generator()), elevation_rule=0.7)
    cameras, _ = place_cameras(many, draws)
    low, high = math.sin(math.radians(-30)), math.sin(math.radians(80))
    quantiles = (torch.sin(cameras.elevation) - low) / (high - low)
    histogram = torch.histc(quantiles[::4], bins=10, min=0, max=1) / 10_000
    torch.testing.assert_close(histogram, torch.full((10,), 0.1), atol=0.012, rtol=0)  # 4 standard errors


def test_views_of_a_group_share_everything_but_their_evenly_spaced_azimuth() -> None:
    cameras, lights = sample_multiview_cameras(settings(), generator())
    for shared in (cameras.elevation, cameras.distance, cameras.intrinsics, lights.offset, lights.distance):
        groups = shared.unflatten(0, (2, 4))
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert not torch.equal(groups[0], groups[1])
    steps = cameras.azimuth.reshape(2, 4).diff(dim=1)
    torch.testing.assert_close(steps, torch.full((2, 3), math.pi / 2))


def test_draws_stay_within_the_ranges() -> None:
    many = settings(batch_size=400, elevation_range=(-10.0, 50.0), azimuth_range=(-90.0, 180.0))
    for seed in range(4):
        cameras, lights = sample_multiview_cameras(many, generator(seed))
        elevation, azimuth = torch.rad2deg(cameras.elevation), torch.rad2deg(cameras.azimuth)
        assert elevation.min() >= -10.001
        assert elevation.max() <= 50.001
        assert azimuth.min() >= -90.001
        assert azimuth.max() <= 180.001
        assert lights.distance.min() >= 0.8
        assert lights.distance.max() <= 1.5


def test_perturbations_move_camera_center_and_up() -> None:
    draws = dataclasses.replace(
        centred_draws(0.0),
        camera_perturb=torch.tensor([[1.0, 0.5, 0.0]]),
        center_perturb=torch.tensor([[0.0, 0.0, 2.0]]),
    )
    plain, _ = place(draws)
    moved, _ = place(draws, camera_perturb=0.1, center_perturb=0.2)
    offset = moved.c2w[:, :3, 3] - plain.c2w[:, :3, 3]
    torch.testing.assert_close(offset, torch.tensor([[0.1, 0.0, -0.1]]).expand(4, 3), atol=1e-6, rtol=0)
    xy, _ = project(torch.tensor([[0.0, 0.0, 0.4]]).expand(4, 3), moved.c2w, moved.intrinsics)
    torch.testing.assert_close(xy, torch.full((4, 2), 8.0), atol=1e-4, rtol=0)
    tilted, _ = place(dataclasses.replace(draws, up_perturb=torch.tensor([[1.0, 0.0, 0.0]])), up_perturb=0.5)
    assert (tilted.c2w[:, 2, 0].abs() > 0.05).any(), "a tilted up hint rolls some camera"
    torch.testing.assert_close(tilted.c2w[:, :3, 2], plain.c2w[:, :3, 2])


def test_no_setting_but_the_batch_size_moves_the_generator_differently() -> None:
    first, second = generator(), generator()
    draw_cameras(settings(), first)
    draw_cameras(settings(camera_perturb=1.0, resolution=64, elevation_sampling="released"), second)
    assert torch.equal(first.get_state(), second.get_state())


def test_generator_state_decides_the_cameras_and_the_global_one_is_untouched() -> None:
    global_state = torch.get_rng_state()
    source = generator(3)
    state = source.get_state()
    first, _ = sample_multiview_cameras(settings(), source)
    again, _ = sample_multiview_cameras(settings(), source)
    source.set_state(state)
    resumed, _ = sample_multiview_cameras(settings(), source)
    assert torch.equal(first.c2w, resumed.c2w)
    assert not torch.equal(first.c2w, again.c2w)
    assert torch.equal(global_state, torch.get_rng_state())


def test_batch_that_is_no_multiple_of_the_views_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"cameras\.batch_size must be a multiple of the prior's 4 views, got 6"):
        settings(batch_size=6)
    with pytest.raises(ValueError, match=r"cameras\.batch_size"):
        settings(batch_size=0)
