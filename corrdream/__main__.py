"""`python -m corrdream COMMAND ...`: parses, calls, prints. No logic."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from corrdream.config import Config, ConfigError, load_config
from corrdream.schedules import ScheduleError

EXIT_DIVERGED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 if the training diverged, 2 for bad input (one line on stderr), 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parse(arguments)
    try:
        status: int = options.run(options)
    except Exception as error:  # raised again unless it is one that a single line explains
        blamed = _status_of(error)
        if blamed is None:
            raise
        print(f"corrdream: {' '.join(str(error).split())}", file=sys.stderr)
        return blamed
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; overrides may stand after options, too, which argparse refuses below a subcommand."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "inputs") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.inputs = [*options.inputs, *rest]
    return options


def _status_of(error: Exception) -> int | None:
    """The exit status of an error that names its cause and cure; None for a defect, which keeps its traceback."""
    if isinstance(error, (ConfigError, ScheduleError)):
        return EXIT_BAD_INPUT
    from corrdream.backends import MissingBackendError  # not at the top: --help needs no torch
    from corrdream.checkpoint import CheckpointError
    from corrdream.export import ExportError
    from corrdream.runs import RunError
    from corrdream.trainer import TrainingDivergedError

    if isinstance(error, TrainingDivergedError):
        return EXIT_DIVERGED
    bad_input = (CheckpointError, RunError, ExportError, MissingBackendError)
    return EXIT_BAD_INPUT if isinstance(error, bad_input) else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m corrdream", description="Text to 3D, one run at a time.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train from configurations, or continue a run")
    train.add_argument("inputs", nargs="*", metavar="CONFIG.yaml | key=value", help="configurations, then overrides")
    train.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/PROMPT-TIME)")
    train.add_argument("--resume", type=Path, metavar="DIR|CHECKPOINT", help="continue a run, or from a checkpoint")
    train.set_defaults(run=_train)

    test = _run_command(commands, "test", _test, "render a turntable of a run: frames and video")
    test.add_argument("--views", type=_positive, default=120, help="number of views (default: 120)")
    test.add_argument("--size", type=_positive, default=128, help="pixels a side (default: 128)")

    validate = _run_command(commands, "validate", _validate, "render four views of a run on one sheet")
    validate.add_argument("--size", type=_positive, default=128, help="pixels a side (default: 128)")

    export = _run_command(commands, "export", _export, "write a run's surface as a mesh with its colors")
    export.add_argument("--format", choices=("obj", "glb", "ply"), default="obj", help="default: obj")
    export.add_argument(
        "--threshold", type=float, help="density of the surface (default: Otsu's, see corrdream/export.py)"
    )
    export.add_argument("--resolution", type=_positive, help="grid nodes a side (default: 128, on a GPU 256)")

    _run_command(commands, "grade", _grade, "measure a run of the built-in world against the true shape")

    preview = commands.add_parser("preview", help="images of a prompt straight from the prior: does it understand?")
    preview.add_argument("inputs", nargs="*", metavar="CONFIG.yaml | key=value", help="configurations, then overrides")
    preview.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    preview.add_argument("--num-rows", type=_positive, default=3, help="draws, a row each (default: 3)")
    preview.set_defaults(run=_preview)

    importing = commands.add_parser("import-config", help="turn a threestudio configuration into ours")
    importing.add_argument("file", type=Path, metavar="OLD.yaml")
    importing.add_argument("inputs", nargs="*", metavar="key=value", help="in the old file's names")
    importing.add_argument("--out", type=Path, metavar="NEW.yaml", help="default: print it")
    importing.set_defaults(run=_import_config)

    doctor = commands.add_parser("doctor", help="what is installed here, and what to do about what is not")
    doctor.set_defaults(run=_doctor)
    return parser


def _run_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """A command that reads a run folder."""
    command = commands.add_parser(name, help=text)
    command.add_argument("run_dir", type=Path, metavar="DIR", help="folder of the run")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the run's newest")
    command.set_defaults(run=run)
    return command


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _split(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """(configuration files, overrides)."""
    files = [text for text in inputs if "=" not in text]
    for text in files:
        if not text.endswith((".yaml", ".yml")) and not Path(text).exists():
            raise ConfigError(f"{text!r} is neither a configuration file nor an override such as max_steps=100.")
    return files, [text for text in inputs if "=" in text]


def _train(options: argparse.Namespace) -> int:
    files, overrides = _split(options.inputs)
    config = None if options.resume is not None else load_config(files, overrides)

    from corrdream import outputs, runs  # not before the configuration is known to be right: they take seconds
    from corrdream.engine import check_prompt
    from corrdream.tracking import open_tracker

    if config is None:
        if files:
            raise runs.RunError(f"--resume takes the run's own configuration; drop {files[0]}.")
        trainer, run = runs.resume_run(options.resume, options.run_dir, overrides, command=sys.argv)
    else:
        check_prompt(config)
        folder = options.run_dir or _new_folder(config)
        trainer, run = runs.open_run(folder, config, command=sys.argv, fresh=True)
    with _interruptible() as interrupted, closing(open_tracker(run, trainer.config)) as tracker:
        while not trainer.finished and not interrupted():
            report = trainer.fit(run, seconds=5.0, should_stop=interrupted)
            tracker.update()
            if report.metrics:
                print(
                    f"step {report.step}/{report.max_steps}  loss {report.metrics['loss/total']:.4g}"
                    f"  {report.metrics['seconds']:.2f} s/step",
                    flush=True,
                )
        if not trainer.finished:
            trainer.save_to(run)
            print(f"Stopped at step {trainer.step}. Continue: python -m corrdream train --resume {run.path}")
            return EXIT_INTERRUPTED
        grades = outputs.finish_run(trainer, run)
        tracker.close({key: value for key, value in grades.items() if value is not None})
    print(f"Done: {run.path}")
    return 0


def _new_folder(config: Config) -> Path:
    """runs/PROMPT-TIME."""
    words = "".join(letter if letter.isalnum() else " " for letter in config.prompt).split()
    return Path("runs") / ("-".join(words)[:80] + datetime.now(UTC).strftime("-%Y%m%d-%H%M%S"))


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
    from corrdream import outputs

    folder = outputs.test(options.run_dir, options.checkpoint, num_views=options.views, size=options.size)
    print(f"Turntable of {options.views} views: {folder}")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from corrdream import outputs

    print(f"Views: {outputs.validate(options.run_dir, options.checkpoint, size=options.size)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from corrdream import outputs

    path = outputs.export(
        options.run_dir,
        options.checkpoint,
        kind=options.format,
        threshold=options.threshold,
        resolution=options.resolution,
    )
    print(f"Mesh: {path}")
    return 0


def _grade(options: argparse.Namespace) -> int:
    from corrdream import outputs

    print(outputs.grade_table(options.run_dir, options.checkpoint))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from corrdream import outputs

    files, overrides = _split(options.inputs)
    print(f"Images: {outputs.preview(load_config(files, overrides), options.out, num_rows=options.num_rows)}")
    return 0


def _import_config(options: argparse.Namespace) -> int:
    from corrdream.import_config import import_config

    imported = import_config(options.file, options.inputs)
    for note in imported.notes:
        print(f"not carried over: {note}", file=sys.stderr)
    if options.out is None:
        print(imported.to_yaml(), end="")
    else:
        imported.save(options.out)
        print(f"Configuration: {options.out}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from corrdream.doctor import examine

    del options
    for line in examine():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
