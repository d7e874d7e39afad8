"""Figures are read when they are asked for; a log has them in order, late or not."""

from pathlib import Path

import pytest
import torch

from corrdream.artifacts import RunFolder
from corrdream.step_metrics import MetricsLog, StepMetrics


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that still works on each step when its figures are added."""
    monkeypatch.setattr(StepMetrics, "are_there", False)


def figures(value: float) -> StepMetrics:
    return StepMetrics({"loss/total": torch.tensor(value, requires_grad=True)}, {"samples": 7.0})


def test_figures_are_a_mapping_of_numbers() -> None:
    metrics = figures(2.5)
    assert dict(metrics) == {"loss/total": 2.5, "samples": 7.0}
    assert (len(metrics), list(metrics)) == (2, ["loss/total", "samples"])
    assert metrics.are_there


def test_log_writes_at_once_what_is_there(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path))
    log.add(1, 0.5, figures(2.0))
    row = {"step": 1.0, "seconds": 0.5, "loss/total": 2.0, "samples": 7.0}
    assert log.run.read_metrics() == [row]
    assert log.last == row


@pytest.mark.usefixtures("late")
def test_log_writes_with_the_next_step_what_comes_late(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path))
    for step in (1, 2, 3):
        log.add(step, 0.5, figures(float(step)))
        assert [row["step"] for row in log.run.read_metrics()] == list(range(1, step))
    log.flush()
    log.flush()
    assert [row["loss/total"] for row in log.run.read_metrics()] == [1.0, 2.0, 3.0]
