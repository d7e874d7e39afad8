"""A grid is a YAML file that says what to vary, and how to search it. Knows nothing of Ray.

config: blocks.yaml                  # the base; found beside the grid, in the working directory or in configs/
overrides: {max_steps: 100}          # for every trial
parameters:                          # every combination is a setting; `parameters.py` says what else is possible
  guidance.guidance_rescale: [0, 0.3, 0.5, 0.7]
  guidance.guidance_scale:           # a choice may have a readable name ...
    - {label: 25 then 5, value: {progress: [0, 0.5], values: [25, 5], interpolate: hold}}
  method:                            # ... and may set several keys; the parameter's name is then free
    - {label: baseline, set: {correspondence.enabled: false}}
prompts: [a snowman]                 # every setting is run with every prompt (lib:WORDS of a prompt_library too) ...
seeds: [0, 1]                        # ... and every seed
metric: viou_solid                   # what is best; `mode: min` for an error
search: random                       # or optuna, or grid (the default): where settings come from
num_samples: 12                      # how many, unless it is a grid
search_seed: 0
scheduler: {kind: asha, budget: 200} # `schedulers.py` has the keys
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import corrdream
from sweeps.folders import Sweep
from sweeps.narrowing import narrow
from sweeps.parameters import (
    GridError,
    Parameter,
    Setting,
    all_settings,
    parse_overrides,
    parse_parameters,
    random_settings,
    refuse_repeats,
)
from sweeps.results import METRICS
from sweeps.schedulers import Fifo, Pbt, Scheduler, parse_scheduler, scheduler_to_plain

Search = Literal["grid", "random", "optuna"]
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SEARCH_KEYS = ("search", "num_samples", "search_seed", "scheduler")
GRID_KEYS = ("config", "overrides", "parameters", "prompts", "seeds", "metric", "mode", *SEARCH_KEYS)
METRIC_KEYS = tuple(metric.key for metric in METRICS)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Settings x prompts x seeds, and how they are searched."""

    name: str
    config: Path
    parameters: tuple[Parameter, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "viou_solid"
    mode: Literal["max", "min"] = "max"
    search: Search = "grid"
    num_samples: int | None = None
    search_seed: int = 0
    scheduler: Scheduler = field(default_factory=Fifo)
    plain: Mapping[str, Any] = field(default_factory=dict)  # the file

    def search_to_plain(self) -> dict[str, Any]:
        """What another process needs to go on with the search, as JSON; `search_of` reads it."""
        return {
            "search": self.search,
            "num_samples": self.num_samples,
            "search_seed": self.search_seed,
            "scheduler": scheduler_to_plain(self.scheduler),
            "parameters": self.plain.get("parameters", {}),
        }

    def settings(self) -> list[Setting]:
        """Those that are known before the first result."""
        if self.search == "grid":
            return all_settings(self.parameters)
        drawn = list(islice(random_settings(self.parameters, self.search_seed), self.num_samples))
        if self.num_samples is not None and len(drawn) < self.num_samples:
            raise GridError(
                f"grid {self.name} has only {len(drawn)} different settings, --num-samples asks for {self.num_samples}."
            )
        return drawn[:1] if self.search == "optuna" else drawn


def load_grid(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),  # of which those that name a parameter give its values
    search: Search | None = None,
    num_samples: int | None = None,
    scheduler: str | None = None,
    budget: int | None = None,  # of a scheduler that has one
) -> Grid:
    """The grid of that name in configs/grids, or of that file; the other arguments come before what it says."""
    path = _grid_path(name_or_path)
    plain = _read_yaml(path)
    unknown = [key for key in plain if key not in GRID_KEYS]
    if unknown:
        raise GridError(f"grid {path}: {corrdream.explain_unknown(unknown[0], plain[unknown[0]], GRID_KEYS, 'a grid')}")
    metric, mode = plain.get("metric", Grid.metric), plain.get("mode", "max")
    match metric:
        case {"name": name, "goal": ("maximize" | "minimize") as goal, **rest} if not rest:  # as W&B has it
            metric, mode = name, goal[:3]
    if metric not in METRIC_KEYS:
        raise GridError(f"grid {path}: metric must be one of {', '.join(METRIC_KEYS)}, got {corrdream.shown(metric)}.")
    if mode not in ("max", "min"):
        raise GridError(f"grid {path}: mode must be max or min, got {corrdream.shown(mode)}.")
    varied, where = plain.get("parameters", {}), f"grid {path}: parameters"
    plain["parameters"] = narrow(varied, parse_parameters(varied, where), overrides, where)
    grid = Grid(
        name=path.stem,
        config=_base(plain.get("config", "blocks.yaml"), path),
        parameters=parse_parameters(plain["parameters"], where),
        prompts=parse_prompts(plain.get("prompts"), f"grid {path}: prompts"),
        seeds=parse_seeds(plain.get("seeds", [0]), f"grid {path}: seeds"),
        overrides=parse_overrides(plain.get("overrides", {}), f"grid {path}: overrides"),
        metric=metric,
        mode=mode,
        plain=plain,
    )
    grid = searched(grid, search=search, num_samples=num_samples, scheduler=scheduler, budget=budget)
    _check_keys(grid, f"grid {path}")
    return grid


