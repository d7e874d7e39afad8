"""Ground-truth pictures: geometry against analytic shapes, the shading formula, the kernel against the reference."""

import dataclasses
import importlib.util
import math
import subprocess
import sys

import pytest
import torch

from corrdream.blocks.render import (
    GeometryBuffer,
    box_average,
    render_geometry,
    render_images,
    shade,
    supersampled,
)
from corrdream.blocks.shapes import build_shape, pack_shapes, signed_distance
from corrdream.cameras import lights_at_cameras, orbit_cameras, project
from corrdream.structures import Appearance, CameraBatch

CAPTIONS = [
    "a red and white striped chair",
    "a green and white dotted mug",
    "an umbrella",
    "a blue cube with a yellow dot",
]


def orbit(num_views: int, size: int, elevation_deg: float = 20.0) -> CameraBatch:
    return orbit_cameras(num_views, elevation_deg=elevation_deg, distance=3.0, fovy_deg=35.0, height=size, width=size)


def repeated(cameras: CameraBatch, times: int) -> CameraBatch:
    names = ("c2w", "intrinsics", "azimuth", "elevation", "distance")
    return dataclasses.replace(cameras, **{name: torch.cat([getattr(cameras, name)] * times) for name in names})


def appearance(mode: str = "diffuse", views: int = 2) -> Appearance:
    background = torch.linspace(0.1, 0.9, 3 * views).view(views, 3)
    return Appearance(mode=mode, ambient=(0.3, 0.3, 0.3), diffuse=(0.7, 0.6, 0.5), background=background)


