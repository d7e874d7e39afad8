"""TensorBoard and W&B hold what metrics.jsonl holds, whatever happened to the process that wrote it."""

import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from corrdream.artifacts import RunFolder, write_picture
from sweeps.tracking import Tracker, wandb_mode
from tests.wandb_files import read_history, read_run, wait_for_end


def log_steps(folder: Path, first: int, last: int) -> None:
    for step in range(first, last + 1):
        RunFolder(folder).append_metrics({"step": float(step), "loss/sds": 1.0 / step})


def open_tracker(folder: Path, mode: str = "disabled") -> Tracker:
    config = {"guidance": {"guidance_rescale": 0.3}}
    return Tracker(folder, mode=mode, sweep="rescale-1", name="first", run_id="0123456789abcdef", config=config)


def tensorboard_steps(folder: Path, key: str) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(key)]


def offline_file(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return wait_for_end(path)


def test_tensorboard_gets_every_row_once(tmp_path: Path):
    tracker = open_tracker(tmp_path)
    log_steps(tmp_path, 1, 3)
    tracker.update()
    log_steps(tmp_path, 4, 5)
    tracker.update()
    tracker.close({"viou_solid": 0.8})
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2, 3, 4, 5]
    assert tensorboard_steps(tmp_path, "final/viou_solid") == [5]


def test_a_line_that_is_still_being_written_waits_for_its_end(tmp_path: Path):
    tracker = open_tracker(tmp_path)
    log_steps(tmp_path, 1, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss')
    tracker.update()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('/sds": 0.5}\n')
    tracker.close()
    assert tensorboard_steps(tmp_path, "loss/sds") == [1, 2]


def test_after_a_kill_trackers_show_no_step_twice_and_none_missing(tmp_path: Path):
    log_steps(tmp_path, 1, 8)
    code = (
        "import os, sys; from pathlib import Path; from tests.test_tracking import open_tracker;"
        " open_tracker(Path(sys.argv[1]), 'offline').update(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    RunFolder(tmp_path).trim_metrics(6)  # its newest checkpoint
    again = open_tracker(tmp_path, "offline")
    log_steps(tmp_path, 7, 10)
    again.close()
    assert tensorboard_steps(tmp_path, "loss/sds") == list(range(1, 11))
    assert [row["_step"] for row in read_history(offline_file(tmp_path))] == list(range(1, 11))


def test_wandb_offline_holds_group_id_configuration_rows_and_pictures(tmp_path: Path):
    log_steps(tmp_path, 1, 3)
    write_picture(tmp_path / "turntable.png", np.zeros((8, 64, 3), np.uint8))
    tracker = open_tracker(tmp_path, "offline")
    tracker.close({"viou_solid": 0.8}, {"turntable": tmp_path / "turntable.png", "normals": tmp_path / "no.png"})
    run = read_run(offline_file(tmp_path))
    assert (run.project, run.run_group, run.run_id, run.display_name) == (
        "corrdream",
        "rescale-1",
        "0123456789abcdef",
        "first",
    )
    assert [item.key for item in run.config.update if item.key == "guidance"]
    rows = read_history(offline_file(tmp_path))
    assert [(row["_step"], row["loss/sds"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert rows[-1]["turntable._type"] == "image-file"
    assert "normals._type" not in rows[-1]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))


def test_a_wandb_that_cannot_start_is_reported_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with caplog.at_level(logging.WARNING):
        tracker = open_tracker(tmp_path, "online")
    log_steps(tmp_path, 1, 1)
    tracker.close()
    assert "W&B is off for this trial" in caplog.text
    assert tensorboard_steps(tmp_path, "loss/sds") == [1]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        (None, {}, "offline"),
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


def test_a_key_in_netrc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'x' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode(None) == "online"
