"""What every storage of sweeps must do. Each `node` is another process's view of the same storage."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.folders import SweepFolder, write_text
from sweeps.locks import LockedError
from sweeps.storage import Hold, Mirror

Node = Callable[[], SweepFolder]

HOLDER = """
import sys, time
from pathlib import Path
from sweeps.places import sweep_at
folder = sweep_at(sys.argv[1])
with folder.storage.hold(folder.path / "some.lock"):
    print("held", flush=True)
    time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def put(folder: SweepFolder, name: str, text: str) -> Path:
    path = folder.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    folder.storage.push([path])
    return path


def get(folder: SweepFolder, name: str) -> str | None:
    """What the node reads of a file; None if there is none."""
    path = folder.path / name
    folder.storage.pull([path])
    return path.read_text() if path.exists() else None


def take(folder: SweepFolder, name: str, *, wait_seconds: float = 0.0) -> None:
    """Holds the lock for a moment."""
    with folder.storage.hold(folder.path / name, wait_seconds=wait_seconds) as hold:
        hold.check()


@contextmanager
def working_on(folder: SweepFolder, trial: str = "a") -> Iterator[tuple[Path, Mirror, Hold]]:
    """The trial's folder on this node, as an attempt has it."""
    path, storage = folder.trial(trial), folder.storage
    with storage.hold(path / "trial.lock") as hold, storage.work_on(path, folder.stop_file, hold) as mirror:
        path.mkdir(parents=True, exist_ok=True)
        yield path, mirror, hold


