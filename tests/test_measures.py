import numpy as np
import pytest

from corrdream.blocks import image_measures as images
from corrdream.blocks import measures

RESOLUTION = 96
SIDE = 2 / RESOLUTION
CENTERS = measures.voxel_centers(RESOLUTION)
RADIUS = 0.6
BALL_DIAGONAL = 2 * RADIUS * 3**0.5


def volume(signed_distance: np.ndarray) -> np.ndarray:
    return signed_distance.reshape((RESOLUTION,) * 3).astype(np.float32)


def opacity_of(signed_distance: np.ndarray, softness: float = 0.2 * SIDE) -> np.ndarray:
    """A wall of the given softness whose opacity is one half at the surface."""
    return 1 / (1 + np.exp(np.clip(signed_distance / softness, -60, 60)))


def ball(radius: float = RADIUS, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    return volume(np.linalg.norm(CENTERS - np.array(center), axis=-1) - radius)


def box(half: tuple[float, float, float], center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    return volume((np.abs(CENTERS - np.array(center)) - np.array(half)).max(axis=-1))


def directions(count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    raw = generator.normal(size=(count, 3))
    return (raw / np.linalg.norm(raw, axis=-1, keepdims=True)).astype(np.float32)


def test_voxel_centers_start_half_a_voxel_inside_the_box_with_z_fastest():
    centers = measures.voxel_centers(4)
    np.testing.assert_allclose(centers[:2], [[-0.75, -0.75, -0.75], [-0.75, -0.75, -0.25]])
    np.testing.assert_allclose(centers[-1], [0.75, 0.75, 0.75])


def test_a_voxel_is_occupied_from_the_density_that_absorbs_half_the_light_across_it():
    critical = np.log(2) / SIDE
    density = np.full((RESOLUTION,) * 3, critical)
    np.testing.assert_allclose(measures.opacity_of_density(density), 0.5)
    assert (measures.opacity_of_density(density * 1.01) > measures.OCCUPIED).all()


def test_shifted_cube_has_the_iou_of_its_overlap():
    # a shift by a quarter of the side: overlap 3/4, union 5/4
    cube, shifted = box((0.5, 0.5, 0.5)) < 0, box((0.5, 0.5, 0.5), (0.25, 0.0, 0.0)) < 0
    assert measures.volumetric_iou(shifted, cube) == pytest.approx(0.6, abs=0.01)
    assert measures.volumetric_iou(cube, cube) == 1


def test_scaled_cube_has_the_iou_of_the_volumes():
    assert measures.volumetric_iou(box((0.25,) * 3) < 0, box((0.5,) * 3) < 0) == pytest.approx(1 / 8, abs=1e-6)


def test_fog_of_the_right_shape_is_found_by_the_best_threshold():
    true = ball() < 0
    fog = np.where(true, 0.3, 0.1)
    assert not (fog > measures.OCCUPIED).any()
    assert measures.best_threshold_iou(fog, true) == 1
    assert measures.best_threshold_iou(np.full_like(fog, 0.3), true) == pytest.approx(true.mean())


def test_hollow_ball_is_penalized_raw_and_not_as_a_solid():
    true = ball() < 0
    shell = true & (ball(0.5) > 0)
    assert measures.volumetric_iou(shell, true) == pytest.approx(1 - (0.5 / 0.6) ** 3, abs=0.01)
    assert measures.volumetric_iou(measures.solid(shell), true) == 1


def test_open_cup_is_not_filled():
    cup = (box((0.5, 0.5, 0.5)) < 0) & ~(box((0.4, 0.4, 0.5), (0.0, 0.0, 0.1)) < 0)
    np.testing.assert_array_equal(measures.solid(cup), cup)


def test_ends_at_the_border_of_the_box_enclose_as_they_do_elsewhere():
    tube = (box((0.5, 0.5, 1.0)) < 0) & ~(box((0.4, 0.4, 1.0)) < 0)
    np.testing.assert_array_equal(measures.solid(tube), tube)


def test_turned_shape_is_found_again_by_the_best_yaw():
    true = box((0.6, 0.25, 0.3), (0.1, 0.0, 0.0)) < 0
    turned = box((0.25, 0.6, 0.3), (0.0, 0.1, 0.0)) < 0  # by 90 degrees
    assert measures.volumetric_iou(turned, true) < 0.45
    iou, yaw = measures.best_yaw_iou(turned, true)
    assert (iou, yaw) == (pytest.approx(1, abs=0.02), 270)


def test_mirrored_shape_is_not_found_by_any_yaw():
    arms = (box((0.6, 0.1, 0.1)) < 0) | (box((0.1, 0.3, 0.1), (0.5, 0.3, 0.0)) < 0) | (box((0.1, 0.1, 0.3)) < 0)
    iou, _ = measures.best_yaw_iou(arms[:, ::-1], arms)
    assert iou < 0.8


def test_round_shape_keeps_its_yaw():
    assert measures.best_yaw_iou(ball() < 0, ball() < 0)[1] == 0


def test_second_blob_is_a_floater_by_its_share_of_the_volume():
    small = ball(0.2, (0.0, 0.0, 0.78)) < 0
    opacity = ((ball(0.5) < 0) | small).astype(np.float32)
    expected = 0.2**3 / (0.2**3 + 0.5**3)
    assert measures.floater_fraction(opacity, ball(0.5)) == pytest.approx(expected, rel=0.03)
    assert measures.floater_fraction((ball(0.5) < 0).astype(np.float32), ball(0.5)) == 0
    assert measures.floater_fraction(np.zeros_like(opacity), ball(0.5)) is None


def test_surface_points_are_uniform_in_area_with_outward_normals():
    vertices, triangles = measures.surface_mesh(-ball(), 0.0)
    points, normals = measures.sample_surface(vertices, triangles, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), RADIUS, atol=1e-3)
    assert ((points / RADIUS) * normals).sum(axis=-1).min() > 0.9
    # a cap of height h has the share h / (2 r) of a sphere's area
    assert (points[:, 2] > 0.3).mean() == pytest.approx(0.25, abs=0.01)


def test_no_surface_gives_no_triangles():
    vertices, triangles = measures.surface_mesh(np.zeros((8, 8, 8), np.float32), 0.5)
    assert len(vertices) == len(triangles) == 0


def test_object_at_the_border_is_closed_there():
    vertices, triangles = measures.surface_mesh(np.ones((16, 16, 16), np.float32), 0.5)
    assert measures.hull_deficit(vertices, triangles) == pytest.approx(0, abs=0.01)


def test_inner_walls_and_the_floor_of_a_deep_cup_seen_from_below_are_not_visible():
    occupied = (ball(0.7) < 0) & ~(ball(0.4) < 0)
    outer, inner = directions(200), directions(200)
    positions = 3 * directions(64)
    assert measures.visible_from(0.7 * outer, outer, occupied, positions).all()
    assert not measures.visible_from(0.4 * inner, -inner, occupied, positions).any()
    from_above = measures.visible_from(0.7 * outer, outer, occupied, np.array([[0.0, 0.0, 3.0]]))
    np.testing.assert_array_equal(from_above[np.abs(outer[:, 2]) > 0.45], outer[np.abs(outer[:, 2]) > 0.45, 2] > 0)


def test_chamfer_of_concentric_spheres_is_the_gap_between_them():
    unit = directions(30_000)
    near, at_one, at_two = measures.chamfer_and_f(0.63 * unit, 0.6 * unit, 1.0)
    assert near == pytest.approx(0.03, abs=0.002)
    assert (at_one, at_two) == (0, 0)
    near, at_one, at_two = measures.chamfer_and_f(0.615 * unit, 0.6 * unit, 1.0)
    assert near == pytest.approx(0.015, abs=0.003)
    assert (at_one, at_two) == (0, pytest.approx(1, abs=0.01))


def test_f_score_is_the_harmonic_mean_of_precision_and_recall():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), [0.0]), axis=-1).reshape(-1, 3)
    # half of the true points are predicted, and all predicted points are true: P = 1, R = 1/2
    _, at_one, _ = measures.chamfer_and_f(grid[:50], grid, 1.0)
    assert at_one == pytest.approx(2 / 3)


