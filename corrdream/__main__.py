"""`python -m corrdream {train,test,grade} ...`: parses, calls, prints. No logic."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from corrdream.config import ConfigError, load_config
from corrdream.schedules import ScheduleError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input (one line on stderr), 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_args(arguments)
    from corrdream.checkpoint import CheckpointError
    from corrdream.runs import RunError  # after parsing: --help needs no torch

    try:
        status: int = options.run(options)
    except (ConfigError, ScheduleError, CheckpointError, RunError) as error:
        print(f"corrdream: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m corrdream", description="Text to 3D, one run at a time.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train from configurations, or continue a run")
    train.add_argument("inputs", nargs="*", metavar="CONFIG.yaml | key=value", help="configurations, then overrides")
    train.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/PROMPT-TIME)")
    train.add_argument("--resume", type=Path, metavar="DIR|CHECKPOINT", help="continue a run, or from a checkpoint")
    train.set_defaults(run=_train)

    test = commands.add_parser("test", help="render a turntable of a run: frames and video")
    test.add_argument("run_dir", type=Path)
    test.add_argument("--views", type=int, default=120, help="number of views (default: 120)")
    test.set_defaults(run=_test)

    grade = commands.add_parser("grade", help="measure a run of the built-in world against the true shape")
    grade.add_argument("run_dir", type=Path)
    grade.set_defaults(run=_grade)
    return parser


def _train(options: argparse.Namespace) -> int:
    from corrdream import runs
    from corrdream.engine import check_prompt

    files = [text for text in options.inputs if "=" not in text]
    overrides = [text for text in options.inputs if "=" in text]
    if options.resume is not None:
        if files:
            raise runs.RunError(f"--resume takes the run's own configuration; drop {files[0]}.")
        trainer, run = runs.resume_run(options.resume, options.run_dir, overrides, command=sys.argv)
    else:
        config = load_config(files, overrides)
        check_prompt(config)
        name = "-".join(config.prompt.split()) + datetime.now(UTC).strftime("-%Y%m%d-%H%M%S")
        trainer, run = runs.open_run(options.run_dir or Path("runs") / name, config, command=sys.argv, fresh=True)
    with _interruptible() as interrupted:
        while not trainer.finished and not interrupted():
            report = trainer.fit(run, seconds=5.0, should_stop=interrupted)
            print(
                f"step {report.step}/{report.max_steps}  loss {report.metrics['loss/total']:.4g}"
                f"  {report.metrics['seconds']:.2f} s/step",
                flush=True,
            )
        if not trainer.finished:
            print(f"Stopped at step {trainer.step}. Continue: python -m corrdream train --resume {run.path}")
            return EXIT_INTERRUPTED
    runs.finish_run(trainer, run)
    print(f"Done: {run.path}")
    return 0


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a question that the loop asks between steps."""
    asked = threading.Event()
    previous = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _test(options: argparse.Namespace) -> int:
    from corrdream import runs

    folder = runs.test(options.run_dir, options.views)
    print(f"Turntable of {options.views} views: {folder}")
    return 0


def _grade(options: argparse.Namespace) -> int:
    from corrdream import runs

    print(runs.grade_table(options.run_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
