"""What does not fit a configuration: one line with key, value and what is accepted, wherever it was written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from omegaconf import OmegaConf

from corrdream.__main__ import main as corrdream
from corrdream.config import Config, ConfigError, check_overrides, config_to_dict, load_config
from corrdream.config_reading import MAX_SHOWN, Range, changed, nested, shown
from corrdream.schedules import Piecewise
from sweeps.run import main as sweep

SCHEDULE = "a schedule such as {progress: [0, 0.5], values: [25, 5]}"
WINDOW = "a window such as {steps: [0, 100]} or {progress: [0, 0.5]}"
GUIDANCE = "guidance_scale, guidance_rescale, min_timestep, max_timestep"
SCALE = "guidance.guidance_scale"

# What is written, and all that is said of it.
WRONG: dict[str, tuple[str, Any, str]] = {
    "unknown key": ("maxsteps", 5, "maxsteps=5: there is no such key; did you mean max_steps?"),
    "unknown key of a section": (
        "guidance.guidance_scal",
        5,
        f"guidance.guidance_scal=5: there is no such key; did you mean {SCALE} or guidance.guidance_rescale?",
    ),
    "unknown key that is near none": (
        "guidance.strength",
        0.5,
        f"guidance.strength=0.5: there is no such key; guidance has {GUIDANCE}.",
    ),
    "key without its section": (
        "guidance_scale",
        5,
        f"guidance_scale=5: there is no such key; did you mean {SCALE}?",
    ),
    "unknown section": (
        "guidence.guidance_scale",
        5,
        f"guidence.guidance_scale=5: there is no such key; did you mean {SCALE}?",
    ),
    "unknown key of a schedule": (
        SCALE,
        {"steps": [0, 5], "valuez": [1, 2]},
        f"{SCALE}.valuez=[1, 2]: there is no such key; did you mean {SCALE}.values?",
    ),
    "unknown key of a window": (
        "correspondence.window",
        {"from": 5},
        "correspondence.window.from=5: there is no such key; correspondence.window has steps, progress.",
    ),
    "no whole number": ("max_steps", "abc", "max_steps must be a whole number (at least 1), got 'abc'."),
    "a fraction": ("max_steps", 1.5, "max_steps must be a whole number (at least 1), got 1.5."),
    "a flag as a number": ("max_steps", True, "max_steps must be a whole number (at least 1), got true."),
    "nothing": ("max_steps", None, "max_steps must be a whole number (at least 1), got null."),
    "too small": ("max_steps", 0, "max_steps must be at least 1, got 0."),
    "no number": ("optimizer.eps", "tiny", "optimizer.eps must be a number (at least 0), got 'tiny'."),
    "a negative number": ("optimizer.eps", -1.0, "optimizer.eps must be at least 0, got -1.0."),
    "no number of any size": ("cameras.eval_elevation", "up", "cameras.eval_elevation must be a number, got 'up'."),
    "zero where more is needed": ("field.radius", 0, "field.radius must be above 0, got 0.0."),
    "above its range": ("background.random_prob", 1.5, "background.random_prob must be in [0, 1], got 1.5."),
    "above a range without its lower end": (
        "cameras.eval_fovy",
        200,
        "cameras.eval_fovy must be above 0 and at most 180, got 200.0.",
    ),
    "no flag": ("output.video", "maybe", "output.video must be true or false, got 'maybe'."),
    "a number as a flag": ("output.video", 2, "output.video must be true or false, got 2."),
    "a number as text": ("weights", 5, "weights must be text, got 5; quote it: weights='\"5\"'."),
    "nothing as text": ("weights", None, "weights must be text, got null; quote it: weights='\"\"'."),
    "a list as text": ("weights", [1], "weights must be text, got [1]."),
    "no such choice": (
        "field.encoding",
        "octree",
        "field.encoding must be one of hash_grid, dense_grid, got 'octree'.",
    ),
    "a flag as a choice": ("field.encoding", False, "field.encoding must be one of hash_grid, dense_grid, got false."),
    "a number as a list": (
        "cameras.elevation_range",
        30,
        "cameras.elevation_range must be a list of 2 numbers, got 30.",
    ),
    "a short list": ("cameras.elevation_range", [30], "cameras.elevation_range must be a list of 2 numbers, got [30]."),
    "a list of texts": (
        "correspondence.feature_blocks",
        ["a"],
        "correspondence.feature_blocks must be a list of whole numbers (at least 0), got ['a'].",
    ),
    "an entry out of range": (
        "cameras.distance_range",
        [0, 1],
        "cameras.distance_range must be above 0, got 0.0.",
    ),
    "no schedule": (SCALE, "high", f"{SCALE} must be a number or {SCHEDULE} (at least 0), got 'high'."),
    "a list as a schedule": (SCALE, [1, 2], f"{SCALE} must be a number or {SCHEDULE} (at least 0), got [1, 2]."),
    "steps that are none": (
        SCALE,
        {"steps": [0, "a"], "values": [1, 2]},
        f"{SCALE}.steps must be a list of whole numbers or null, got [0, 'a'].",
    ),
    "no such interpolation": (
        SCALE,
        {"steps": [0], "values": [1], "interpolate": "cubic"},
        f"{SCALE}.interpolate must be one of linear, hold, got 'cubic'.",
    ),
    "a schedule with too few values": (
        SCALE,
        {"steps": [0, 5], "values": [1]},
        f"{SCALE} must have as many values as knots, at least one, got "
        "{values: [1.0], steps: [0, 5], interpolate: linear}.",
    ),
    "a schedule that leaves its range": (
        "guidance.guidance_rescale",
        {"steps": [0, 5], "values": [1, 2]},
        "guidance.guidance_rescale must be in [0, 1], got 2.0.",
    ),
    "a fraction of a view": ("cameras.batch_size", 4.5, "cameras.batch_size must be whole and at least 1, got 4.5."),
    "no window": ("correspondence.window", 5, f"correspondence.window must be {WINDOW}, got 5."),
    "a window backwards": (
        "correspondence.window",
        {"steps": [9, 5]},
        "correspondence.window must be [start, end] with 0 <= start <= end, got [9, 5].",
    ),
    "a number as a section": ("guidance", 5, f"guidance must be a section with {GUIDANCE}, got 5."),
    "nothing as a section": ("guidance", None, f"guidance must be a section with {GUIDANCE}, got null."),
    "a section as a number": ("max_steps.x", 3, "max_steps must be a whole number (at least 1), got {x: 3}."),
}

Said = Callable[[str, Any, Path], tuple[int, str, str]]


def as_yaml(value: Any) -> str:
    """On one line, as on a command line."""
    return (
        OmegaConf.to_yaml(OmegaConf.create([value])).strip().removeprefix("- ")
        if isinstance(value, str)
        else shown(value)
    )


def by_train(key: str, value: Any, folder: Path) -> tuple[int, str, str]:
    words = ["prompt=a snowman", f"{key}={as_yaml(value)}", "--run-dir", str(folder / "run")]
    return corrdream(["train", *words]), "corrdream: ", ""


def by_train_of_a_file(key: str, value: Any, folder: Path) -> tuple[int, str, str]:
    path = write(folder / "mine.yaml", nested(key, value))
    return (
        corrdream(["train", str(path), "prompt=a snowman", "--run-dir", str(folder / "run")]),
        "corrdream: ",
        f"{path}: ",
    )


def by_sweep(key: str, value: Any, folder: Path) -> tuple[int, str, str]:
    path = write(folder / "grid.yaml", {"prompts": ["a snowman"], "parameters": {"field.finite_difference_eps": [0.1]}})
    words = ["--grid", str(path), "--storage", str(folder / "runs"), "--dry-run", f"{key}={as_yaml(value)}"]
    return sweep(words), "sweeps: ", ""


def by_overrides_of_a_grid(key: str, value: Any, folder: Path) -> tuple[int, str, str]:
    path = write(folder / "grid.yaml", {"prompts": ["a snowman"], "overrides": {key: value}})
    return by_grid(path), "sweeps: ", f"grid {path}: overrides: "


def by_parameters_of_a_grid(key: str, value: Any, folder: Path) -> tuple[int, str, str]:
    path = write(folder / "grid.yaml", {"prompts": ["a snowman"], "parameters": {key: [value]}})
    return by_grid(path), "sweeps: ", f"grid {path}: parameters: "


def by_grid(path: Path) -> int:
    return sweep(["--grid", str(path), "--storage", str(path.parent / "runs"), "--dry-run"])


def write(path: Path, plain: Mapping[str, Any]) -> Path:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(plain))), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "said", [by_train, by_train_of_a_file, by_sweep, by_overrides_of_a_grid, by_parameters_of_a_grid]
)
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line_with_key_value_and_what_is_accepted(
    case: str, said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, value, message = WRONG[case]
    status, program, place = said(key, value, tmp_path)
    assert (status, capsys.readouterr().err) == (2, f"{program}{place}{message}\n")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()


WRONG_FILES = {
    "not closed": ("a: [1", "cannot be read: line 2, column 1: did not find expected ',' or ']'."),
    "a key twice": ("seed: 1\nseed: 2", "cannot be read: line 2, column 1: found duplicate key seed."),
    "a number": ("5", "cannot be read: it is no mapping of keys to values."),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_no_yaml_is_refused_with_the_place_where_it_ends_to_be_some(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = WRONG_FILES[case]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert corrdream(["train", str(path), "prompt=a snowman"]) == 2
    assert capsys.readouterr().err == f"corrdream: configuration file {path} {message}\n"
    assert by_grid(path) == 2
    assert capsys.readouterr().err == f"sweeps: grid {path} {message}\n"


def test_a_file_that_is_missing_or_a_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corrdream(["train", "missing.yaml"]) == 2
    assert capsys.readouterr().err == "corrdream: configuration file missing.yaml does not exist.\n"
    assert corrdream(["train", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"corrdream: configuration file {tmp_path} cannot be read: Is a directory.\n"
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    assert corrdream(["train", str(tmp_path / "list.yaml")]) == 2
    assert "list.yaml: a configuration must be a mapping with prompt, " in capsys.readouterr().err
    assert by_grid(tmp_path / "list.yaml") == 2
    assert "list.yaml must be a mapping with config, overrides, parameters, prompts, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "train", "swept"),
    [
        (
            "max_steps",
            "'max_steps' is neither a configuration file nor an override such as max_steps=100.",
            "override 'max_steps' must have the form key=value, as max_steps=100.",
        ),
        ("=3", *["override '=3' must have the form key=value, as max_steps=100."] * 2),
        ("max_steps=[1", *["max_steps must be YAML, got '[1': did not find expected ',' or ']'."] * 2),
    ],
)
def test_an_override_that_is_none_is_refused(
    override: str, train: str, swept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corrdream(["train", override]) == 2
    assert capsys.readouterr().err == f"corrdream: {train}\n"
    assert sweep(["--grid", "rescale", "--dry-run", "--storage", str(tmp_path / "runs"), override]) == 2
    assert capsys.readouterr().err == f"sweeps: {swept}\n"


def test_a_flag_may_be_written_as_elsewhere() -> None:
    assert load_config(overrides=["prompt=a cone", "output.video=off"]).output.video is False
    assert load_config(overrides=["prompt=a cone", "output.video=1"]).output.video is True


def test_a_long_value_is_shortened() -> None:
    assert shown({"a": [None, True, "x", 0.5]}) == "{a: [null, true, 'x', 0.5]}"
    assert len(shown(list(range(1000)))) == MAX_SHOWN


def test_every_default_fits_its_own_annotation() -> None:
    assert changed(Config(), config_to_dict(Config())) == Config()


def test_a_key_is_checked_without_a_whole_configuration() -> None:
    check_overrides({SCALE: 5, "guidance": {"guidance_rescale": 0.5}})
    with pytest.raises(ConfigError, match="max_steps must be"):
        check_overrides(["max_steps=x"])


def test_ranges_and_types_come_from_the_annotations() -> None:
    @dataclass(frozen=True)
    class Part:
        share: Annotated[float, Range(low=0, high=1)] = 0.5

    @dataclass(frozen=True)
    class Whole:
        part: Part = field(default_factory=Part)
        ramp: int | float | Piecewise = 1
        name: str | None = None

    read = changed(Whole(), {"part": {"share": 1}, "ramp": {"steps": [3], "values": [1]}, "name": "a"})
    assert read == Whole(part=Part(1.0), ramp=Piecewise(values=[1.0], steps=[3]), name="a")
    assert changed(read, {"name": None, "ramp": 2}) == Whole(part=Part(1.0), ramp=2)
    with pytest.raises(ConfigError, match=r"^part\.share must be in \[0, 1\], got 2\.0\.$"):
        changed(read, {"part": {"share": 2}})
    with pytest.raises(ConfigError, match=r"^name must be text or null, got 3\.$"):
        changed(read, {"name": 3})
    with pytest.raises(ConfigError, match=r"^shar=2: there is no such key; did you mean part\.share\?$"):
        changed(read, {"shar": 2})
