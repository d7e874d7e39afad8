"""A grid is a YAML file; this turns it into trials, each with a whole, checked configuration. Knows nothing of Ray.

config: blocks.yaml                  # the base; found beside the grid, in the working directory or in configs/
overrides: {max_steps: 100}          # for every trial
parameters:                          # every combination is a setting
  guidance.guidance_rescale: [0, 0.3, 0.5, 0.7]
  guidance.guidance_scale:           # a choice may have a readable name ...
    - {label: 25 then 5, value: {progress: [0, 0.5], values: [25, 5], interpolate: hold}}
  method:                            # ... and may set several keys; the parameter's name is then free
    - {label: baseline, set: {correspondence.enabled: false}}
prompts: [a snowman]                 # every setting is run with every prompt ...
seeds: [0, 1]                        # ... and every seed
metric: viou_solid                   # what is best; `mode: min` for an error
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import corrdream
from sweeps.results import METRICS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GRID_KEYS = ("config", "overrides", "parameters", "prompts", "seeds", "metric", "mode")
CHOSEN_BY_OPTION = {"prompt": "--prompts", "seed": "--seeds"}
METRIC_KEYS = tuple(metric.key for metric in METRICS)
MAX_NAME = 100  # characters of a trial's folder, before its identity

T = TypeVar("T")


class GridError(ValueError):
    """A grid that cannot be run: one line that says where, what was given and what is accepted."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a parameter: its name in tables, and the configuration keys that it sets."""

    label: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Settings (one choice of every parameter) x prompts x seeds."""

    name: str
    config: Path
    parameters: Mapping[str, tuple[Choice, ...]]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "viou_solid"
    mode: Literal["max", "min"] = "max"

    def settings(self) -> Iterator[dict[str, Choice]]:
        """Every combination of one choice a parameter, the last parameter changing fastest."""
        for choices in product(*self.parameters.values()):
            yield dict(zip(self.parameters, choices, strict=True))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep. `identity` tells whether two runs would give the same result."""

    name: str
    labels: Mapping[str, str]
    prompt: str
    seed: int
    config: corrdream.Config
    identity: str


def load_grid(name_or_path: str) -> Grid:
    """The grid of that name in configs/grids, or of that file."""
    path = _grid_path(name_or_path)
    plain = _read_yaml(path)
    unknown = [key for key in plain if key not in GRID_KEYS]
    if unknown:
        close = get_close_matches(str(unknown[0]), GRID_KEYS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(GRID_KEYS)}."
        raise GridError(f"grid {path}: unknown key {unknown[0]!r}; {hint}")
    metric, mode = str(plain.get("metric", Grid.metric)), plain.get("mode", "max")
    if metric not in METRIC_KEYS:
        raise GridError(f"grid {path}: metric must be one of {', '.join(METRIC_KEYS)}, got {metric!r}.")
    if mode not in ("max", "min"):
        raise GridError(f"grid {path}: mode must be max or min, got {mode!r}.")
    return Grid(
        name=path.stem,
        config=find_config(str(plain.get("config", "blocks.yaml")), beside=path.parent),
        parameters=_parse_parameters(plain.get("parameters", {}), path),
        prompts=parse_prompts(plain.get("prompts"), f"grid {path}: prompts"),
        seeds=parse_seeds(plain.get("seeds", [0]), f"grid {path}: seeds"),
        overrides=_parse_overrides(plain.get("overrides", {}), f"grid {path}: overrides"),
        metric=metric,
        mode=mode,
    )


def find_config(name_or_path: str, beside: Path | None = None) -> Path:
    """A base configuration: `beside`, in the working directory, or in configs/, whatever the working directory."""
    folders = [folder for folder in (beside, Path.cwd(), CONFIGS) if folder]
    names = [name_or_path] if name_or_path.endswith((".yaml", ".yml")) else [f"{name_or_path}.yaml", name_or_path]
    for candidate in (folder / name for folder in folders for name in names):
        if candidate.is_file():
            return candidate.resolve()
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise GridError(f"configuration {name_or_path} does not exist; {CONFIGS} has {known}.")