@pytest.mark.parametrize("depth", [0.05, 0.12])
def test_dent_of_known_depth_and_area_is_measured(depth):
    # a ball whose cap above z = height is pushed in along the radius by `depth`
    height = 0.4
    inside_cap = CENTERS[:, 2] > height / RADIUS * np.linalg.norm(CENTERS, axis=-1)
    radius = np.where(inside_cap, RADIUS - depth, RADIUS)
    dented = opacity_of(volume(np.linalg.norm(CENTERS, axis=-1) - radius))
    unit = directions(20_000)
    depths = measures.dent_depths(dented, RADIUS * unit, unit, BALL_DIAGONAL)
    share = (1 - height / RADIUS) / 2
    assert depths.mean() == pytest.approx(share * depth / BALL_DIAGONAL, rel=0.1, abs=1e-3)
    assert (depths > 0.02).mean() == pytest.approx(share, abs=0.02)
    assert measures.bulge_heights(dented, RADIUS * unit, unit, BALL_DIAGONAL).mean() < 1e-3


def test_bulge_of_known_height_is_measured_and_is_no_dent():
    unit = directions(20_000)
    swollen = opacity_of(ball(RADIUS + 0.06))
    heights = measures.bulge_heights(swollen, RADIUS * unit, unit, BALL_DIAGONAL)
    assert heights.mean() == pytest.approx(0.06 / BALL_DIAGONAL, abs=1e-3)
    assert measures.dent_depths(swollen, RADIUS * unit, unit, BALL_DIAGONAL).max() == 0


