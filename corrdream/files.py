"""What is known of a file, until the file changes."""

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TypeVar

Known = TypeVar("Known")


def once_per_version(read: Callable[[Path], Known]) -> Callable[[Path], Known]:
    """`read`, called once in this process for a path with its size and time of modification."""

    @cache
    def known(path: Path, size: int, modified: int) -> Known:
        del size, modified
        return read(path)

    @wraps(read)
    def look(path: Path) -> Known:
        stat = path.stat()
        return known(path.absolute(), stat.st_size, stat.st_mtime_ns)

    return look
