"""The workspace shows the sweep's own parameters and metrics; it is made without a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.dashboard import CURVES, MEDIA, main
from sweeps.folders import SweepFolder
from sweeps.results import METRICS
from tests.sweep_folders import RESCALE, write_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces, when it is imported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    written, _ = write_sweep(tmp_path_factory.mktemp("runs") / "rescale-1", prompts=("a snowman",), seeds=(0,))
    return written


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def build(folder: SweepFolder, out: Path) -> dict[str, Any]:
    assert main(["rescale-1", "--storage", str(folder.path.parent), "--out", str(out)]) == 0
    plain = json.loads(out.read_text())
    assert isinstance(plain, dict)
    return plain


def panels(workspace: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    sections = workspace["spec"]["section"]["panel_bank_config"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["view_type"] == kind]


@pytest.mark.usefixtures("_no_key")
def test_every_parameter_is_plotted_against_every_metric(folder: SweepFolder, tmp_path: Path):
    plots = panels(build(folder, tmp_path / "workspace.json"), "Scatter Plot")
    axes = {(plot["x_axis"], plot["y_axis"]) for plot in plots}
    assert axes == {(f"config:{RESCALE.replace('.', '.value.', 1)}", f"summary:final/{m.key}") for m in METRICS}


@pytest.mark.usefixtures("_no_key")
def test_parallel_coordinates_lead_from_the_parameters_to_the_metrics(folder: SweepFolder, tmp_path: Path):
    (plot,) = panels(build(folder, tmp_path / "workspace.json"), "Parallel Coordinates Plot")
    named = [column["display_name"] for column in plot["columns"]]
    assert named == ["guidance_rescale", "prompt", "seed", *(metric.title for metric in METRICS)]


@pytest.mark.usefixtures("_no_key")
def test_importance_curves_media_and_the_runs_are_those_of_the_sweep(folder: SweepFolder, tmp_path: Path):
    workspace = build(folder, tmp_path / "workspace.json")
    (importance,) = panels(workspace, "Parameter Importance")
    assert importance["target_key"] == "final/viou_solid"
    assert [key for panel in panels(workspace, "Media Browser") for key in panel["media_keys"]] == list(MEDIA)
    curves = [metric for plot in panels(workspace, "Run History Line Plot") for metric in plot["metrics"]]
    assert set(curves) >= set(CURVES)
    assert '"rescale-1"' in json.dumps(workspace["spec"]["section"]["run_sets"])


@pytest.mark.usefixtures("_no_key")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "--out", "x.json"], "there is no sweep"),
        (["rescale-1"], "give --out FILE.json, or set WANDB_API_KEY"),
        (["rescale-1", "--out", "missing/x.json"], "cannot write missing/x.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], said: str, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
):
    assert main([*words, "--storage", str(folder.path.parent)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
