"""A ball of known radius and colors becomes a mesh, and every format brings it back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from corrdream.export import (
    Atlas,
    ExportError,
    Mesh,
    MeshFormat,
    albedo_function,
    automatic_threshold,
    density_grid,
    extract_mesh,
    largest_components,
    otsu_threshold,
    paint,
    rasterize,
    unwrap,
    write_mesh,
)
from corrdream.structures import FieldOutput

THRESHOLD = 10.0
RADIUS = 0.5  # of the ball where the density is THRESHOLD
RESOLUTION = 24
VOXEL = 2 / (RESOLUTION - 1)


class Balls:
    """Density that falls linearly with the distance to the nearest of some balls; colors follow the position."""

    def __init__(self, *balls: tuple[tuple[float, float, float], float]) -> None:
        self.balls = balls or (((0.0, 0.0, 0.0), RADIUS),)

    def density(self, points: Tensor) -> Tensor:
        heights = [size - (points - points.new_tensor(center)).norm(dim=1) for center, size in self.balls]
        return (THRESHOLD + 100 * torch.stack(heights).amax(dim=0)).clamp_min(0)

    def __call__(self, points: Tensor, *, with_normal: bool) -> FieldOutput:
        assert not with_normal
        return FieldOutput(density=self.density(points), albedo=(points + 1) / 2, normal=None)


def ball_mesh(field: Balls, resolution: int = RESOLUTION) -> Mesh:
    return extract_mesh(densities(field, resolution), radius=1.0, threshold=THRESHOLD)


def densities(field: Balls, resolution: int = RESOLUTION) -> np.ndarray:
    return density_grid(field, radius=1.0, resolution=resolution, device=torch.device("cpu"))


def loaded(path: Path) -> trimesh.Trimesh:
    return trimesh.load(path, force="mesh", process=False)


def test_a_ball_comes_out_with_its_radius_and_volume() -> None:
    mesh = ball_mesh(Balls())
    solid = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    assert solid.is_watertight
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(RADIUS, abs=0.1 * VOXEL)
    assert solid.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.02)  # positive: triangles face outwards


@pytest.mark.parametrize("dense", [4.0, 40.0, 4000.0])
def test_the_automatic_threshold_lies_between_inside_and_outside_however_dense(dense: float) -> None:
    inside = (densities(Balls()) > THRESHOLD).astype(np.float32)
    outside = np.random.default_rng(0).uniform(0, 0.2, inside.shape).astype(np.float32)
    threshold = automatic_threshold(np.maximum(dense * inside, outside), 0.05)
    assert 0.2 < threshold < dense


def test_otsus_threshold_is_in_the_middle_of_the_gap() -> None:
    values = np.concatenate([np.linspace(0.0, 0.2, 100), np.linspace(0.8, 1.0, 50)])
    assert otsu_threshold(values) == pytest.approx(0.5, abs=0.01)


def test_otsus_threshold_maximizes_the_variance_between_the_classes() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0.3, 0.1, 3000), generator.normal(0.7, 0.1, 1000)])
    candidates = np.linspace(0.2, 0.8, 61)
    variances = []
    for candidate in candidates:
        low, high = values[values <= candidate], values[values > candidate]
        variances.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2)
    assert otsu_threshold(values) == pytest.approx(candidates[np.argmax(variances)], abs=0.02)


def test_vertices_lie_on_the_level_set_within_a_voxel_off_center() -> None:
    center = (0.2, -0.1, 0.3)
    mesh = ball_mesh(Balls((center, 0.4)))
    assert np.linalg.norm(mesh.vertices - center, axis=1) == pytest.approx(0.4, abs=VOXEL)


def test_floaters_and_cavities_are_left_out() -> None:
    floater = ball_mesh(Balls(((0.0, 0.0, 0.0), 0.5), ((0.8, 0.8, 0.8), 0.12)))
    assert np.linalg.norm(floater.vertices, axis=1).max() < 0.6
    twins = ball_mesh(Balls(((-0.5, 0.0, 0.0), 0.3), ((0.5, 0.0, 0.0), 0.3)))
    assert (twins.vertices[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.02)

    class Shell(Balls):
        def density(self, points: Tensor) -> Tensor:
            return THRESHOLD + 100 * (0.15 - (points.norm(dim=1) - 0.5).abs())

    assert np.linalg.norm(ball_mesh(Shell()).vertices, axis=1) == pytest.approx(0.65, abs=VOXEL)


def test_nothing_is_lost_of_a_mesh_in_one_piece() -> None:
    mesh = ball_mesh(Balls())
    again = largest_components(mesh, 0.5)
    assert np.array_equal(again.vertices, mesh.vertices)
    assert np.array_equal(again.triangles, mesh.triangles)


def test_an_object_that_leaves_the_box_is_closed_on_the_box() -> None:
    mesh = ball_mesh(Balls(((0.0, 0.0, 1.0), 0.5)))
    assert trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).is_watertight
    assert mesh.vertices.max() == pytest.approx(1.0)


def test_rasterized_weights_give_each_texel_its_own_place() -> None:
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    texel, triangle, weights = rasterize(uv, np.array([[0, 1, 2], [3, 2, 1]]), width=8, height=4)
    assert set(texel) == set(range(32))
    place = (weights[:, :, None] * uv[np.array([[0, 1, 2], [3, 2, 1]])[triangle]]).sum(axis=1)
    assert place[:, 0] == pytest.approx((texel % 8 + 0.5) / 8)
    assert place[:, 1] == pytest.approx(1 - (texel // 8 + 0.5) / 4)


def test_a_triangle_without_area_covers_no_texel() -> None:
    uv = np.array([[0.1, 0.1], [0.9, 0.9], [0.5, 0.5]])
    assert len(rasterize(uv, np.array([[0, 1, 2]]), width=8, height=8)[0]) == 0


def test_texture_shows_the_color_of_the_surface_everywhere() -> None:
    atlas: Atlas = unwrap(ball_mesh(Balls(), 12), 128)
    texture = paint(atlas, albedo_function(Balls()))
    height, width = texture.shape[:2]
    assert 64 < width < 256
    assert 64 < height < 256
    corners = atlas.uv[atlas.mesh.triangles].mean(axis=1)
    expected = (atlas.mesh.vertices[atlas.mesh.triangles].mean(axis=1) + 1) / 2
    row, column = ((1 - corners[:, 1]) * height).astype(int), (corners[:, 0] * width).astype(int)
    assert np.abs(texture[row, column] / 255 - expected).max() < 0.03  # a texel's side on the ball


@pytest.mark.parametrize("kind", ["obj", "glb", "ply"])
def test_each_format_brings_back_surface_and_colors(kind: MeshFormat, tmp_path: Path) -> None:
    field = Balls(((0.1, 0.0, 0.2), 0.5))
    path = write_mesh(ball_mesh(field, 12), tmp_path, kind=kind, albedo=albedo_function(field), texture_size=128)
    assert path == tmp_path / f"mesh.{kind}"
    mesh = loaded(path)
    vertices = np.asarray(mesh.vertices)
    world = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1) if kind == "glb" else vertices
    assert np.linalg.norm(world - [0.1, 0.0, 0.2], axis=1) == pytest.approx(0.5, abs=2 / 11)
    colors = mesh.visual.vertex_colors if kind == "ply" else mesh.visual.to_color().vertex_colors
    assert np.abs(np.asarray(colors)[:, :3] / 255 - (world + 1) / 2).max() < 0.05
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


def test_an_obj_names_its_material_and_texture(tmp_path: Path) -> None:
    write_mesh(ball_mesh(Balls(), 8), tmp_path, kind="obj", albedo=albedo_function(Balls()), texture_size=32)
    assert "mtllib mesh.mtl" in (tmp_path / "mesh.obj").read_text()
    texture = next(line.split()[1] for line in (tmp_path / "mesh.mtl").read_text().splitlines() if "map_Kd" in line)
    assert (tmp_path / texture).is_file()


def test_an_empty_surface_says_which_density_was_tried() -> None:
    with pytest.raises(
        ExportError, match=r"density 99 is empty: the field's densities reach from 0 to 52.*--threshold"
    ):
        extract_mesh(densities(Balls()), radius=1.0, threshold=99.0)
    with pytest.raises(ExportError, match="density -1 is empty"):
        extract_mesh(densities(Balls()), radius=1.0, threshold=-1.0)
    with pytest.raises(ExportError, match=r"the field is empty: its highest density, 0\.1, hides 0\.1% of the light"):
        automatic_threshold(np.full((4, 4, 4), 0.1, np.float32), 0.01)
