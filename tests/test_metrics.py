"""Measures without ground truth, on shapes and colors whose answers are known."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import wasserstein_distance
from skimage.color import rgb2hsv
from torch import Tensor

from corrdream.cameras import camera_rays, project
from corrdream.metrics import (
    bounding_diagonal,
    clipped_share,
    contrast_ratio,
    floater_share,
    foreground_pixels,
    fuzziness,
    hull_cameras,
    occupied_voxels,
    relative_z_variance,
    saturation_distance,
    solid,
    unlike_border_pixels,
    visual_hull,
    visual_hull_gap,
    voxel_centers,
)
from corrdream.structures import CameraBatch

RESOLUTION, IMAGE = 64, 128
CENTERS = voxel_centers(RESOLUTION)
CAMERAS = hull_cameras(IMAGE)
HULL_FLOOR = 0.025  # worst 0.009 here; 0.022 at 128^3 voxels and 256 pixels


def volume(inside: Tensor) -> Tensor:
    return inside.reshape(RESOLUTION, RESOLUTION, RESOLUTION)


def ball(center: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 0.6) -> Tensor:
    return volume((CENTERS - torch.tensor(center)).norm(dim=-1) < radius)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Tensor:
    return volume((CENTERS.gt(torch.tensor(low)) & CENTERS.lt(torch.tensor(high))).all(dim=-1))


CUBE = box((-0.5,) * 3, (0.5,) * 3)
PIT = box((-0.25, -0.25, -0.25), (0.25, 0.25, 0.5))  # open above
CAVITY = box((-0.25,) * 3, (0.25,) * 3)


def silhouettes(hits: Callable[[Tensor, Tensor], Tensor], cameras: CameraBatch = CAMERAS) -> Tensor:
    rays = camera_rays(cameras)
    return hits(rays.origins, rays.directions).float().reshape(-1, cameras.height, cameras.width)


def hits_ball(origins: Tensor, directions: Tensor, radius: float = 0.6) -> Tensor:
    return torch.linalg.cross(origins, directions, dim=-1).norm(dim=-1) < radius


def hits_cube(origins: Tensor, directions: Tensor) -> Tensor:
    """Of half a unit: the slab test."""
    planes = torch.stack([(-0.5 - origins) / directions, (0.5 - origins) / directions])
    return planes.amin(dim=0).amax(dim=-1) < planes.amax(dim=0).amin(dim=-1)


def test_voxel_centers_start_half_a_voxel_inside_the_box_with_z_fastest() -> None:
    centers = voxel_centers(4, radius=2.0)
    torch.testing.assert_close(centers[:2], torch.tensor([[-1.5, -1.5, -1.5], [-1.5, -1.5, -0.5]]))
    torch.testing.assert_close(centers[-1], torch.full((3,), 1.5))


@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_voxel_is_occupied_from_the_density_that_absorbs_half_the_light_across_it(radius: float) -> None:
    critical = math.log(2) / (2 * radius / 4)
    density = torch.full((4, 4, 4), critical * 0.99)
    density[1, 2, 3] = critical * 1.01
    assert occupied_voxels(density, radius).nonzero().tolist() == [[1, 2, 3]]


def test_solid_fills_what_the_outside_cannot_reach() -> None:
    assert torch.equal(solid(CUBE & ~CAVITY), CUBE)
    assert torch.equal(solid(CUBE & ~PIT), CUBE & ~PIT)
    assert solid(torch.ones(4, 4, 4, dtype=torch.bool)).all()
    assert not solid(torch.zeros(4, 4, 4, dtype=torch.bool)).any()


def test_solid_flood_does_not_slip_through_a_diagonal_of_voxels() -> None:
    shell = torch.ones(3, 3, 3, dtype=torch.bool)
    shell[1, 1, 1] = shell[0, 0, 1] = False  # empty, but they touch along an edge only
    filled = shell.clone()
    filled[1, 1, 1] = True
    assert torch.equal(solid(shell), filled)


def test_bounding_diagonal_of_a_cube_is_its_space_diagonal() -> None:
    assert bounding_diagonal(CUBE) == pytest.approx(math.sqrt(3))
    assert bounding_diagonal(CUBE, radius=2.0) == pytest.approx(2 * math.sqrt(3))
    assert bounding_diagonal(torch.zeros_like(CUBE)) is None


def test_hull_cameras_see_the_ball_in_the_box_from_all_sides() -> None:
    position = CAMERAS.c2w[:, :3, 3]
    torch.testing.assert_close(position.mean(dim=0), torch.zeros(3), atol=0.05, rtol=0)
    assert (position @ position.T / 9).fill_diagonal_(-1).amax(dim=1).min() > math.cos(math.radians(30))
    for axis in range(3):
        rim = CAMERAS.c2w[:, :3, axis]
        xy, _ = project(rim, CAMERAS.c2w, CAMERAS.intrinsics)
        assert xy.min() >= 0
        assert xy.max() <= IMAGE


def test_convex_shapes_have_no_hull_gap() -> None:
    assert visual_hull_gap(ball(), silhouettes(hits_ball), CAMERAS) == pytest.approx(0, abs=HULL_FLOOR)
    assert visual_hull_gap(CUBE, silhouettes(hits_cube), CAMERAS) == pytest.approx(0, abs=HULL_FLOOR)


def test_pit_that_no_silhouette_shows_is_the_hull_gap() -> None:
    """A quarter of the area, three quarters of the depth."""
    gap = visual_hull_gap(CUBE & ~PIT, silhouettes(hits_cube), CAMERAS)
    assert gap == pytest.approx(3 / 16, abs=HULL_FLOOR)


def test_sealed_cavity_is_no_hull_gap() -> None:
    images = silhouettes(hits_cube)
    assert visual_hull_gap(CUBE & ~CAVITY, images, CAMERAS) == visual_hull_gap(CUBE, images, CAMERAS)


def test_hull_gap_does_not_depend_on_the_unit_of_length() -> None:
    larger = hull_cameras(IMAGE, radius=2.0)
    images = silhouettes(lambda origins, directions: hits_ball(origins, directions, 1.2), larger)
    gap = visual_hull_gap(ball(), images, larger, radius=2.0)
    assert gap == pytest.approx(visual_hull_gap(ball(), silhouettes(hits_ball), CAMERAS), abs=1e-3)


def test_hull_contains_the_shape_up_to_its_surface_voxels() -> None:
    hull = visual_hull(silhouettes(hits_ball), CAMERAS, resolution=RESOLUTION)
    assert (hull | ~ball(radius=0.6 - 2 / RESOLUTION)).all()
    assert not (hull & ~ball(radius=0.6 + 2 / RESOLUTION)).any()


def test_view_carves_only_what_it_sees() -> None:
    one = hull_cameras(IMAGE, num_views=1)
    kept = visual_hull(torch.zeros(1, IMAGE, IMAGE), one, resolution=RESOLUTION).flatten()
    count = len(CENTERS)
    xy, _ = project(CENTERS, one.c2w.expand(count, 4, 4), one.intrinsics.expand(count, 3, 3))
    assert torch.equal(kept, ((xy < 0) | (xy > IMAGE)).any(dim=-1))


def test_empty_object_has_no_hull_gap_to_tell() -> None:
    assert visual_hull_gap(torch.zeros_like(CUBE), torch.zeros(64, IMAGE, IMAGE), CAMERAS) is None


def test_floater_share_is_the_share_of_the_smaller_balls_volume() -> None:
    both = ball((0.4, 0.0, 0.0), 0.4) | ball((-0.6, 0.0, 0.0), 0.2)
    assert floater_share(both) == pytest.approx(1 / 9, abs=2e-3)
    assert floater_share(ball()) == 0
    assert floater_share(torch.zeros_like(CUBE)) is None


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    occupied = torch.zeros(4, 4, 4, dtype=torch.bool)
    occupied[1, 1, 1] = occupied[2, 2, 2] = True
    assert floater_share(occupied) == 0
    occupied[2, 2, 2], occupied[3, 1, 1] = False, True
    assert floater_share(occupied) == 0.5


def test_crisp_images_are_not_fuzzy_and_half_transparent_ones_entirely() -> None:
    crisp = torch.zeros(2, 8, 8)
    crisp[:, 2:6, 2:6] = 1
    assert fuzziness(crisp) == 0
    assert fuzziness(torch.full((1, 4, 4), 0.5)) == 1
    assert fuzziness(torch.zeros(1, 4, 4)) is None


def test_fog_around_the_object_makes_it_fuzzy_and_the_empty_rest_does_not_count() -> None:
    image = torch.zeros(1, 1, 40)
    image[..., :10], image[..., 10:20] = 1.0, 0.1
    assert fuzziness(image) == pytest.approx(0.5 * 4 * 0.1 * 0.9)


def test_z_variance_is_told_in_squared_diagonals_of_foreground_pixels() -> None:
    opacity, variance = torch.tensor([[[1.0, 0.9, 0.2]]]), torch.tensor([[[0.02, 0.04, 9.0]]])
    assert relative_z_variance(variance, opacity, diagonal=2.0) == pytest.approx(0.03 / 4)
    assert relative_z_variance(variance, torch.zeros(1, 1, 3), diagonal=2.0) is None


def test_foreground_of_renders_is_where_they_are_opaque() -> None:
    rgb = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    opacity = torch.zeros(2, 4, 4)
    opacity[1, 2, 3], opacity[0, 0, 0] = 0.6, 0.5
    assert torch.equal(foreground_pixels(rgb, opacity), rgb[1, 2, 3][None])


def test_foreground_of_samples_is_what_differs_from_their_own_border() -> None:
    noise = 0.04 * torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    images = torch.tensor([[0.9, 0.9, 0.9], [0.2, 0.3, 0.4]])[:, None, None] + noise
    images[:, 5:9, 4:12] = torch.tensor([0.5, 0.1, 0.1])
    pixels = unlike_border_pixels(images)
    torch.testing.assert_close(pixels, torch.tensor([[0.5, 0.1, 0.1]]).expand(64, 3))


def grey_mix(saturation: Tensor) -> Tensor:
    """Reds of full value and given HSV saturation."""
    return torch.stack([torch.ones_like(saturation), 1 - saturation, 1 - saturation], dim=-1)


def test_saturation_distance_of_two_plain_colors_is_the_difference_of_their_saturation() -> None:
    pale, strong = grey_mix(torch.full((5,), 0.2)), grey_mix(torch.full((9,), 0.9))
    assert saturation_distance(strong, pale) == pytest.approx(0.7, abs=1 / 256)
    assert saturation_distance(pale, pale) == 0
    assert saturation_distance(pale, pale[:0]) is None


def test_saturation_of_black_is_zero() -> None:
    assert saturation_distance(torch.zeros(3, 3), torch.full((4, 3), 0.5)) == 0


def test_saturation_distance_equals_wasserstein_of_the_saturations_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(500, 3, generator=generator), torch.rand(800, 3, generator=generator) ** 2
    expected = wasserstein_distance(rgb2hsv(first.numpy())[:, 1], rgb2hsv(second.numpy())[:, 1])
    actual = saturation_distance(first, second)
    assert actual == pytest.approx(expected, abs=1 / 256)
    assert actual == saturation_distance(second, first)


def test_clipped_pixels_have_any_channel_at_an_end() -> None:
    pixels = torch.tensor([[2.9, 128, 128], [3, 3, 3], [252, 252, 252], [128, 252.1, 128]]) / 255
    assert clipped_share(pixels) == 0.5
    assert clipped_share(pixels[:0]) is None


def test_contrast_ratio_is_the_factor_of_a_stretch() -> None:
    reference = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    assert contrast_ratio((reference - 0.5) * 1.5 + 0.5, reference) == pytest.approx(1.5, rel=1e-5)
    assert contrast_ratio(reference, torch.full((5, 3), 0.5)) is None
    assert contrast_ratio(reference[:0], reference) is None


def test_single_pixel_has_no_warning_and_a_contrast_between_its_channels() -> None:
    pixel = torch.tensor([[0.0, 0.5, 1.0]])
    assert contrast_ratio(pixel, pixel) == 1
    assert saturation_distance(pixel, pixel) == 0
