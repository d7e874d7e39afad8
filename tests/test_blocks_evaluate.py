"""The measures of the built-in prior: what the truth gets, what a fault costs, and the command."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corrdream.blocks import evaluate
from corrdream.blocks.match_quality import ViewPairs, color_patches, make_pairs, match_quality, no_motion
from corrdream.blocks.render import render_geometry
from corrdream.blocks.sample_quality import canonical_cameras, foreground_mask, measure_sample
from corrdream.blocks.shapes import build_shape, pack_shapes
from corrdream.blocks.training_data import ViewSets, render_view_sets
from corrdream.blocks.true_features import position_waves

VIEWS = 2
SIZE = 32


@pytest.fixture(scope="module")
def views() -> ViewSets:
    shapes = pack_shapes([build_shape("a red cone on a blue cube")])
    generator = torch.Generator().manual_seed(0)
    return render_view_sets(shapes, generator, num_views=VIEWS, size=SIZE, supersample=1, twin_range=(20.0, 20.0))


@pytest.fixture(scope="module")
def pairs(views: ViewSets) -> ViewPairs:
    return make_pairs(views, VIEWS)


def surface_features(views: ViewSets) -> Tensor:
    """Features that know the surface point."""
    return position_waves(views.position) * views.mask[:, None]


def true_images(caption: str, size: int = SIZE) -> Tensor:
    cameras = canonical_cameras(4, size)
    buffer = render_geometry(pack_shapes([build_shape(caption)]), cameras)
    return torch.where(buffer.mask[..., None], buffer.albedo, torch.tensor([0.5, 0.6, 0.7]))


def test_true_reprojection_is_where_the_surface_point_is_seen(views: ViewSets, pairs: ViewPairs) -> None:
    view, row, column = pairs.visible.nonzero().unbind(-1)
    xy = pairs.true_xy[view, row, column].long()
    seen = views.position[VIEWS:][view, xy[:, 1], xy[:, 0]]
    gaps = (seen - views.position[:VIEWS][view, row, column]).norm(dim=-1)
    assert gaps.max() < 0.05
    assert 0.5 < pairs.visible.sum() / pairs.source_mask.sum() < 1


def test_features_that_know_the_surface_match_and_random_ones_do_not(views: ViewSets, pairs: ViewPairs) -> None:
    good = match_quality([surface_features(views)], pairs, VIEWS)
    shares = good.shares()
    assert shares["raw_1px"] > 0.9
    assert shares["kept"] > 0.7
    assert shares["kept_1px"] > 0.9
    random = torch.randn(2 * VIEWS, 16, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert match_quality([random], pairs, VIEWS).shares()["raw_4px"] < 0.2


def test_colors_of_a_plain_surface_tell_little(views: ViewSets, pairs: ViewPairs) -> None:
    colors = match_quality([color_patches(views.images)], pairs, VIEWS)
    assert colors.pixels == int(pairs.visible.sum()) == no_motion(pairs).pixels
    assert colors.shares()["raw_1px"] < match_quality([surface_features(views)], pairs, VIEWS).shares()["raw_1px"]


def test_counts_add_up(pairs: ViewPairs) -> None:
    once = no_motion(pairs)
    assert (once + once).shares() == {**once.shares(), "pixels": 2.0 * once.pixels}


@pytest.mark.parametrize(
    "caption", ["a red cone on a blue cube", "a red and white striped sphere", "a blue cube with a yellow dot"]
)
def test_the_truth_has_every_color_and_its_own_hull(caption: str) -> None:
    quality = measure_sample(build_shape(caption), true_images(caption))
    assert quality.colors_right == quality.colors_named == len(build_shape(caption).named_colors)
    assert quality.hull_iou == 1
    assert quality.solid_iou == quality.ceiling_iou > 0.5


def test_another_object_is_found_out() -> None:
    quality = measure_sample(build_shape("a red cone on a blue cube"), true_images("a green torus"))
    assert quality.colors_right == 0
    assert quality.hull_iou < 0.5


def test_an_object_drawn_nearer_has_another_hull() -> None:
    shape = build_shape("a blue cube")
    cameras = canonical_cameras(4, SIZE)
    towards = cameras.c2w[:, :3, 3] * 0.9
    near = replace(
        cameras, c2w=torch.cat([cameras.c2w[:, :, :3], F.pad(towards, (0, 1), value=1.0)[..., None]], dim=-1)
    )
    buffer = render_geometry(pack_shapes([shape]), near)
    images = torch.where(buffer.mask[..., None], buffer.albedo, torch.tensor([0.5, 0.6, 0.7]))
    assert measure_sample(shape, images).hull_iou < 0.85


def test_foreground_differs_from_the_border() -> None:
    image = torch.full((8, 8, 3), 0.3)
    image[2:5, 3:6, 1] = 0.9
    assert foreground_mask(image.numpy()).sum() == 9


def test_command_writes_both_reports(
    tiny_prior_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, options in (
        ("samples", ["--steps", "2"]),
        ("features", ["--timesteps", "0", "--blocks", "1,3", "--turns", "20"]),
    ):
        path = tmp_path / f"{what}.json"
        arguments = [what, "--out", str(path), "--weights", str(tiny_prior_file), "--prompts", "1", *options]
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        evaluate.main()
        report = json.loads(path.read_text())
        assert report["fingerprint"]
        if what == "samples":
            assert set(report["splits"]) == set(evaluate.SPLITS)
        else:
            assert {row["kind"] for row in report["by_kind"]} == {*evaluate.KINDS, "all"}
            assert {row["features"] for row in report["by_kind"]} == {"no motion", "colors", "1,3"}
    assert "color_accuracy" in capsys.readouterr().out


def test_drawn_shapes_are_of_the_kind_asked_for() -> None:
    for kind in evaluate.KINDS:
        shapes = evaluate.draw_shapes(kind, 3, seed=0)
        assert len({shape.caption for shape in shapes}) == 3
        assert all(evaluate.kind_of(shape) == kind for shape in shapes)
        assert shapes == evaluate.draw_shapes(kind, 3, seed=0)
