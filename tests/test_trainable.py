"""The adapter: a trial's folder holds the truth, whichever process works on it. No cluster is needed."""

import dataclasses
import json
import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import corrdream
from sweeps import trainable
from sweeps.folders import SweepFolder, read_rungs, read_status
from sweeps.locks import LockedError, hold_lock
from sweeps.trainable import CorrDreamTrainable, Spec
from tests.sweep_folders import tiny_overrides

STEPS = 16  # of which 4, 6 and 8 are correspondence steps
UNGRADED = "snowman red"  # known words, but no caption: saves the time to grade


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_spec(tmp_path: Path, tiny_prior_file: Path) -> Callable[..., Spec]:
    folder = SweepFolder(tmp_path / "sweep")
    folder.path.mkdir()
    folder.sweep_file.touch()

    def make(trial: str = "first", report_seconds: float = 600.0, **overrides: Any) -> Spec:
        config = corrdream.load_config(
            (), tiny_overrides(tiny_prior_file, prompt=UNGRADED, max_steps=STEPS) | overrides
        )
        return Spec(
            sweep_folder=str(folder.path),
            trial=trial,
            identity=corrdream.identity(config),
            config=corrdream.config_to_dict(config),
            cpus=1,
            gpus=0.0,
            report_seconds=report_seconds,
        )

    return make


@pytest.fixture
def undisturbed(make_spec: Callable[..., Spec], tmp_path: Path) -> dict[str, torch.Tensor]:
    """The final tensors of the run that no sweep knows of."""
    torch.set_num_threads(1)
    trainer, run = corrdream.open_run(tmp_path / "alone", corrdream.load_config((), make_spec().config))
    trainer.fit(run)
    return final_tensors(run.path)


def start(spec: Spec) -> CorrDreamTrainable:
    return CorrDreamTrainable(config={"spec": spec.to_text()})


def opened(spec: Spec) -> CorrDreamTrainable:
    """A trial before its first step."""
    trial = start(spec)
    trial._open()
    return trial


def finish(trial: CorrDreamTrainable) -> dict[str, Any]:
    """The last report of a trial that is called as Tune does."""
    while not (result := trial.train())["done"]:
        pass
    return dict(result)


def folder_of(spec: Spec) -> Path:
    return SweepFolder(Path(spec.sweep_folder)).trial(spec.trial)


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    newest = max(folder.glob("checkpoints/*.safetensors"))
    return {name: tensor.clone() for name, tensor in load_file(newest).items()}  # not mapped to the file


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_trial_runs_to_its_end_and_leaves_a_run_folder(make_spec: Callable[..., Spec], tmp_path: Path):
    spec = make_spec(prompt="a snowman")
    result = finish(start(spec))
    assert (result["done"], result["state"], result["step"], result["attempts"]) == (True, "finished", STEPS, 1)
    names = {path.name for path in folder_of(spec).iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "turntable.png",
        "normals.png",
        "grade.json",
        "log.txt",
    }
    status = read_status(folder_of(spec), spec.identity)
    assert (status.state, status.step, status.max_steps) == ("finished", STEPS, STEPS)
    assert status.seconds > 0
    entry = json.loads((tmp_path / ".finished" / f"{spec.identity}.json").read_text())
    assert entry == {"sweep": "sweep", "trial": "first"}


def test_a_trial_is_reported_every_few_seconds(make_spec: Callable[..., Spec]):
    trial = start(make_spec(report_seconds=0.01))
    steps = []
    while not (result := trial.train())["done"]:
        steps.append(result["step"])
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    assert steps[-1] == STEPS, "the last step is reported before the grade"


def test_the_next_trial_keeps_the_prior_and_equals_one_in_a_fresh_process(make_spec: Callable[..., Spec]):
    first, second = make_spec("first"), make_spec("second", seed=1)
    reused = start(first)
    finish(reused)
    prior = reused._prior
    assert reused.reset_config({"spec": second.to_text()}) is True
    assert finish(reused)["state"] == "finished"
    assert reused._prior is prior
    reused_tensors = final_tensors(folder_of(second))
    shutil.rmtree(folder_of(second))
    finish(start(second))
    assert_equal(final_tensors(folder_of(second)), reused_tensors)


