"""A trial that is finished anywhere in the storage is taken from there."""

import csv
import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from sweeps.cache import find_finished, record_finished, take_finished
from sweeps.folders import Status, Sweep, SweepFolder, create_sweep, read_statuses, write_status
from sweeps.jobs import new_job, plan_text
from sweeps.results import read_results
from sweeps.run import main, parse
from tests.sweep_folders import RESCALE, finish_trial, plan_sweep, write_grid

UNGRADED = "snowman red"


def fill(folder: SweepFolder, sweep: Sweep, count: int) -> SweepFolder:
    """The sweep with its first trials finished, as trials leave it."""
    create_sweep(folder, sweep)
    for trial in sweep.trials[:count]:
        record_finished(folder, trial.name, trial.identity)
        finish_trial(folder, trial, viou=0.5)
        (folder.trial(trial.name) / "trial.lock").write_text("process 1")
        (folder.trial(trial.name) / "wandb").mkdir()
        (folder.trial(trial.name) / "wandb" / "run").touch()
    return folder


@pytest.fixture
def sweep() -> Sweep:
    return plan_sweep("first", prompts=("a snowman",), seeds=(0,))


@pytest.fixture
def first(tmp_path: Path, sweep: Sweep) -> SweepFolder:
    """Three of its four trials are finished."""
    return fill(SweepFolder(tmp_path / "first"), sweep, 3)


def test_finished_trials_are_found_by_identity_and_others_are_not(tmp_path: Path, first: SweepFolder, sweep: Sweep):
    renamed = [dataclasses.replace(trial, name=f"{trial.name}-again") for trial in sweep.trials]
    found = find_finished(SweepFolder(tmp_path / "second"), renamed)
    assert found == {f"{trial.name}-again": first.trial(trial.name) for trial in sweep.trials[:3]}
    elsewhere = SweepFolder(tmp_path / "other storage" / "second")
    assert not find_finished(elsewhere, renamed)


def test_what_is_taken_has_the_same_results_and_says_where_they_come_from(
    tmp_path: Path, first: SweepFolder, sweep: Sweep
):
    second = SweepFolder(tmp_path / "second")
    assert not take_finished(second, sweep.trials, find_finished(second, sweep.trials))
    taken, original = read_results(sweep, second), read_results(sweep, first)
    assert [result.metrics for result in taken] == [result.metrics for result in original]
    assert [result.status.source for result in taken] == ["first", "first", "first", ""]
    names = {path.name for path in second.trial(sweep.trials[0].name).iterdir()}
    assert names >= {"grade.json", "metrics.jsonl", "turntable.png", "normals.png", "status.json"}
    assert not names & {"trial.lock", "wandb"}
    third = SweepFolder(tmp_path / "third")
    shutil.rmtree(first.path)
    assert not find_finished(third, sweep.trials), "what is gone is not found"
    assert read_results(sweep, second)[0].metrics, "and what was taken does not go with it"


def test_what_was_taken_twice_names_the_sweep_that_ran_it(tmp_path: Path, first: SweepFolder, sweep: Sweep):
    second, third = SweepFolder(tmp_path / "second"), SweepFolder(tmp_path / "third")
    take_finished(second, sweep.trials, find_finished(second, sweep.trials))
    sources = {trial.name: second.trial(trial.name) for trial in sweep.trials[:1]}
    take_finished(third, sweep.trials, sources)
    assert read_statuses(third, sweep.trials)[sweep.trials[0].name].source == "first"


def test_the_index_is_believed_only_if_the_status_agrees(tmp_path: Path, first: SweepFolder, sweep: Sweep):
    running, other, torn = sweep.trials[:3]
    write_status(first.trial(running.name), Status(identity=running.identity, state="running", step=3))
    write_status(first.trial(other.name), Status(identity="of other sources", state="finished", step=40))
    (tmp_path / ".finished" / f"{torn.identity}.json").write_text('{"swe')
    assert not find_finished(SweepFolder(tmp_path / "second"), sweep.trials)


def test_a_source_that_vanishes_between_plan_and_start_is_reported(tmp_path: Path, first: SweepFolder, sweep: Sweep):
    second = SweepFolder(tmp_path / "second")
    found = find_finished(second, sweep.trials)
    gone = sweep.trials[1].name
    shutil.rmtree(first.trial(gone))
    assert take_finished(second, sweep.trials, found) == {gone}
    assert read_statuses(second, sweep.trials)[gone].state == "pending"


@pytest.fixture
def words(tmp_path: Path, tiny_prior_file: Path) -> list[str]:
    """A command line whose trials the sweep `first` has finished."""
    grid = write_grid(tmp_path, tiny_prior_file, parameters={RESCALE: [0.3, 0.5]}, prompts=[UNGRADED])
    common = ["--grid", str(grid), "--storage", str(tmp_path / "runs"), "--wandb", "disabled"]
    job = new_job(parse([*common, "--name", "first"]))
    fill(job.folder, job.sweep, 2)
    return common


def test_a_sweep_that_was_run_before_needs_no_run_and_says_so_everywhere(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([*words, "--name", "second"]) == 0
    text = capsys.readouterr().out
    assert "2 = 2 settings x 1 prompts x 1 seeds; 2 cached, 0 to run" in text
    assert re.search(r"^guidance_rescale +n +cached +vIoU", text, re.MULTILINE)
    assert re.search(r"^0.3 +1 +1 +0.500", text, re.MULTILINE)
    second = SweepFolder(tmp_path / "runs" / "second")
    with second.results.open() as file:
        assert [(row["status"], row["source"]) for row in csv.DictReader(file)] == [("finished", "first")] * 2
    report = second.report.read_text()
    assert "2 taken from other sweeps" in report
    assert "steps, taken from first" in report


def test_a_plan_says_how_many_are_cached_and_no_cache_turns_it_off(words: list[str]):
    arguments = parse([*words, "--seeds", "0", "1"])
    job = new_job(arguments)
    assert "2 cached, 2 to run" in plan_text(job, None, arguments)
    assert [trial.seed for trial in job.unfinished] == [1, 1]
    job = new_job(parse([*words, "--no-cache"]))
    assert (job.cached, len(job.unfinished)) == ({}, 2)
