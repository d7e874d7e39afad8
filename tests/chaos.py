"""Faults at random into sweeps that run: `python tests/chaos.py --faults 200 --seed 0`, or `make chaos N=200`.

Each fault hits a trial that has taken steps since the last one. The same sweep is begun anew until all faults are
injected, the last one is let finish, and every trial's final tensors are compared, bit for bit, with those of a run
that nothing disturbed. Exit status 1 if a trial is lost, starts over although it had a checkpoint, or differs.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  (the tests are no installed package)
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import corrdream  # noqa: E402
from sweeps.folders import SweepFolder, load_sweep, read_status  # noqa: E402
from tests.faults import (  # noqa: E402
    fill_disk,
    kill,
    kill_with,
    newest_checkpoint,
    plant_bomb,
    steps_done,
    tear,
    worker_of,
)

STEPS = 400
CHECKPOINT_EVERY = 10
MIN_STEPS, MAX_STEPS = 3, 40  # that a trial takes before it is hit again
MOMENT = (0.3, 2.0)  # seconds for which nothing can be written
DRIVER_KINDS = ("driver killed", "driver told to stop")
WEIGHTS = {
    "worker killed": 5,
    "worker told to leave": 4,
    "newest checkpoint torn, worker killed": 4,
    "newest checkpoint a pickle, worker killed": 2,
    "nothing can be written for a moment": 3,
    "disk full": 2,
    "driver killed": 2,
    "driver told to stop": 1,
}
CONTINUED = re.compile(r"Continuing .* from step (\d+)")


@dataclass
class Hit:
    """A fault and what became of the trial that it hit."""

    kind: str
    trial: Path
    step: int  # rows of metrics.jsonl when it was hit
    continuations: int
    had_checkpoint: bool
    resumed: int | None = None

    def look(self) -> None:
        """Reads where the next attempt went on."""
        later = continuations(self.trial)[self.continuations :]
        if self.resumed is None and later:
            self.resumed = later[0]


@dataclass
class Chaos:
    """One session: the sweeps, the driver that runs, what was injected."""

    place: Path
    number: int
    random: random.Random
    write: Callable[[str], None]
    hits: list[Hit] = field(default_factory=list)
    rounds: list[SweepFolder] = field(default_factory=list)
    resumes: int = 0
    undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    driver: "subprocess.Popen[bytes] | None" = None

    def run(self) -> None:
        """Rounds until every fault is injected, and the last one to its end."""
        while len(self.hits) < self.number:
            folder = SweepFolder(self.place / f"round-{len(self.rounds) + 1}")
            self.rounds.append(folder)
            self.start(["--grid", str(self.place / "chaos.yaml"), "--name", folder.path.name])
            while not self.ended(folder):
                self.step(folder)
                time.sleep(0.1)

    def start(self, words: list[str]) -> None:
        """Starts a driver."""
        command = [sys.executable, str(ROOT / "sweeps" / "run.py"), *words, "--storage", str(self.place)]
        command += ["--wandb", "disabled", "--on-fault", "lost=1000", "disk_full=retry"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.place / "driver.txt").open("ab") as file:
            self.driver = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def ended(self, folder: SweepFolder) -> bool:
        """Whether the round is over; a driver that ended early is followed by one that resumes."""
        assert self.driver is not None
        if self.driver.poll() is None:
            return False
        if self.driver.returncode == 0:
            return True
        if not folder.sweep_file.exists():
            raise RuntimeError(f"the sweep did not start; see {self.place / 'driver.txt'}")
        self.resumes += 1
        self.start(["--resume", folder.path.name])
        return False

    def step(self, folder: SweepFolder) -> None:
        """Injects one fault if a trial is due."""
        for hit in self.hits:
            hit.look()
        for deadline, undo in list(self.undo):
            if time.monotonic() >= deadline:
                undo()
                self.undo.remove((deadline, undo))
        trials = sorted(path for path in folder.path.glob("trials/*") if self.is_due(path))
        if len(self.hits) >= self.number or not trials:
            return
        kind = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        trial = self.random.choice(trials)
        process = worker_of(trial)
        if process is None or (kind in DRIVER_KINDS and self.driver.poll() is not None):  # type: ignore[union-attr]
            return
        self.hits.append(
            Hit(
                kind=kind,
                trial=trial,
                step=steps_done(trial),
                continuations=len(continuations(trial)),
                had_checkpoint=len(list(trial.glob("checkpoints/step-*.safetensors"))) > 1,
            )
        )
        self.write(f"{len(self.hits):4d}  {kind}: {folder.path.name}/{trial.name} at step {self.hits[-1].step}")
        self.inject(kind, trial, process)

    def is_due(self, trial: Path) -> bool:
        """Whether it runs and has taken some steps since it was last hit."""
        mine = [hit for hit in self.hits if hit.trial == trial]
        try:
            state = json.loads((trial / "status.json").read_text())["state"]
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if state != "running" or worker_of(trial) is None or (mine and mine[-1].resumed is None):
            return False
        begun = (continuations(trial) or [0])[-1]
        return begun + self.random.randint(MIN_STEPS, MAX_STEPS) <= steps_done(trial) < STEPS

    def inject(self, kind: str, trial: Path, process: int) -> None:
        """Does it."""
        assert self.driver is not None
        match kind:
            case "worker killed":
                kill(process)
            case "worker told to leave":
                os.kill(process, signal.SIGTERM)
            case "newest checkpoint torn, worker killed":
                kill_with(trial, process, tear)
            case "newest checkpoint a pickle, worker killed":
                kill_with(trial, process, plant_bomb)
            case "nothing can be written for a moment":
                self.undo.append((time.monotonic() + self.random.uniform(*MOMENT), fill_disk(process)))
            case "disk full":
                fill_disk(process)
            case "driver killed":
                self.driver.kill()
            case "driver told to stop":
                self.driver.terminate()

    def table(self) -> str:
        """What was injected and what it cost, a line a kind."""
        lines = [f"{'fault':44s} injected  went on  steps done again (mean, most)  started over"]
        for kind in WEIGHTS:
            mine = [hit for hit in self.hits if hit.kind == kind]
            known = [hit for hit in mine if hit.resumed is not None]
            again = [max(0, hit.step - (hit.resumed or 0)) for hit in known]
            cost = f"{sum(again) / len(again):.1f}, {max(again)}" if again else "-"
            over = sum(hit.resumed == 0 and hit.had_checkpoint for hit in known)
            lines.append(f"{kind:44s} {len(mine):8d}  {len(known):7d}  {cost:>30s}  {over:12d}")
        return "\n".join(lines)


def continuations(trial: Path) -> list[int]:
    """Where each attempt after the first went on."""
    try:
        return [int(step) for step in CONTINUED.findall((trial / "log.txt").read_text())]
    except FileNotFoundError:
        return []


def write_grid(place: Path) -> None:
    """Two settings, two seeds: the smallest run of the real parts."""
    from tests.conftest import write_tiny_prior
    from tests.sweep_folders import RESCALE, tiny_overrides

    prior = place / "tiny.safetensors"
    write_tiny_prior(prior)
    overrides = tiny_overrides(prior, max_steps=STEPS) | {
        "output.checkpoint_every": CHECKPOINT_EVERY,
        "output.mesh": False,
        "correspondence.window": {"steps": [40, STEPS - 40]},
    }
    del overrides["prompt"]
    (place / "base.yaml").write_text("device: cpu\n")
    plain: dict[str, Any] = {"config": "base.yaml", "prompts": ["snowman red"], "seeds": [0, 1]}
    plain |= {"parameters": {RESCALE: [0.3, 0.5]}, "overrides": overrides}
    (place / "chaos.yaml").write_text(OmegaConf.to_yaml(plain))


def compare(chaos: Chaos) -> tuple[int, int, int]:
    """(trials, those that did not finish, those that differ from an undisturbed run)."""
    torch.set_num_threads(1)
    total = unfinished = different = 0
    alone: dict[str, dict[str, torch.Tensor]] = {}
    for folder in chaos.rounds:
        for trial in load_sweep(folder).trials:
            total += 1
            path = folder.trial(trial.name)
            if read_status(path, trial.identity).state != "finished":
                unfinished += 1
                continue
            if trial.identity not in alone:
                trainer, run = corrdream.open_run(
                    chaos.place / "alone" / trial.name, corrdream.load_config((), trial.config)
                )
                trainer.fit(run)
                alone[trial.identity] = load_file(newest_checkpoint(run.path) or run.path)
            ours, expected = load_file(newest_checkpoint(path) or path), alone[trial.identity]
            same = ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in expected)
            same &= steps_done(path) == STEPS
            different += not same
    return total, unfinished, different


def main() -> int:
    """Prints each fault, the table, and what was lost."""
    parser = argparse.ArgumentParser(description="Faults at random into sweeps that run.")
    parser.add_argument("--faults", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--seed", type=int, default=0, help="of the mix (default: 0)")
    arguments = parser.parse_args()
    place, begun = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    write_grid(place)
    chaos = Chaos(place, arguments.faults, random.Random(arguments.seed), lambda line: print(line, flush=True))
    try:
        chaos.run()
    except BaseException:
        print(f"stopped; see {place}", file=sys.stderr)
        raise
    finally:
        if chaos.driver is not None and chaos.driver.poll() is None:
            chaos.driver.terminate()
    total, unfinished, different = compare(chaos)
    over = sum(hit.resumed == 0 and hit.had_checkpoint for hit in chaos.hits)
    executed = len(list(place.rglob("executed")))
    print(f"\n{chaos.table()}\n")
    print(f"{len(chaos.hits)} faults in {(time.monotonic() - begun) / 60:.1f} min, {chaos.resumes} drivers resumed")
    print(f"{total} trials: {unfinished} lost, {over} started over although they had a checkpoint")
    print(
        f"{total - unfinished - different} of {total} equal an undisturbed run bit for bit; {executed} bombs went off"
    )
    is_good = not (unfinished or different or over or executed)
    if is_good:
        shutil.rmtree(place)
    else:
        print(f"see {place}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
