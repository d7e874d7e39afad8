"""Configuration: layering, refusals that name the key, and the cost of importing it."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corrdream.config import Config, ConfigError, Piecewise, Window, config_to_dict, load_config, save_config

PROMPT = "prompt=a red cube"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_load_with_nothing_but_a_prompt() -> None:
    config = load_config(overrides=[PROMPT])
    assert config == Config(prompt="a red cube", schedule_steps=Config().max_steps)


def test_later_layers_win_and_leave_the_rest(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", "prompt: a cube\nseed: 1\nguidance: {guidance_scale: 3}\n")
    second = write(tmp_path / "second.yaml", "seed: 2\nguidance: {guidance_rescale: 0.25}\n")
    config = load_config([first, second], ["guidance.guidance_rescale=0.75"])
    assert (config.prompt, config.seed) == ("a cube", 2)
    assert config.guidance.guidance_scale == 3
    assert config.guidance.guidance_rescale == 0.75


def test_overrides_may_be_a_mapping_from_dotted_keys() -> None:
    ramp = {"steps": [0, 10], "values": [1.0, 2.0]}
    config = load_config(overrides={"prompt": "a, b: c", "guidance.guidance_scale": ramp, "field.radius": 2.0})
    assert config.prompt == "a, b: c"
    assert config.guidance.guidance_scale == Piecewise(steps=[0, 10], values=[1.0, 2.0])
    assert config.field.radius == 2.0


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([write(tmp_path / "empty.yaml", "")], [PROMPT]) == load_config(overrides=[PROMPT])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{steps: [0, 7000], values: [50, 10], interpolate: hold}", ([0, 7000], None, "hold")),
        ("{progress: [0.0, 0.5], values: [50, 10]}", (None, [0.0, 0.5], "linear")),
    ],
)
def test_schedule_replaces_the_one_below_it_as_a_whole(text: str, expected: tuple[Any, ...]) -> None:
    below = "guidance.guidance_scale={progress: [0.1], values: [1], interpolate: hold}"
    schedule = load_config(overrides=[PROMPT, below, f"guidance.guidance_scale={text}"]).guidance.guidance_scale
    assert isinstance(schedule, Piecewise)
    assert (schedule.steps, schedule.progress, schedule.interpolate) == expected
    assert schedule.values == [50, 10]


def test_number_replaces_a_schedule_and_keeps_its_type() -> None:
    config = load_config(overrides=[PROMPT, "cameras.resolution=32", "guidance.guidance_scale=20.5"])
    assert config.cameras.resolution == 32
    assert isinstance(config.cameras.resolution, int)
    assert config.guidance.guidance_scale == 20.5


def test_window_in_steps_replaces_one_in_progress() -> None:
    config = load_config(overrides=[PROMPT, "correspondence.window={steps: [3000, 7000]}"])
    assert config.correspondence.window == Window(steps=(3000, 7000))


def test_schedules_of_a_longer_run_keep_their_planned_length() -> None:
    assert load_config(overrides=[PROMPT, "max_steps=70"]).schedule_steps == 70
    extended = load_config(overrides=[PROMPT, "max_steps=140", "schedule_steps=70"])
    assert (extended.max_steps, extended.schedule_steps) == (140, 70)


def test_saved_configuration_loads_as_the_same(tmp_path: Path) -> None:
    overrides = ["loss_weights.orientation={steps: [0, 10], values: [1, 5]}", "correspondence.feature_blocks=[2]"]
    config = load_config(overrides=[PROMPT, "seed=3", *overrides])
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config([path]) == config
    assert [item.name for item in tmp_path.iterdir()] == ["config.yaml"], "written atomically, nothing left behind"


def test_dictionary_is_plain_and_complete() -> None:
    plain = config_to_dict(load_config(overrides=[PROMPT]))
    assert set(plain) == {field.name for field in dataclasses.fields(Config)}
    assert plain["guidance"]["max_timestep"]["values"] == [0.98, 0.5]
    leaves = (int, float, str, type(None))

    def check(node: Any) -> None:
        if isinstance(node, dict):
            assert all(type(key) is str for key in node)
            for value in node.values():
                check(value)
        elif isinstance(node, list | tuple):
            for value in node:
                check(value)
        else:
            assert isinstance(node, leaves)

    check(plain)


def test_configuration_is_frozen_all_the_way() -> None:
    config = load_config(overrides=[PROMPT])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.guidance.guidance_rescale = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompt=' '", "prompt must not be empty"),
        ("seed=-1", "seed must be at least 0, got -1"),
        ("max_steps=0", "max_steps must be at least 1, got 0"),
        ("guidance.guidance_rescale=1.5", r"guidance\.guidance_rescale must be in \[0, 1\], got 1\.5"),
        (
            "guidance.guidance_rescale={progress: [0.0, 1.0], values: [0.5, -0.1]}",
            r"guidance\.guidance_rescale must be in \[0, 1\], got -0\.1",
        ),
        ("guidance.guidance_scale=-1", r"guidance\.guidance_scale must be at least 0, got -1"),
        ("guidance.guidance_scale=.nan", r"guidance\.guidance_scale must be at least 0, got nan"),
        ("loss_weights.orientation=-1", r"loss_weights\.orientation must be at least 0"),
        ("cameras.resolution=4", r"cameras\.resolution must be whole and at least 8, got 4"),
        (
            "cameras.resolution={progress: [0.0, 1.0], values: [32, 64]}",
            "cameras.resolution must use interpolate: hold",
        ),
        ("cameras.elevation_range=[30, 0]", r"cameras\.elevation_range must be \(low, high\)"),
        ("correspondence.edge_kernel=4", r"correspondence\.edge_kernel must be odd, got 4"),
        ("correspondence.feature_blocks=[]", r"correspondence\.feature_blocks must name at least one"),
        ("correspondence.window={steps: [9, 5]}", r"correspondence\.window must be \[start, end\]"),
        ("guidance.guidance_scale={steps: [0, 1], values: [1]}", r"guidance\.guidance_scale must have as many values"),
    ],
)
def test_values_out_of_range_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[PROMPT, override])


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        (["guidance.max_timestep=0.3"], 0),
        (["guidance.max_timestep={progress: [0.0, 0.3], values: [0.98, 0.1], interpolate: hold}"], 60),
        (["guidance.min_timestep={steps: [0, 50], values: [0.02, 0.9]}", "guidance.max_timestep=0.5"], 49),
    ],
)
def test_timestep_bounds_that_cross_are_refused_at_the_step_where_they_do(overrides: list[str], step: int) -> None:
    message = rf"guidance\.min_timestep must not exceed guidance\.max_timestep.*at step {step}\."
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[PROMPT, *overrides])


def test_timestep_bounds_that_cross_after_the_run_are_accepted() -> None:
    falling = "guidance.max_timestep={steps: [0, 1000], values: [0.98, 0.01]}"
    load_config(overrides=[PROMPT, "max_steps=100", "guidance.min_timestep=0.02", falling])


def test_prompt_is_required() -> None:
    with pytest.raises(ConfigError, match="prompt must not be empty"):
        load_config()


def test_file_errors_name_the_file_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml does not exist"):
        load_config([tmp_path / "missing.yaml"])
    with pytest.raises(ConfigError, match=r"broken\.yaml cannot be read"):
        load_config([write(tmp_path / "broken.yaml", "a: [1\n")])
    with pytest.raises(
        ConfigError, match=r"typo\.yaml: guidence\.guidance_scale=1: there is no such key; did you mean"
    ):
        load_config([write(tmp_path / "typo.yaml", "guidence: {guidance_scale: 1}\n")], [PROMPT])
    with pytest.raises(ConfigError, match=r"list\.yaml"):
        load_config([write(tmp_path / "list.yaml", "- 1\n- 2\n")], [PROMPT])


def test_loading_a_configuration_costs_no_torch_and_no_ray() -> None:
    """A bad grid point is refused on the head node, before a GPU is asked for."""
    code = (
        "import sys, corrdream; corrdream.load_config(overrides=['prompt=x']);"
        "print(sorted({'torch', 'ray', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", result.stdout
