"""Trains the built-in prior: `python -m corrdream.blocks.train --out DIR --minutes 9 --total-minutes 27`.

Runs on one GPU, on several (`torchrun --nproc-per-node N -m corrdream.blocks.train ...`), or, small, on a CPU. A call
trains for `minutes` and leaves DIR/state.pt, from which a call with `--resume DIR` goes on; the learning rate falls to
zero over `total-minutes` of all calls together, start and compilation included. DIR/blocks.safetensors holds the
averaged weights in half precision. A run of a given number of `--steps` instead of minutes is reproducible.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from corrdream.blocks.grammar import MAX_TOKENS
from corrdream.blocks.training import Training, TrainSettings
from corrdream.blocks.training_data import NUM_SETS, Objects, ObjectStream, object_loader, step_generator
from corrdream.blocks.training_losses import StepLosses
from corrdream.blocks.training_report import write_report
from corrdream.prior.blocks import BlocksShape

CLOCK_EVERY = 16  # steps between two looks at the clock
LOG_SECONDS = 10.0
MAX_STEPS = 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """When a call stops, and how far the whole training is: in minutes, or in steps."""

    minutes: float | None = None
    total_minutes: float | None = None
    steps: int | None = None

    def progress(self, step: int, elapsed_minutes: float) -> float:
        """Fraction of the whole training that is done."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.total_minutes is not None, "a budget has steps or minutes"
        return min(elapsed_minutes / self.total_minutes, 1.0)

    def is_spent(self, step: int, call_minutes: float, elapsed_minutes: float) -> bool:
        """Whether this call ends before another step."""
        if self.steps is not None:
            return step >= self.steps
        assert self.minutes is not None, "a budget has steps or minutes"
        return call_minutes >= self.minutes or self.progress(step, elapsed_minutes) >= 1.0


class Log:
    """Prints mean losses and the speed every few seconds; a non-finite loss ends the training."""

    def __init__(self, sets_per_step: int) -> None:
        self._sets_per_step = sets_per_step
        self._losses: list[Float[Tensor, " 3"]] = []
        self._since = time.monotonic()

    def add(self, losses: StepLosses, step: int, progress: float) -> None:
        """Counts a step's losses; prints when it is time."""
        self._losses.append(torch.stack([losses.diffusion, losses.match, losses.coordinate]).detach())
        seconds = time.monotonic() - self._since
        if seconds < LOG_SECONDS:
            return
        diffusion, match, coordinate = torch.stack(self._losses).mean(0).tolist()
        speed = len(self._losses) * self._sets_per_step / seconds
        print(
            f"step {step:6d}  done {progress:6.1%}  {speed:7.0f} sets/s  "
            f"diffusion {diffusion:.5f}  match {match:.3f}  coordinate {coordinate:.4f}",
            flush=True,
        )
        if not math.isfinite(diffusion + match + coordinate):
            raise FloatingPointError(f"The loss is not finite at step {step}.")
        self._losses, self._since = [], time.monotonic()


def train(training: Training, budget: Budget, *, start: float) -> None:
    """Steps until the budget of this call is spent; `start` is when the call began (time.monotonic)."""
    settings, before = training.settings, training.elapsed_minutes
    objects = object_stream(training, budget)
    log = Log(NUM_SETS * settings.num_objects * world_size())
    progress = 0.0
    while True:
        if training.step % CLOCK_EVERY == 0 or budget.steps is not None:
            minutes = agreed((time.monotonic() - start) / 60, training.device)
            training.elapsed_minutes = before + minutes
            progress = budget.progress(training.step, training.elapsed_minutes)
            if budget.is_spent(training.step, minutes, training.elapsed_minutes):
                return
        generator = step_generator(settings.seed, training.rank, training.step, training.device)
        losses = training.train_step(training.make_input(next(objects), generator), progress)
        if training.rank == 0:
            log.add(losses, training.step, progress)


def object_stream(training: Training, budget: Budget) -> Iterator[Objects]:
    """The objects of this rank's steps, from the present one on."""
    settings = training.settings
    stream = ObjectStream(
        num_objects=settings.num_objects,
        num_steps=budget.steps or MAX_STEPS,
        seed=settings.seed,
        rank=training.rank,
        split="train",
    )
    return object_loader(stream, first_step=training.step, num_workers=settings.workers)


def world_size() -> int:
    """Number of devices that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def agreed(value: float, device: torch.device) -> float:
    """Rank 0's value, on all ranks."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor([value], device=device)
    distributed.broadcast(shared, 0)
    return shared.item()


def start_device() -> torch.device:
    """This process's device; joins the others that torchrun started."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("nccl", device_id=device)
    return device


def parse_arguments() -> argparse.Namespace:
    """The command line: the budget, the folders, and every field of TrainSettings."""
    parser = argparse.ArgumentParser(description="Train the built-in prior.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder of an earlier call")
    parser.add_argument("--weights", type=Path, help="weights file that a new training starts from")
    parser.add_argument("--minutes", type=float, help="of this call")
    parser.add_argument("--total-minutes", type=float, help="of all calls together; default: of this one")
    parser.add_argument("--steps", type=int, help="instead of minutes: the number of steps in all")
    for field in dataclasses.fields(TrainSettings):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    if (arguments.minutes is None) == (arguments.steps is None):
        parser.error("give --minutes or --steps")
    return arguments


def main() -> None:
    """Train, save and report."""
    start = time.monotonic()
    arguments = parse_arguments()
    fields = [field.name for field in dataclasses.fields(TrainSettings)]
    settings = TrainSettings(**{name: getattr(arguments, name) for name in fields})
    budget = Budget(
        minutes=arguments.minutes,
        total_minutes=arguments.total_minutes or arguments.minutes,
        steps=arguments.steps,
    )
    device = start_device()
    training = Training(settings, BlocksShape(max_tokens=MAX_TOKENS), device)
    if arguments.resume:
        training.load(arguments.resume)
    elif arguments.weights:
        training.start_from(arguments.weights)
    if training.rank == 0:
        described = {
            "settings": dataclasses.asdict(settings),
            "budget": dataclasses.asdict(budget),
            "shape": dataclasses.asdict(training.model.networks.shape),
            "run": {"torch": torch.__version__, "devices": world_size(), "device": device_name(device)},
        }
        print(json.dumps(described), flush=True)
    train(training, budget, start=start)
    if training.rank == 0:
        arguments.out.mkdir(parents=True, exist_ok=True)
        training.save(arguments.out)
        print(f"{training.step} steps in {training.elapsed_minutes:.2f} minutes of all calls", flush=True)
        for row in write_report(training, arguments.out):
            print(json.dumps(row), flush=True)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
