"""Results, tables and the page, from folders as trials leave them."""

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from corrdream.artifacts import write_arrays
from sweeps.charts import Curve, curve_chart, interval_chart
from sweeps.folders import Status, Sweep, SweepFolder, load_sweep, write_status
from sweeps.intervals import Estimate
from sweeps.report import write_report
from sweeps.results import (
    AT_END,
    METRICS,
    NO_POOL,
    best_trial,
    compare_settings,
    format_estimate,
    read_result,
    read_results,
    sort_key,
    write_csv,
)
from sweeps.table import format_table, hint_of
from tests.sweep_folders import LABELS, RESCALE, finish_trial, plan_sweep, write_sweep

PROMPTS = ("a red cone on a blue cube", "a snowman", "a yellow duck")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Sweep]:
    return write_sweep(tmp_path_factory.mktemp("runs") / "rescale-1", prompts=PROMPTS, seeds=(0, 1))


@pytest.fixture(scope="module")
def page(finished: tuple[SweepFolder, Sweep]) -> str:
    folder, sweep = finished
    write_report(folder.report, sweep, read_results(sweep, folder))
    return folder.report.read_text()


class Checker(HTMLParser):
    """Fails on tags that do not close each other, and collects what the page would load."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_sweep_json_gives_back_the_sweep(finished: tuple[SweepFolder, Sweep]):
    folder, sweep = finished
    assert dataclasses.asdict(load_sweep(folder)) == json.loads(json.dumps(dataclasses.asdict(sweep))) | {
        "trials": tuple(json.loads(json.dumps(dataclasses.asdict(trial))) for trial in sweep.trials)
    }


def test_results_have_one_row_a_trial_with_parameters_status_and_metrics(
    finished: tuple[SweepFolder, Sweep], tmp_path: Path
):
    folder, sweep = finished
    write_csv(tmp_path / "results.csv", read_results(sweep, folder))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [trial.name for trial in sweep.trials]
    first, failed, pending = rows[0], rows[-2], rows[-1]
    assert (first[RESCALE], first["prompt"], first["seed"], first["status"]) == ("0", PROMPTS[0], "0", "finished")
    assert float(first["silhouette_iou"]) == pytest.approx(float(first["viou_solid"]) + 0.1)
    assert (first["floaters"], first["seconds"], first["steps"]) == ("", "80", "40")
    assert (failed["status"], failed["error"], failed["viou_solid"]) == ("failed", "diverged <at> 7", "")
    assert (pending["status"], pending["steps"]) == ("pending", "0")


def test_match_residual_is_the_mean_over_the_last_quarter_of_the_correspondence_steps(
    finished: tuple[SweepFolder, Sweep],
):
    folder, sweep = finished
    result = read_result(sweep.trials[0], folder.trial(sweep.trials[0].name))
    # Ten correspondence steps, residual 40 / step; the last quarter, rounded up, is steps 32, 36 and 40.
    assert result.metrics["match_residual"] == pytest.approx((40 / 32 + 40 / 36 + 1) / 3)


def test_a_status_of_another_configuration_does_not_count(finished: tuple[SweepFolder, Sweep], tmp_path: Path):
    _, sweep = finished
    write_status(tmp_path, Status(identity="another", state="finished", step=40))
    assert read_result(sweep.trials[0], tmp_path).status.state == "pending"


def test_settings_are_compared_in_the_order_of_the_plan_with_intervals_and_differences(
    finished: tuple[SweepFolder, Sweep],
):
    folder, sweep = finished
    rows = compare_settings(sweep, read_results(sweep, folder))
    assert [row.labels[RESCALE] for row in rows] == list(LABELS)
    assert [row.means["viou_solid"].count for row in rows] == [6, 6, 5, 5]
    assert [row.is_default for row in rows] == [False, False, True, False]
    difference = rows[0].differences["viou_solid"]
    assert difference.high is not None
    assert difference.mean == pytest.approx(-0.05, abs=0.01)
    assert difference.high < 0
    assert not rows[2].differences
    assert rows[0].means["floaters"].count == 0


def test_the_table_shows_every_setting_and_leaves_out_metrics_that_nothing_has(finished: tuple[SweepFolder, Sweep]):
    folder, sweep = finished
    lines = format_table(compare_settings(sweep, read_results(sweep, folder))).splitlines()
    assert len(lines) == 2 + len(LABELS)
    assert lines[0].startswith("guidance_rescale")
    assert "floaters" not in lines[0]
    assert re.search(r"^0\.5 \*\s+5\s+0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", lines[4])


def test_few_pairs_are_said_to_be_few(finished: tuple[SweepFolder, Sweep]):
    folder, sweep = finished
    rows = compare_settings(sweep, read_results(sweep, folder))
    assert hint_of(rows) == "* the default."
    assert hint_of([row for row in rows if not row.is_default]) == ""
    few = compare_settings(sweep, [result for result in read_results(sweep, folder) if result.trial.seed == 0][:2])
    assert hint_of(few).endswith("n below 5: too few for intervals, so differences may be chance.")
    assert hint_of([]) == ""


def test_estimates_are_written_with_their_interval_where_they_have_one():
    assert format_estimate(Estimate(0, float("nan")), 2) == "-"
    assert format_estimate(Estimate(2, 0.5), 2) == "0.50"
    assert format_estimate(Estimate(9, 0.5, 0.25, 0.75), 2) == "0.50 [0.25, 0.75]"
    assert format_estimate(Estimate(9, 0.5, -0.25, 0.75), 2, signed=True) == "+0.50 [-0.25, +0.75]"


def test_the_page_needs_nothing_but_itself(page: str):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert all(link.startswith(("data:image/", "trials/")) for link in checker.links)
    assert sum(link.startswith("data:image/") for link in checker.links) == 3 * 22
    assert "<script" not in page
    assert "url(" not in page


def test_the_page_has_the_best_trial_first_then_settings_pictures_curves_and_every_trial(
    page: str, finished: tuple[SweepFolder, Sweep]
):
    folder, sweep = finished
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Best trial", "Settings", "Side by side", "Curves", "All other trials"]
    ranked = sorted(read_results(sweep, folder), key=lambda result: sort_key(result, "viou_solid", "max"))
    shown = re.findall(r'href="trials/(.*?)/"', page)
    best = max((r for r in ranked if r.trial.labels[RESCALE] == "0.7"), key=lambda r: r.metrics.get("viou_solid", 0.0))
    assert shown == [best.trial.name, *(result.trial.name for result in ranked if result is not best)]
    assert re.search(r"The best trial of the best setting: guidance_rescale=0.7, mean vIoU 0\.\d+ over 5 trials", page)
    assert "diverged &lt;at&gt; 7" in page
    absent = {"floaters", "consistent_share"} | {key for key in AT_END if key.startswith("clip")}
    for metric in METRICS:
        assert (metric.title in page) == (metric.key not in absent)
    assert "A-LPIPS: needs lpips &lt;which is not here&gt;</li><li>feature consistency error: needs timm" in page


def test_the_page_says_how_each_trial_differs_from_the_base(page: str):
    assert page.count("Configuration: 1 difference to the base") == 18
    assert page.count("The configuration is the base") == 6


def test_a_page_of_a_sweep_without_results_can_be_written(finished: tuple[SweepFolder, Sweep], tmp_path: Path):
    _, sweep = finished
    folder = SweepFolder(tmp_path / "nothing")
    write_report(folder.report, sweep, read_results(sweep, folder))
    assert "No trial has a grade yet" in folder.report.read_text()


def test_clip_precision_is_among_the_prompts_of_the_sweep(tmp_path: Path):
    folder, sweep = write_sweep(tmp_path / "two", prompts=PROMPTS[:2], seeds=(0,))
    own, other = np.eye(2, dtype=np.float16)
    first, second = (next(trial for trial in sweep.trials if trial.prompt == prompt) for prompt in PROMPTS[:2])
    write_arrays(folder.trial(first.name) / "clip.npz", {"clip_precision": np.stack([own, own, other, own, own])})
    (alone,) = (result for result in read_results(sweep, folder) if result.trial == first)
    assert "clip_precision" not in alone.metrics
    assert alone.skipped["clip_precision"] == NO_POOL
    write_arrays(folder.trial(second.name) / "clip.npz", {"clip_precision": np.stack([other, other])})
    found = {result.trial.name: result for result in read_results(sweep, folder)}
    assert found[first.name].metrics["clip_precision"] == 0.75
    assert found[second.name].metrics["clip_precision"] == 1.0
    assert "clip_precision" not in found[first.name].skipped


def test_by_an_error_the_smallest_is_best(finished: tuple[SweepFolder, Sweep], tmp_path: Path):
    _, sweep = finished
    folder = SweepFolder(tmp_path / "two")
    for trial, viou in zip(sweep.trials[:2], (0.5, 0.7), strict=True):
        finish_trial(folder, trial, viou=viou)
    results = read_results(sweep, folder)
    assert sorted(results, key=lambda result: sort_key(result, "viou_solid", "min"))[0].trial == sweep.trials[0]
    assert sorted(results, key=lambda result: sort_key(result, "viou_solid", "max"))[0].trial == sweep.trials[1]


@pytest.mark.parametrize(("mode", "label"), [("max", "0.3"), ("min", "0")])
def test_the_best_trial_is_of_the_best_setting_not_of_the_easiest_prompt(tmp_path: Path, mode: str, label: str):
    folder = SweepFolder(tmp_path / "easy")
    sweep = dataclasses.replace(plan_sweep("easy", prompts=PROMPTS[:2], seeds=(0,), labels=("0", "0.3")), mode=mode)
    for trial, viou in zip(sweep.trials, (0.9, 0.8, 0.1, 0.5), strict=True):  # "0" is best and worst of all
        finish_trial(folder, trial, viou=viou)
    results = read_results(sweep, folder)
    best = best_trial(sweep, results, compare_settings(sweep, results))
    assert best
    assert (best.trial.labels[RESCALE], best.trial.prompt) == (label, PROMPTS[mode == "min"])
    assert best_trial(sweep, [], compare_settings(sweep, [])) is None


def test_a_chart_of_nothing_is_empty_and_one_of_a_constant_is_drawn():
    assert curve_chart([]) == ""
    assert curve_chart([Curve(label="x", color=0, steps=[1, 2], values=[float("nan")] * 2)]) == ""
    assert "<polyline" in curve_chart([Curve(label="x", color=0, steps=[1, 2], values=[3.0, 3.0])])
    assert interval_chart(["a"], [Estimate(0, float("nan"))], digits=2, marked=None) == ""


def test_a_long_curve_is_averaged_not_cut():
    curve = Curve(label="x", color=0, steps=list(range(1000)), values=[float(step % 2) for step in range(1000)])
    points = re.search(r'points="(.*?)"', curve_chart([curve]))
    assert points
    assert len(points[1].split()) <= 120
