"""Pinhole geometry: known cameras, round trips, and the conventions that everything else relies on."""

import math

import pytest
import torch
from torch import Tensor

from corrdream.cameras import (
    camera_rays,
    clip_from_world,
    distance_to_depth,
    intrinsics_from_fovy,
    lights_at_cameras,
    look_at,
    normalize_camera,
    orbit_cameras,
    place_lights,
    preview_poses,
    project,
    shift_azimuth,
    spherical_position,
    unproject,
    y_up_to_z_up,
)
from corrdream.structures import CameraBatch, LightBatch


def random_cameras(count: int, seed: int = 0) -> CameraBatch:
    """Cameras in float64 that look past the origin, with off-centre principal points and unequal focal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    azimuth, elevation, distance = 6 * uniform(count), uniform(count) - 0.3, 2 + uniform(count)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) + 0.1 * uniform(count, 3)
    intrinsics = intrinsics_from_fovy(0.4 + uniform(count), 20, 30)
    intrinsics[:, 0, 0] *= 1.2
    intrinsics[:, :2, 2] += 2 * uniform(count, 2)
    return CameraBatch(
        c2w=look_at(spherical_position(azimuth, elevation, distance), 0.3 * uniform(count, 3), up),
        intrinsics=intrinsics,
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        height=20,
        width=30,
    )


def random_lights(count: int) -> LightBatch:
    generator = torch.Generator().manual_seed(5)
    offset = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return place_lights(torch.ones(count, 3, dtype=torch.float64), offset, torch.ones(count, dtype=torch.float64))


def random_pixels(cameras: CameraBatch) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    return torch.rand(len(cameras.c2w), 2, generator=generator, dtype=torch.float64) * size


def test_camera_on_the_x_axis_sees_y_to_its_right_and_z_upwards() -> None:
    c2w = look_at(torch.tensor([[2.0, 0, 0]]), torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]))
    expected = torch.tensor([[0.0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(c2w[0], expected)


def test_field_of_view_of_90_degrees_has_a_focal_length_of_half_the_height() -> None:
    expected = torch.tensor([[32.0, 0, 24], [0, 32, 32], [0, 0, 1]])
    torch.testing.assert_close(intrinsics_from_fovy(torch.tensor([math.pi / 2]), 64, 48)[0], expected)


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "expected"),
    [(0.0, 0.0, [2.0, 0, 0]), (90.0, 0.0, [0.0, 2, 0]), (180.0, 0.0, [-2.0, 0, 0]), (123.0, 90.0, [0.0, 0, 2])],
)
def test_azimuth_turns_from_x_to_y_and_elevation_to_z(
    azimuth_deg: float, elevation_deg: float, expected: list[float]
) -> None:
    azimuth, elevation = torch.deg2rad(torch.tensor([[azimuth_deg], [elevation_deg]], dtype=torch.float32))
    torch.testing.assert_close(
        spherical_position(azimuth, elevation, torch.tensor([2.0]))[0], torch.tensor(expected), atol=1e-6, rtol=0
    )


def test_origin_of_the_world_is_in_the_middle_of_every_orbit_image() -> None:
    cameras = orbit_cameras(7, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=32, width=48)
    xy, depth = project(torch.zeros(7, 3), cameras.c2w, cameras.intrinsics)
    torch.testing.assert_close(xy, torch.tensor([[24.0, 16.0]]).expand(7, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, torch.full((7,), 3.0))


def test_orbit_steps_are_equal_and_reach_the_end_only_when_asked() -> None:
    options = {"elevation_deg": 0.0, "distance": 1.0, "fovy_deg": 40.0, "height": 8, "width": 8}
    closed = torch.rad2deg(orbit_cameras(5, **options, include_end=True).azimuth)
    torch.testing.assert_close(closed, torch.tensor([0.0, 90, 180, 270, 360]))
    half_open = torch.rad2deg(orbit_cameras(4, **options).azimuth)
    torch.testing.assert_close(half_open, torch.tensor([0.0, 90, 180, 270]))
    torch.testing.assert_close(orbit_cameras(1, **options, include_end=True).azimuth, torch.zeros(1))


def test_rays_are_ordered_by_view_then_row_then_column() -> None:
    cameras = orbit_cameras(2, elevation_deg=0.0, distance=2.0, fovy_deg=60.0, height=3, width=5)
    rays = camera_rays(cameras)
    directions = rays.directions.reshape(2, 3, 5, 3)
    torch.testing.assert_close(directions[0, 1, 2], torch.tensor([-1.0, 0, 0]))  # the centre pixel of the camera on +x
    assert (directions[0, 0, :, 2] > 0).all(), "row 0 looks up"
    assert (directions[0, :, 0, 1] < 0).all(), "column 0 looks left, to -y"
    torch.testing.assert_close(rays.origins.reshape(2, 15, 3)[1], torch.tensor([-2.0, 0, 0]).expand(15, 3))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_poses_are_rotations_and_no_pose_depends_on_the_others(count: int) -> None:
    """Three cameras too, where a cross product without a named axis takes the wrong one."""
    generator = torch.Generator().manual_seed(2)
    position, center = torch.rand(2, count, 3, generator=generator, dtype=torch.float64)
    up = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).expand(count, 3)
    c2w = look_at(position, center, up)
    rotation = c2w[:, :3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3, dtype=torch.float64).expand(count, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(count, dtype=torch.float64))
    alone = [look_at(position[i : i + 1], center[i : i + 1], up[i : i + 1]) for i in range(count)]
    torch.testing.assert_close(c2w, torch.cat(alone))


def test_unproject_inverts_project() -> None:
    cameras = random_cameras(50)
    xy, depth = random_pixels(cameras), torch.linspace(0.5, 4, 50, dtype=torch.float64)
    world = unproject(xy, depth, cameras.c2w, cameras.intrinsics)
    xy_again, depth_again = project(world, cameras.c2w, cameras.intrinsics)
    torch.testing.assert_close(xy_again, xy)
    torch.testing.assert_close(depth_again, depth)


def test_points_along_a_ray_project_to_its_pixel_centre_at_the_converted_depth() -> None:
    cameras = random_cameras(1)
    rays = camera_rays(cameras)
    count = len(rays.origins)
    distance = torch.linspace(0.5, 5, count, dtype=torch.float64)
    points = rays.origins + distance[:, None] * rays.directions
    c2w, intrinsics = cameras.c2w.expand(count, 4, 4), cameras.intrinsics.expand(count, 3, 3)
    xy, depth = project(points, c2w, intrinsics)
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    torch.testing.assert_close(xy, torch.stack([columns, rows], dim=-1).reshape(-1, 2) + 0.5, check_dtype=False)
    torch.testing.assert_close(distance_to_depth(distance, xy, intrinsics), depth)


def test_distance_exceeds_depth_at_the_corner_as_much_as_the_field_of_view_says() -> None:
    intrinsics = intrinsics_from_fovy(torch.deg2rad(torch.tensor([15.0, 40.0, 60.0])), 64, 64)
    depth = distance_to_depth(torch.ones(3), torch.zeros(3, 2), intrinsics)
    torch.testing.assert_close(1 / depth, torch.tensor([1.0172, 1.1247, 1.2910]), atol=1e-4, rtol=0)


def test_clip_space_agrees_with_projection() -> None:
    cameras = random_cameras(20)
    xy, depth = random_pixels(cameras), torch.linspace(0.2, 9, 20, dtype=torch.float64)
    world = unproject(xy, depth, cameras.c2w, cameras.intrinsics)
    near, far = 0.1, 10.0
    homogeneous = torch.cat([world, torch.ones_like(world[:, :1])], dim=-1)
    clip = torch.einsum("bij,bj->bi", clip_from_world(cameras, near, far), homogeneous)
    ndc = clip[:, :3] / clip[:, 3:]
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float64)
    torch.testing.assert_close((ndc[:, :2] + 1) / 2 * size, xy)
    torch.testing.assert_close(2 * near * far / (far + near - ndc[:, 2] * (far - near)), depth)


def test_shifted_views_turn_about_the_z_axis() -> None:
    cameras = orbit_cameras(4, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=8, width=8)
    angle = math.radians(25)
    twins, lights = shift_azimuth(cameras, lights_at_cameras(cameras), torch.full((4,), angle))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(twins.c2w, turn @ cameras.c2w)
    torch.testing.assert_close(lights.position, twins.c2w[:, :3, 3])
    assert torch.equal(twins.intrinsics, cameras.intrinsics)


def test_shift_of_zero_is_the_identity_for_unperturbed_cameras_of_any_shift_a_view() -> None:
    cameras = orbit_cameras(3, elevation_deg=-10.0, distance=2.0, fovy_deg=30.0, height=8, width=8)
    twins, _ = shift_azimuth(cameras, lights_at_cameras(cameras), torch.tensor([0.0, 0.1, -0.2]))
    torch.testing.assert_close(twins.c2w[0], cameras.c2w[0])
    torch.testing.assert_close(twins.azimuth - cameras.azimuth, torch.tensor([0.0, 0.1, -0.2]))


def test_lights_stand_at_their_distance_and_keep_their_offset() -> None:
    cameras, lights = random_cameras(4), random_lights(4)
    _, moved = shift_azimuth(cameras, lights, torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(moved.position.norm(dim=-1), lights.distance)
    assert torch.equal(moved.offset, lights.offset)
    assert torch.equal(moved.distance, lights.distance)


def test_conditioning_has_unit_translation_and_leaves_its_argument_alone() -> None:
    cameras = random_cameras(4)
    before = cameras.c2w.clone()
    condition = normalize_camera(cameras.c2w).reshape(4, 4, 4)
    assert torch.equal(cameras.c2w, before)
    torch.testing.assert_close(condition[:, :3, 3].norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(condition[:, :3, :3], before[:, :3, :3])
    assert torch.equal(condition[:, 3], before[:, 3])


def test_conditioning_of_a_camera_at_the_origin_is_finite() -> None:
    assert torch.equal(normalize_camera(torch.eye(4)[None]), torch.eye(4).reshape(1, 16))


def test_preview_poses_are_the_training_orbit_a_quarter_turn_back() -> None:
    poses = preview_poses(4, elevation_deg=15.0, azimuth_start_deg=90.0)
    orbit = orbit_cameras(4, elevation_deg=15.0, distance=1.0, fovy_deg=40.0, height=8, width=8)
    torch.testing.assert_close(poses, orbit.c2w, atol=1e-6, rtol=0)


def test_change_of_world_turns_y_up_into_z_up() -> None:
    poses = preview_poses(3, elevation_deg=30.0, azimuth_start_deg=10.0, z_up=False)
    turned = y_up_to_z_up(poses)
    torch.testing.assert_close(turned[:, 2, 3], poses[:, 1, 3])
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(3))


def test_geometry_keeps_its_precision_under_autocast() -> None:
    cameras = orbit_cameras(3, elevation_deg=17.0, distance=3.0, fovy_deg=40.0, height=16, width=16)

    def everything() -> list[Tensor]:
        rays = camera_rays(cameras)
        world = unproject(torch.full((3, 2), 5.0), torch.ones(3), cameras.c2w, cameras.intrinsics)
        twins, _ = shift_azimuth(cameras, lights_at_cameras(cameras), torch.ones(3))
        xy, depth = project(world, twins.c2w, cameras.intrinsics)
        return [rays.directions, world, twins.c2w, xy, depth, clip_from_world(cameras, 0.1, 10.0)]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = everything()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_pinhole_projection_equals_the_matrix_formula() -> None:
    """x ~ K diag(1, -1, -1) inverse(c2w) X, computed with general inverses."""
    cameras = random_cameras(10)
    world = torch.linspace(-0.5, 0.5, 30, dtype=torch.float64).reshape(10, 3)
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    w2c = flip @ torch.linalg.inv(cameras.c2w)
    local = (w2c @ torch.cat([world, torch.ones(10, 1, dtype=torch.float64)], dim=-1)[..., None])[:, :3]
    homogeneous = (cameras.intrinsics @ local)[..., 0]
    xy, depth = project(world, cameras.c2w, cameras.intrinsics)
    torch.testing.assert_close(xy, homogeneous[:, :2] / homogeneous[:, 2:])
    torch.testing.assert_close(depth, homogeneous[:, 2])


def test_gradients_of_geometry_are_right() -> None:
    cameras = random_cameras(4)
    xy = random_pixels(cameras).requires_grad_()
    depth = torch.linspace(1, 3, 4, dtype=torch.float64).requires_grad_()
    c2w, intrinsics = cameras.c2w.clone().requires_grad_(), cameras.intrinsics
    assert torch.autograd.gradcheck(lambda *a: unproject(*a, intrinsics), (xy, depth, c2w))
    world = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: project(*a, intrinsics), (world, c2w))
    assert torch.autograd.gradcheck(lambda *a: distance_to_depth(*a, intrinsics), (depth, xy))
    position, center = (3 * world).detach().requires_grad_(), world
    up = torch.tensor([[0.0, 0.1, 1.0]], dtype=torch.float64).expand(4, 3)
    assert torch.autograd.gradcheck(lambda a, b: look_at(a - 5, b, up), (position, center))
    assert torch.autograd.gradcheck(normalize_camera, (c2w,))