def test_dents_of_nothing_are_capped():
    unit = directions(100)
    depths = measures.dent_depths(np.zeros((RESOLUTION,) * 3), RADIUS * unit, unit, BALL_DIAGONAL)
    np.testing.assert_allclose(depths, measures.TRAVEL_CAP)


def test_convex_shapes_have_no_hull_deficit_and_a_bite_has_its_own_volume():
    for shape in (ball(), box((0.5, 0.4, 0.3))):
        assert measures.hull_deficit(*measures.surface_mesh(opacity_of(shape), 0.5)) == pytest.approx(0, abs=0.01)
    # a slot of 1/3 x 1/3 of the box's section, open at one side
    slotted = np.maximum(box((0.6, 0.6, 0.6)), -box((0.2, 0.7, 0.2), (0.0, 0.0, 0.4)))
    deficit = measures.hull_deficit(*measures.surface_mesh(opacity_of(slotted), 0.5))
    assert deficit == pytest.approx(1 / 9, abs=0.01)


def test_interpolation_is_exact_for_linear_functions():
    values = volume(CENTERS @ np.array([1.0, 2.0, -3.0]))
    points = np.random.default_rng(0).uniform(-0.9, 0.9, size=(100, 3)).astype(np.float32)
    np.testing.assert_allclose(measures.interpolate(values, points), points @ np.array([1.0, 2.0, -3.0]), atol=1e-5)


def disk(radius: float, size: int = 64) -> np.ndarray:
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return (np.hypot(axis[:, None], axis[None]) < radius)[None]


def test_silhouette_iou_of_concentric_disks_is_the_ratio_of_their_areas():
    assert images.silhouette_iou(disk(0.4), disk(0.8)) == pytest.approx(0.25, abs=0.02)
    both_views = np.concatenate([disk(0.4), disk(0.8)]), np.concatenate([disk(0.8), disk(0.8)])
    assert images.silhouette_iou(*both_views) == pytest.approx(0.625, abs=0.01)


def test_depth_error_is_the_mean_over_common_pixels_in_diagonals():
    true, both = np.full((1, 64, 64), 3.0), disk(0.5)
    shifted = np.where(np.arange(64) < 32, 3.0, 3.2)[None, None].repeat(64, axis=1)
    error, share = images.depth_errors(shifted, true, both, 2.0)
    assert (error, share) == (pytest.approx(0.05), pytest.approx(0.5))
    assert images.depth_errors(shifted, true, np.zeros_like(both), 2.0) is None


def test_normals_of_a_tilted_plane_are_exact_and_point_to_the_camera():
    columns, rows = np.meshgrid(np.arange(16.0), np.arange(16.0))
    # seen from +z: columns run along +x, rows along -y; the plane rises 1/2 along x
    positions = np.stack([columns, -rows, 0.5 * columns], axis=-1)[None]
    expected = np.array([-0.5, 0.0, 1.0]) / np.sqrt(1.25)
    normals, valid = images.normals_of_positions(positions, np.ones((1, 16, 16), bool))
    np.testing.assert_allclose(normals[valid], np.broadcast_to(expected, normals[valid].shape), atol=1e-6)
    assert valid.sum() == 14 * 14
    upright = np.broadcast_to([0.0, 0.0, 1.0], positions.shape)
    flat = positions * [1.0, 1.0, 0.0]
    error = images.normal_error(positions, flat, upright, np.ones((1, 16, 16), bool))
    assert error == pytest.approx(np.degrees(np.arctan(0.5)))