def test_a_trial_with_another_prior_gets_that_one(
    make_spec: Callable[..., Spec], tiny_prior_file: Path, tmp_path: Path
):
    other = shutil.copy(tiny_prior_file, tmp_path / "other.safetensors")
    trial = start(make_spec("first"))
    finish(trial)
    prior = trial._prior
    trial.reset_config({"spec": make_spec("second", **{"prior.checkpoint": str(other)}).to_text()})
    assert finish(trial)["state"] == "finished"
    assert trial._prior is not prior


def test_a_process_that_tune_drops_while_it_starts_leaves_the_trial_to_the_one_that_has_it(
    make_spec: Callable[..., Spec],
):
    """Tune gives a trial to a process that comes free while the one it asked for still starts, and ends the latter."""
    spec = make_spec()
    has_it = start(spec)
    finish(has_it)
    before = (folder_of(spec) / "status.json").read_text()
    dropped = start(spec)
    dropped.cleanup()
    assert (folder_of(spec) / "status.json").read_text() == before
    assert read_status(folder_of(spec), spec.identity).state == "finished"
    running = opened(make_spec("second"))
    start(make_spec("second")).cleanup()
    assert finish(running)["state"] == "finished"


@pytest.mark.parametrize("stop_after", [3, 5, 8])
def test_a_stopped_trial_saves_and_its_continuation_equals_an_undisturbed_run(
    stop_after: int,
    make_spec: Callable[..., Spec],
    undisturbed: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
):
    spec = make_spec()
    stop_file = SweepFolder(Path(spec.sweep_folder)).stop_file
    trial = opened(spec)
    take_step = trial._trainer.train_step

    def stop_when_due() -> dict[str, float]:
        if trial._trainer.step == stop_after - 1:
            stop_file.touch()
        return take_step()

    monkeypatch.setattr(trial._trainer, "train_step", stop_when_due)
    result = finish(trial)
    assert (result["done"], result["state"], result["step"]) == (True, "stopped", stop_after)
    stop_file.unlink()
    result = finish(start(spec))
    assert (result["state"], result["attempts"]) == ("finished", 2)
    assert_equal(final_tensors(folder_of(spec)), undisturbed)
    assert (folder_of(spec) / "metrics.jsonl").read_text().count("\n") == STEPS


def test_a_trial_pauses_at_a_rung_with_its_metrics_and_its_continuation_equals_an_undisturbed_run(
    make_spec: Callable[..., Spec], undisturbed: dict[str, torch.Tensor]
):
    spec = make_spec()
    for until in (5, 9):
        result = finish(start(dataclasses.replace(spec, until=until)))
        assert (result["done"], result["state"], result["step"]) == (True, "paused", until)
        assert read_rungs(folder_of(spec))[until] == result["measured"]
        assert result["measured"]["seconds"] > 0
    result = finish(start(dataclasses.replace(spec, until=STEPS)))
    assert (result["state"], result["attempts"]) == ("finished", 1), "a pause is no interruption"
    assert_equal(final_tensors(folder_of(spec)), undisturbed)
    assert (folder_of(spec) / "metrics.jsonl").read_text().count("\n") == STEPS


def test_a_trial_that_was_killed_while_it_was_measured_is_measured_again(make_spec: Callable[..., Spec]):
    spec = dataclasses.replace(make_spec(), until=5)
    trial = opened(spec)
    trial._trainer.fit(trial._run, should_stop=trial._should_stop)
    trial.cleanup()
    result = finish(start(spec))
    assert (result["state"], result["step"]) == ("paused", 5)
    assert list(read_rungs(folder_of(spec))) == [5]


