"""Population-based training: who copies whom, and what lies in the folders afterwards."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import corrdream
from sweeps.folders import Sweep, SweepFolder, create_sweep, read_history, read_status, write_sweep
from sweeps.parameters import Distribution, value_of
from sweeps.population import evolve
from sweeps.results import compare_settings, read_results, write_csv
from sweeps.schedule import Assignment, Schedule
from sweeps.schedulers import Pbt, scheduler_to_plain
from sweeps.table import format_table
from sweeps.trainable import CorrDreamTrainable, Spec
from tests.sweep_folders import RESCALE, plan_sweep, tiny_overrides

SCALE, WEIGHT = "guidance.guidance_scale", "loss_weights.correspondence"
PBT = Pbt(
    budget=9,
    perturbation_interval=3,
    ranges={
        RESCALE: Distribution(kind="uniform", low=0, high=1),
        SCALE: Distribution(kind="uniform", low=2, high=20),
        WEIGHT: Distribution(kind="log_uniform_values", low=100, high=10000),
    },
)
VALUES = [{RESCALE: 0.1 * i, SCALE: 4.0 + i, WEIGHT: 1000.0} for i in range(8)]


def test_the_worst_quarter_copies_the_best_quarter():
    scores = [0.5, 0.1, 0.9, 0.4, 0.3, 0.8, math.nan, 0.6]
    copies = evolve(scores, VALUES, step=3, mode="max", pbt=PBT)
    assert set(copies) == {1, 6}, "the lowest, and the one without the metric"
    assert {copy.source for copy in copies.values()} <= {2, 5}
    assert set(evolve(scores, VALUES, step=3, mode="min", pbt=PBT)) == {2, 6}


def test_of_two_one_copies_the_other_and_one_alone_is_left_alone():
    assert evolve([0.1, 0.2], VALUES[:2], step=3, mode="max", pbt=PBT)[0].source == 1
    assert evolve([0.1], VALUES[:1], step=3, mode="max", pbt=PBT) == {}


def test_decisions_are_replayed_by_seed_and_differ_from_step_to_step():
    scores = [0.1 * i for i in range(8)]
    first = evolve(scores, VALUES, step=3, mode="max", pbt=PBT)
    assert evolve(scores, VALUES, step=3, mode="max", pbt=PBT) == first
    assert evolve(scores, VALUES, step=6, mode="max", pbt=PBT) != first
    assert evolve(scores, VALUES, step=3, mode="max", pbt=dataclasses.replace(PBT, seed=1)) != first


def test_changed_values_are_a_little_more_or_less_or_drawn_anew_and_stay_in_their_range():
    moved, drawn = 0, 0
    for seed in range(300):
        pbt = dataclasses.replace(PBT, seed=seed)
        (copy,) = evolve([0.0, 1.0], [VALUES[0], VALUES[7]], step=3, mode="max", pbt=pbt).values()
        for key, distribution in PBT.ranges.items():
            assert distribution.low <= copy.values[key] <= distribution.high
        near = [abs(copy.values[SCALE] - 11 * factor) < 1e-9 for factor in (0.8, 1.2)]
        moved, drawn = moved + any(near), drawn + (not any(near))
    assert 180 < moved < 270, "three of four"
    assert moved + drawn == 300


@pytest.fixture
def population(tmp_path: Path, tiny_prior_file: Path) -> Callable[..., tuple[Sweep, SweepFolder]]:
    """Makes a sweep of two settings, by default two prompts, with the real parts at the smallest size."""

    def make(name: str, prompts: tuple[str, ...] = ("snowman red", "cone blue")) -> tuple[Sweep, SweepFolder]:
        folder = SweepFolder(tmp_path / name)
        sweep = plan_sweep(name, prompts=prompts, seeds=(0,), labels=("0", "0.5"))
        trials = []
        for trial in sweep.trials:
            changes = tiny_overrides(tiny_prior_file, prompt=trial.prompt, max_steps=9, schedule_steps=9)
            config = corrdream.load_config((), {**trial.config, **changes})
            plain = corrdream.config_to_dict(config)
            trials.append(dataclasses.replace(trial, identity=corrdream.identity(config), config=plain))
        search = {"search": "grid", "scheduler": scheduler_to_plain(PBT)}
        sweep = dataclasses.replace(sweep, trials=tuple(trials), metric="seconds", search=search)
        create_sweep(folder, sweep)
        return sweep, folder

    return make


def spec_of(assignment: Assignment, folder: SweepFolder) -> Spec:
    trial = assignment.trial
    return Spec(
        sweep_folder=str(folder.path),
        trial=trial.name,
        identity=trial.identity,
        config=trial.config,
        cpus=1,
        gpus=0.0,
        report_seconds=600.0,
        until=assignment.until,
        values=dict(assignment.values),
    )


def run_next(schedule: Schedule, folder: SweepFolder) -> dict[str, Any] | None:
    """Trains the next assignment; setting 0.5 is always better."""
    assignment = schedule.next()
    if assignment is None:
        return None
    process = CorrDreamTrainable(config={"spec": spec_of(assignment, folder).to_text()})
    result: dict[str, Any] = {"done": False}
    while not result["done"]:
        result = process.train()
    process.cleanup()
    score = float(assignment.trial.labels[RESCALE])
    path = folder.trial(assignment.trial.name) / "rungs.json"
    if result["state"] == "paused":  # as if that had been measured
        rungs = json.loads(path.read_text())
        rungs[str(result["step"])]["seconds"] = score
        path.write_text(json.dumps(rungs))
    schedule.end(assignment.trial.name, result["state"], result["step"], score)
    return result


def schedule_of(sweep: Sweep, folder: SweepFolder) -> Schedule:
    return Schedule(sweep, folder, names=[trial.name for trial in sweep.trials])


def tensors(folder: SweepFolder, name: str, step: int) -> dict[str, torch.Tensor]:
    path = folder.trial(name) / f"checkpoints/step-{step:06d}.safetensors"
    return {key: tensor.clone() for key, tensor in load_file(path).items()}


def test_a_generation_ends_when_all_have_arrived_and_the_copy_has_the_weights_of_its_twin(
    population: Callable[..., tuple[Sweep, SweepFolder]], tmp_path: Path
):
    sweep, folder = population("sweep")
    schedule = schedule_of(sweep, folder)
    results = [run_next(schedule, folder) for _ in sweep.trials]
    assert [result and (result["state"], result["step"]) for result in results] == [("paused", 3)] * 4
    before = {trial.name: tensors(folder, trial.name, 3) for trial in sweep.trials}
    assert schedule.next(), "and so the next generation begins"
    for prompt in ("snowman red", "cone blue"):
        bad, good = (trial for trial in sweep.trials if trial.prompt == prompt)
        copied = tensors(folder, bad.name, 3)
        assert all(torch.equal(copied[key], before[good.name][key]) for key in copied), "same prompt, same seed"
        assert any(not torch.equal(copied[key], before[bad.name][key]) for key in copied)
        (entry,) = read_history(folder.trial(bad.name))
        assert (entry["step"], entry["source"]) == (3, good.name)
        assert entry["values"][SCALE] != value_of(good.config, SCALE)
        (kept,) = read_history(folder.trial(good.name))
        assert (kept["source"], kept["values"][RESCALE]) == (None, 0.5)
        saved = corrdream.load_config([folder.trial(bad.name) / "config.yaml"])
        assert saved.guidance.guidance_scale == entry["values"][SCALE]
        assert saved.loss_weights.correspondence == entry["values"][WEIGHT]
    histories = [read_history(folder.trial(trial.name))[0]["values"] for trial in sweep.trials]
    assert histories[0] == histories[2], "a setting is one thing, whatever the prompt"


def test_the_steps_after_a_change_use_the_changed_values_and_all_finish(
    population: Callable[..., tuple[Sweep, SweepFolder]], tmp_path: Path
):
    sweep, folder = population("sweep")
    schedule = schedule_of(sweep, folder)
    while run_next(schedule, folder):
        pass
    assert schedule.is_over
    for trial in sweep.trials:
        status = read_status(folder.trial(trial.name), trial.identity)
        assert (status.state, status.step, status.attempts) == ("finished", 9, 1)
    bad = sweep.trials[0]
    history = {entry["step"]: entry["values"] for entry in read_history(folder.trial(bad.name))}
    assert list(history) == [3, 6]
    rows = [json.loads(line) for line in (folder.trial(bad.name) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10))
    for row in rows:
        generation = (row["step"] - 1) // 3 * 3
        expected = history[generation][SCALE] if generation else value_of(bad.config, SCALE)
        assert row["guidance/scale"] == pytest.approx(expected)
    results = read_results(sweep, folder)
    write_csv(tmp_path / "results.csv", results)
    assert f"3: copy of {sweep.trials[1].name}, guidance_rescale=" in (tmp_path / "results.csv").read_text()
    assert "from step 6 on a copy with guidance_rescale=" in format_table(compare_settings(sweep, results))


@pytest.mark.parametrize("killed_after", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3, 5))])
def test_after_a_kill_another_process_reaches_the_same_weights(
    killed_after: int, population: Callable[..., tuple[Sweep, SweepFolder]]
):
    sweep, undisturbed = population("undisturbed", ("snowman red",))
    schedule = schedule_of(sweep, undisturbed)
    while run_next(schedule, undisturbed):
        pass
    sweep, folder = population("killed", ("snowman red",))
    schedule = schedule_of(sweep, folder)
    for _ in range(killed_after):
        run_next(schedule, folder)
    if killed_after == 2:  # in the middle of the copies
        schedule.next()
        history = folder.trial(sweep.trials[0].name) / "history.json"
        history.unlink()
    schedule = schedule_of(sweep, folder)
    while run_next(schedule, folder):
        pass
    for trial in sweep.trials:
        assert read_history(folder.trial(trial.name)) == read_history(undisturbed.trial(trial.name))
        first, second = tensors(folder, trial.name, 9), tensors(undisturbed, trial.name, 9)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_setting_that_failed_leaves_the_population_and_may_come_back(
    population: Callable[..., tuple[Sweep, SweepFolder]],
):
    sweep, folder = population("sweep")
    schedule = schedule_of(sweep, folder)
    failed = schedule.next()
    assert failed
    schedule.end(failed.trial.name, "failed", 1)
    while run_next(schedule, folder):
        pass
    assert all(entry["source"] is None for trial in sweep.trials for entry in read_history(folder.trial(trial.name)))
    write_sweep(folder, sweep)
    again = schedule_of(sweep, folder)
    while run_next(again, folder):
        pass
    states = {read_status(folder.trial(trial.name), trial.identity).state for trial in sweep.trials}
    assert states == {"finished"}
