"""Whether stopping early finds what the whole grid finds: `python tests/benchmarks/early_stopping.py FULL EARLY`.

FULL and EARLY are folders of two sweeps over the same settings, prompts and seeds:

python sweeps/run.py --grid asha --name early
python sweeps/run.py --grid asha --name full --scheduler fifo --max-steps 200
python tests/benchmarks/early_stopping.py runs/full runs/early
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sweeps.folders import SweepFolder, load_sweep
from sweeps.intervals import best_setting
from sweeps.parameters import describe
from sweeps.results import Result, SettingRow, compare_settings, describe_steps, format_estimate, read_results


def main() -> int:
    """Exit status 0 if the setting that was picked early lies within the interval of the whole grid's best."""
    full, early = (SweepFolder(Path(word).resolve()) for word in sys.argv[1:])
    verdict, lines = compare(full, early)
    print("\n".join(lines))
    return 0 if verdict else 1


def compare(full: SweepFolder, early: SweepFolder) -> tuple[bool, list[str]]:
    """Whether the pick is as good as the best, and what to say of it."""
    sweep = load_sweep(full)
    rows, results = _rows(full)
    picked_rows, picked_results = _rows(early)
    picked = picked_rows[_best(picked_rows, sweep.metric, sweep.mode)]
    best = rows[_best(rows, sweep.metric, sweep.mode)]
    same = next(row for row in rows if row.labels == picked.labels)
    estimate, own = best.means[sweep.metric], same.means[sweep.metric]
    assert estimate.low is not None, "too few prompt-seed pairs for an interval"
    assert estimate.high is not None, "too few prompt-seed pairs for an interval"
    is_within = own.mean >= estimate.low if sweep.mode == "max" else own.mean <= estimate.high
    taken, whole = (sum(result.status.step for result in part) for part in (picked_results, results))
    return is_within and taken <= whole / 2, [
        f"whole grid   {describe(best.labels)}: {sweep.metric} {format_estimate(estimate, 4)}, {whole:,} steps",
        f"early        {describe(picked.labels)}: {format_estimate(own, 4)} in the whole grid, {taken:,} steps",
        f"steps        {describe_steps(picked_results)}",
        f"verdict      {'within' if is_within else 'outside'} the interval, for {taken / whole:.0%} of the steps",
    ]


def _rows(folder: SweepFolder) -> tuple[list[SettingRow], list[Result]]:
    sweep = load_sweep(folder)
    results = read_results(sweep, folder)
    return compare_settings(sweep, results), results


def _best(rows: Sequence[SettingRow], metric: str, mode: str) -> int:
    index = best_setting([row.means[metric] for row in rows], mode)
    assert index is not None, f"no setting has a {metric}"
    return index


if __name__ == "__main__":
    sys.exit(main())
