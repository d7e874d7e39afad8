"""Run folders: continuing gives what an uninterrupted run gives, bit for bit; reading changes nothing."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from corrdream.checkpoint import CheckpointError, checkpoint_path, load_checkpoint
from corrdream.config import Config, ConfigError, load_config
from corrdream.engine import build
from corrdream.outputs import finish_run
from corrdream.runs import RunError, check_folder, load_run, open_run, resume_run
from tests.sweep_folders import tiny_overrides

STEPS = 8
EVENTFUL = {  # correspondence steps 2 and 4, a larger image from step 5
    "max_steps": STEPS,
    "device": "cpu",
    "prompt": "snowman red",  # known words, but no caption: saves the time to grade
    "cameras.resolution": {"steps": [0, 5], "values": [16, 24], "interpolate": "hold"},
    "correspondence.window": {"steps": [2, 6]},
    "correspondence.every": 2,
    "correspondence.opacity_threshold": -1.0,
    "correspondence.epipolar_threshold": 1e6,
    "rendering.occupancy_update_every": 3,
    "rendering.occupancy_warmup_steps": 2,
    "output.checkpoint_every": 1,
    "output.checkpoint_keep": 100,
    "output.preview_every": 4,
    "output.preview_size": 16,
}


@pytest.fixture(scope="module")
def config(tiny_prior_file: Path) -> Config:
    return load_config((), tiny_overrides(tiny_prior_file) | EVENTFUL)


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted. Nobody changes it."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    trainer, run = open_run(path, config, command=["train"], fresh=True)
    trainer.fit(run)
    return path


def changed(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, **changes)


def tensors(path: Path, step: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint_path(path / "checkpoints", step)).tensors


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def losses(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def copy_of(run: Path, target: Path, *, until: int | None = None) -> Path:
    """A run folder as it was after `until` steps."""
    for name, content in snapshot(run).items():
        if until is None or not name.startswith("checkpoints/") or int(name[-18:-12]) <= until:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    return target


def test_a_new_run_folder_says_how_it_came_about(finished: Path, config: Config) -> None:
    provenance = json.loads((finished / "run.json").read_text())
    assert provenance["command"] == ["train"]
    assert {"identity", "started", "python", "packages", "git"} <= provenance.keys()
    assert load_config([finished / "config.yaml"]) == config
    assert [row["step"] for row in losses(finished)] == list(range(1, STEPS + 1))
    assert ["loss/correspondence" in row for row in losses(finished)] == [False, False, True, False, True] + [False] * 3


@pytest.mark.parametrize("step", [1, 3, 5, 6])
def test_a_continued_run_equals_the_uninterrupted_one(finished: Path, tmp_path: Path, step: int) -> None:
    path = copy_of(finished, tmp_path / "run", until=step)
    trainer, run = open_run(path)
    assert trainer.step == step
    trainer.fit(run)
    assert_same(tensors(path, STEPS), tensors(finished, STEPS))
    assert losses(path) == losses(finished)


def test_run_without_its_provenance_goes_on_under_a_new_name(finished: Path, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "copied"
    shutil.copytree(finished, path)
    before = json.loads((path / "run.json").read_text())
    (path / "run.json").unlink()
    trainer, run = open_run(path)
    assert trainer.step == STEPS
    after = json.loads(run.provenance.read_text())
    assert after.keys() == before.keys()
    assert after["identity"] == before["identity"]
    assert after["id"] != before["id"]


def test_any_checkpoint_can_be_continued_in_a_new_folder(finished: Path, tmp_path: Path) -> None:
    before = snapshot(finished)
    source = checkpoint_path(finished / "checkpoints", 3)
    trainer, run = resume_run(source, tmp_path / "branch", (), command=())
    trainer.fit(run)
    assert_same(tensors(tmp_path / "branch", STEPS), tensors(finished, STEPS))
    assert snapshot(finished) == before


def test_continuing_an_older_checkpoint_in_place_forgets_the_later_ones(finished: Path, tmp_path: Path) -> None:
    path = copy_of(finished, tmp_path / "run")
    trainer, run = resume_run(checkpoint_path(path / "checkpoints", 3), None, (), command=())
    assert trainer.step == 3
    assert not checkpoint_path(run.checkpoints, 4).exists()
    assert len(losses(path)) == 3


def test_a_finished_run_goes_on_with_more_steps_and_its_own_schedules(finished: Path, tmp_path: Path) -> None:
    path = copy_of(finished, tmp_path / "run")
    trainer, run = resume_run(path, None, [f"max_steps={STEPS + 2}"], command=())
    assert (trainer.step, trainer.config.schedule_steps) == (STEPS, STEPS)
    trainer.fit(run)
    assert trainer.finished
    assert len(losses(path)) == STEPS + 2
    again = load_config([path / "config.yaml"])
    assert (again.max_steps, again.schedule_steps) == (STEPS + 2, STEPS)


def test_in_place_nothing_else_may_change(finished: Path, tmp_path: Path) -> None:
    path = copy_of(finished, tmp_path / "run")
    with pytest.raises(RunError, match=r"seed=7 would make .* another run: in place only max_steps.*--run-dir"):
        resume_run(path, None, ["seed=7"], command=())
    trainer, _ = resume_run(path, tmp_path / "other", ["seed=7"], command=())
    assert (trainer.step, trainer.config.seed) == (STEPS, 7)


def test_weights_start_a_new_run_from_a_scene_without_its_optimizer(
    finished: Path, config: Config, tmp_path: Path
) -> None:
    source = checkpoint_path(finished / "checkpoints", STEPS)
    trainer, _ = open_run(tmp_path / "run", changed(config, weights=str(source)), fresh=True)
    scene = {name: value for name, value in tensors(finished, STEPS).items() if name.startswith("scene/")}
    assert_same({f"scene/{name}": value for name, value in trainer.scene.state_dict().items()}, scene)
    assert trainer.step == 0
    assert not trainer.optimizer.state
    assert torch.equal(trainer.generator.get_state(), build(config).generator.get_state())
    source_gone = changed(config, weights=str(tmp_path / "gone.safetensors"))
    with pytest.raises(ConfigError, match=r"weights=.*gone\.safetensors does not exist"):
        build(source_gone)


def test_weights_that_do_not_fit_are_refused(finished: Path, config: Config) -> None:
    source = str(checkpoint_path(finished / "checkpoints", STEPS))
    other = changed(config, weights=source, background=changed(config.background, kind="network"))
    with pytest.raises(CheckpointError, match="does not fit this configuration"):
        build(other)


def test_reading_a_run_changes_nothing_in_it(finished: Path) -> None:
    before = snapshot(finished)
    assert load_run(finished)[0].step == STEPS
    assert load_run(finished, checkpoint_path(finished / "checkpoints", 2))[0].step == 2
    assert snapshot(finished) == before


def test_previews_hold_the_views_and_the_matches_before_them(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "previews").iterdir())
    assert names == ["matches-000004.png", "step-000004.png", "step-000008.png"]


def test_a_finished_run_gets_its_strips_and_no_grade_without_a_truth(finished: Path, tmp_path: Path) -> None:
    trainer, run = open_run(copy_of(finished, tmp_path / "run"))
    measured = finish_run(trainer, run)
    assert "match_residual" in measured
    assert "viou_solid" not in measured
    assert json.loads(run.quality.read_text())["skipped"].keys() >= {"clip_score", "adjacent_lpips"} - measured.keys()
    assert {"turntable.png", "normals.png"} <= {path.name for path in run.path.iterdir()}
    assert not run.grade.exists()


def test_a_folder_in_use_is_refused(finished: Path, config: Config) -> None:
    with pytest.raises(RunError, match=rf"run folder {finished} is in use; continue it with --resume"):
        open_run(finished, config, fresh=True)
    with pytest.raises(RunError, match="holds a run with another configuration"):
        open_run(finished, changed(config, seed=5))


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="is not a run folder or one of its checkpoints"):
        resume_run(tmp_path, None, (), command=())


def test_a_run_without_a_checkpoint_cannot_be_shown(config: Config, tmp_path: Path) -> None:
    open_run(tmp_path / "run", config, fresh=True)
    with pytest.raises(RunError, match=r"has no checkpoint yet; train it: python -m corrdream train --resume"):
        load_run(tmp_path / "run")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be a run folder: .*file is a file"):
        check_folder(tmp_path / "file" / "run")


def test_a_run_that_cannot_be_built_leaves_no_folder(config: Config, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused = dataclasses.replace(config, weights=str(tmp_path / "nothing.safetensors"))
    for name in ("new", "mine"):
        with pytest.raises(ValueError, match=r"nothing\.safetensors"):
            open_run(tmp_path / name, refused)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine" / "notes.txt").exists()
