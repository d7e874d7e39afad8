"""Where sweeps lie: a folder that all nodes share, or an object store. One protocol for both.

A process works on local files. Of a folder they are the storage, and pulling and pushing move nothing. Of an object
store (`object_store.py`) they are copies of what this process uses: `pull` fetches, `push` sends.
"""

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from sweeps.locks import SweepError, hold_lock


class Hold(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """LockedError if it was lost."""
        ...


class Mirror(Protocol):
    """Keeps what the storage has of a trial up to date while this process works on it."""

    def update(self) -> None:
        """Sends what is new, soon; raises the OSError that kept it from being sent for too long."""
        ...

    def finish(self) -> None:
        """Returns when everything is sent; OSError if that is not possible."""
        ...


class Storage(Protocol):
    """Files, named by their paths on this machine."""

    @property
    def is_folder(self) -> bool:
        """Whether what is written here is not also kept elsewhere."""
        ...

    def uri(self, path: Path) -> str:
        """What another process finds the file or folder by."""
        ...

    def check(self, root: Path) -> None:
        """SweepError unless sweeps can be written below `root`."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether the storage has that file, or a folder with files."""
        ...

    def sweeps(self, root: Path) -> list[str]:
        """Names of what seem to be sweeps below `root`."""
        ...

    def files(self, folder: Path) -> list[Path]:
        """All files at any depth below the folder."""
        ...

    def pull(self, paths: Iterable[Path]) -> None:
        """Brings files here as they are now; what the storage does not have is gone here, too."""
        ...

    def push(self, paths: Iterable[Path]) -> None:
        """Sends files, each whole or not at all, one after the other."""
        ...

    def delete(self, path: Path) -> None:
        """Removes a file, if it is there."""
        ...

    def copy(self, source: Path, target: Path) -> None:
        """A file that is never changed in place, under another name; nothing travels through this process."""
        ...

    def create(self, folder: Path) -> None:
        """Makes a folder that nobody has; FileExistsError for all but one of those who try."""
        ...

    def hold(self, path: Path, *, wait_seconds: float = 0.0) -> AbstractContextManager[Hold]:
        """Holds the lock while inside; LockedError, naming the holder, if it is not free within `wait_seconds`."""
        ...

    def work_on(self, trial: Path, stop_file: Path, hold: Hold) -> AbstractContextManager[Mirror]:
        """Brings what is needed to continue the trial, and mirrors its folder; the stop file comes by itself."""
        ...


@dataclass(frozen=True)
class FolderStorage:
    """A folder on this machine, or on a file system that all nodes share."""

    is_folder = True

    def uri(self, path: Path) -> str:
        """The path."""
        return str(path)

    def check(self, root: Path) -> None:
        """SweepError unless the folder is there or can be made, and can be written to."""
        try:
            existing = next(path for path in (root, *root.parents) if path.exists())
            with TemporaryDirectory(dir=existing, prefix=".writable-"):
                pass  # permissions do not tell: root has them in /proc
        except OSError as error:
            cause = error.strerror
            raise SweepError(f"cannot write to {root}: {cause}; choose another place with --storage.") from error

    def exists(self, path: Path) -> bool:
        """Whether it exists."""
        return path.exists()

    def sweeps(self, root: Path) -> list[str]:
        """Names of the folders that hold a sweep.json."""
        return sorted(path.parent.name for path in root.glob("*/sweep.json"))

    def files(self, folder: Path) -> list[Path]:
        """All files at any depth."""
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def pull(self, paths: Iterable[Path]) -> None:
        """Nothing: they are here."""

    def push(self, paths: Iterable[Path]) -> None:
        """Nothing: they are there."""

    def delete(self, path: Path) -> None:
        """Removes a file, if it is there."""
        path.unlink(missing_ok=True)

    def copy(self, source: Path, target: Path) -> None:
        """A second name of the same file, or a copy where the file system has no such thing."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            try:
                temporary.hardlink_to(source)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, folder: Path) -> None:
        """Makes the folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()

    @contextmanager
    def hold(self, path: Path, *, wait_seconds: float = 0.0) -> Iterator[Hold]:
        """Holds the operating system's lock, which ends with the process."""
        with hold_lock(path, wait_seconds=wait_seconds):
            yield _Kept()

    @contextmanager
    def work_on(self, trial: Path, stop_file: Path, hold: Hold) -> Iterator[Mirror]:
        """Nothing is needed."""
        del trial, stop_file, hold
        yield _InPlace()


class _Kept:
    """A lock that only ends with its holder."""

    def check(self) -> None:
        """It is held."""


class _InPlace:
    """There is only one copy."""

    def update(self) -> None:
        """It is up to date."""

    def finish(self) -> None:
        """It is up to date."""
