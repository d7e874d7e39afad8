"""`python -m tests.benchmarks step|parts|cpu`: prints a table, and writes JSON where it is told to."""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from corrdream.config import Config, load_config
from corrdream.engine import build, pick_device
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_layout import MODELS
from corrdream.trainer import Trainer
from tests.benchmarks.measure import Measurement, as_json, environment, summary, table, top_kernels
from tests.benchmarks.parts import (
    encoding_parts,
    matching_parts,
    measure_parts,
    prior_parts,
    rendering_parts,
    sample_points,
)
from tests.benchmarks.priors import random_prior, teraflops
from tests.benchmarks.step import (
    CONFIGS,
    FIRST_STEP,
    OPAQUE,
    frozen_trainer,
    limits,
    measure_steps,
    released_config,
    whole_run_minutes,
)
from tests.mvdream_files import tiny_shape

TINY = {
    "cameras.resolution": 16,
    "cameras.batch_size": 4,
    "rendering.num_samples_per_ray": 16,
    "correspondence.feature_blocks": [3, 2],
    "correspondence.opacity_threshold": 0.0,
    "field.hash_grid": {"num_levels": 2, "log2_table_size": 8, "base_resolution": 4, "growth": 2.0},
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", choices=["step", "parts", "cpu"])
    parser.add_argument("--variants", nargs="+", default=[""], metavar="KEY=VALUE[,KEY=VALUE]")
    parser.add_argument("--cases", nargs="+", choices=list(FIRST_STEP), default=list(FIRST_STEP))
    parser.add_argument("--parts", nargs="+", default=["prior", "matching", "grid", "render"])
    parser.add_argument("--opaque", action="store_true", help="also an opaque object")
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--tflops", type=float, default=790.0, help="rate of half-precision products for the limit")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU's benchmark")
    parser.add_argument("--kernels", action="store_true", help="also the kernels that take longest in each case")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", default="", help="where the sources have no repository with them")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, on any device")
    return parser.parse_args(arguments)


class Workbench:
    """Priors and trainers of variants; a prior is kept as long as its own settings stay."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.shape = tiny_shape() if options.tiny else MODELS["sd-v2.1-base-4view"]
        self._prior: tuple[object, MvdreamPrior] | None = None

    def config(self, variant: str, **more: object) -> Config:
        changes = dict(pair.split("=", 1) for pair in variant.split(",") if pair)
        tiny = TINY | {"precision": "float32"} if self.options.tiny else {}
        return released_config(**tiny, **more, **changes)

    def prior(self, config: Config) -> MvdreamPrior:
        key = (config.prior, config.precision)
        if self._prior is None or self._prior[0] != key:
            self._prior = None  # before the next is made
            torch.cuda.empty_cache()
            self._prior = key, random_prior(config, pick_device(config), self.shape)
        return self._prior[1]

    def trainer(self, config: Config) -> Trainer:
        return frozen_trainer(config, self.prior(config), pick_device(config))


def step(bench: Workbench, options: argparse.Namespace) -> Iterator[Measurement]:
    """Cases A to D for each variant, and of an opaque object."""
    first = bench.config("")
    counts = teraflops(bench.shape, tuple(first.correspondence.feature_blocks))
    bounds = limits(counts, options.tflops)
    for variant in options.variants:
        for kind, more in (("", {}), ("opaque ", OPAQUE if options.opaque else None)):
            if more is None:
                continue
            config = bench.config(variant, **more)
            start = time.monotonic()
            trainer = bench.trainer(config)
            print(f"# {variant or 'default'} {kind}: ready in {time.monotonic() - start:.1f} s", flush=True)
            label = f"{variant} {kind}".lstrip()
            lines: list[Measurement] = []
            for cases in ([c for c in "AB" if c in options.cases], [c for c in "CD" if c in options.cases]):
                start = time.monotonic()
                lines += measure_steps(
                    trainer,
                    cases,
                    trainer.device,
                    repeats=options.repeats,
                    warmup=options.warmup,
                    limits_ms=bounds,
                    label=label,
                )
                print(f"# {''.join(cases)}: {time.monotonic() - start:.1f} s with preparation", flush=True)
            yield from lines
            if (minutes := whole_run_minutes(lines)) is not None:
                print(f"# {label or 'default'}: 12000 steps take {minutes:.1f} min, extrapolated", flush=True)
            if options.kernels and trainer.device.type == "cuda":
                print_kernels(trainer, options.cases)


def print_kernels(trainer: Trainer, cases: Sequence[str]) -> None:
    for case in cases:
        trainer.step = FIRST_STEP[case]
        rows = top_kernels(trainer.train_step)
        print(f"# {case}: " + "; ".join(f"{name[:48]} {ms:.2f} ms x{calls}" for name, ms, calls in rows), flush=True)


def parts(bench: Workbench, options: argparse.Namespace) -> Iterator[Measurement]:
    """Each part of a step, for each variant."""
    for variant in options.variants:
        config = bench.config(variant)
        trainer = bench.trainer(config)
        device, label = trainer.device, f"{variant} ".lstrip()
        blocks = tuple(config.correspondence.feature_blocks)
        if "prior" in options.parts:
            yield from measure_parts(
                prior_parts(trainer.prior, blocks, device), device, repeats=options.repeats, label=label
            )
        if "matching" in options.parts:
            shapes = [(8, 8), (8, 4)] if options.tiny else [(640, 32), (1280, 16)]
            yield from measure_parts(
                matching_parts(device, shapes, tiny=options.tiny), device, repeats=options.repeats, label=label
            )
        for case in ("A", "C"):
            if "render" in options.parts:
                yield from measure_parts(
                    rendering_parts(trainer, FIRST_STEP[case]), device, repeats=options.repeats, label=label
                )
        if "grid" in options.parts:
            points = sample_points(trainer, FIRST_STEP["C"])
            print(f"# hash grid at {len(points)} points", flush=True)
            yield from measure_parts(
                encoding_parts(points, trainer.scene.field.encoding), device, repeats=options.repeats, label=label
            )


def cpu(options: argparse.Namespace) -> Iterator[Measurement]:
    """The built-in default's two kinds of steps at both of its sizes, on one thread or as many as asked for."""
    torch.set_num_threads(options.threads)
    changes = {"prompt": "a red cone on a blue cube", "device": "cpu", "max_steps": 200}
    tiny = {"cameras.resolution": 16, "rendering.num_samples_per_ray": 16} if options.tiny else {}
    trainer = build(load_config([CONFIGS / "blocks.yaml"], changes | tiny))
    for _ in range(options.warmup):
        trainer.train_step()
    for name, first in (("distillation 32 px", 21), ("correspondence 32 px", 60), ("distillation 64 px", 151)):
        times = []
        for index in range(options.repeats):
            trainer.step = first + 2 * (index % 10)
            start = time.perf_counter()
            trainer.train_step()
            times.append(1e3 * (time.perf_counter() - start))
        yield summary(name, times)


def main(arguments: Sequence[str] | None = None) -> list[Measurement]:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="# %(message)s")
    match options.what:
        case "step":
            measurements = step(Workbench(options), options)
        case "parts":
            measurements = parts(Workbench(options), options)
        case _:
            measurements = cpu(options)
    lines: list[Measurement] = []
    for line in measurements:
        lines.append(line)
        print("> " + table([line]).splitlines()[1], flush=True)  # in case that the rest does not come
    device = torch.device("cuda" if torch.cuda.is_available() and options.what != "cpu" else "cpu")
    facts = environment(device, options.commit)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(table(lines))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(lines, facts), indent=1), encoding="utf-8")
    return lines


if __name__ == "__main__":
    main()
