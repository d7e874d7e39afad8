"""Both storages pass the same contract; what only an object store must withstand."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps import claims
from sweeps.folders import SweepFolder
from sweeps.locks import LockedError, SweepError
from sweeps.object_files import ObjectFiles
from sweeps.object_store import ObjectStorage
from sweeps.places import sweep_in
from tests.contracts.storage import Node, StorageContract, get, take, wait_for, working_on
from tests.object_server import ObjectServer, object_server

PLACES = (f"place-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as server:
        yield server


@pytest.fixture
def object_node(server: ObjectServer) -> Node:
    uri = server.uri(next(PLACES))

    def make() -> SweepFolder:
        storage = ObjectStorage(uri)
        return SweepFolder(storage.root / "sweep", storage)

    return make


class TestFolderStorage(StorageContract):
    @pytest.fixture
    def node(self, tmp_path: Path) -> Node:
        return lambda: sweep_in(str(tmp_path / "runs"), "sweep")


class TestObjectStorage(StorageContract):
    @pytest.fixture
    def node(self, object_node: Node) -> Node:
        return object_node


# ---- object stores only ----


def write_checkpoint(trial: Path, step: int, *, keep: int = 2) -> None:
    """As the trainer does: a checkpoint, the lines up to it, the status, and the oldest checkpoint away."""
    folder = trial / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step-{step}").write_text(f"checkpoint {step}")
    (trial / "metrics.jsonl").write_text("line\n" * step)
    (trial / "status.json").write_text(str(step))
    for old in sorted(folder.iterdir(), reverse=True)[keep:]:
        old.unlink()


def test_at_every_moment_the_newest_checkpoint_is_there_for_what_the_status_says(
    object_node: Node, monkeypatch: pytest.MonkeyPatch
):
    here, there = object_node(), object_node()
    seen = []
    write, delete = ObjectFiles.write, ObjectFiles.delete

    def look() -> None:
        names = [path.name for path in there.storage.files(there.trial("a") / "checkpoints")]
        status, metrics = get(there, "trials/a/status.json"), get(there, "trials/a/metrics.jsonl")
        seen.append((int(status or 0), max(names, default="step-0"), (metrics or "").count("\n")))

    def write_and_look(files: ObjectFiles, name: str, data: bytes) -> None:
        write(files, name, data)
        look()

    def delete_and_look(files: ObjectFiles, name: str) -> None:
        delete(files, name)
        look()

    with working_on(here) as (trial, mirror, _):
        monkeypatch.setattr(ObjectFiles, "write", write_and_look)
        monkeypatch.setattr(ObjectFiles, "delete", delete_and_look)
        for step in range(1, 8):
            write_checkpoint(trial, step)
            mirror.update()
            wait_for(lambda step=step: get(there, "trials/a/status.json") == str(step))
    assert len(seen) > 7 * 3
    for status, newest, lines in seen:
        assert status <= int(newest.removeprefix("step-")), "a status never says more than there is a checkpoint for"
        assert status <= lines
        assert int(newest.removeprefix("step-")) <= lines, "a checkpoint's steps all have their metrics"
    assert len(there.storage.files(there.trial("a") / "checkpoints")) == 2, "and old ones are dropped"


def test_checkpoints_that_the_trainer_drops_before_they_are_sent_never_leave_the_store_without_one(object_node: Node):
    here, there = object_node(), object_node()
    with working_on(here) as (trial, mirror, _):
        write_checkpoint(trial, 1)
        mirror.update()
        wait_for(lambda: get(there, "trials/a/status.json") == "1")
        for path in (trial / "checkpoints").iterdir():
            path.unlink()
        (trial / "status.json").write_text("2")
        mirror.update()
        wait_for(lambda: get(there, "trials/a/status.json") == "2")
        assert get(there, "trials/a/checkpoints/step-1") == "checkpoint 1"


def test_a_store_that_is_away_for_some_seconds_is_waited_for_while_the_training_goes_on(
    object_node: Node, server: ObjectServer
):
    here, there = object_node(), object_node()
    with working_on(here) as (trial, mirror, _):
        write_checkpoint(trial, 1)
        mirror.update()
        wait_for(lambda: get(there, "trials/a/status.json") == "1")
        server.stop()
        try:
            begun = time.monotonic()
            for step in (2, 3, 4):
                write_checkpoint(trial, step)
                mirror.update()
                time.sleep(1)
            assert time.monotonic() - begun < 6, "nothing waits for the store"
        finally:
            server.start()
        wait_for(lambda: get(there, "trials/a/status.json") == "4", seconds=60)
    assert {path.name for path in there.storage.files(there.trial("a") / "checkpoints")} == {"step-3", "step-4"}


def test_a_store_that_stays_away_is_an_error_in_the_thread_that_trains(object_node: Node, server: ObjectServer):
    here = object_node()

    def train() -> None:
        with working_on(here) as (trial, mirror, _):
            here.storage._files.patience = 1.0
            server.stop()
            write_checkpoint(trial, 1)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                mirror.update()
                time.sleep(0.1)

    try:
        with pytest.raises(OSError):  # noqa: PT011 (its text is the library's)
            train()
    finally:
        server.start()


@pytest.fixture
def short_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "EXPIRY_SECONDS", 3.0)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.5)


@pytest.mark.usefixtures("short_expiry")
def test_a_lock_outlives_its_expiry_while_its_holder_lives(object_node: Node):
    here, there = object_node(), object_node()
    with here.storage.hold(here.path / "a.lock") as hold:
        time.sleep(5)
        with pytest.raises(LockedError):
            take(there, "a.lock")
        hold.check()


@pytest.mark.usefixtures("short_expiry")
def test_the_lock_of_a_lost_node_expires_and_the_node_notices_when_it_comes_back(
    object_node: Node, monkeypatch: pytest.MonkeyPatch
):
    here, there = object_node(), object_node()
    monkeypatch.setattr(claims.Claim, "beat", lambda claim: None)  # it is cut off, and its process is not seen to die
    with (
        here.storage.hold(here.path / "a.lock") as lost,
        there.storage.hold(there.path / "a.lock", wait_seconds=30) as taken,
    ):
        with pytest.raises(LockedError, match="taken over by another process"):
            lost.check()
        taken.check()


def test_a_trial_that_was_taken_over_sends_nothing_more(object_node: Node, monkeypatch: pytest.MonkeyPatch):
    here, there = object_node(), object_node()

    def train() -> None:
        with working_on(here) as (trial, _, hold):
            monkeypatch.setattr(hold, "_lost", True)
            write_checkpoint(trial, 1)

    with pytest.raises(LockedError):
        train()
    assert get(there, "trials/a/status.json") is None


def test_a_bucket_that_is_not_there_is_one_line(server: ObjectServer):
    folder = sweep_in(server.uri("runs", bucket="none"), "mine")
    with pytest.raises(SweepError, match="there is no bucket none; check it and the credentials"):
        folder.storage.check(folder.path.parent)


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sweeps.object_store.CHECK_SECONDS", 0.5)
    folder = sweep_in("s3://bucket/runs?endpoint_override=http%3A%2F%2F127.0.0.1%3A1&scheme=http", "mine")
    with pytest.raises(SweepError, match="cannot use --storage s3://bucket/runs"):
        folder.storage.check(folder.path.parent)


@pytest.mark.parametrize("uri", ["gs://anonymous@bucket/runs", "abfs://container@account/runs", "fsspec+memory://runs"])
def test_other_stores_go_through_the_same_code(uri: str):
    folder = sweep_in(uri, "mine")
    place = folder.storage.uri(folder.path)
    assert place == f"{uri}/mine"


def test_copies_go_with_their_process_and_those_of_a_killed_one_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    make = (
        "from sweeps.object_store import ObjectStorage; print(ObjectStorage('fsspec+memory://runs').root, flush=True)"
    )
    ended = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    assert not Path(ended.stdout.strip()).exists()
    make += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", make], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout
        left = Path(killed.stdout.readline().strip())
        ObjectStorage("fsspec+memory://runs")
        assert left.exists(), "its process is alive"
        killed.kill()
    (tmp_path / f"corrdream-{os.getuid()}-of-somebody-else").mkdir()
    ObjectStorage("fsspec+memory://runs")
    assert not left.exists()


def test_a_file_uri_is_a_folder(tmp_path: Path):
    assert sweep_in(f"file://{tmp_path}", "mine") == sweep_in(str(tmp_path), "mine") == SweepFolder(tmp_path / "mine")
