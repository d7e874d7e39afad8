"""The benchmarks run on a CPU at tiny size, and say what they measured."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import Measurement, summary, table
from tests.benchmarks.priors import teraflops
from tests.benchmarks.step import limits, whole_run_minutes
from tests.mvdream_files import tiny_shape

pytestmark = pytest.mark.slow

QUICK = ["--tiny", "--repeats", "2", "--warmup", "1"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRDREAM_CACHE", str(tmp_path / "cache"))


def test_steps_are_measured_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = main(["step", *QUICK, "--json", str(tmp_path / "step.json")])
    assert [line.name for line in lines] == ["A", "B", "C", "D"]
    assert all(0 < line.fastest_ms <= line.median_ms <= line.slowest_ms for line in lines)
    assert all(line.samples and line.limit_ms for line in lines)
    kept = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert [line["name"] for line in kept["measurements"]] == ["A", "B", "C", "D"]
    assert {"device", "torch", "commit"} <= kept["environment"].keys()
    assert "12000 steps take" in capsys.readouterr().out


def test_variants_and_an_opaque_object_are_lines_of_their_own() -> None:
    lines = main(["step", *QUICK, "--cases", "A", "--variants", "", "field.normal=none", "--opaque"])
    assert [line.name for line in lines] == ["A", "opaque A", "field.normal=none A", "field.normal=none opaque A"]


def test_parts_are_measured() -> None:
    names = [line.name for line in main(["parts", *QUICK])]
    assert {"UNet B16", "encode+back B4", "matching 16 all", "torch backward", "torch all", "sample 16"} <= {*names}


def test_built_in_default_is_measured_on_the_cpu() -> None:
    lines = main(["cpu", *QUICK, "--repeats", "1"])
    assert [line.name for line in lines] == ["distillation 32 px", "correspondence 32 px", "distillation 64 px"]


def test_limits_count_each_network_call_once() -> None:
    counts = {"noise": 1.0, "features": 0.5, "encode": 2.0, "encode and back": 4.0}
    assert limits(counts, 1000.0) == {"A": 48.0, "B": 40.0, "C": 24.0, "D": 20.0}
    tiny = teraflops(tiny_shape(), (3, 2))
    assert tiny["encode and back"] == pytest.approx(2 * tiny["encode"], rel=0.05)
    assert 0 < tiny["features"] < tiny["noise"]


def test_whole_run_adds_up_its_cases() -> None:
    lines = [summary(case, [value]) for case, value in (("A", 20.0), ("B", 20.0), ("C", 12.0), ("D", 12.0))]
    assert whole_run_minutes(lines) == pytest.approx((6000 * 20 + 6000 * 12) / 60_000)
    assert whole_run_minutes(lines[:3]) is None


def test_table_leaves_out_what_nothing_fills() -> None:
    line = Measurement(name="A", median_ms=12.345, fastest_ms=1.0, slowest_ms=20.0, repeats=3, samples=308_000.0)
    text = table([line])
    assert "busy" not in text
    assert text.splitlines()[1].split() == ["A", "12.35", "1", "20", "308000"]
