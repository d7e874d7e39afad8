"""TensorBoard and W&B hold what a run's folder holds, whatever happened to the process that wrote it."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import corrdream
from corrdream import tracking
from corrdream.__main__ import main
from corrdream.artifacts import RunFolder, write_picture, write_video
from corrdream.runs import open_run
from corrdream.tracking import FINAL_MEDIA, Tracker, open_tracker
from corrdream.wandb_runs import WandbRun, explain_wandb_mode, wandb_mode
from tests.sweep_folders import tiny_overrides
from tests.wandb_files import (
    media_files,
    read_axes,
    read_config,
    read_history,
    read_run,
    read_summary,
    read_system_metrics,
    wait_for_end,
)

CONFIG = {"prompt": "a snowman", "guidance": {"guidance_scale": {"values": [50, 10]}, "guidance_rescale": 0.3}}
CALLED = WandbRun(
    run_id="0123456789abcdef",
    name="guidance_rescale=0.3",
    group="rescale-1",
    job_type="trial",
    tags=("rescale", "a snowman", "seed 0", "x" * 80),
)


def log_steps(folder: Path, first: int, last: int) -> None:
    for step in range(first, last + 1):
        RunFolder(folder).append_metrics({"step": float(step), "loss/sds": 1.0 / step})


def write_previews(folder: Path, *steps: int) -> None:
    run = RunFolder(folder)
    for step in steps:
        write_picture(run.preview(step), np.full((8, 24, 3), step, np.uint8))
        write_picture(run.matches(step), np.full((8, 16, 3), step, np.uint8))


def write_final_media(folder: Path) -> None:
    for name in ("turntable", "normals"):
        write_picture(folder / f"{name}.png", np.zeros((8, 64, 3), np.uint8))
    write_video(folder / "turntable.mp4", [np.full((16, 16, 3), shade, np.uint8) for shade in (0, 255)])
    (folder / "mesh.glb").write_bytes(b"glTF")


def make_tracker(folder: Path, mode: str = "disabled") -> Tracker:
    return Tracker(RunFolder(folder), CALLED, mode=mode, config=CONFIG)


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def tensorboard_steps(folder: Path, key: str) -> list[int]:
    return [event.step for event in tensorboard(folder).Scalars(key)]


def offline_file(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return wait_for_end(path)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with all that it can leave, followed by both trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.2")
    tracker = make_tracker(folder, "offline")
    log_steps(folder, 1, 2)
    write_previews(folder, 2)
    tracker.update()
    log_steps(folder, 3, 3)
    write_final_media(folder)
    time.sleep(1.0)  # several samples of the machine
    tracker.close({"viou_solid": 0.8})
    patch.undo()
    return folder


def test_tensorboard_gets_every_row_once(tmp_path: Path):
    tracker = make_tracker(tmp_path)
    log_steps(tmp_path, 1, 3)
    tracker.update()
    log_steps(tmp_path, 4, 5)
    tracker.update()
    tracker.close({"viou_solid": 0.8})
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2, 3, 4, 5]
    assert tensorboard_steps(tmp_path, "final/viou_solid") == [5]


def test_tensorboard_holds_pictures_at_their_steps(tracked: Path):
    events = tensorboard(tracked)
    assert {key: [event.step for event in events.Images(key)] for key in events.Tags()["images"]} == {
        "preview": [2],
        "matches": [2],
        "turntable": [3],
        "normals": [3],
    }
    (preview,) = events.Images("preview")
    assert (preview.width, preview.height) == (24, 8)


def test_tensorboard_shows_no_step_twice_after_going_back_to_an_older_checkpoint(tmp_path: Path):
    first = make_tracker(tmp_path)
    log_steps(tmp_path, 1, 8)
    first.update()
    first.close()
    RunFolder(tmp_path).trim_metrics(4)
    again = make_tracker(tmp_path)
    log_steps(tmp_path, 5, 9)
    again.close()
    assert tensorboard_steps(tmp_path, "loss/sds") == list(range(1, 10))


def test_a_line_that_is_still_being_written_waits_for_its_end(tmp_path: Path):
    tracker = make_tracker(tmp_path)
    log_steps(tmp_path, 1, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss')
    tracker.update()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('/sds": 0.5}\n')
    tracker.close()
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2]


def test_after_a_kill_trackers_show_no_step_twice_and_none_missing_under_the_same_run(tmp_path: Path):
    log_steps(tmp_path, 1, 8)
    write_previews(tmp_path, 4)
    code = (
        "import os, sys; from pathlib import Path; from tests.test_tracking import make_tracker;"
        " make_tracker(Path(sys.argv[1]), 'offline').update(); os.kill(os.getpid(), 9)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # one of its own
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    RunFolder(tmp_path).trim_metrics(6)  # its newest checkpoint
    again = make_tracker(tmp_path, "offline")
    log_steps(tmp_path, 7, 10)
    again.close()
    assert tensorboard_steps(tmp_path, "loss/sds") == list(range(1, 11))
    rows = read_history(offline_file(tmp_path))
    assert [(row["_step"], row["step"]) for row in rows] == [(step, step) for step in range(1, 11)]
    assert [row["step"] for row in rows if "preview._type" in row] == [4]
    assert not left.exists()
    assert read_run(offline_file(tmp_path)).run_id == CALLED.run_id


def test_wandb_keeps_out_of_the_machines_temporary_files(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from corrdream import WandbRun, end_wandb, open_wandb_run;"
        " called = WandbRun(run_id='a', name='a');"
        " open_wandb_run(Path(sys.argv[1]), called, mode='offline', config={}).finish();"
        " left = lambda: len(list(Path(os.environ['TMPDIR']).glob('*wandb*'))); before = left(); end_wandb();"
        " print(before, left())"  # the socket's (two entries were seen on a loaded machine), then none
    )
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # one of its own
    with TemporaryDirectory() as short:  # a socket's path has 107 characters at most
        command = [sys.executable, "-c", code, tmp_path]
        printed = subprocess.check_output(command, env=environment | {"TMPDIR": short}, text=True)
    before, after = map(int, printed.split())
    assert before >= 1
    assert after == 0


def test_wandb_holds_group_name_tags_and_the_nested_configuration(tracked: Path):
    run = read_run(offline_file(tracked))
    assert (run.project, run.run_group, run.run_id, run.display_name, run.job_type) == (
        "corrdream",
        "rescale-1",
        "0123456789abcdef",
        "guidance_rescale=0.3",
        "trial",
    )
    assert list(run.tags) == ["rescale", "a snowman", "seed 0", "x" * 64]
    config = read_config(offline_file(tracked))
    assert config["guidance"] == CONFIG["guidance"]
    assert config["prompt"] == "a snowman"


def test_wandb_holds_every_row_with_step_as_axis_and_the_final_metrics(tracked: Path):
    rows = read_history(offline_file(tracked))
    assert [(row["_step"], row["step"], row["loss/sds"]) for row in rows[:3]] == [
        (1, 1, 1.0),
        (2, 2, 0.5),
        (3, 3, pytest.approx(1 / 3)),
    ]
    assert read_axes(offline_file(tracked))["*"] == "step"
    summary = read_summary(offline_file(tracked))
    assert summary["final/viou_solid"] == 0.8
    assert summary["loss/sds"] == pytest.approx(1 / 3)


def test_wandb_holds_previews_matches_turntable_video_and_mesh(tracked: Path):
    rows = read_history(offline_file(tracked))
    kinds = {
        (row["step"], key.removesuffix("._type")): kind
        for row in rows
        for key, kind in row.items()
        if key.endswith("._type")
    }
    assert kinds == {
        (2, "preview"): "image-file",
        (2, "matches"): "image-file",
        (3, "turntable"): "image-file",
        (3, "normals"): "image-file",
        (3, "turntable_video"): "video-file",
        (3, "mesh"): "object3D-file",
    }
    assert {"preview.png", "matches.png", "mesh.glb"} <= media_files(offline_file(tracked))
    assert list(offline_file(tracked).parent.glob("files/media/videos/turntable_video*.mp4"))


def test_wandb_holds_what_the_machine_did(tracked: Path):
    assert any(
        name.startswith("proc.") or name.startswith("cpu") for name in read_system_metrics(offline_file(tracked))
    )


def test_final_media_that_do_not_exist_are_left_out(tmp_path: Path):
    log_steps(tmp_path, 1, 1)
    tracker = make_tracker(tmp_path, "offline")
    tracker.close({})
    (row,) = read_history(offline_file(tmp_path))
    assert not [key for key in row if key.partition(".")[0] in FINAL_MEDIA]


def test_a_wandb_that_cannot_start_is_reported_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with caplog.at_level(logging.WARNING):
        tracker = make_tracker(tmp_path, "online")
    log_steps(tmp_path, 1, 2)
    tracker.update()
    tracker.close({})
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("corrdream")]
    assert said.startswith("W&B is off for this run: WANDB_API_KEY invalid")
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2]


class _Full:
    """A sink that fails as a full disk does."""

    def log(self, step: int, scalars: Any, media: Any) -> None:
        raise OSError(28, "No space left on device")

    def close(self, summary: Any, media: Any) -> None:
        raise AssertionError("a sink that failed is not asked again")


def test_a_tracker_that_fails_later_is_reported_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tracking, "WandbSink", lambda *_, **__: _Full())
    tracker = make_tracker(tmp_path, "offline")
    log_steps(tmp_path, 1, 3)
    tracker.update()
    tracker.close({})
    assert [record.getMessage() for record in caplog.records] == [
        "W&B stopped for this run: [Errno 28] No space left on device"
    ]
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        (None, {}, "offline"),
        ("auto", {}, "offline"),
        (None, {"WANDB_API_KEY": "x" * 40}, "online"),
        (None, {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "x" * 40}, "offline"),
    ],
)
def test_wandb_is_offline_unless_asked_otherwise_or_a_key_is_set(
    asked: str | None, environment: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode
    assert ("no API key is set" in explain_wandb_mode(wandb_mode(asked))) == (mode == "offline" and not environment)


def test_a_key_in_netrc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'x' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode(None) == "online"


def test_a_single_run_has_tensorboard_always_and_wandb_when_asked(tmp_path: Path, tiny_prior_file: Path):
    overrides = tiny_overrides(tiny_prior_file, prompt="snowman red", max_steps=4, device="cpu") | {
        "output.wandb": "offline",
        "output.video": True,
        "output.preview_every": 2,
        "correspondence.window": "{steps: [0, 4]}",
    }
    words = ["train", *(f"{key}={value}" for key, value in overrides.items()), "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    assert tensorboard_steps(tmp_path / "run", "loss/total") == [1, 2, 3, 4]
    path = offline_file(tmp_path / "run")
    assert [row["step"] for row in read_history(path)][:4] == [1, 2, 3, 4]
    assert read_config(path)["cameras"]["resolution"] == 16
    assert {"preview.png", "matches.png", "turntable.png"} <= media_files(path)
    assert read_run(path).display_name == "run"


def test_a_single_run_has_no_wandb_unless_asked_and_keeps_its_id(tmp_path: Path, tiny_prior_file: Path):
    config = corrdream.load_config((), tiny_overrides(tiny_prior_file, max_steps=2, device="cpu"))
    _, run = open_run(tmp_path / "run", config)
    open_tracker(run, config).close()
    assert not (run.path / "wandb").exists()
    assert tracking._run_id(run) == tracking._run_id(RunFolder(tmp_path / "run"))
    _, other = open_run(tmp_path / "other", config)
    assert tracking._run_id(run) != tracking._run_id(other)