def _grid_path(name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path.resolve()
        raise GridError(f"grid file {name_or_path} does not exist.")
    path = CONFIGS / "grids" / f"{name_or_path}.yaml"
    if path.is_file():
        return path
    known = sorted(grid.stem for grid in (CONFIGS / "grids").glob("*.yaml"))
    close = get_close_matches(name_or_path, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}; or give a .yaml file."
    raise GridError(f"grid {name_or_path!r} does not exist; {hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise GridError(f"grid {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or not plain:
        raise GridError(f"grid {path} is empty; it needs at least prompts and parameters.")
    return {str(key): value for key, value in plain.items()}


def _parse_parameters(plain: Any, path: Path) -> dict[str, tuple[Choice, ...]]:
    where = f"grid {path}: parameters"
    if not isinstance(plain, dict):
        raise GridError(f"{where} must map configuration keys to lists of values, got {plain!r}.")
    parameters = {}
    for key, values in plain.items():
        match values:
            case {"value": value, **rest} if not rest:
                values = [value]
            case {"values": list(listed), **rest} if not rest:
                values = listed
        if not isinstance(values, list):
            raise GridError(
                f"{where}.{key} must be a list of values, got {values!r}; write [{values!r}] for a single one."
            )
        if not values:
            raise GridError(f"{where}.{key} is an empty list; give at least one value or remove it.")
        choices = tuple(_parse_choice(str(key), value, f"{where}.{key}") for value in values)
        _refuse_repeats([choice.label for choice in choices], f"{where}.{key}")
        parameters[str(key)] = choices
    return parameters


def _parse_choice(key: str, value: Any, where: str) -> Choice:
    if not (isinstance(value, dict) and ("label" in value or "set" in value)):
        return Choice(label=_short(value), overrides={key: value})
    label = value.get("label")
    if not isinstance(label, str) or not label.strip():
        raise GridError(f"{where}: label must be text, got {label!r}; quote words like 'off' and '1'.")
    match value:
        case {"label": _, "value": chosen, **rest} if not rest:
            return Choice(label=label, overrides={key: chosen})
        case {"label": _, "set": dict(overrides), **rest} if not rest:
            return Choice(label=label, overrides=_parse_overrides(overrides, f"{where} {label!r}"))
    raise GridError(f"{where} {label!r} must have label and one of value and set, got {', '.join(map(str, value))}.")


def _parse_overrides(plain: Any, where: str) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise GridError(f"{where} must map configuration keys to values, got {plain!r}.")
    return {str(key): value for key, value in plain.items()}


def parse_prompts(plain: Any, where: str) -> tuple[str, ...]:
    """Non-empty texts without repeats."""
    if not isinstance(plain, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in plain):
        raise GridError(f"{where} must be a list of texts, got {plain!r}.")
    return tuple(_refuse_repeats([" ".join(prompt.split()) for prompt in plain], where))


def parse_seeds(plain: Any, where: str) -> tuple[int, ...]:
    """Whole numbers from 0 without repeats."""
    if not isinstance(plain, list) or not all(type(seed) is int and seed >= 0 for seed in plain):
        raise GridError(f"{where} must be a list of whole numbers from 0, got {plain!r}.")
    return tuple(_refuse_repeats(plain, where))


def _refuse_repeats(values: list[T], where: str) -> list[T]:
    if not values:
        raise GridError(f"{where} is empty; give at least one.")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise GridError(f"{where} has {value!r} twice.")
    return values


def expand(grid: Grid, overrides: Sequence[str] = ()) -> list[Trial]:
    """Every trial, checked; `overrides` are `key=value` texts for all of them. Settings change fastest, then prompts.

    So the same prompt and seed of all settings run near to each other, and a sweep that is not finished already
    compares settings.
    """
    _refuse_override_of_parameter(grid, overrides)
    settings = [(setting, _resolve(grid, setting, overrides)) for setting in grid.settings()]
    _check_prompts(grid, [config for _, config in settings])  # imports torch, so after all that needs none
    trials: dict[str, Trial] = {}
    for seed, prompt, (setting, resolved) in product(grid.seeds, grid.prompts, settings):
        labels = {key: choice.label for key, choice in setting.items()}
        config = dataclasses.replace(resolved, prompt=prompt, seed=seed)
        known = corrdream.identity(config)
        if known in trials:
            twins = f"{describe(labels)} and {describe(trials[known].labels)}"
            raise GridError(f"grid {grid.name}: {twins} are the same run; remove one.")
        parts = [*(f"{_leaf(key)}={label}" for key, label in labels.items()), prompt, f"seed={seed}"]
        name = f"{'_'.join(map(_slug, parts))[:MAX_NAME]}_{known[:8]}"
        trials[known] = Trial(name=name, labels=labels, prompt=prompt, seed=seed, config=config, identity=known)
    return list(trials.values())


def _check_prompts(grid: Grid, configs: Sequence[corrdream.Config]) -> None:
    for prompt, config in product(grid.prompts, configs):
        try:
            corrdream.check_prompt(dataclasses.replace(config, prompt=prompt))
        except ValueError as error:
            raise GridError(f"grid {grid.name}: {error}") from error


def base_config(grid: Grid, overrides: Sequence[str] = ()) -> corrdream.Config:
    """What the settings change: the base configuration with the grid's and the given overrides."""
    return _resolve(grid, {}, overrides)


def default_labels(grid: Grid, overrides: Sequence[str] = ()) -> dict[str, str] | None:
    """The setting that changes nothing, to which the others are compared; None if there is none."""
    base = base_config(grid, overrides)
    for setting in grid.settings():
        if _resolve(grid, setting, overrides) == base:
            return {key: choice.label for key, choice in setting.items()}
    return None


def _resolve(grid: Grid, setting: Mapping[str, Choice], overrides: Sequence[str]) -> corrdream.Config:
    """The setting's configuration with the first prompt and seed."""
    layers: dict[str, Any] = dict(grid.overrides)
    for choice in setting.values():
        layers |= choice.overrides
    layers |= {"prompt": grid.prompts[0], "seed": grid.seeds[0]}
    # JSON is YAML, so that values of any type go the way of `key=value` on the command line.
    texts = [f"{key}={json.dumps(value)}" for key, value in layers.items()]
    try:
        return corrdream.load_config([grid.config], [*texts, *overrides])
    except ValueError as error:
        labels = describe({key: choice.label for key, choice in setting.items()})
        raise GridError(f"grid {grid.name}: {labels}: {error}") from error


def _refuse_override_of_parameter(grid: Grid, overrides: Sequence[str]) -> None:
    """An override that undid what the grid varies would leave a table of equal rows."""
    varied = {key for setting in grid.settings() for choice in setting.values() for key in choice.overrides}
    for text in overrides:
        key = text.partition("=")[0]
        if key in CHOSEN_BY_OPTION:
            raise GridError(f"override {text} is chosen by the grid; use {CHOSEN_BY_OPTION[key]}.")
        clash = next(
            (name for name in varied if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")), ""
        )
        if clash:
            raise GridError(f"override {text}: grid {grid.name} varies {clash}; drop the override or use another grid.")


def describe(labels: Mapping[str, str]) -> str:
    """`guidance_rescale=0.5, guidance_scale=25 then 5`, or `the base` without parameters."""
    return ", ".join(f"{_leaf(key)}={label}" for key, label in labels.items()) or "the base"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _short(value: Any) -> str:
    """A value as people write it: text without quotes, whole numbers without a point."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-.")
