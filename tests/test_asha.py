"""A real sweep under Ray in which most settings are stopped early."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.folders import SweepFolder, load_sweep, read_rungs, read_status
from tests.sweep_folders import RESCALE, write_grid

ROOT = Path(__file__).parent.parent
RUNGS = (2, 6, 18)
SETTINGS = (0.0, 0.3, 0.5, 0.7)


def run_sweep(*words: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, ROOT / "sweeps" / "run.py", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_prior_file: Path) -> tuple[SweepFolder, str]:
    """Four settings, one prompt, two rungs before the end; and what it printed."""
    place = tmp_path_factory.mktemp("asha")
    scheduler = {"kind": "asha", "budget": RUNGS[-1], "grace_period": RUNGS[0], "reduction_factor": 3}
    grid = write_grid(place, tiny_prior_file, parameters={RESCALE: list(SETTINGS)}, scheduler=scheduler)
    ended = run_sweep("--grid", str(grid), "--name", "asha", place=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return SweepFolder(place / "runs" / "asha"), ended.stdout


def test_at_most_half_of_the_steps_are_taken(sweep: tuple[SweepFolder, str]):
    folder, printed = sweep
    statuses = [read_status(folder.trial(trial.name), trial.identity) for trial in load_sweep(folder).trials]
    taken, whole = sum(status.step for status in statuses), len(SETTINGS) * RUNGS[-1]
    assert taken <= whole / 2
    assert f"{taken} of {whole}" in printed
    assert f"steps      {taken} in all" in printed, "as planned"


def test_the_best_at_each_rung_went_on_and_one_finished(sweep: tuple[SweepFolder, str]):
    folder, _ = sweep
    trials = load_sweep(folder).trials
    first = {trial.name: read_rungs(folder.trial(trial.name))[RUNGS[0]]["viou_solid"] for trial in trials}
    went_on = [trial.name for trial in trials if RUNGS[1] in read_rungs(folder.trial(trial.name))]
    assert max(first, key=lambda name: first[name]) in went_on
    states = [read_status(folder.trial(trial.name), trial.identity).state for trial in trials]
    assert sorted(states) == ["finished", "stopped early", "stopped early", "stopped early"]


def test_table_results_and_report_say_what_was_stopped_early_and_when(sweep: tuple[SweepFolder, str]):
    folder, printed = sweep
    assert printed.count("stopped early after 2 steps, vIoU") == 3
    with folder.results.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["status"], row["steps"]) for row in rows].count(("stopped early", "2")) == 3
    page = folder.report.read_text()
    assert "3 stopped early" in page
    assert "stopped early after 2 steps" in page
    assert "trials were stopped early" in page


def test_a_trial_that_was_stopped_early_is_not_restarted_and_the_sweep_is_complete(
    sweep: tuple[SweepFolder, str],
):
    folder, _ = sweep
    files = {path: path.stat().st_mtime for path in folder.path.glob("trials/*/*.json*")}
    ended = run_sweep("--resume", "asha", place=folder.path.parent.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resume with" not in ended.stdout
    assert {path: path.stat().st_mtime for path in folder.path.glob("trials/*/*.json*")} == files


def test_the_log_of_a_trial_that_went_on_has_every_step_once(sweep: tuple[SweepFolder, str]):
    folder, _ = sweep
    finished = next(folder.path.glob("trials/*/grade.json")).parent
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, RUNGS[-1] + 1))
