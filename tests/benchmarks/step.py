"""The training step on the released configuration with its density frozen at the initial blob.

Cases: A 32 px, 8 views, distillation; B 32 px, 8 views, correspondence; C 128 px, 4 views, distillation; D 128 px,
4 views, correspondence. The released run of 12000 steps is 3000 A + 3000 B + 5500 C + 500 D.
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from corrdream.config import Config, load_config
from corrdream.engine import build
from corrdream.interfaces import MultiviewPrior
from corrdream.step_metrics import StepMetrics
from corrdream.trainer import Trainer
from tests.benchmarks.measure import Measurement, Stopwatch, gpu_work, reset_peaks, summary

CONFIGS = Path(__file__).parent.parent.parent / "configs"
FIRST_STEP = {"A": 3001, "B": 3000, "C": 6201, "D": 6200}
STEPS_OF_A_RUN = {"A": 3000, "B": 3000, "C": 5500, "D": 500}
FROZEN = {f"optimizer.{part}_lr": 0.0 for part in ("encoding", "network", "background")}
OPAQUE = {"field.density_blob_scale": 100.0}


def released_config(**overrides: object) -> Config:
    """The released configuration, frozen."""
    changes = {"prompt": "an astronaut riding a horse", **FROZEN, **overrides}
    return load_config([CONFIGS / "corr-mvdream-sd21-shading.yaml"], changes)


def frozen_trainer(config: Config, prior: MultiviewPrior, device: torch.device) -> Trainer:
    """A trainer that has seen all cells of its blob, as after the occupancy's warm-up; with a text that is not zero."""
    trainer = build(config, prior=prior, device=device)
    generator = torch.Generator().manual_seed(1)
    for _ in range(16):
        trainer.scene.occupancy.update(trainer.scene.field.density, 0, generator)
    trainer.text = torch.randn(trainer.text.shape, generator=generator).to(trainer.text)
    return trainer


def measure_steps(
    trainer: Trainer,
    cases: Sequence[str],
    device: torch.device,
    *,
    repeats: int,
    warmup: int,
    limits_ms: dict[str, float],
    label: str = "",
) -> list[Measurement]:
    """Cases in turn, as they follow each other in a run: every other step is a correspondence step.

    A step lasts from its start to the next one's on the device's clock: as in a run, nothing waits between them.
    """
    steps = dict.fromkeys(cases, 0)
    starts: list[object] = []
    figures: list[StepMetrics] = []
    memory: dict[str, dict[str, float]] = {case: {} for case in cases}
    watch = Stopwatch(device)

    def take(case: str) -> StepMetrics:
        trainer.step = FIRST_STEP[case] + 2 * (steps[case] % 100)
        steps[case] += 1
        return trainer.train_step()

    for index in range(warmup + repeats):
        for case in cases:
            peaks = reset_peaks(device)
            starts.append(watch.now())
            figures.append(take(case))
            if index >= warmup:
                memory[case] = {key: max(value, memory[case].get(key, 0.0)) for key, value in peaks().items()}
    starts.append(watch.now())
    spent = [watch.milliseconds(start, end) for start, end in pairwise(starts)]
    measured = {case: slice(warmup * len(cases) + place, None, len(cases)) for place, case in enumerate(cases)}
    return [
        summary(
            f"{label}{case}",
            spent[measured[case]],
            samples=statistics.median(metrics["samples"] for metrics in figures[measured[case]]),
            limit_ms=limits_ms.get(case),
            **memory[case],
            **gpu_work(lambda case=case: take(case), device),
        )
        for case in cases
    ]


def limits(counts: dict[str, float], tflops_per_second: float) -> dict[str, float]:
    """Milliseconds that the networks' products alone take at this rate; rendering and matching are left out."""
    sds, pair = counts["noise"] * 2 + counts["encode and back"], 2 * (counts["features"] + counts["encode"])
    work = {"A": 8 * sds, "B": 8 * pair, "C": 4 * sds, "D": 4 * pair}
    return {case: 1e3 * value / tflops_per_second for case, value in work.items()}


def whole_run_minutes(measurements: Sequence[Measurement]) -> float | None:
    """Extrapolated from the four cases; None if one is missing."""
    median = {m.name[-1]: m.median_ms for m in measurements}
    if not STEPS_OF_A_RUN.keys() <= median.keys():
        return None
    return sum(count * median[case] for case, count in STEPS_OF_A_RUN.items()) / 60_000
