"""A sweep on W&B: names, tags and ids of its trials, and the run that holds its table."""

import dataclasses
import json
from pathlib import Path

import pytest

from sweeps.folders import Sweep, SweepFolder
from sweeps.results import read_results
from sweeps.summary import config_key, publish_summary, setting_table, tracking_of, trial_table
from tests.sweep_folders import RESCALE, plan_sweep, write_sweep
from tests.wandb_files import read_config, read_history, read_run, read_summary, wait_for_end

SCHEDULE = "guidance.guidance_scale"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Sweep]:
    return write_sweep(tmp_path_factory.mktemp("runs") / "rescale-1", prompts=("a snowman", "a chair"), seeds=(0, 1, 2))


def test_a_trial_is_named_by_what_varies_and_tagged_by_all(written: tuple[SweepFolder, Sweep]):
    _, sweep = written
    plan = tracking_of(sweep, sweep.trials[1], "offline")
    assert plan["run"]["name"] == "guidance_rescale=0.3, a snowman, seed 0"
    assert plan["run"]["tags"] == ["rescale", "a snowman", "seed 0", "guidance_rescale=0.3"]
    assert (plan["run"]["group"], plan["run"]["job_type"]) == ("rescale-1", "trial")
    assert plan["config"]["labels"] == {"guidance_guidance_rescale": 0.3}
    single = plan_sweep("one", prompts=("a snowman",), seeds=(0,))
    assert tracking_of(single, single.trials[1], "offline")["run"]["name"] == "guidance_rescale=0.3"


def test_a_trial_keeps_its_id_and_shares_it_with_no_other_sweep(written: tuple[SweepFolder, Sweep]):
    _, sweep = written
    ids = [tracking_of(sweep, trial, "offline")["run"]["run_id"] for trial in sweep.trials]
    assert ids == [tracking_of(sweep, trial, "online")["run"]["run_id"] for trial in sweep.trials]
    other = dataclasses.replace(sweep, created="2027-01-01T00:00:00Z")
    assert len({*ids, *(tracking_of(other, trial, "offline")["run"]["run_id"] for trial in sweep.trials)}) == 2 * len(
        ids
    )


def test_a_parameter_is_found_under_its_own_key_and_a_schedule_under_its_label(written: tuple[SweepFolder, Sweep]):
    _, sweep = written
    assert config_key(sweep, RESCALE) == RESCALE
    first = sweep.trials[0]
    scheduled = dict(first.config["guidance"], guidance_scale={"steps": [0, 10], "values": [50, 10]})
    trial = dataclasses.replace(first, config=dict(first.config, guidance=scheduled), labels={SCHEDULE: "50 then 10"})
    changed = dataclasses.replace(sweep, trials=(trial, *sweep.trials[1:]))
    assert config_key(changed, SCHEDULE) == "labels.guidance_guidance_scale"
    assert tracking_of(changed, trial, "offline")["config"]["labels"] == {"guidance_guidance_scale": "50 then 10"}


def test_tables_hold_every_trial_and_every_setting(written: tuple[SweepFolder, Sweep]):
    folder, sweep = written
    results = read_results(sweep, folder)
    columns, rows = trial_table(results)
    assert len(rows) == len(sweep.trials)
    failed = dict(zip(columns, rows[-2], strict=True))
    assert (failed["state"], failed["error"], failed["viou_solid"]) == ("failed", "diverged <at> 7", None)
    columns, rows = setting_table(sweep, results)
    assert [row[0] for row in rows] == ["0", "0.3", "0.5", "0.7"]
    best = dict(zip(columns, rows[3], strict=True))
    assert best["viou_solid low"] < best["viou_solid"] < best["viou_solid high"]


def test_the_summary_run_holds_the_tables(written: tuple[SweepFolder, Sweep]):
    folder, sweep = written
    publish_summary(folder.path, sweep, read_results(sweep, folder), "offline")
    (path,) = folder.path.glob("wandb/offline-run-*/run-*.wandb")
    run = read_run(wait_for_end(path))
    assert (run.run_group, run.job_type, run.display_name) == ("rescale-1", "summary", "rescale-1: summary")
    assert read_config(path)["grid"] == "rescale"
    (row,) = read_history(path)
    assert (row["trials._type"], row["trials.nrows"], row["settings.nrows"]) == ("table-file", len(sweep.trials), 4)
    (table,) = path.parent.glob("files/media/table/trials_*.table.json")
    assert [trial.name for trial in sweep.trials] == [row[0] for row in json.loads(table.read_text())["data"]]
    assert read_summary(path)["trials/failed"] == 1


def test_a_wandb_that_fails_takes_nothing_with_it(
    written: tuple[SweepFolder, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder, sweep = written
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    publish_summary(tmp_path, sweep, read_results(sweep, folder), "online")
    assert "W&B has no summary of this sweep: WANDB_API_KEY invalid" in capsys.readouterr().err
