"""What trials that did not end have saved: the step of the newest checkpoint, from which each goes on."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sweeps.folders import PlannedTrial, SweepFolder, read_statuses

MAX_LINES = 8


def saved_steps(folder: SweepFolder, trials: Iterable[PlannedTrial]) -> dict[str, int]:
    """The step of each trial's newest checkpoint in the storage, by name; 0 where it has none."""
    statuses = read_statuses(folder, list(trials))
    begun = {name for name, status in statuses.items() if status.state != "pending"}
    return {name: _newest_step(folder, name) if name in begun else 0 for name in statuses}


def _newest_step(folder: SweepFolder, name: str) -> int:
    files = folder.storage.files(folder.trial(name) / "checkpoints")
    return max((_step(path) for path in files if path.match("step-*.safetensors")), default=0)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def list_continued(saved: Mapping[str, int]) -> str:
    """`TRIAL from step 5`, a line each, of those that do not begin anew."""
    lines = [f"{name} from step {step}" for name, step in saved.items() if step]
    more = [f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return "\n".join([*lines[:MAX_LINES], *more])


def describe_saved(saved: Mapping[str, int]) -> str:
    """`2 interrupted trials, at steps 5, 9; 6 are still to begin`."""
    steps = sorted(step for step in saved.values() if step)
    if not steps:
        return f"no step yet of {len(saved)} trials"
    others = f"; {len(saved) - len(steps)} are still to begin" if len(saved) > len(steps) else ""
    return f"{len(steps)} interrupted trials, at steps {', '.join(map(str, steps))}{others}"
