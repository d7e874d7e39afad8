"""A released configuration on a CPU: a random checkpoint in the official layout at a tiny size."""

import csv
from pathlib import Path

import pytest

from corrdream.__main__ import main as corrdream
from sweeps.folders import SweepFolder, load_sweep
from sweeps.run import main as sweep
from tests.mvdream_files import released_overrides, small_blocks_shape, write_checkpoint

pytestmark = pytest.mark.slow

CONFIG = "configs/corr-mvdream-sd21-shading.yaml"
ROOT = Path(__file__).parent.parent
WITHOUT_TRUTH = ("hull_gap", "floater_share", "fuzziness", "z_variance", "saturation_distance", "contrast_ratio")
COST = ("step_seconds_median", "step_seconds_p95", "nonfinite_share", "peak_memory_gb", "seconds")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("mvdream") / "tiny.safetensors", small_blocks_shape())
    # A blob that is solid from the start has silhouettes to measure after two steps.
    plain = released_overrides(checkpoint) | {"field.density_blob_scale": 400}
    return [f"{key}={value}" for key, value in plain.items()]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRDREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)


@pytest.mark.timeout(900)
def test_a_run_trains_and_is_graded_without_the_truth(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert corrdream(["train", CONFIG, "prompt=An astronaut riding a horse", *overrides, "--run-dir", str(run)]) == 0
    assert not (run / "grade.json").exists()
    capsys.readouterr()
    assert corrdream(["grade", str(run)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in WITHOUT_TRUTH)


@pytest.mark.timeout(900)  # Ray starts a cluster of its own
def test_a_sweep_is_judged_by_what_needs_no_truth(overrides: list[str], tmp_path: Path) -> None:
    words = ["--grid", "rescale", "--config", CONFIG, "--prompts", "a corgi", "--storage", str(tmp_path)]
    assert sweep([*words, "--name", "plan", "--dry-run", *overrides]) == 0
    assert sweep([*words, "--name", "released", *overrides]) == 0
    folder = SweepFolder(tmp_path / "released")
    known = load_sweep(folder)
    assert (known.metric, known.mode) == ("match_residual", "min")
    with (folder.path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 4
    for row in rows:
        assert all(row[name] for name in (*WITHOUT_TRUTH, *COST)), row
    report = (folder.path / "report.html").read_text(encoding="utf-8")
    for title in ("hull gap", "floater share", "fuzziness", "saturation distance", "contrast ratio"):
        assert title in report
