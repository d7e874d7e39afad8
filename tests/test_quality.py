"""What is measured of a run without the truth."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from corrdream import build, load_config
from corrdream.prior import sampling
from corrdream.quality import Quality, match_residual, measure_cost, measure_quality, prior_samples
from corrdream.trainer import Trainer
from tests.sweep_folders import blob_overrides, tiny_overrides

ROWS = [{"seconds": float(k), "grad_norm": 1.0 if k else math.nan} for k in range(101)]


@pytest.fixture(scope="module")
def trainer(tiny_prior_file: Path) -> Trainer:
    """A blob that has just begun."""
    return build(load_config((), blob_overrides(tiny_prior_file)))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRDREAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quality(trainer: Trainer) -> Quality:
    return measure_quality(trainer.show(), trainer.prior, ROWS)


def test_a_convex_object_in_one_piece_is_near_the_floor_of_every_measure_of_shape(quality: Quality) -> None:
    assert quality.hull_gap is not None
    assert abs(quality.hull_gap) < 0.25  # silhouettes of 16 pixels
    assert quality.floater_share == 0
    assert quality.fuzziness is not None
    assert 0 < quality.fuzziness < 1
    assert quality.z_variance is not None
    assert 0 < quality.z_variance < 0.05


def test_colors_are_compared_with_the_priors_own_pictures(quality: Quality) -> None:
    assert quality.saturation_distance is not None
    assert 0 < quality.saturation_distance <= 1
    assert quality.contrast_ratio is not None
    assert quality.contrast_ratio < 1  # a blob of one grey
    assert quality.clipped_pixels == 0


def test_the_priors_pictures_are_drawn_once_a_prompt(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prior_samples(trainer.show(), trainer.prior)
    assert first.shape == (4, 16, 16, 3)

    def drawn_again(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(sampling, "ddim_steps", drawn_again)
    assert torch.equal(prior_samples(trainer.show(), trainer.prior), first)
    other = dataclasses.replace(trainer.show(), config=dataclasses.replace(trainer.config, prompt="snowman"))
    with pytest.raises(AssertionError, match="drawn again"):
        prior_samples(other, trainer.prior)


def test_an_empty_scene_has_nothing_to_measure_but_its_cost(tiny_prior_file: Path) -> None:
    plain = tiny_overrides(tiny_prior_file) | {
        "prompt": "snowman",
        "device": "cpu",
        "field.density_blob": "constant",
        "field.density_blob_scale": -30,
    }
    trainer = build(load_config((), plain))
    found = measure_quality(trainer.show(), trainer.prior, []).to_dict()
    assert {name for name, value in found.items() if value is not None} == {"peak_memory_gb"}


def test_residual_does_not_depend_on_what_the_run_was_trained_with(trainer: Trainer) -> None:
    released = dataclasses.replace(
        trainer.config,
        correspondence=dataclasses.replace(
            trainer.config.correspondence,
            enabled=False,
            depth_convention="ray_length",
            direction="forward",
            reduction="sum",
        ),
    )
    scene = trainer.show()
    found = match_residual(scene, trainer.prior)
    assert found is not None
    assert 0 < found < 16
    assert match_residual(dataclasses.replace(scene, config=released), trainer.prior) == found


def test_cost_is_that_of_the_logged_steps() -> None:
    assert measure_cost(ROWS) == {
        "step_seconds_median": 50.0,
        "step_seconds_p95": 95.0,
        "nonfinite_share": pytest.approx(1 / 101),
    }
