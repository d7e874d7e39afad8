"""Population-based training (arXiv:1711.09846) over a sweep's own files: bad settings go on as copies of good ones.

Tune's own scheduler was not taken: it restores trials from pickles, keeps its decisions in memory, and lets the order
in which results arrive decide who copies whom. Here a generation is complete when every setting has reached its step;
then each of the worst takes the newest checkpoints of one of the best, for the same prompts and seeds, with some values
changed. Decisions depend on measured metrics and a seed only, and every trial keeps the history of its values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import corrdream
from sweeps.folders import HISTORY, SweepFolder, read_history, write_history
from sweeps.parameters import value_of
from sweeps.schedulers import Pbt
from sweeps.standings import Standing, group_of, is_twin
from sweeps.storage import Storage

FACTORS = (0.8, 1.2)  # of a value that is changed and not drawn anew


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What becomes of a member: a copy of another one, with these values."""

    source: int
    values: Mapping[str, float]


def evolve(
    scores: Sequence[float], values: Sequence[Mapping[str, float]], *, step: int, mode: str, pbt: Pbt
) -> dict[int, Copy]:
    """The members that are replaced, by number; `scores` and current `values` are in the order of the members."""
    sign = -1 if mode == "max" else 1
    ranked = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), sign * np.nan_to_num(scores[i]), i))
    count = min(max(int(len(scores) * pbt.quantile), 1), len(scores) // 2)
    best, worst = ranked[:count], ranked[len(ranked) - count :]
    copies = {}
    for member in worst:
        generator = np.random.default_rng([pbt.seed, step, member])
        source = best[generator.integers(len(best))]
        copies[member] = Copy(source=source, values=_explore(values[source], pbt, generator))
    return copies


def _explore(values: Mapping[str, float], pbt: Pbt, generator: np.random.Generator) -> dict[str, float]:
    """The values, each drawn anew or moved a little inside its range."""
    explored = {}
    for key, distribution in pbt.ranges.items():
        if generator.random() < pbt.resample:
            explored[key] = distribution.draw(generator)
        else:
            explored[key] = distribution.rounded(values[key] * generator.choice(FACTORS))
    return explored


def copy_trial(
    storage: Storage, source: Path, target: Path, config: Mapping[str, Any], values: Mapping[str, float], step: int
) -> None:
    """The trial in folder `target` goes on from `source`'s checkpoint of that step, and with these values.

    The history comes last: a copy that was cut short is made again, and the source has not moved since.
    """
    name = f"checkpoints/step-{step:06d}.safetensors"
    storage.copy(source / name, target / name)
    corrdream.save_config(corrdream.load_config((), {**config, **values}), target / "config.yaml")
    storage.push([target / "config.yaml"])
    keep_values(target, values, step, source=source.name)


def keep_values(target: Path, values: Mapping[str, float], step: int, *, source: str | None = None) -> None:
    """Notes with which values the trial goes on from a step, and whose copy it is."""
    entry = {"step": step, "source": source, "values": dict(values)}
    write_history(target, [*(old for old in read_history(target) if old["step"] < step), entry])


def next_generation(group: Sequence[Standing], pbt: Pbt) -> int:
    """The step up to which the setting knows its values."""
    told = set.intersection(*(standing.generations for standing in group))
    return next((step for step in pbt.rungs if step not in told), pbt.budget)


def end_generations(groups: Sequence[Sequence[Standing]], folder: SweepFolder, pbt: Pbt, *, mode: str) -> None:
    """Ends every generation in which all settings have arrived that can; a setting with a failed trial cannot."""
    able = [group for group in groups if not group_of(group).has_failed]
    for step in pbt.rungs[:-1]:
        waiting = [group for group in able if any(step not in standing.generations for standing in group)]
        if not all(step in group_of(group).scores for group in waiting):
            return
        if waiting:
            # A setting that failed and was taken up again comes alone: the others have gone on.
            _end_generation([group for group in able if group_of(group).steps == step], folder, pbt, step, mode)


def _end_generation(members: Sequence[Sequence[Standing]], folder: SweepFolder, pbt: Pbt, step: int, mode: str) -> None:
    """Copies the best members over the worst, and notes for each trial how it goes on."""
    values = [_values_of(group[0], pbt) for group in members]
    scores = [group_of(group).scores[step] for group in members]
    copies = evolve(scores, values, step=step, mode=mode, pbt=pbt)
    for number, group in enumerate(members):
        copy = copies.get(number)
        for standing in group:
            if step in standing.generations:
                continue
            target = folder.trial(standing.trial.name)
            if copy is None:
                keep_values(target, values[number], step)
            else:
                twin = next(other for other in members[copy.source] if is_twin(other.trial, standing.trial))
                source = folder.trial(twin.trial.name)
                copy_trial(folder.storage, source, target, standing.trial.config, copy.values, step)
            folder.storage.push([target / HISTORY])
            standing.generations.add(step)
            standing.values = dict(copy.values if copy else values[number])


def _values_of(standing: Standing, pbt: Pbt) -> dict[str, float]:
    """What a population may change, as the trial has it now."""
    return {key: standing.values.get(key, value_of(standing.trial.config, key)) for key in pbt.ranges}