class StorageContract(ABC):
    @abstractmethod
    @pytest.fixture
    def node(self) -> Node:
        """Makes views of the same sweep's folder, in which nothing lies yet."""

    def test_what_one_node_pushes_another_pulls_and_sees_replaced(self, node: Node):
        here, there = node(), node()
        assert get(there, "trials/a/status.json") is None
        put(here, "trials/a/status.json", "one")
        assert get(there, "trials/a/status.json") == "one"
        put(here, "trials/a/status.json", "two")
        assert get(there, "trials/a/status.json") == "two"

    def test_a_file_that_is_replaced_all_the_time_is_always_read_whole(self, node: Node):
        here, there = node(), node()
        texts = [json.dumps({"step": "0123456789" * length}) for length in (20, 1, 7, 30, 2)]
        put(here, "trials/a/status.json", texts[0])
        ended = threading.Event()

        def replace() -> None:
            while not ended.is_set():
                for text in texts:
                    put(here, "trials/a/status.json", text)

        with ThreadPoolExecutor(1) as pool:
            replacing = pool.submit(replace)
            try:
                seen = {get(there, "trials/a/status.json") for _ in range(60)}
            finally:
                ended.set()
            replacing.result()
        assert seen <= set(texts)

    def test_many_files_are_pulled_at_once_and_what_is_gone_goes(self, node: Node):
        here, there = node(), node()
        names = [f"trials/{number}/status.json" for number in range(20)]
        for name in names:
            put(here, name, name)
        paths = [there.path / name for name in [*names, "trials/none/status.json"]]
        there.storage.pull(paths)
        assert [path.read_text() for path in paths[:-1]] == names
        here.storage.delete(here.path / names[0])
        here.storage.delete(here.path / names[0])
        there.storage.pull(paths)
        assert [path.exists() for path in paths] == [False, *[True] * 19, False]

    def test_files_folders_and_sweeps_are_found(self, node: Node):
        here, there = node(), node()
        assert not there.storage.exists(there.path)
        assert there.storage.sweeps(there.path.parent) == []
        put(here, "sweep.json", "{}")
        put(here, "trials/a/checkpoints/1", "x")
        assert there.storage.exists(there.path)
        assert there.storage.exists(there.sweep_file)
        assert there.storage.exists(there.path / "trials" / "a")
        assert not there.storage.exists(there.path / "trials" / "b")
        assert there.storage.sweeps(there.path.parent) == [there.path.name]
        assert there.storage.files(there.path / "trials") == [there.path / "trials/a/checkpoints/1"]
        assert there.storage.files(there.path / "none") == []

    def test_a_copy_stays_when_the_source_goes(self, node: Node):
        here, there = node(), node()
        source = put(here, "trials/a/grade.json", "good")
        there.storage.copy(there.path / "trials/a/grade.json", there.path / "trials/b/grade.json")
        here.storage.delete(source)
        assert get(here, "trials/b/grade.json") == "good"
        with pytest.raises(FileNotFoundError):
            there.storage.copy(there.path / "trials/a/grade.json", there.path / "trials/c/grade.json")

    def test_a_uri_names_the_same_place_for_another_node(self, node: Node):
        from sweeps.places import sweep_at

        here = node()
        put(here, "sweep.json", "mine")
        found = sweep_at(here.storage.uri(here.path))
        assert found.path.name == here.path.name
        assert get(found, "sweep.json") == "mine"

    def test_of_those_who_create_a_folder_at_once_exactly_one_does(self, node: Node):
        nodes = [node() for _ in range(4)]
        start = threading.Barrier(len(nodes))

        def create(folder: SweepFolder) -> bool:
            start.wait()
            try:
                folder.storage.create(folder.path)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(len(nodes)) as pool:
            assert sum(pool.map(create, nodes)) == 1
        with pytest.raises(FileExistsError):
            nodes[0].storage.create(nodes[0].path)

    def test_a_lock_is_held_by_one_and_free_when_it_is_let_go(self, node: Node):
        here, there = node(), node()
        lock = here.path / "driver.lock"
        with here.storage.hold(lock) as hold:
            hold.check()
            with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on"):
                take(there, "driver.lock")
            take(there, "another.lock")
        take(there, "driver.lock")

    def test_a_lock_is_waited_for(self, node: Node):
        here, there = node(), node()
        entered, leaving = threading.Event(), threading.Event()

        def hold_for_a_second() -> None:
            with here.storage.hold(here.path / "driver.lock"):
                entered.set()
                time.sleep(1)
                leaving.set()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(hold_for_a_second)
            entered.wait()
            with there.storage.hold(there.path / "driver.lock", wait_seconds=30):
                assert leaving.is_set()

    def test_a_lock_ends_with_a_process_that_is_killed(self, node: Node):
        here = node()
        words = [sys.executable, "-c", HOLDER, here.storage.uri(here.path)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"in use by process {holder.pid} on"):
                take(here, "some.lock")
            holder.send_signal(signal.SIGKILL)
        take(here, "some.lock")

    def test_a_trial_is_continued_elsewhere_from_what_was_sent(self, node: Node):
        here, there = node(), node()
        files = ("checkpoints/step-2", "metrics.jsonl", "config.yaml", "log.txt", "turntable.png", "status.json")
        with working_on(here) as (trial, mirror, _):
            (trial / "checkpoints").mkdir()
            for name in files:
                (trial / name).write_text(name)
            mirror.update()
            wait_for(lambda: get(there, "trials/a/status.json") is not None)
            assert get(there, "trials/a/metrics.jsonl") == "metrics.jsonl"
            (trial / "checkpoints/step-2").rename(trial / "checkpoints/step-4")
            (trial / "status.json").write_text("finished")
        assert get(there, "trials/a/status.json") == "finished"
        assert get(there, "trials/a/turntable.png") == "turntable.png"
        with working_on(there) as (trial, _, _):
            assert [path.name for path in (trial / "checkpoints").iterdir()] == ["step-4"]
            assert (trial / "metrics.jsonl").read_text() == "metrics.jsonl"

    def test_a_stop_file_reaches_who_works_on_a_trial(self, node: Node):
        here, there = node(), node()
        with working_on(here) as (trial, _, _):
            (trial / "status.json").write_text("running")
            assert not here.stop_file.exists()
            put(there, "STOP", "")
            wait_for(here.stop_file.exists)
