"""Whole objects below one URI of an object store, through pyarrow: s3://, gs://, abfs://, and fsspec's by fsspec+NAME://.

A write is seen whole or not at all, and by whoever looks after it has returned: S3, GCS and their kin promise both.
What fails is tried again for a while, so that a store that is away for a minute is only waited for.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from pyarrow import fs

from sweeps.locks import SweepError

PATIENCE_SECONDS = 300.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
AT_ONCE = 16  # requests

Result = TypeVar("Result")


class ObjectFiles:
    """Objects by their names below the URI."""

    def __init__(self, uri: str) -> None:
        """SweepError if the URI is not understood."""
        self.uri = uri
        self.patience = PATIENCE_SECONDS
        self._files, self._base = _open(uri)

    def check(self) -> None:
        """OSError unless the bucket, or what stands for it, is there."""
        bucket = self._base.partition("/")[0]
        if self._files.get_file_info([bucket])[0].type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no bucket {bucket}")

    def write(self, name: str, data: bytes) -> None:
        """Puts an object."""
        self.patiently(lambda: self.write_once(name, data))

    def write_once(self, name: str, data: bytes) -> None:
        """Puts an object without a second try."""
        with self._files.open_output_stream(self._key(name), compression=None) as stream:
            stream.write(data)

    def read(self, name: str) -> bytes | None:
        """An object's content; None if there is no such object."""

        def read() -> bytes:
            # The size is asked for before the content. Of an object that is replaced by a shorter one in between,
            # pyarrow returns as many bytes as it expected: the rest is what lay in memory.
            data, size = b"", -1
            while len(data) != size:
                with self._files.open_input_stream(self._key(name), compression=None) as stream:
                    data = bytes(stream.read())
                size = self._files.get_file_info([self._key(name)])[0].size or 0
            return data

        try:
            return self.patiently(read)
        except FileNotFoundError:
            return None

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Several objects at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.read, names))

    def delete(self, name: str) -> None:
        """Removes an object, if it is there."""
        try:
            self.patiently(lambda: self._files.delete_file(self._key(name)))
        except FileNotFoundError:
            return

    def copy(self, source: str, target: str) -> None:
        """Copies inside the store; FileNotFoundError if the source is gone."""

        def copy() -> None:
            try:
                self._files.copy_file(self._key(source), self._key(target))
            except OSError as error:  # S3's has no class of its own for what is not there
                if self._files.get_file_info([self._key(source)])[0].type == fs.FileType.NotFound:
                    raise FileNotFoundError(source) from error
                raise

        self.patiently(copy)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name, or any below it."""
        (info,) = self.patiently(lambda: self._files.get_file_info([self._key(name)]))
        return bool(info.type != fs.FileType.NotFound)

    def folders(self) -> list[str]:
        """Names directly below the URI that hold objects."""
        return [name.removesuffix("/") for name, kind, _ in self._list("", recursive=False) if kind == "folder"]

    def times(self, folder: str) -> dict[str, datetime]:
        """When the objects below the folder, at any depth, were written by the store's clock, by name."""
        return {name: time for name, kind, time in self._list(folder, recursive=True) if kind == "file"}

    def _list(self, folder: str, *, recursive: bool) -> list[tuple[str, str, datetime]]:
        selector = fs.FileSelector(self._key(folder), recursive=recursive, allow_not_found=True)
        infos = self.patiently(lambda: self._files.get_file_info(selector))
        kinds = {fs.FileType.File: "file", fs.FileType.Directory: "folder"}
        start = len(self._base) + 1
        return [(info.path[start:], kinds[info.type], info.mtime) for info in infos if info.type in kinds]

    def _key(self, name: str) -> str:
        return f"{self._base}/{name}".rstrip("/")

    def patiently(self, action: Callable[[], Result]) -> Result:
        """What `action` returns; the OSError that it still raises after `patience` seconds."""
        deadline, pause = time.monotonic() + self.patience, FIRST_PAUSE
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


def _open(uri: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    try:
        files, path = fs.FileSystem.from_uri(_with_single_requests(uri))
    except (ValueError, ImportError) as error:
        raise SweepError(
            f"--storage {uri} is not understood: {' '.join(str(error).split())}; give a folder, s3://bucket/path,"
            " gs://bucket/path or fsspec+SCHEME://path."
        ) from error
    if not path.strip("/"):
        raise SweepError(f"--storage {uri} names no bucket; give one, as in s3://bucket/sweeps.")
    return files, path.rstrip("/")


def _with_single_requests(uri: str) -> str:
    """Small objects go to S3 in one request instead of three."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"