def test_normals_across_an_edge_are_not_judged():
    columns, rows = np.meshgrid(np.arange(16.0), np.arange(16.0))
    roof = np.stack([columns, -rows, -np.abs(columns - 8)], axis=-1)[None]  # a ridge along column 8
    normals = np.stack([np.sign(columns - 8), 0 * rows, 1 + 0 * rows], axis=-1)[None] / np.sqrt(2)
    every = np.ones((1, 16, 16), bool)
    assert images.normal_error(roof, roof, normals, every) == pytest.approx(0, abs=1e-3)


def test_color_error_of_lightness_steps_is_ciede2000():
    # Sharma, Wu and Dalal (2005) give CIEDE2000; for greys it is the lightness step over S_L
    first, second = np.full((50, 3), 0.5), np.full((50, 3), 0.6)
    lightness = [116 * (((v + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16 for v in (0.5, 0.6)]
    middle = (sum(lightness) / 2 - 50) ** 2
    expected = (lightness[1] - lightness[0]) / (1 + 0.015 * middle / np.sqrt(20 + middle))
    mean, median = images.color_errors(first, second)
    assert (mean, median) == (pytest.approx(expected, abs=1e-2), pytest.approx(expected, abs=1e-2))
    assert images.color_errors(first, first) == (0, 0)
    assert images.color_errors(first[:0], first[:0]) is None


PALETTE = {"red": (0.85, 0.1, 0.1), "blue": (0.12, 0.28, 0.85), "white": (0.95, 0.95, 0.95)}


def test_attribute_accuracy_is_the_share_of_parts_with_the_right_nearest_color():
    true = np.array([PALETTE["red"]] * 40 + [PALETTE["blue"]] * 40 + [PALETTE["white"]] * 40 + [PALETTE["red"]] * 5)
    part = np.repeat([0, 1, 2, 3], [40, 40, 40, 5])  # the last is too small to be judged
    predicted = true * 0.8 + 0.05
    assert images.attribute_accuracy(predicted, true, part, PALETTE) == 1
    predicted[40:80] = PALETTE["white"]
    assert images.attribute_accuracy(predicted, true, part, PALETTE) == pytest.approx(2 / 3)


def test_patterned_part_counts_once_a_color():
    true = np.array([PALETTE["red"], PALETTE["white"]] * 40)
    predicted = np.broadcast_to(PALETTE["red"], true.shape)
    assert images.attribute_accuracy(predicted, true, np.zeros(80, int), PALETTE) == 0.5


def test_saturation_measures_of_a_stretched_image():
    true = np.random.default_rng(0).uniform(0.3, 0.7, size=(1000, 3))
    stretched = (true - true.mean()) * 1.4 + true.mean()
    assert images.saturation_ratio(stretched, true) == pytest.approx(1.4)
    assert images.saturation_shift(stretched, true) > 0.05
    assert images.saturation_shift(true, true) == 0
    assert images.clipped_share(true) == 0
    assert images.clipped_share(np.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 1.0, 0.5], [0.2, 0.5, 0.5]])) == 0.5
    assert images.saturation_ratio(true, np.full_like(true, 0.5)) is None


def panorama(*spots: int) -> np.ndarray:
    entries = np.zeros((180, 64), np.int64)
    for azimuth in spots:
        entries[np.arange(azimuth - 8, azimuth + 8) % 180, 20:40] = 1
    return entries


def test_second_face_is_counted_and_a_region_across_azimuth_zero_is_one():
    true = panorama(0)
    assert images.janus_regions(panorama(0), true) == 1
    assert images.janus_regions(panorama(0, 90), true) == 2
    assert images.janus_regions(panorama(0, 60, 120), true) == 3
    assert images.janus_regions(panorama(), true) == 0


def test_specks_of_the_marker_color_are_no_face():
    speckled = panorama(0)
    speckled[90:93, 50:53] = 1
    assert images.janus_regions(speckled, panorama(0)) == 1


def test_shapes_without_a_unique_marker_have_no_janus_count():
    assert images.janus_regions(panorama(0), panorama()) is None
    assert images.janus_regions(panorama(0), panorama(0, 90)) is None
