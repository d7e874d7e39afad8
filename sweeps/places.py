"""What `--storage` says, as a sweep's folder in a storage."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.folders import SweepFolder

if TYPE_CHECKING:
    from sweeps.object_store import ObjectStorage


def sweep_in(storage: str, name: str) -> SweepFolder:
    """The sweep of that name in a folder (also file://), or below a URI; SweepError if the URI is not understood."""
    if "://" not in storage or storage.startswith("file://"):
        return SweepFolder(Path(storage.removeprefix("file://")).expanduser().resolve() / name)
    objects = _objects(storage)
    return SweepFolder(objects.root / name, objects)


def sweep_at(uri: str) -> SweepFolder:
    """The sweep whose folder `Storage.uri` has named so, on this or another machine."""
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    storage, _, name = place.rpartition("/")
    return sweep_in(storage + mark + options, name)


@cache
def _objects(uri: str) -> "ObjectStorage":
    """One a process, with one folder for its copies."""
    from sweeps.object_store import ObjectStorage  # takes a second that folders need not wait

    return ObjectStorage(uri)
