"""Measures by learned networks: the formulas against answers known by hand, the loading by why it was skipped."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corrdream import artifacts, build, learned_metrics, load_config
from corrdream.cameras import orbit_cameras
from corrdream.learned_metrics import (
    CLIP_MODELS,
    adjacent_distance,
    clip_score,
    consistency_errors,
    measure_learned,
    mutual_nearest,
    precision_in_pool,
    r_precision,
)
from corrdream.scene import SceneView
from tests.sweep_folders import blob_overrides

KEYS = {
    "clip_score": "open_clip",
    "clip_precision": "open_clip",
    "clip_score_laion": "open_clip",
    "clip_precision_laion": "open_clip",
    "adjacent_lpips": "lpips",
    "consistency_error": "timm",
    "consistent_share": "timm",
}
X, Y, Z = torch.eye(3)


def test_clip_score_is_the_scaled_cosine_without_its_negative_part() -> None:
    assert clip_score(torch.stack([X]), X) == 2.5
    assert clip_score(torch.stack([X, Y, -X, 0.6 * X + 0.8 * Y]), X) == pytest.approx(2.5 * (1 + 0 + 0 + 0.6) / 4)


def test_r_precision_is_the_share_of_views_whose_own_prompt_comes_first() -> None:
    views = torch.stack([X, Y, 0.8 * X + 0.6 * Y, Z])
    assert r_precision(views, torch.stack([X, Y]), own=0) == 0.5  # of the last one both are as far
    assert r_precision(views, torch.stack([X, Y]), own=1) == 0.25
    assert r_precision(views, torch.stack([X, Y, Z]), own=2) == 0.25


def test_adjacent_distance_goes_around_the_whole_turn() -> None:
    grey = torch.tensor([0.0, 0.1, 0.4, 0.4, 0.5, 0.2])
    views = grey[:, None, None, None].expand(6, 2, 2, 3)

    def difference(view: Tensor, after: Tensor) -> Tensor:
        return (view - after).abs().mean(dim=(1, 2, 3))

    assert adjacent_distance(views, difference) == pytest.approx((0.1 + 0.3 + 0 + 0.1 + 0.3 + 0.2) / 6)


def test_matches_are_nearest_to_each_other() -> None:
    near_x = F.normalize(torch.tensor([1.0, 0.1, 0.0]), dim=0)
    assert mutual_nearest(torch.stack([X, near_x, Z]), torch.stack([Z, X])).tolist() == [[0, 1], [2, 0]]
    assert mutual_nearest(torch.zeros(0, 3), torch.stack([X])).shape == (0, 2)


def test_consistency_error_of_the_axis_is_zero_and_grows_with_the_match_and_the_depth() -> None:
    cameras = orbit_cameras(18, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=100, width=100)
    pair = cameras.select(slice(0, 2))
    center = torch.full((3, 2), 50.0)
    matched = center + torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    # A point on the view axis, e in front of the origin, is seen from 20 degrees aside at f e sin / (3 - e cos).
    angle, e, focal = math.radians(20), 0.5, 50 / math.tan(math.radians(20))
    aside = focal * e * math.sin(angle) / (3 - e * math.cos(angle))
    errors = consistency_errors(center, matched, torch.tensor([3.0, 3.0, 2.5]), pair)
    torch.testing.assert_close(errors, torch.tensor([0.0, 0.05, aside / 100]), rtol=1e-4, atol=1e-5)


def write_embeddings(folder: Path, name: str, **rows: list[Tensor]) -> Path:
    path = folder / f"{name}.npz"
    artifacts.write_arrays(path, {key: torch.stack(value).half().numpy() for key, value in rows.items()})
    return path


def test_pool_is_that_of_all_prompts_and_needs_two(tmp_path: Path) -> None:
    snowman = write_embeddings(tmp_path, "a", clip_precision=[X, X, Y])  # the prompt's, then the views'
    cone = write_embeddings(tmp_path, "b", clip_precision=[Y, Y, Y], clip_precision_laion=[X, Y])
    runs, pool = [("a snowman", snowman), ("a cone", cone)], ["a snowman", "a cone"]
    assert precision_in_pool(runs, pool) == [{"clip_precision": 0.5}, {"clip_precision": 1.0}]
    assert precision_in_pool([*runs, ("a cone", cone)], pool)[2] == {"clip_precision": 1.0}
    assert precision_in_pool(runs[:1], pool[:1]) == [{}]
    assert precision_in_pool(runs, [*pool, "a ball"]) == [{}, {}], "of which no run is finished"
    assert precision_in_pool([], pool) == []


@pytest.fixture(scope="module")
def scene(tiny_prior_file: Path) -> SceneView:
    return build(load_config((), blob_overrides(tiny_prior_file))).show()


def test_without_the_packages_each_measure_says_which_it_lacks(
    scene: SceneView, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for package in set(KEYS.values()):
        monkeypatch.setitem(sys.modules, package, None)
    with caplog.at_level("INFO", logger="corrdream.learned_metrics"):
        found = measure_learned(scene, 16)
    assert not found.values
    assert not found.embeddings
    assert found.skipped.keys() == KEYS.keys()
    for key, package in KEYS.items():
        assert f"needs the package {package} (pip install 'corrdream[metrics]')" in found.skipped[key]
        assert "\n" not in found.skipped[key]
    assert len(caplog.records) == len(KEYS)


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_metrics, "_causes", {})


def offline(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no route to\nhost")


def again(*_: Any, **__: Any) -> Any:
    raise AssertionError("tried again")


def test_without_the_weights_each_measure_says_so(scene: SceneView, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (offline, again):
        for package, name in {"open_clip": "create_model", "lpips": "LPIPS", "timm": "create_model"}.items():
            module = ModuleType(package)
            vars(module)[name] = load
            monkeypatch.setitem(sys.modules, package, module)
        found = measure_learned(scene, 16)
    assert not found.values
    assert found.skipped.keys() == KEYS.keys()
    for reason in found.skipped.values():
        assert reason.startswith("the weights of ")
        assert reason.endswith(" could not be loaded: no route to host")


class FakeClip(torch.nn.Module):
    """Embeds a picture as its mean color, and the prompt as red."""

    visual = SimpleNamespace(image_size=(8, 8))

    def encode_image(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]])


def create_clip(model: str, *, pretrained: str, device: torch.device, force_quick_gelu: bool) -> FakeClip:
    assert (model, pretrained) in CLIP_MODELS.values()
    assert force_quick_gelu == (pretrained == "openai")
    return FakeClip()


class FakeFeatures(torch.nn.Module):
    """Features of patches are their colors, behind one token of the whole."""

    num_prefix_tokens = 1

    def forward_features(self, images: Tensor) -> Tensor:
        colors = F.adaptive_avg_pool2d(images, 37).flatten(2).transpose(1, 2)
        return torch.cat([colors[:, :1], colors], dim=1)


class FakeLpips(torch.nn.Module):
    def forward(self, view: Tensor, after: Tensor) -> Tensor:
        assert view.abs().max() <= 1
        return (view - after).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_what_fails_while_it_computes_is_skipped_and_the_others_are_measured(
    scene: SceneView, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes: dict[str, dict[str, Any]] = {
        "open_clip": {"create_model": create_clip, "tokenize": lambda texts: torch.zeros(1, 77).long()},
        "timm": {"create_model": lambda *_, **__: FakeFeatures()},
        "lpips": {"LPIPS": lambda *_, **__: FakeLpips()},
    }
    for package, names in fakes.items():
        module = ModuleType(package)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr(learned_metrics, "LPIPS_VIEWS", 6)
    found = measure_learned(scene, 16)
    assert not found.skipped
    assert found.values.keys() == KEYS.keys() - {"clip_precision", "clip_precision_laion"}
    assert all(math.isfinite(value) for value in found.values.values())
    assert found.embeddings["clip_precision"].shape == (25, 3)
    assert len(found.embeddings) == len(CLIP_MODELS)
    monkeypatch.setattr(FakeClip, "encode_text", offline)
    found = measure_learned(scene, 16)
    assert found.skipped["clip_score"] == "ConnectionError: no route to host"
    assert found.values.keys() == {"adjacent_lpips", "consistency_error", "consistent_share"}
    assert np.isfinite(found.values["adjacent_lpips"])
