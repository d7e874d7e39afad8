"""Overrides of what a grid varies take the place of its values."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from corrdream import ConfigError
from sweeps.extension import extend
from sweeps.grids import Grid, load_grid, search_of
from sweeps.jobs import _describe_varied, new_job
from sweeps.locks import SweepError
from sweeps.narrowing import for_all_trials
from sweeps.options import parse
from sweeps.parameters import GridError, all_settings

RESCALE, SCALE = "guidance.guidance_rescale", "guidance.guidance_scale"
FALLING = {"progress": [0, 1], "values": [20, 4]}
PARAMETERS: dict[str, Any] = {
    RESCALE: [0, 0.5],
    SCALE: [{"label": "20 falling to 4", "value": FALLING}, {"label": "4", "value": 4}],
    "method": [{"label": "off", "set": {"correspondence.enabled": False}}, {"label": "on", "set": {}}],
    "loss_weights.correspondence": {"when": {"method": "on"}, "distribution": "uniform", "min": 1, "max": 9},
}


def load(folder: Path, *overrides: str) -> Grid:
    path = folder / "mine.yaml"
    path.write_text(OmegaConf.to_yaml({"parameters": PARAMETERS, "prompts": ["a snowman"]}))
    return load_grid(str(path), search="random", num_samples=2, overrides=overrides)


def values(grid: Grid, key: str) -> list[tuple[str, Any]]:
    parameter = next(parameter for parameter in grid.parameters if parameter.key == key)
    return [(choice.label, choice.overrides.get(key)) for choice in parameter.choices]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"{RESCALE}=0.3", [("0.3", 0.3)]),
        (f"{RESCALE}=[0.30, 0.7]", [("0.3", 0.3), ("0.7", 0.7)]),
        (f"{RESCALE}=[5e-1]", [("0.5", 0.5)]),
        (f"{SCALE}=20 falling to 4", [("20 falling to 4", FALLING)]),
        (f"{SCALE}=[7, 20 falling to 4]", [("7", 7), ("20 falling to 4", FALLING)]),
        (f"{SCALE}={{values: [9, 1], progress: [0, 1]}}", [("9 to 1 at 0%, 100%", {**FALLING, "values": [9, 1]})]),
        ("loss_weights.correspondence=[2, 3]", [("2", 2), ("3", 3)]),
        ("method=[on, off]", [("on", None), ("off", None)]),
    ],
)
def test_a_value_a_list_or_names_of_the_grid_replace_its_values(
    override: str, expected: list[tuple[str, Any]], tmp_path: Path
):
    assert values(load(tmp_path, override), override.partition("=")[0]) == expected


def test_other_overrides_and_parameters_stay_as_they_are(tmp_path: Path):
    overrides = ["max_steps=7", f"{RESCALE}=0.3", f"{RESCALE}_x=1"]
    grid = load(tmp_path, *overrides)
    assert for_all_trials(grid.parameters, overrides) == ["max_steps=7", f"{RESCALE}_x=1"]
    assert values(grid, SCALE) == values(load(tmp_path), SCALE)
    assert load(tmp_path).plain["parameters"] == PARAMETERS


def test_a_condition_still_holds(tmp_path: Path):
    grid = load(tmp_path, "method=on", "loss_weights.correspondence=2", f"{RESCALE}=0", f"{SCALE}=4")
    assert [{key: choice.label for key, choice in setting.items()} for setting in all_settings(grid.parameters)] == [
        {RESCALE: "0", SCALE: "4", "method": "on", "loss_weights.correspondence": "2"}
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=off", "override method=off: .*loss_weights.correspondence.when: method has no value 'on'; it has off"),
        ("method=[on, maybe]", r"override method=\[on, maybe\]: method has no value 'maybe'; it has off, on"),
        (f"{RESCALE}=[]", "is an empty list"),
        (f"{RESCALE}=[0.3, 0.3]", "has '0.3' twice"),
        (f"{RESCALE}=[0.3", "must be YAML"),
    ],
)
def test_what_does_not_fit_the_grid_is_refused_in_one_line(override: str, message: str, tmp_path: Path):
    with pytest.raises((GridError, ConfigError), match=message) as raised:
        load(tmp_path, override)
    assert "\n" not in str(raised.value)


def test_a_sweep_keeps_its_values_and_its_plan_says_whose_they_are(tmp_path: Path):
    words = ["--grid", "rescale", f"{RESCALE}=[0.3,0.5]", "max_steps=7", "--storage", str(tmp_path)]
    sweep = new_job(parse(words)).sweep
    assert {(trial.labels[RESCALE], trial.config["max_steps"]) for trial in sweep.trials} == {("0.3", 7), ("0.5", 7)}
    assert [choice.label for choice in search_of(sweep).parameters[0].choices] == ["0.3", "0.5"]
    assert _describe_varied(sweep) == "guidance_rescale: 0.3, 0.5 (instead of the grid's)"
    whole = new_job(parse(["--grid", "rescale", "max_steps=7", "--storage", str(tmp_path)])).sweep
    assert _describe_varied(whole) == "guidance_rescale: 0, 0.3, 0.5, 0.7"
    assert len(extend(sweep, whole).trials) == len(whole.trials)


def test_a_search_that_suggests_keeps_its_values(tmp_path: Path):
    words = ["--grid", "search", "--search", "optuna", "--num-samples", "3", "--storage", str(tmp_path)]
    sweep = new_job(parse(words)).sweep
    narrowed = new_job(parse([*words, f"{SCALE}=[4,5]"])).sweep
    with pytest.raises(SweepError, match="was started with parameters"):
        extend(sweep, narrowed)
