"""A sweep's settings as a Markdown table and a figure."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sweeps.folders import SweepFolder
from sweeps.intervals import Estimate
from sweeps.markdown import format_markdown, main
from sweeps.results import METRICS, SettingRow
from tests.sweep_folders import LABELS, RESCALE, write_sweep

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    path = tmp_path_factory.mktemp("runs") / "rescale-1"
    return write_sweep(path, prompts=("a snowman", "a yellow duck", "a brown chair"), seeds=(0, 1))[0]


def tabulate(folder: SweepFolder, *words: str) -> int:
    return main([folder.path.name, "--storage", str(folder.path.parent), *words])


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_row_has_the_means_and_their_differences_to_the_default(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
):
    assert tabulate(folder, "--metrics", "viou_solid", "dent_error") == 0
    text = capsys.readouterr().out
    header, _, *rows = table_of(text)
    assert header == ["guidance_rescale", "vIoU ↑", "dent error ↓"]
    assert [row[0] for row in rows] == list(LABELS)
    cells = {row[0]: row[1] for row in rows}
    assert "Δ" not in cells["0.5"]
    assert "difference to *0.5*" in text
    assert "3 comparisons" in text


def test_a_difference_is_that_of_the_means_where_no_run_is_missing(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
):
    assert tabulate(folder, "--metrics", "viou_solid", "--baseline", "0.3") == 0
    cells = {row[0]: row[1] for row in table_of(capsys.readouterr().out)[2:]}
    mean = float(cells["0"].split()[0])
    difference = float(cells["0"].split("Δ")[1].strip(" *").split()[0])
    assert difference == pytest.approx(mean - float(cells["0.3"].split()[0]), abs=0.0011)


def test_another_setting_can_be_the_baseline(folder: SweepFolder, capsys: pytest.CaptureFixture[str]):
    assert tabulate(folder, "--baseline", "0", "--metrics", "viou_solid") == 0
    cells = {row[0]: row[1] for row in table_of(capsys.readouterr().out)[2:]}
    assert [label for label in LABELS if "Δ" not in cells[label]] == ["0"]


def test_bold_is_what_is_clear():
    metric = METRICS[0]
    rows = [
        SettingRow(labels={"a": "0"}, means={metric.key: Estimate(9, 0.5)}, differences={}, is_default=True, cached=0),
        *(
            SettingRow(
                labels={"a": str(clear)},
                means={metric.key: Estimate(9, 0.6, 0.5, 0.7)},
                differences={metric.key: Estimate(9, 0.1, 0.05, 0.2, clear)},
                is_default=False,
                cached=0,
            )
            for clear in (False, True)
        ),
    ]
    _, _, _, unclear, clear = table_of(format_markdown(rows, [metric]))
    assert "Δ +0.100 [+0.050, +0.200]" in unclear[1]
    assert "Δ **+0.100 [+0.050, +0.200]**" in clear[1]


def test_the_figure_is_one_file_with_a_chart_a_metric(folder: SweepFolder, tmp_path: Path):
    assert (
        tabulate(folder, "--metrics", "viou_solid", "dent_error", "color_error", "--figure", f"{tmp_path}/f.svg") == 0
    )
    root = ET.parse(tmp_path / "f.svg").getroot()
    charts = root.findall(f"{SVG}g")
    assert len(charts) == 3
    assert [len(chart.findall(f"{SVG}circle")) for chart in charts] == [len(LABELS)] * 3
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    corners = [tuple(map(float, chart.attrib["transform"][10:-1].split())) for chart in charts]
    assert all(0 < x < width and 0 < y < height for x, y in corners)
    assert len(set(corners)) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "0.9"], "there is no setting '0.9'"),
        (["--metrics", "beauty"], "'beauty' was not measured"),
        (["--figure", "/nowhere/at/all.svg"], "choose another --figure"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    folder: SweepFolder, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert tabulate(folder, *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_figure_of_differences_needs_runs_of_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, sweep = write_sweep(tmp_path / "rescale-3", prompts=("a snowman",), seeds=(0,))
    for trial in sweep.trials:
        if trial.labels[RESCALE] == "0":
            (folder.trial(trial.name) / "status.json").unlink()
    assert tabulate(folder, "--baseline", "0", "--figure", f"{tmp_path}/f.svg") == 2
    assert "no run of 0 is finished" in capsys.readouterr().err


def test_a_sweep_without_a_finished_trial_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, sweep = write_sweep(tmp_path / "rescale-2", prompts=("a snowman",), seeds=(0,))
    for trial in sweep.trials:
        (folder.trial(trial.name) / "status.json").unlink(missing_ok=True)
    assert tabulate(folder) == 2
    assert "no trial of this sweep is finished" in capsys.readouterr().err
