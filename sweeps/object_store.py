"""An object store as the storage of sweeps: local copies of what this process uses, pulled and pushed.

The trainer knows no object stores. It writes a run folder on the node's disk, which a thread mirrors while the training
goes on: the metrics, then checkpoints, then all that is read beside them, the status last. So whenever the process is
killed, the store's newest checkpoint is whole and has the metrics of all its steps, and the status says no more than
what lies there.
"""

import atexit
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeps.claims import create_folder, hold_claim
from sweeps.locks import SweepError
from sweeps.object_files import AT_ONCE, ObjectFiles
from sweeps.processes import Process
from sweeps.storage import Hold, Mirror

STATUS = "status.json"
METRICS = "metrics.jsonl"
TO_CONTINUE = (
    "checkpoints",
    "config.yaml",
    "run.json",
    METRICS,
    "rungs.json",
    "history.json",
    "log.txt",
    STATUS,
)
AT_THE_END = ("wandb", "tensorboard")  # written again by an attempt that continues
LOOK_SECONDS = 2.0  # between looks for the stop file
CHECK_SECONDS = 10.0


class ObjectStorage:
    """A place below a URI; paths are below `root`, a folder of this process's own."""

    is_folder = False

    def __init__(self, uri: str) -> None:
        """SweepError if the URI is not understood."""
        self._files = ObjectFiles(uri)
        self.root = _scratch()

    def uri(self, path: Path) -> str:
        """The URI, with the path before its options."""
        place, mark, options = self._files.uri.partition("?")
        return f"{place.rstrip('/')}/{self._name(path)}".rstrip("/") + mark + options

    def check(self, root: Path) -> None:
        """SweepError unless the bucket answers."""
        del root
        patience, self._files.patience = self._files.patience, CHECK_SECONDS
        try:
            self._files.check()
        except OSError as error:
            reason = " ".join(str(error).split())
            raise SweepError(
                f"cannot use --storage {self._files.uri}: {reason}; check it and the credentials."
            ) from error
        finally:
            self._files.patience = patience

    def exists(self, path: Path) -> bool:
        """Whether there is an object of that name, or any below it."""
        return self._files.exists(self._name(path))

    def sweeps(self, root: Path) -> list[str]:
        """Names of the folders that are not hidden."""
        del root
        return sorted(name for name in self._files.folders() if not name.startswith("."))

    def files(self, folder: Path) -> list[Path]:
        """All objects at any depth."""
        return sorted(self.root / name for name in self._files.times(self._name(folder)))

    def pull(self, paths: Iterable[Path]) -> None:
        """Brings files here as they are now, several at once; what the store does not have is gone here, too."""
        paths = list(paths)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._pull, paths))

    def push(self, paths: Iterable[Path]) -> None:
        """Sends files in their order."""
        for path in paths:
            self.push_bytes(path, path.read_bytes())

    def push_bytes(self, path: Path, data: bytes) -> None:
        """Sends what a file held."""
        self._files.write(self._name(path), data)

    def delete(self, path: Path) -> None:
        """Removes a file there and here."""
        self._files.delete(self._name(path))
        path.unlink(missing_ok=True)

    def copy(self, source: Path, target: Path) -> None:
        """Copies inside the store."""
        self._files.copy(self._name(source), self._name(target))

    def create(self, folder: Path) -> None:
        """Puts the first object into the folder; FileExistsError if it is taken."""
        create_folder(self._files, self._name(folder))
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def hold(self, path: Path, *, wait_seconds: float = 0.0) -> Iterator[Hold]:
        """Holds a lock that is made of claims; see `claims.py` for what it promises."""
        with hold_claim(self._files, self._name(path), wait_seconds=wait_seconds) as claim:
            yield claim

    @contextmanager
    def work_on(self, trial: Path, stop_file: Path, hold: Hold) -> Iterator[Mirror]:
        """Brings the trial here, mirrors its folder while inside, sends the rest, and gives the local disk back."""
        shutil.rmtree(trial, ignore_errors=True)  # the store's copy is the truth
        there = [path for path in self.files(trial) if path.relative_to(trial).parts[0] in TO_CONTINUE]
        self.pull(there)
        mirror = TrialMirror(self, trial, stop_file, hold, there)
        try:
            yield mirror
            mirror.finish()
        finally:
            mirror.close()
            shutil.rmtree(trial, ignore_errors=True)

    def _pull(self, path: Path) -> None:
        data = self._files.read(self._name(path))
        if data is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
        temporary.write_bytes(data)
        temporary.replace(path)

    def _name(self, path: Path) -> str:
        name = path.relative_to(self.root).as_posix()
        return "" if name == "." else name