def test_while_the_sweep_stops_no_trial_is_opened(make_spec: Callable[..., Spec]):
    spec = make_spec()
    SweepFolder(Path(spec.sweep_folder)).stop_file.touch()
    result = finish(start(spec))
    assert (result["done"], result["state"]) == (True, "stopped")
    assert not folder_of(spec).exists()


def test_a_torn_checkpoint_is_reported_and_the_one_before_it_is_used(make_spec: Callable[..., Spec]):
    spec = make_spec()
    finish(start(spec))
    whole = final_tensors(folder_of(spec))
    newest = max(folder_of(spec).glob("checkpoints/*.safetensors"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    again = opened(spec)
    assert again._trainer.step == STEPS - 2
    assert newest.name in again.train()["warnings"][0]
    finish(again)
    assert newest.name in (folder_of(spec) / "log.txt").read_text()
    assert_equal(final_tensors(folder_of(spec)), whole)


def test_a_diverging_trial_fails_with_its_reason_and_is_not_tried_again(make_spec: Callable[..., Spec]):
    spec = make_spec(**{"optimizer.encoding_lr": 1e30})
    result = finish(start(spec))
    assert (result["done"], result["state"]) == (True, "failed")
    assert "not finite" in result["error"]
    assert read_status(folder_of(spec), spec.identity).error == result["error"]


def test_after_a_failed_trial_the_process_can_run_the_next(make_spec: Callable[..., Spec]):
    trial = start(make_spec("bad", **{"optimizer.encoding_lr": 1e30}))
    finish(trial)
    assert trial.reset_config({"spec": make_spec("good").to_text()})
    assert finish(trial)["state"] == "finished"


def test_a_disk_that_takes_no_more_fails_the_trial_and_what_it_had_saved_is_continued(
    make_spec: Callable[..., Spec], undisturbed: dict[str, torch.Tensor]
):
    spec = make_spec()
    trial = opened(spec)
    trial._trainer.fit(trial._run, should_stop=lambda: trial._trainer.step == 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # half a checkpoint
    try:
        result = finish(trial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result["done"], result["state"]) == (True, "failed")
    assert "File too large" in result["error"]
    again = opened(spec)
    assert again._trainer.step == 5
    assert finish(again)["state"] == "finished"
    assert_equal(final_tensors(folder_of(spec)), undisturbed)


def test_an_unexpected_error_is_recorded_and_raised_so_that_tune_tries_again(
    make_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
):
    spec = make_spec()
    trial = opened(spec)

    def lose_the_device() -> dict[str, float]:
        raise RuntimeError("device lost")

    monkeypatch.setattr(trial._trainer, "train_step", lose_the_device)
    with pytest.raises(RuntimeError, match="device lost"):
        finish(trial)
    assert "device lost" in read_status(folder_of(spec), spec.identity).error
    trial.cleanup()
    assert finish(start(spec))["state"] == "finished"


def test_a_storage_that_the_node_does_not_see_fails_the_trial_with_the_cure(make_spec: Callable[..., Spec]):
    spec = make_spec()
    SweepFolder(Path(spec.sweep_folder)).sweep_file.unlink()
    result = finish(start(spec))
    assert result["state"] == "failed"
    assert "--storage that all nodes share" in result["error"]


def test_a_node_with_other_sources_or_another_prior_fails_the_trial(make_spec: Callable[..., Spec]):
    spec = dataclasses.replace(make_spec(), identity="0" * 16)
    result = finish(start(spec))
    assert result["state"] == "failed"
    assert "are not those that the sweep was started with" in result["error"]


def test_two_processes_never_work_on_one_trial(make_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainable, "LOCK_WAIT_SECONDS", 0.3)
    spec = make_spec()
    with hold_lock(folder_of(spec) / "trial.lock"), pytest.raises(LockedError, match="in use by process"):
        opened(spec)
    assert finish(start(spec))["state"] == "finished"


def test_logging_is_as_before_after_a_trial(make_spec: Callable[..., Spec]):
    handlers = list(logging.getLogger("corrdream").handlers)
    finish(start(make_spec()))
    assert logging.getLogger("corrdream").handlers == handlers
