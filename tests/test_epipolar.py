"""Two-view geometry: known pairs, agreement with the projection of points, and which matches survive."""

import math

import pytest
import torch
from torch import Tensor

from corrdream.cameras import intrinsics_from_fovy, look_at, project
from corrdream.correspondence.epipolar import (
    apply,
    containing_pixel,
    epipolar_lines,
    fundamental_matrices,
    homogeneous,
    inverse_intrinsics,
    is_close,
    is_inside,
    max_distance,
    multiply,
    opencv_pose,
    pixel_centers,
    project_matches,
    relative_motion,
)
from corrdream.structures import CameraBatch

SIZE = 40


def cameras_at(position: Tensor, center: Tensor, fovy_rad: float = 0.8) -> CameraBatch:
    count = len(position)
    up = position.new_tensor([0.0, 0.0, 1.0]).expand(count, 3)
    intrinsics = intrinsics_from_fovy(position.new_full((count,), fovy_rad), SIZE, SIZE)
    intrinsics[:, 0, 0] *= 1.1  # neither square pixels nor a centred principal point are taken for granted
    intrinsics[:, 0, 2] += 1.5
    zero = position.new_zeros(count)
    return CameraBatch(
        c2w=look_at(position, center, up),
        intrinsics=intrinsics,
        azimuth=zero,
        elevation=zero,
        distance=position.norm(dim=1),
        height=SIZE,
        width=SIZE,
    )


def random_pair(count: int = 20) -> tuple[CameraBatch, CameraBatch]:
    generator = torch.Generator().manual_seed(0)

    def around(center: list[float], spread: float) -> Tensor:
        noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        return torch.tensor(center, dtype=torch.float64) + spread * noise

    source = cameras_at(around([3.0, 0.0, 0.5], 0.2), around([0.0, 0.0, 0.0], 0.1))
    return source, cameras_at(around([2.6, 1.5, 0.8], 0.2), around([0.0, 0.0, 0.0], 0.1), fovy_rad=0.7)


def random_points(count: int = 20) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5


def sideways_pair(shift: list[float]) -> tuple[CameraBatch, CameraBatch]:
    """Parallel cameras looking along -x from x = 3; the target is moved by `shift`."""
    position = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
    moved = torch.tensor([shift], dtype=torch.float64)
    return cameras_at(position, position * 0), cameras_at(position + moved, moved)


def test_lines_of_a_sideways_move_are_rows() -> None:
    source, target = sideways_pair([0.0, 0.5, 0.0])
    xy = torch.tensor([[10.5, 7.5]], dtype=torch.float64)
    line = epipolar_lines(fundamental_matrices(source, target), xy)[0]
    torch.testing.assert_close(-line[2] / line[1], torch.tensor(7.5, dtype=torch.float64))
    assert abs(line[0] / line[1]) < 1e-12


def test_opencv_camera_sees_points_in_front_at_positive_depth() -> None:
    source, _ = sideways_pair([0.0, 0.5, 0.0])
    point = torch.tensor([0.0, 0.0, 0.2, 1.0], dtype=torch.float64)  # above the middle of the image
    local = torch.linalg.inv(opencv_pose(source.c2w)[0]) @ point
    torch.testing.assert_close(local, torch.tensor([0.0, -0.2, 3.0, 1.0], dtype=torch.float64))


def test_relative_motion_takes_points_from_source_to_target() -> None:
    source, target = random_pair()
    expected = torch.linalg.inv(opencv_pose(target.c2w)) @ opencv_pose(source.c2w)
    torch.testing.assert_close(relative_motion(source, target), expected)


def test_projections_of_a_point_satisfy_the_epipolar_constraint() -> None:
    source, target = random_pair()
    source_xy, _ = project(random_points(), source.c2w, source.intrinsics)
    target_xy, _ = project(random_points(), target.c2w, target.intrinsics)
    lines = epipolar_lines(fundamental_matrices(source, target), source_xy)
    distance = (lines * homogeneous(target_xy)).sum(dim=1) / lines[:, :2].norm(dim=1)
    assert distance.abs().max() < 1e-9


def test_fundamental_matrix_equals_the_textbook_formula() -> None:
    source, target = random_pair()
    fundamental = fundamental_matrices(source, target)
    for view in range(len(fundamental)):
        motion = torch.linalg.inv(opencv_pose(target.c2w)[view]) @ opencv_pose(source.c2w)[view]
        x, y, z = motion[:3, 3].tolist()
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        to_target = torch.linalg.inv(target.intrinsics[view]).T
        expected = to_target @ cross @ motion[:3, :3] @ torch.linalg.inv(source.intrinsics[view])
        torch.testing.assert_close(fundamental[view], expected)
        assert torch.linalg.matrix_rank(fundamental[view], rtol=1e-9) == 2


def test_small_products_equal_matrix_products() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, 3, 3, generator=generator) for _ in range(2))
    torch.testing.assert_close(multiply(left, right), left @ right)
    torch.testing.assert_close(apply(left, right[:, 0]), (left @ right[:, 0, :, None])[..., 0])


def test_inverse_intrinsics_invert() -> None:
    source, _ = random_pair(3)
    identity = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(inverse_intrinsics(source.intrinsics) @ source.intrinsics, identity)


def test_geometry_is_not_rounded_under_autocast() -> None:
    source, target = sideways_pair([0.0, 0.5, 0.1])
    expected = fundamental_matrices(source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fundamental_matrices(source, target), expected)


