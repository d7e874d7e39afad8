"""Nothing is computed twice: finished trials of all sweeps in a storage, found by identity.

STORAGE/.finished/IDENTITY.json says where the trial lies. It is written before the trial's status says finished, so
that none is missing, and believed only if that status does say so. A look at one identity reads one small file, however
many sweeps there are.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweeps.folders import PlannedTrial, SweepFolder, read_status, write_json, write_status

INDEX = ".finished"
COPIES_AT_ONCE = 16
LEFT_BEHIND = ("trial.lock", "log.txt", "status.json", "wandb")  # what belongs to the attempts; status.json comes last


def record_finished(folder: SweepFolder, trial: str, identity: str) -> None:
    """Makes the trial findable, from when its status says that it is finished."""
    path = _entry(folder, identity)
    write_json(path, {"sweep": folder.path.name, "trial": trial})
    folder.storage.push([path])


def find_finished(folder: SweepFolder, trials: Sequence[PlannedTrial]) -> dict[str, Path]:
    """Folders of finished trials with the same identities, by the names of `trials`; those without one are left out."""
    entries = {trial.name: _entry(folder, trial.identity) for trial in trials}
    folder.storage.pull(entries.values())
    sources = {name: source for name, entry in entries.items() if (source := _read_entry(entry))}
    folder.storage.pull(source / "status.json" for source in sources.values())
    identities = {trial.name: trial.identity for trial in trials}
    return {
        name: source for name, source in sources.items() if read_status(source, identities[name]).state == "finished"
    }


def take_finished(folder: SweepFolder, trials: Sequence[PlannedTrial], sources: Mapping[str, Path]) -> set[str]:
    """Gives trials the results of finished ones; returns the names of those whose source is gone meanwhile."""
    taken = [trial for trial in trials if trial.name in sources]
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        are_there = pool.map(lambda trial: _take(folder, trial, sources[trial.name]), taken)
        return {trial.name for trial, is_there in zip(taken, are_there, strict=True) if not is_there}


def _take(folder: SweepFolder, trial: PlannedTrial, source: Path) -> bool:
    """Copies what the report and later looks need, the status last; False if it is gone."""
    storage, target = folder.storage, folder.trial(trial.name)
    status = read_status(source, trial.identity)
    if status.state != "finished":
        return False
    try:
        for path in storage.files(source):
            relative = path.relative_to(source)
            if relative.parts[0] not in LEFT_BEHIND:
                storage.copy(path, target / relative)
    except FileNotFoundError:
        return False
    write_status(target, dataclasses.replace(status, source=status.source or source.parent.parent.name))
    storage.push([target / "status.json"])
    return True


def _entry(folder: SweepFolder, identity: str) -> Path:
    return folder.path.parent / INDEX / f"{identity}.json"


def _read_entry(entry: Path) -> Path | None:
    try:
        plain = json.loads(entry.read_text(encoding="utf-8"))
        return SweepFolder(entry.parent.parent / plain["sweep"]).trial(plain["trial"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None