def test_sphere_has_analytic_distance_depth_normal_and_area() -> None:
    cameras = orbit(2, 96)
    buffer = render_geometry(pack_shapes([build_shape("a red sphere")]), cameras)
    radius, camera_distance = 0.66, 3.0
    position = buffer.position[buffer.mask]
    torch.testing.assert_close(position.norm(dim=-1), torch.full((len(position),), radius), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(buffer.normal[buffer.mask], position / radius, atol=3e-3, rtol=0.0)
    _, depth = project(
        buffer.position.flatten(0, 2), *(x.repeat_interleave(96 * 96, 0) for x in (cameras.c2w, cameras.intrinsics))
    )
    torch.testing.assert_close(buffer.depth[buffer.mask], depth.view_as(buffer.depth)[buffer.mask], atol=1e-5, rtol=0.0)
    center = buffer.distance[:, 47:49, 47:49]
    torch.testing.assert_close(center, torch.full_like(center, camera_distance - radius), atol=1e-3, rtol=0.0)
    # the silhouette is a circle: tangent rays make an angle with sine radius / distance
    tangent = radius / math.sqrt(camera_distance**2 - radius**2)
    area = math.pi * (tangent * cameras.intrinsics[0, 0, 0].item()) ** 2
    assert buffer.mask[0].sum().item() == pytest.approx(area, rel=0.02)


def test_pixels_that_miss_are_empty() -> None:
    buffer = render_geometry(pack_shapes([build_shape("a chair")]), orbit(2, 32))
    assert 0 < buffer.mask.sum() < buffer.mask.numel()
    for field in (buffer.distance, buffer.depth, buffer.position, buffer.normal, buffer.albedo):
        assert (field[~buffer.mask] == 0.0).all()
    assert (buffer.part[~buffer.mask] == -1).all()


@pytest.mark.parametrize("caption", CAPTIONS)
def test_hits_lie_on_the_surface_and_face_the_camera(caption: str) -> None:
    packed, cameras = pack_shapes([build_shape(caption)]), orbit(4, 40)
    buffer = render_geometry(packed, cameras)
    assert signed_distance(packed, buffer.position[buffer.mask][None]).abs().max() < 3e-4
    toward_camera = torch.nn.functional.normalize(cameras.c2w[:, None, None, :3, 3] - buffer.position, dim=-1)
    facing = (toward_camera * buffer.normal).sum(-1)[buffer.mask]
    assert (facing > -0.05).float().mean() > 0.995  # differences across an edge may look away


def test_views_agree_where_both_see() -> None:
    packed, size = pack_shapes([build_shape("a snowman")]), 128
    every = orbit(24, size)
    names = ("c2w", "intrinsics", "azimuth", "elevation", "distance")
    cameras = dataclasses.replace(every, **{name: getattr(every, name)[:2] for name in names})  # 15 degrees apart
    buffer = render_geometry(packed, cameras)
    points, color = buffer.position[0][buffer.mask[0]], buffer.albedo[0][buffer.mask[0]]
    xy, depth = project(
        points, cameras.c2w[1].expand(len(points), -1, -1), cameras.intrinsics[1].expand(len(points), -1, -1)
    )
    column, row = xy.floor().long().clamp(0, size - 1).unbind(-1)
    seen = buffer.mask[1, row, column] & ((buffer.depth[1, row, column] - depth).abs() < 0.01)
    assert seen.float().mean() > 0.7
    # within a pixel, 0.016 world units at this distance
    assert (buffer.position[1, row, column] - points)[seen].norm(dim=-1).median() < 0.016
    same = (buffer.albedo[1, row, column] == color).all(-1)
    assert same[seen].float().mean() > 0.95


def test_each_shape_is_seen_by_its_own_group_of_cameras() -> None:
    cameras = orbit(3, 24)
    together = render_geometry(pack_shapes([build_shape(c) for c in CAPTIONS]), repeated(cameras, len(CAPTIONS)))
    for index, caption in enumerate(CAPTIONS):
        alone = render_geometry(pack_shapes([build_shape(caption)]), cameras)
        for field in dataclasses.fields(GeometryBuffer):
            expected = getattr(alone, field.name)
            assert torch.equal(getattr(together, field.name)[3 * index : 3 * index + 3], expected)


def test_shading_is_ambient_plus_diffuse_times_lambert() -> None:
    cameras = orbit(2, 24)
    buffer, lights = render_geometry(pack_shapes([build_shape("a duck")]), cameras), lights_at_cameras(cameras)
    textureless = shade(buffer, lights, appearance("textureless"))
    diffuse = shade(buffer, lights, appearance("diffuse"))
    albedo = shade(buffer, lights, appearance("albedo"))
    for view, row, column in torch.nonzero(buffer.mask)[::17].tolist():
        toward_light = lights.position[view] - buffer.position[view, row, column]
        lambert = max((buffer.normal[view, row, column] @ toward_light / toward_light.norm()).item(), 0.0)
        light = torch.tensor([0.3 + 0.7 * lambert, 0.3 + 0.6 * lambert, 0.3 + 0.5 * lambert])
        color = buffer.albedo[view, row, column]
        torch.testing.assert_close(textureless[view, row, column], light)
        torch.testing.assert_close(diffuse[view, row, column], light * color)
        torch.testing.assert_close(albedo[view, row, column], color)
    background = appearance().background
    assert background is not None
    for view in range(2):
        missed = diffuse[view][~buffer.mask[view]]
        assert torch.equal(missed, background[view].expand_as(missed))


def test_supersampling_averages_shaded_colors() -> None:
    cameras, packed = orbit(2, 16), pack_shapes([build_shape("a red and white checked sphere")])
    lights = lights_at_cameras(cameras)
    fine = render_images(packed, supersampled(cameras, 2), lights, appearance())
    coarse = render_images(packed, cameras, lights, appearance(), supersample=2)
    assert coarse.shape == (2, 16, 16, 3)
    torch.testing.assert_close(coarse[1, 5, 7], fine[1, 10:12, 14:16].mean(dim=(0, 1)))
    assert torch.equal(box_average(fine, 1), fine)


def test_front_marker_is_seen_from_the_front_only() -> None:
    buffer = render_geometry(pack_shapes([build_shape("a blue cube with a yellow dot")]), orbit(4, 64))
    yellow = (buffer.albedo[..., 0] > 0.9).flatten(1).sum(1)
    assert yellow[0] > 60
    assert (yellow[1:] == 0).all()


def test_cameras_must_be_shared_out_evenly() -> None:
    with pytest.raises(ValueError, match="3 cameras cannot be shared out among 2 shapes"):
        render_geometry(pack_shapes([build_shape("a duck")] * 2), orbit(3, 8))


def test_shading_asks_for_a_background() -> None:
    cameras = orbit(2, 8)
    buffer = render_geometry(pack_shapes([build_shape("a duck")]), cameras)
    with pytest.raises(ValueError, match=r"appearance\.background must be a color a view"):
        shade(buffer, lights_at_cameras(cameras), dataclasses.replace(appearance(), background=None))


def assert_same(expected: GeometryBuffer, actual: GeometryBuffer) -> None:
    """Equal but for rays that graze an edge, where rounding decides."""
    both = expected.mask & actual.mask
    assert (expected.mask != actual.mask).float().mean() < 1e-3
    assert (expected.part[both] != actual.part[both]).float().mean() < 2e-3
    assert (expected.distance - actual.distance)[both].abs().quantile(0.995) < 1e-4
    assert (expected.normal - actual.normal)[both].abs().amax(-1).quantile(0.99) < 1e-2
    assert (expected.albedo != actual.albedo)[both].any(-1).float().mean() < 5e-3


@pytest.mark.gpu
def test_kernel_equals_the_reference_on_the_gpu() -> None:
    captions = [f"a {noun}" for noun in ("snowman", "chair", "mug", "umbrella", "house", "duck", "car")]
    packed = pack_shapes([build_shape(caption) for caption in [*captions, *CAPTIONS]])
    cameras = repeated(orbit(4, 72), len(packed))
    names = ("c2w", "intrinsics", "azimuth", "elevation", "distance")
    on_gpu = dataclasses.replace(cameras, **{name: getattr(cameras, name).cuda() for name in names})
    actual = render_geometry(packed.to("cuda"), on_gpu, "triton")
    on_cpu = GeometryBuffer(**{f.name: getattr(actual, f.name).cpu() for f in dataclasses.fields(actual)})
    assert_same(render_geometry(packed, cameras, "torch"), on_cpu)


INTERPRETED = """
import torch
from corrdream.blocks.render import render_geometry
from corrdream.blocks.shapes import build_shape, pack_shapes
from tests.test_blocks_render import CAPTIONS, assert_same, orbit, repeated
packed = pack_shapes([build_shape(caption) for caption in CAPTIONS])
cameras = repeated(orbit(1, 20), len(packed))
assert_same(render_geometry(packed, cameras, "torch"), render_geometry(packed, cameras, "triton"))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_kernel_equals_the_reference_in_tritons_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # is read when triton is imported, hence a process of its own
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True)