def _check_keys(grid: Grid, where: str) -> None:
    """GridError unless the configuration has every key that the file sets, and takes its values."""
    given = [("overrides", grid.overrides)]
    given += [("parameters", choice.overrides) for parameter in grid.parameters for choice in parameter.extremes()]
    if isinstance(grid.scheduler, Pbt):
        ranges = grid.scheduler.ranges.items()
        given += [("scheduler.ranges", {key: drawn.at(end)}) for key, drawn in ranges for end in (0.0, 1.0)]
    for part, overrides in given:
        try:
            corrdream.check_overrides(overrides)
        except corrdream.ConfigError as error:
            raise GridError(f"{where}: {part}: {error}") from error


def searched(
    grid: Grid,
    *,
    search: Search | None = None,
    num_samples: int | None = None,
    scheduler: str | None = None,
    budget: int | None = None,
) -> Grid:
    """The grid with its search and scheduler, which the arguments may replace; GridError if they do not fit it."""
    where, plain = f"grid {grid.name}", grid.plain
    search = search or plain.get("search", "grid")
    if search not in get_args(Search):
        raise GridError(f"{where}: search must be one of {', '.join(get_args(Search))}, got {corrdream.shown(search)}.")
    seed = plain.get("search_seed", 0)
    if type(seed) is not int or seed < 0:
        raise GridError(f"{where}: search_seed must be a whole number from 0, got {corrdream.shown(seed)}.")
    if search == "grid":
        if num_samples is not None:
            raise GridError("--num-samples is for --search random and optuna; a grid has all of its settings.")
        drawn = next((parameter.key for parameter in grid.parameters if parameter.distribution), None)
        if drawn:
            raise GridError(f"{where}: parameters.{drawn} is a distribution; use --search random or --search optuna.")
    else:
        num_samples = num_samples or plain.get("num_samples")
        if type(num_samples) is not int or num_samples < 1:
            raise GridError(
                f"{where}: search {search} needs a number of settings; give --num-samples, or num_samples, a whole"
                f" number from 1, got {corrdream.shown(num_samples)}."
            )
    chosen = parse_scheduler(plain.get("scheduler"), f"{where}: scheduler", kind=scheduler, budget=budget)
    if search == "optuna" and isinstance(chosen, Pbt):
        raise GridError("--scheduler pbt needs all settings at the start; use --search grid or random.")
    _check_budget(grid, chosen)
    return dataclasses.replace(grid, search=search, num_samples=num_samples, search_seed=seed, scheduler=chosen)


def _check_budget(grid: Grid, scheduler: Scheduler) -> None:
    """Rungs compare trials of one length; what else would decide it is refused."""
    if scheduler.budget is None:
        return
    keys = {key for parameter in grid.parameters for choice in parameter.extremes() for key in choice.overrides}
    for key in ("max_steps", "schedule_steps"):
        if key in keys or key in grid.overrides:
            raise GridError(f"grid {grid.name} sets {key}, which scheduler.budget decides; remove it.")


def search_of(sweep: Sweep) -> Grid:
    """The grid of a sweep as sweep.json keeps it; its base configuration is `sweep.base`."""
    plain, where = sweep.search, f"sweep {sweep.name}"
    return Grid(
        name=sweep.grid,
        config=Path(),
        parameters=parse_parameters(plain["parameters"], f"{where}: parameters"),
        prompts=tuple(dict.fromkeys(trial.prompt for trial in sweep.trials)),
        seeds=tuple(dict.fromkeys(trial.seed for trial in sweep.trials)),
        metric=sweep.metric,
        mode=sweep.mode,
        search=plain["search"],
        num_samples=plain["num_samples"],
        search_seed=plain["search_seed"],
        scheduler=parse_scheduler(plain["scheduler"], f"{where}: scheduler"),
        plain=plain,
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


def _base(plain: Any, path: Path) -> Path:
    if not isinstance(plain, str):
        raise GridError(f"grid {path}: config must be the name of a YAML file, got {corrdream.shown(plain)}.")
    try:
        return find_config(plain, beside=path.parent)
    except GridError as error:
        raise GridError(f"grid {path}: {error}") from error


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
        plain = corrdream.read_yaml(path, "grid")
    except corrdream.ConfigError as error:
        raise GridError(str(error)) from error
    if not isinstance(plain, dict):
        raise GridError(f"grid {path} must be a mapping with {', '.join(GRID_KEYS)}, got {corrdream.shown(plain)}.")
    if not plain:
        raise GridError(f"grid {path} is empty; it needs at least prompts and parameters.")
    return {str(key): value for key, value in plain.items()}


def parse_prompts(plain: Any, where: str) -> tuple[str, ...]:
    """Non-empty texts without repeats."""
    if not isinstance(plain, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in plain):
        raise GridError(f"{where} must be a list of texts, got {corrdream.shown(plain)}.")
    return tuple(refuse_repeats([" ".join(prompt.split()) for prompt in plain], where))


def parse_seeds(plain: Any, where: str) -> tuple[int, ...]:
    """Whole numbers from 0 without repeats."""
    if not isinstance(plain, list) or not all(type(seed) is int and seed >= 0 for seed in plain):
        raise GridError(f"{where} must be a list of whole numbers from 0, got {corrdream.shown(plain)}.")
    return tuple(refuse_repeats(plain, where))
