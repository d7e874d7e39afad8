"""A trial whose sweep lies in an object store, killed and continued by another process in another directory."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

import corrdream
from sweeps.cache import find_finished
from sweeps.folders import PlannedTrial, Status, SweepFolder, read_statuses
from sweeps.object_store import ObjectStorage
from sweeps.trainable import CorrDreamTrainable, Spec
from tests.contracts.storage import put
from tests.object_server import object_server
from tests.sweep_folders import tiny_overrides

STEPS = 60
KILL_AT = 10
TRAIN = """
import sys
from sweeps.trainable import CorrDreamTrainable
trial = CorrDreamTrainable(config={"spec": sys.stdin.read()})
while not trial.train()["done"]:
    pass
"""


@pytest.fixture
def folder() -> Iterator[SweepFolder]:
    """A sweep's folder as somebody sees it who has only the URI."""
    with object_server() as server:
        storage = ObjectStorage(server.uri("sweeps"))
        folder = SweepFolder(storage.root / "mine", storage)
        put(folder, "sweep.json", "{}")
        yield folder


def test_a_killed_trial_continues_from_the_store_and_equals_an_undisturbed_run(
    folder: SweepFolder, tmp_path: Path, tiny_prior_file: Path
):
    overrides = tiny_overrides(tiny_prior_file, prompt="snowman red", max_steps=STEPS)
    config = corrdream.load_config((), overrides)
    trial = PlannedTrial(
        name="first",
        labels={},
        prompt=config.prompt,
        seed=0,
        identity=corrdream.identity(config),
        config=corrdream.config_to_dict(config),
    )
    spec = Spec(
        sweep_folder=folder.storage.uri(folder.path),
        trial=trial.name,
        identity=trial.identity,
        config=trial.config,
        cpus=1,
        gpus=0.0,
        report_seconds=0.01,
    )

    def status() -> Status:
        return read_statuses(folder, [trial])[trial.name]

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN], stdin=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdin
        process.stdin.write(spec.to_text().encode())
        process.stdin.close()
        deadline = time.monotonic() + 240
        while status().step < KILL_AT:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    killed = status()
    assert KILL_AT <= killed.step < STEPS
    assert killed.state == "running"
    assert not find_finished(SweepFolder(folder.path.with_name("another"), folder.storage), [trial])

    threads = torch.get_num_threads()
    try:
        other = CorrDreamTrainable(config={"spec": spec.to_text()})
        other._open()
        assert other._trainer.step > 0
        while not other.train()["done"]:
            pass
        trainer, run = corrdream.open_run(tmp_path / "undisturbed", config)
        trainer.fit(run)
    finally:
        torch.set_num_threads(threads)
    ended = status()
    assert (ended.state, ended.step, ended.attempts) == ("finished", STEPS, 2)
    name = f"checkpoints/step-{STEPS:06d}.safetensors"
    path = folder.trial(trial.name)
    folder.storage.pull([path / name, path / "metrics.jsonl"])
    disturbed, undisturbed = load((path / name).read_bytes()), load_file(run.path / name)
    assert disturbed.keys() == undisturbed.keys()
    for key in disturbed:
        assert torch.equal(disturbed[key], undisturbed[key]), key
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    found = find_finished(SweepFolder(folder.path.with_name("another"), folder.storage), [trial])
    assert found == {trial.name: path}
    assert not [name for name in folder.storage.files(path) if "trial.lock" in name.parts], "the lock is let go"