@pytest.mark.parametrize("projection", ["border_points", "normal_form"])
def test_projection_is_the_nearest_point_of_the_line(projection: str) -> None:
    source, target = random_pair()
    source_xy, _ = project(random_points(), source.c2w, source.intrinsics)
    lines = epipolar_lines(fundamental_matrices(source, target), source_xy)
    xy = SIZE * torch.rand(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    foot = project_matches(lines, xy, width=SIZE, projection=projection)  # type: ignore[arg-type]  # parametrized
    assert bool(is_inside(foot, width=SIZE, height=10 * SIZE).any())
    torch.testing.assert_close((lines * homogeneous(foot)).sum(dim=1), torch.zeros(20, dtype=torch.float64))
    inside = (foot[:, 0] > 0) & (foot[:, 0] < SIZE)
    along = torch.stack([lines[:, 1], -lines[:, 0]], dim=1)
    perpendicular = ((xy - foot) * along).sum(dim=1)[inside]
    torch.testing.assert_close(perpendicular, torch.zeros_like(perpendicular))


def test_both_projections_agree_inside_the_image() -> None:
    lines = torch.tensor([[0.5, 1.0, -20.0]]).expand(SIZE, 3)
    xy = torch.stack([torch.linspace(5, 30, SIZE), torch.linspace(5, 15, SIZE)], dim=1)
    border = project_matches(lines, xy, width=SIZE, projection="border_points")
    torch.testing.assert_close(project_matches(lines, xy, width=SIZE, projection="normal_form"), border)


def test_border_projection_stops_at_the_image_sides() -> None:
    line, xy = torch.tensor([[-1.0, 1.0, 0.0]]), torch.tensor([[-3.0, -5.0]])
    torch.testing.assert_close(project_matches(line, xy, width=SIZE, projection="border_points"), torch.zeros(1, 2))
    foot = project_matches(line, xy, width=SIZE, projection="normal_form")
    torch.testing.assert_close(foot, torch.tensor([[-4.0, -4.0]]))


def test_vertical_lines_are_lost_between_border_points_only() -> None:
    source, target = sideways_pair([0.0, 0.0, 0.5])
    xy = torch.tensor([[10.5, 7.5]], dtype=torch.float64)
    line = epipolar_lines(fundamental_matrices(source, target), xy)
    line = torch.where(line.abs() < 1e-12, 0, line)
    matched = torch.tensor([[11.0, 30.0]], dtype=torch.float64)
    lost = project_matches(line, matched, width=SIZE, projection="border_points")
    assert not is_close(matched, lost, 100.0)
    assert not is_inside(lost, width=SIZE, height=SIZE)
    foot = project_matches(line, matched, width=SIZE, projection="normal_form")
    torch.testing.assert_close(foot, torch.tensor([[10.5, 30.0]], dtype=torch.float64))


def test_equal_cameras_have_no_lines_and_lose_their_matches() -> None:
    source, _ = sideways_pair([0.0, 0.5, 0.0])
    xy = torch.tensor([[10.5, 7.5]], dtype=torch.float64)
    line = epipolar_lines(fundamental_matrices(source, source), xy)
    assert not is_close(xy, project_matches(line, xy, width=SIZE, projection="normal_form"), 100.0)


@pytest.mark.parametrize(
    ("unit", "side", "expected"),
    [
        ("squared_pixels", 32, math.sqrt(2)),
        ("squared_pixels", 128, math.sqrt(2)),
        ("scaled_pixels", 32, math.sqrt(2)),
        ("scaled_pixels", 128, 4 * math.sqrt(2)),
    ],
)
def test_scaled_threshold_grows_with_the_image_side(unit: str, side: int, expected: float) -> None:
    assert max_distance(2.0, unit, side) == pytest.approx(expected)  # type: ignore[arg-type]  # parametrized


def test_inside_is_strict_and_nan_is_outside() -> None:
    xy = torch.tensor([[0.0, 1.0], [0.1, 1.0], [8.0, 1.0], [1.0, 4.0], [7.9, 3.9], [torch.nan, 1.0]])
    assert is_inside(xy, width=8, height=4).tolist() == [False, True, False, False, True, False]


def test_containing_pixel_of_points_inside_and_out() -> None:
    xy = torch.tensor([[0.5, 0.5], [7.99, 3.01], [-5.0, 100.0], [torch.nan, torch.nan]])
    assert containing_pixel(xy, width=8, height=4).tolist() == [0, 31, 24, 0]


def test_pixel_centers_are_half_a_pixel_in() -> None:
    centers = pixel_centers(torch.tensor([0, 9]), 8, like=torch.zeros(1))
    torch.testing.assert_close(centers, torch.tensor([[0.5, 0.5], [1.5, 1.5]]))


def test_projection_passes_gradcheck() -> None:
    lines = torch.tensor([[0.3, 1.0, -20.0], [-0.5, 2.0, -5.0]], dtype=torch.float64, requires_grad=True)
    xy = torch.tensor([[10.0, 12.0], [20.0, 9.0]], dtype=torch.float64, requires_grad=True)
    for projection in ("border_points", "normal_form"):
        assert torch.autograd.gradcheck(
            lambda lines, xy, kind=projection: project_matches(lines, xy, width=SIZE, projection=kind), (lines, xy)
        )
