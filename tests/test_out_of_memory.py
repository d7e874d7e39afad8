"""What is said when a GPU's memory is full. The memory itself was not filled here: there is no GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from corrdream.artifacts import RunFolder
from corrdream.config import load_config
from corrdream.engine import build
from corrdream.out_of_memory import explain_out_of_memory, smaller_ray_chunk
from corrdream.trainer import Trainer
from tests.sweep_folders import tiny_overrides


@pytest.fixture
def trainer(tiny_prior_file: Path) -> Trainer:
    changes: dict[str, Any] = {"device": "cpu", "guidance.guidance_rescale": 0.5}
    built = build(load_config((), tiny_overrides(tiny_prior_file, **changes)))
    built.scene.occupancy.binary.fill_(False)
    built.scene.occupancy.binary[10:20, 10:20, 10:20] = True
    return built


def log_samples(folder: Path, *counts: int) -> RunFolder:
    run = RunFolder(folder)
    for step, count in enumerate(counts, start=1):
        run.append_metrics({"step": float(step), "samples": float(count)})
    return run


def test_a_quarter_of_the_rays_is_tried_and_then_a_quarter_of_those(trainer: Trainer) -> None:
    assert smaller_ray_chunk(trainer) == 4 * 16 * 16 // 4
    trainer.ray_chunk = 100
    assert smaller_ray_chunk(trainer) == 25


def test_an_object_alone_is_not_blamed(trainer: Trainer, tmp_path: Path) -> None:
    text = explain_out_of_memory(trainer, log_samples(tmp_path, 1000, 1100, 1200))
    assert text == "out of memory at step 0 with all rays at a time."


def test_floating_noise_is_named_with_the_lower_rescale(trainer: Trainer, tmp_path: Path) -> None:
    trainer.scene.occupancy.binary[25:30, 25:30, ::2] = torch.tensor(True)
    text = explain_out_of_memory(trainer, log_samples(tmp_path, *[1000] * 30, 5000))
    assert "29% of the occupied volume floats apart from the object" in text
    assert "samples a step grew from 1000 to 5000" in text
    assert "guidance.guidance_rescale (0.5 here) can cause; try 0.3." in text


def test_growth_alone_counts_too(trainer: Trainer, tmp_path: Path) -> None:
    assert "floating noise" in explain_out_of_memory(trainer, log_samples(tmp_path, *[1000] * 30, 5000))