class TrialMirror:
    """Sends a trial's folder to the store from a thread of its own."""

    def __init__(self, storage: ObjectStorage, trial: Path, stop_file: Path, hold: Hold, there: Iterable[Path]) -> None:
        self._storage = storage
        self._trial = trial
        self._stop_file = stop_file
        self._hold = hold
        self._sent = {path: _signature(path) for path in there}
        self._sending = threading.Lock()
        self._is_due = threading.Event()
        self._is_closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Sends what is new, soon; raises the error that kept it from being sent."""
        if self._error:
            raise self._error
        self._is_due.set()

    def finish(self) -> None:
        """Returns when everything is sent."""
        self._send(everything=True)

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed = True
        self._is_due.set()
        self._thread.join()

    def _follow(self) -> None:
        looked = 0.0
        while not self._is_closed:
            try:
                if self._is_due.wait(LOOK_SECONDS):
                    self._is_due.clear()
                    self._send()
                if time.monotonic() - looked >= LOOK_SECONDS:
                    self._storage.pull([self._stop_file])
                    looked = time.monotonic()
            except Exception as error:  # raised by the next `update`, in the thread that trains
                self._error = error
                return

    def _send(self, *, everything: bool = False) -> None:
        """The status as it was before anything else was sent goes last, so that it promises nothing that is missing."""
        with self._sending:
            self._hold.check()
            status = self._trial / STATUS
            signature, said = _signature(status), status.read_bytes()
            checkpoints, others = self._new_files(everything=everything)
            if checkpoints:  # who continues drops rows beyond the checkpoint, but cannot make up those before it
                metrics = [path for path in others if path == self._trial / METRICS]
                others = [path for path in others if path not in metrics]
                self._push([*metrics, *checkpoints])
            if checkpoints or everything:
                self._push(others)
            if self._sent.get(status) != signature:
                self._storage.push_bytes(status, said)
                self._sent[status] = signature
            self._drop_old_checkpoints()

    def _new_files(self, *, everything: bool) -> tuple[list[Path], list[Path]]:
        """Checkpoints, oldest first, and the rest, as far as the store has not got them."""
        checkpoints, others = [], []
        for path in sorted(path for path in self._trial.rglob("*") if path.is_file()):
            first = path.relative_to(self._trial).parts[0]
            is_known = self._sent.get(path) == _signature(path)
            if is_known or path.name.startswith(".") or path == self._trial / STATUS:
                continue
            if first == "checkpoints":
                checkpoints.append(path)
            elif everything or first not in AT_THE_END:
                others.append(path)
        return checkpoints, others

    def _push(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):  # the trainer has dropped it; it has written a newer one
                signature, data = _signature(path), path.read_bytes()
                self._storage.push_bytes(path, data)
                self._sent[path] = signature

    def _drop_old_checkpoints(self) -> None:
        """Removes what the trainer has removed, but never the newest that was sent."""
        sent = sorted(path for path in self._sent if path.parent.name == "checkpoints")
        for path in sent[:-1]:
            if not path.exists():
                self._storage.delete(path)
                del self._sent[path]


def _signature(path: Path) -> tuple[int, int] | None:
    """What changes when the file does; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _scratch() -> Path:
    """A folder that goes when this process ends; those of processes that were killed go now."""
    mine = f"corrdream-{os.getuid()}-"
    for old in Path(tempfile.gettempdir()).glob(f"{mine}*_*_*_*_*"):
        if Process.of(old.name.removeprefix(mine).rpartition("_")[0]).is_dead_here():
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.gettempdir()) / f"{mine}{Process.this().to_text()}_{uuid.uuid4().hex}"
    path.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
