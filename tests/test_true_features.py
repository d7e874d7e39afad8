"""Matches of the true surface: right by construction, and what a run takes of them."""

from pathlib import Path

import pytest
import torch

from corrdream import ConfigError, load_config
from corrdream.blocks.match_quality import make_pairs, match_quality
from corrdream.blocks.shapes import build_shape, pack_shapes
from corrdream.blocks.training_data import render_view_sets
from corrdream.blocks.true_features import TrueFeatures
from corrdream.engine import build
from tests.sweep_folders import tiny_overrides

VIEWS, SIZE = 4, 32


@pytest.mark.parametrize("caption", ["a red cone on a blue cube", "a clay model of a sphere"])
def test_their_matches_are_the_true_ones_whatever_the_surface(caption: str) -> None:
    views = render_view_sets(
        pack_shapes([build_shape(caption)]),
        torch.Generator().manual_seed(0),
        num_views=VIEWS,
        size=SIZE,
        supersample=1,
        twin_range=(20.0, 20.0),
    )
    # The shape is canonical, as a run's is; training's jitters sizes only where it is given a generator.
    features = TrueFeatures(caption)(views.cameras)
    assert features.shape == (2 * VIEWS, 128, SIZE, SIZE)
    assert not features.permute(0, 2, 3, 1)[~views.mask].any()
    shares = match_quality([features], make_pairs(views, VIEWS), VIEWS).shares()
    assert shares["raw_1px"] > 0.9
    assert shares["kept_1px"] > 0.9


def test_a_correspondence_step_takes_them_instead_of_the_priors(
    tiny_prior_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"correspondence.window": {"steps": [0, 4]}, "correspondence.features": "truth", "max_steps": 4}
    trainer = build(load_config((), tiny_overrides(tiny_prior_file, **changes)))
    monkeypatch.setattr(trainer.prior, "features", None)
    metrics = trainer.train_step()
    assert "correspondence/residual" in metrics


def test_a_prior_without_true_shapes_is_refused() -> None:
    overrides = {"prompt": "a corgi", "prior.kind": "mvdream", "correspondence.features": "truth"}
    with pytest.raises(ConfigError, match=r"correspondence\.features=truth .* got prior\.kind=mvdream"):
        load_config((), overrides)
