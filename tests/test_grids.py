"""A grid file becomes checked trials, or one line that says what is wrong with it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import corrdream
from corrdream.schedules import Piecewise
from sweeps.grids import (
    CONFIGS,
    Grid,
    find_config,
    load_grid,
    parse_prompts,
    parse_seeds,
)
from sweeps.parameters import GridError, describe
from sweeps.trials import base_config, default_labels, expand

RESCALE = "guidance.guidance_rescale"
SHIPPED = sorted(path.stem for path in (CONFIGS / "grids").glob("*.yaml"))


@pytest.fixture
def base(tmp_path: Path, tiny_prior_file: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(f"max_steps: 20\nprior: {{checkpoint: {tiny_prior_file}}}\n")
    return path


def write_grid(folder: Path, **changes: Any) -> str:
    plain = {"config": "base.yaml", "parameters": {RESCALE: [0.0, 0.5]}, "prompts": ["a snowman"], "seeds": [0]}
    plain |= changes
    path = folder / "mine.yaml"
    path.write_text(OmegaConf.to_yaml({key: value for key, value in plain.items() if value is not None}))
    return str(path)


def test_trials_are_settings_times_prompts_times_seeds(tmp_path: Path, base: Path):
    path = write_grid(tmp_path, prompts=["a snowman", "a red cone"], seeds=[0, 1, 2])
    trials = expand(load_grid(path))
    points = [(trial.labels[RESCALE], trial.prompt, trial.seed) for trial in trials]
    assert set(points) == set(itertools.product(["0", "0.5"], ["a snowman", "a red cone"], [0, 1, 2]))
    assert len(points) == 12
    assert points[0][1:] == points[1][1:], "settings change fastest"


def test_a_trial_has_its_whole_configuration(tmp_path: Path, base: Path):
    trial = expand(load_grid(write_grid(tmp_path, seeds=[3])), ["output.checkpoint_every=7"])[1]
    assert trial.config == corrdream.load_config(
        [base], {RESCALE: 0.5, "prompt": "a snowman", "seed": 3, "output.checkpoint_every": 7}
    )
    assert trial.config.schedule_steps == 20


def test_two_parameters_give_every_combination(tmp_path: Path, base: Path):
    grid = load_grid(write_grid(tmp_path, parameters={RESCALE: [0, 0.5], "guidance.guidance_scale": [5, 7.5, 10]}))
    labels = [describe(trial.labels) for trial in expand(grid)]
    assert len(set(labels)) == 6
    assert labels[0] == "guidance_rescale=0, guidance_scale=5"


def test_a_choice_may_be_a_schedule_with_a_name(tmp_path: Path, base: Path):
    schedule = {"progress": [0.0, 0.5], "values": [25.0, 5.0], "interpolate": "hold"}
    choices = [7.5, {"label": "25 then 5", "value": schedule}]
    first, second = expand(load_grid(write_grid(tmp_path, parameters={"guidance.guidance_scale": choices})))
    assert first.config.guidance.guidance_scale == 7.5
    assert second.config.guidance.guidance_scale == Piecewise(
        progress=[0.0, 0.5], values=[25.0, 5.0], interpolate="hold"
    )
    assert second.labels == {"guidance.guidance_scale": "25 then 5"}
    assert "25-then-5" in second.name


def test_a_choice_may_set_several_keys(tmp_path: Path, base: Path):
    off = {"label": "off", "set": {"correspondence.enabled": False, RESCALE: 0.3}}
    first, second = expand(load_grid(write_grid(tmp_path, parameters={"method": [off, {"label": "on", "set": {}}]})))
    assert (first.config.correspondence.enabled, first.config.guidance.guidance_rescale) == (False, 0.3)
    assert second.config.correspondence.enabled


def test_parameters_in_the_form_of_wandb_are_read_too(tmp_path: Path, base: Path):
    parameters = {RESCALE: {"values": [0, 0.5]}, "guidance.guidance_scale": {"value": 5}}
    trials = expand(load_grid(write_grid(tmp_path, parameters=parameters)))
    assert [trial.config.guidance.guidance_rescale for trial in trials] == [0, 0.5]
    assert {trial.config.guidance.guidance_scale for trial in trials} == {5}


def test_the_metric_in_the_form_of_wandb_is_read_too(tmp_path: Path, base: Path):
    grid = load_grid(write_grid(tmp_path, metric={"name": "dent_error", "goal": "minimize"}))
    assert (grid.metric, grid.mode) == ("dent_error", "min")


def test_a_random_search_has_the_trials_of_its_seed(tmp_path: Path, base: Path):
    scale = {"distribution": "log_uniform_values", "min": 2, "max": 20}
    path = write_grid(
        tmp_path, parameters={"guidance.guidance_scale": scale}, search="random", num_samples=3, seeds=[0, 1]
    )
    trials = expand(load_grid(path))
    assert len(trials) == 6
    assert len({trial.config.guidance.guidance_scale for trial in trials}) == 3
    for trial in trials:
        assert trial.config.guidance.guidance_scale == float(trial.labels["guidance.guidance_scale"])
    assert expand(load_grid(path)) == trials
    more = expand(load_grid(path, num_samples=5))
    assert {trial.identity for trial in trials} < {trial.identity for trial in more}


def test_the_budget_of_a_scheduler_is_the_length_of_every_trial(tmp_path: Path, base: Path):
    path = write_grid(tmp_path, scheduler={"kind": "asha", "budget": 12, "grace_period": 2})
    assert {(trial.config.max_steps, trial.config.schedule_steps) for trial in expand(load_grid(path))} == {(12, 12)}
    assert {trial.config.max_steps for trial in expand(load_grid(path, budget=8))} == {8}
    assert {trial.config.max_steps for trial in expand(load_grid(path, scheduler="fifo"))} == {20}
    with pytest.raises(GridError, match="use --max-steps"):
        expand(load_grid(path), ["max_steps=8"])


def test_a_setting_of_another_length_has_schedules_of_that_length(tmp_path: Path, base: Path):
    trials = expand(load_grid(write_grid(tmp_path, parameters={"max_steps": [5, 10]})))
    assert [(trial.config.max_steps, trial.config.schedule_steps) for trial in trials] == [(5, 5), (10, 10)]


def test_identities_and_folders_of_trials_differ_and_stay(tmp_path: Path, base: Path):
    path = write_grid(tmp_path, prompts=["a snowman", "a red cone"], seeds=[0, 1])
    trials = expand(load_grid(path))
    assert len({trial.identity for trial in trials}) == len({trial.name for trial in trials}) == 8
    assert expand(load_grid(path)) == trials
    longer = expand(load_grid(path), ["max_steps=21"])
    assert not {trial.identity for trial in longer} & {trial.identity for trial in trials}


def test_the_default_is_the_setting_that_changes_nothing(tmp_path: Path, base: Path):
    assert default_labels(load_grid(write_grid(tmp_path))) == {RESCALE: "0.5"}
    assert default_labels(load_grid(write_grid(tmp_path, parameters={RESCALE: [0, 0.3]}))) is None
    assert default_labels(load_grid(write_grid(tmp_path, overrides={RESCALE: 0.3}))) is None


def test_overrides_of_the_grid_reach_every_trial_and_the_base(tmp_path: Path, base: Path):
    grid = load_grid(write_grid(tmp_path, overrides={"max_steps": 5}))
    assert {trial.config.max_steps for trial in expand(grid)} == {5}
    assert base_config(grid).max_steps == 5
    assert {trial.config.max_steps for trial in expand(grid, ["max_steps=6"])} == {6}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_grid_is_found_from_anywhere_and_every_point_of_it_is_valid(
    name: str, tmp_path: Path, tiny_prior_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    grid = load_grid(name)
    narrow = Grid(**{**vars(grid), "seeds": grid.seeds[:1], "prompts": grid.prompts[:1]})
    trials = expand(narrow, [f"prior.checkpoint={tiny_prior_file}"])
    assert len(trials) == len(grid.settings())
    for prompt in grid.prompts:
        corrdream.check_prompt(corrdream.load_config([grid.config], {"prompt": prompt}))


def test_the_shipped_rescale_grid_is_eight_short_runs():
    grid = load_grid("rescale")
    assert [choice.label for choice in grid.parameters[0].choices] == ["0", "0.3", "0.5", "0.7"]
    assert (len(grid.prompts), len(grid.seeds)) == (2, 1)
    assert default_labels(grid) == {RESCALE: "0.3"}


def test_a_configuration_is_found_beside_the_grid_then_here_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shipped = next(CONFIGS.glob("*.yaml"))
    assert find_config(shipped.name) == shipped.resolve()
    assert find_config(shipped.stem) == shipped.resolve()
    (tmp_path / shipped.name).touch()
    assert find_config(shipped.name) == tmp_path / shipped.name
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / shipped.name).touch()
    assert find_config(shipped.name, beside) == beside / shipped.name


PBT = {"kind": "pbt", "budget": 20, "perturbation_interval": 10, "ranges": {RESCALE: {"min": 0, "max": 1}}}
BAD_GRIDS = {
    "unknown key": ({"seds": [0]}, "mine.yaml: seds=[0]: there is no such key; did you mean seeds?"),
    "unknown configuration key": ({"parameters": {"guidance.rescale": [0, 1]}}, "guidance.rescale"),
    "value out of range": ({"parameters": {RESCALE: [0, 1.5]}}, "must be in [0, 1], got 1.5"),
    "wrong type": ({"parameters": {RESCALE: ["much"]}}, "much"),
    "no values": ({"parameters": {RESCALE: []}}, "is an empty list"),
    "no list": ({"parameters": {RESCALE: 0.5}}, "write [0.5]"),
    "value twice": ({"parameters": {RESCALE: [0.5, 0.50]}}, "has '0.5' twice"),
    "same run twice": (
        {"parameters": {"a": [{"label": "x", "set": {}}, {"label": "y", "set": {}}]}},
        "are the same run",
    ),
    "label that is no text": ({"parameters": {"a": [{"label": False, "set": {}}]}}, "quote words like 'off'"),
    "label without value": ({"parameters": {RESCALE: [{"label": "x"}]}}, "one of value and set"),
    "no prompts": ({"prompts": None}, "prompts must be a list"),
    "empty prompts": ({"prompts": []}, "prompts is empty"),
    "prompt twice": ({"prompts": ["a snowman", "a  snowman"]}, "has 'a snowman' twice"),
    "unknown word": ({"prompts": ["a snowman", "a red xylophone"]}, "xylophone"),
    "wrong seeds": ({"seeds": [0, -1]}, "whole numbers from 0"),
    "text as seed": ({"seeds": ["zero"]}, "whole numbers from 0"),
    "unknown metric": ({"metric": "beauty"}, "metric must be one of viou_solid"),
    "unknown mode": ({"mode": "best"}, "mode must be max or min"),
    "metric in another form": ({"metric": {"name": "viou_solid"}}, "metric must be one of viou_solid"),
    "unknown search": ({"search": "bayes"}, "search must be one of grid, random, optuna, got 'bayes'"),
    "search without a number": ({"search": "random"}, "give --num-samples"),
    "too many samples": ({"search": "random", "num_samples": 3}, "has only 2 different settings"),
    "wrong search seed": ({"search_seed": -1}, "search_seed must be a whole number from 0"),
    "distribution in a grid": (
        {"parameters": {RESCALE: {"distribution": "uniform", "min": 0, "max": 1}}},
        f"parameters.{RESCALE} is a distribution; use --search random",
    ),
    "distribution out of range": (
        {
            "parameters": {RESCALE: {"distribution": "uniform", "min": 0, "max": 2.0}},
            "search": "optuna",
            "num_samples": 1,
        },
        "must be in [0, 1], got 2",
    ),
    "a comparison before there is a metric": (
        {"metric": "match_residual", "scheduler": {"kind": "asha", "budget": 20, "grace_period": 3}},
        "match_residual is compared after 3 steps, of which none is a correspondence step",
    ),
    "a comparison by what is measured at the end": (
        {"metric": "clip_score", "scheduler": {"kind": "asha", "budget": 20}},
        "clip_score is measured at the end only",
    ),
    "asha without a budget": ({"scheduler": {"kind": "asha"}}, "asha needs a budget in steps"),
    "trials of several lengths": (
        {"parameters": {"max_steps": [5, 10]}, "scheduler": {"kind": "asha", "budget": 10}},
        "sets max_steps, which scheduler.budget decides",
    ),
    "pbt out of range": (
        {"scheduler": PBT | {"ranges": {RESCALE: {"min": 0, "max": 2}}}},
        "must be in [0, 1], got 2",
    ),
    "pbt of a schedule": (
        {
            "overrides": {"guidance.guidance_scale": {"progress": [0, 1], "values": [20, 4]}},
            "scheduler": PBT | {"ranges": {"guidance.guidance_scale": {"min": 2, "max": 20}}},
        },
        "guidance.guidance_scale needs a number to change",
    ),
    "pbt of what optuna finds": (
        {"search": "optuna", "num_samples": 2, "scheduler": PBT},
        "pbt needs all settings at the start",
    ),
    "no base": ({"config": "nothing.yaml"}, "nothing.yaml does not exist"),
    "wrong step count": ({"overrides": {"max_steps": 0}}, "max_steps must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_a_wrong_grid_is_refused_in_one_line_that_names_what_is_wrong(case: str, tmp_path: Path, base: Path):
    changes, message = BAD_GRIDS[case]
    with pytest.raises(GridError) as caught:
        expand(load_grid(write_grid(tmp_path, **changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a list", "prompts: [", "a: 1\na: 2"])
def test_a_file_that_is_no_grid_is_refused(content: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(GridError, match=r"mine\.yaml"):
        load_grid(str(path))


def test_an_unknown_grid_is_answered_with_a_close_one(tmp_path: Path):
    with pytest.raises(GridError, match="did you mean rescale"):
        load_grid("rescal")
    with pytest.raises(GridError, match="does not exist"):
        load_grid(str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{RESCALE}=0.3", f"varies {RESCALE}"),
        ("guidance={guidance_scale: 5}", f"varies {RESCALE}"),
        ("prompt=a snowman", "use --prompts"),
        ("seed=3", "use --seeds"),
        ("guidance.scale=3", "guidance.scale"),
        ("max_steps", "key=value"),
    ],
)
def test_an_override_that_contradicts_the_grid_is_refused(override: str, message: str, tmp_path: Path, base: Path):
    with pytest.raises(GridError) as caught:
        expand(load_grid(write_grid(tmp_path)), [override])
    assert message in str(caught.value)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.txt"
    path.write_text("a red cone on a blue cube\na snowman\na green cone\n")
    return path


def test_a_prompt_of_a_library_is_the_one_that_a_single_run_takes(tmp_path: Path, base: Path, library: Path):
    path = write_grid(
        tmp_path, prompts=["lib:cone_blue", "a snowman"], overrides={"prompt_library": str(library), "max_steps": 9}
    )
    trials = expand(load_grid(path))
    assert [trial.prompt for trial in trials] == ["a red cone on a blue cube"] * 2 + ["a snowman"] * 2
    single = corrdream.load_config(
        [base], ["prompt=lib:cone_blue", f"prompt_library={library}", "max_steps=9", f"{RESCALE}=0"]
    )
    assert trials[0].config == single
    assert "red-cone" in trials[0].name


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a snowman", "lib:snowmen"], "grid mine: prompts: prompt=lib:snowmen names no prompt"),
        (["lib:snowmen"], "near: a snowman"),
        (["lib:cone"], "names 2 prompts (a red cone on a blue cube; a green cone)"),
        (["a snowman", "lib:snow"], "grid mine: prompts has 'a snowman' twice"),
    ],
)
def test_what_is_wrong_with_a_prompt_of_a_library_is_said_before_planning(
    prompts: list[str], message: str, tmp_path: Path, base: Path, library: Path
):
    grid = load_grid(write_grid(tmp_path, prompts=prompts))
    with pytest.raises(GridError) as caught:
        expand(grid, [f"prompt_library={library}"])
    assert message in str(caught.value)
    with pytest.raises(GridError, match=r"prompts: prompt=lib:snow.* needs prompt_library=FILE"):
        expand(load_grid(write_grid(tmp_path, prompts=["lib:snow"])))


def test_prompts_and_seeds_of_the_command_line_are_checked_the_same_way():
    assert parse_prompts([" a  snowman "], "--prompts") == ("a snowman",)
    with pytest.raises(GridError, match="--prompts"):
        parse_prompts(["  "], "--prompts")
    assert parse_seeds([2, 0], "--seeds") == (2, 0)
    with pytest.raises(GridError, match="--seeds"):
        parse_seeds([True], "--seeds")
