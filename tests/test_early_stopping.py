"""The comparison of a sweep that stops early with one that does not, on folders as sweeps leave them."""

import dataclasses
from pathlib import Path

import pytest

from sweeps.folders import Status, SweepFolder, create_sweep, write_rung, write_status
from tests.benchmarks.early_stopping import compare
from tests.sweep_folders import LABELS, RESCALE, finish_trial, plan_sweep

PROMPTS = ("a snowman", "a yellow duck", "a red cone on a blue cube")
VIOU = {"0": 0.50, "0.3": 0.70, "0.5": 0.69, "0.7": 0.40}


def make_sweep(path: Path, *, finished: tuple[str, ...]) -> SweepFolder:
    """Settings that ran to their end, the others stopped after 5 of 40 steps."""
    folder = SweepFolder(path)
    sweep = dataclasses.replace(plan_sweep(path.name, prompts=PROMPTS, seeds=(0, 1)))
    create_sweep(folder, sweep)
    for number, trial in enumerate(sweep.trials):
        label = trial.labels[RESCALE]
        if label in finished:
            finish_trial(folder, trial, viou=VIOU[label] + 0.02 * (number % 3))
        else:
            write_rung(folder.trial(trial.name), 5, {"viou_solid": 0.1})
            status = Status(identity=trial.identity, state="stopped early", step=5, max_steps=40, attempts=1)
            write_status(folder.trial(trial.name), status)
    return folder


@pytest.mark.parametrize(("picked", "is_within"), [("0.3", True), ("0.5", True), ("0", False), ("0.7", False)])
def test_a_pick_is_right_if_its_mean_lies_within_the_interval_of_the_best(picked: str, is_within: bool, tmp_path: Path):
    full = make_sweep(tmp_path / "full", finished=LABELS)
    early = make_sweep(tmp_path / "early", finished=(picked,))
    verdict, lines = compare(full, early)
    assert verdict == is_within
    assert "guidance_rescale=0.3" in lines[0]
    assert lines[-1].endswith("for 34% of the steps")
    assert ("within" in lines[-1]) == is_within


def test_a_pick_that_took_more_than_half_of_the_steps_does_not_count(tmp_path: Path):
    full = make_sweep(tmp_path / "full", finished=LABELS)
    early = make_sweep(tmp_path / "early", finished=("0.3", "0.5", "0"))
    assert not compare(full, early)[0]
