"""The files in configs/: all load, every defect has the value its file promises, the released ones run."""

import dataclasses
import inspect
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from corrdream.config import Config, Piecewise, load_config
from corrdream.engine import build
from corrdream.settings import settings_at
from corrdream.trainer import Trainer
from sweeps.grids import load_grid
from sweeps.schedulers import Fifo
from sweeps.trials import expand

CONFIGS = Path(__file__).parent.parent / "configs"
REFERENCES = Path(__file__).parent / "references"
FILES = sorted(CONFIGS.glob("*.yaml"))
GRIDS = sorted((CONFIGS / "grids").glob("*.yaml"))
CORRESPONDENCE = ("corr-mvdream-sd21-shading", "corr-mvdream-sd21-shading-cfg-scheduling")
BASELINES = ("mvdream-sd21", "mvdream-sd21-shading")
RELEASED = (*CORRESPONDENCE, *BASELINES)

# Every field that chooses between the released behaviour and the right one: (released, right).
DATA_DEFECTS = {
    "cameras.elevation_sampling": ("released", "area_uniform"),
    "cameras.progressive_until": (0, -1),
    "cameras.drawn_ahead": (2, 0),
}
LOSS_DEFECTS = {
    "correspondence.depth_convention": ("ray_length", "z_depth"),
    "correspondence.depth_normalization": ("none", "opacity"),
    "correspondence.appearance": ("independent", "shared"),
    "correspondence.shift": ("positive_integer", "signed"),
    "correspondence.direction": ("forward", "both"),
    "correspondence.epipolar_threshold_unit": ("squared_pixels", "scaled_pixels"),
    "correspondence.epipolar_projection": ("border_points", "normal_form"),
    "correspondence.confidence": ("raw", "normalized"),
    "correspondence.reduction": ("sum", "mean"),
    "correspondence.at_zero_weight": ("no_guidance", "guidance"),
}
TINY = [
    "prior.kind=blocks",
    "negative_prompt=''",
    "precision=float32",
    "device=cpu",
    "cameras.resolution=16",
    "cameras.batch_size=4",
    "correspondence.feature_blocks=[1]",
    "rendering.num_samples_per_ray=16",
    "rendering.occupancy_resolution=8",
    "field.hash_grid={num_levels: 2, log2_table_size: 8, base_resolution: 4, growth: 2.0}",
    "output.preview_size=16",
]


@cache
def config_of(name: str, overrides: Sequence[str] = ()) -> Config:
    return load_config([CONFIGS / f"{name}.yaml"], ["prompt=a red cube", *overrides])


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def tiny_trainer(name: str, prior_file: Path, *overrides: str) -> Trainer:
    torch.manual_seed(0)
    return build(config_of(name, (*TINY, f"prior.checkpoint={prior_file}", *overrides)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_loads(path: Path) -> None:
    assert config_of(path.stem).prompt == "a red cube"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_says_where_its_values_come_from(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_point_loads(path: Path) -> None:
    grid = dataclasses.replace(load_grid(str(path)), seeds=(0,))
    trials = expand(dataclasses.replace(grid, prompts=grid.prompts[:1]))
    assert len({trial.identity for trial in trials}) == len(trials) == len(grid.settings()), "no two are the same run"
    whole = dataclasses.replace(grid, parameters=(), search="grid", scheduler=Fifo())
    assert len(expand(whole)) == len(grid.prompts)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize(("key", "values"), DATA_DEFECTS.items(), ids=DATA_DEFECTS)
def test_released_configurations_keep_the_defects_of_the_data(name: str, key: str, values: tuple[Any, Any]) -> None:
    assert value_of(config_of(name), key) == values[0]


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize(("key", "values"), LOSS_DEFECTS.items(), ids=LOSS_DEFECTS)
def test_released_configurations_keep_the_defects_of_the_loss(name: str, key: str, values: tuple[Any, Any]) -> None:
    assert value_of(config_of(name), key) == values[0]


@pytest.mark.parametrize("name", [path.stem for path in FILES if path.stem not in RELEASED])
@pytest.mark.parametrize(("key", "values"), (DATA_DEFECTS | LOSS_DEFECTS).items(), ids=DATA_DEFECTS | LOSS_DEFECTS)
def test_every_other_configuration_mends_them(name: str, key: str, values: tuple[Any, Any]) -> None:
    assert value_of(config_of(name), key) == value_of(Config(), key) == values[1]


@pytest.mark.parametrize("name", [path.stem for path in FILES if config_of(path.stem).prior.kind != "blocks"])
def test_configurations_of_mvdream_read_the_two_released_feature_maps(name: str) -> None:
    correspondence = config_of(name).correspondence
    assert (correspondence.feature_blocks, correspondence.timestep) == ((8, 5), 0)


def test_the_readme_s_fidelity_table_has_every_defect_with_both_values() -> None:
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8").partition("## Fidelity")[2]
    rows = re.findall(r"^\| (.*?) \|.*`(\w+\.\w+)` = (\S+) \\\| \*\*(\S+)\*\*", text, re.MULTILINE)
    documented = {key: (released, right) for _, key, released, right in rows}
    known = DATA_DEFECTS | LOSS_DEFECTS | {"field.normal": ("finite_difference_released", "finite_difference")}
    assert documented == {key: (str(released), str(right)) for key, (released, right) in known.items()}
    numbered = {key: found[1] for what, key, _, _ in rows if (found := re.search(r"\((\d+)\)", what))}
    source = Path(inspect.getfile(Config)).read_text(encoding="utf-8")
    commented = re.findall(r"# defect (\d+):.*\n    (\w+): Literal", source)
    assert numbered == {f"correspondence.{name}": number for number, name in commented}
    assert numbered.keys() == LOSS_DEFECTS.keys()


def test_the_table_of_defects_is_complete() -> None:
    """A released file differs from ours in what the table lists, values that studies chose, schedules, sizes."""
    released, ours = config_of(CORRESPONDENCE[1]), config_of("corrdream")
    known = {*DATA_DEFECTS, *LOSS_DEFECTS, "loss_weights.correspondence", "guidance.guidance_rescale"}
    for section in (
        "cameras",
        "shading",
        "field",
        "background",
        "rendering",
        "guidance",
        "correspondence",
        "optimizer",
    ):
        for name, value in vars(getattr(released, section)).items():
            mended = getattr(getattr(ours, section), name)
            is_scheduled = isinstance(mended, Piecewise) or name in ("window", "ambient_only")
            if value != mended and not is_scheduled and f"{section}.{name}" not in known:
                assert (section, name) == ("field", "hash_grid"), (
                    f"{section}.{name}: {value} released, {mended} in ours"
                )


def test_configurations_count_the_published_steps() -> None:
    """3500 and 8500 of 12000 without a schedule of the guidance scale, 2000 and 10000 with it."""
    counts = {}
    for name in (*RELEASED, "corrdream"):
        config = config_of(name)
        pairs = [(step, step + 1) for step in range(0, config.max_steps, 100)]  # all that changes does so at hundreds
        steps = [settings_at(config, step, 4).is_correspondence_step for pair in pairs for step in pair]
        counts[name] = (50 * sum(steps), 50 * (len(steps) - sum(steps)))
    assert counts == {
        "corr-mvdream-sd21-shading": (3500, 8500),
        "corr-mvdream-sd21-shading-cfg-scheduling": (2000, 10000),
        "mvdream-sd21": (0, 10000),
        "mvdream-sd21-shading": (0, 10000),
        "corrdream": (2000, 10000),
    }


@pytest.mark.parametrize("step", [0, 2999, 3000, 5999, 6002, 6999, 7000, 9600, 11999])
def test_ours_follows_the_schedules_of_the_released_configuration(step: int) -> None:
    released, ours = (settings_at(config_of(name), step, 4) for name in (CORRESPONDENCE[1], "corrdream"))
    assert ours.cameras.resolution == released.cameras.resolution
    assert ours.cameras.batch_size == released.cameras.batch_size
    assert ours.appearance.ambient_only == released.appearance.ambient_only
    assert ours.guidance_scale == released.guidance_scale
    assert ours.timestep_range == released.timestep_range
    assert ours.loss_weights["orientation"] == pytest.approx(released.loss_weights["orientation"])


@pytest.mark.parametrize(
    ("name", "group"), list(zip(CORRESPONDENCE, ("published_plain", "published_cfg_scheduling"), strict=True))
)
def test_released_configurations_follow_the_schedules_of_the_published_program(name: str, group: str) -> None:
    config = config_of(name)
    published = json.loads((REFERENCES / "schedules.json").read_text(encoding="utf-8"))[group]
    for index, step in enumerate(published["guidance_scale_steps"]):
        at = settings_at(config, step, 4)
        assert at.guidance_scale == published["guidance_scale"][index], step
        assert at.is_correspondence_step == published["correspondence_step"][index], step
        assert at.appearance.ambient_only == published["ambient_only"][index], step
        assert at.loss_weights["orientation"] == pytest.approx(published["lambda_orient"][index]), step
    for index, step in enumerate(published["steps"]):
        expected = published["min_timestep"][index], published["max_timestep"][index]
        assert settings_at(config, step, 4).timestep_range == expected, step
    for row in published["data"]["rows"]:  # a row is what the next batch is drawn from, two steps before it is used
        cameras = settings_at(config, row["global_step"] + 2, 4).cameras
        assert (cameras.resolution, cameras.batch_size) == (row["height"], row["batch_size"]), row
        assert list(cameras.elevation_range) == row["elevation_range"], row


def test_sizes_and_the_narrow_first_view_arrive_two_steps_late_as_released() -> None:
    released = config_of(CORRESPONDENCE[0])
    sizes = [settings_at(released, step, 4).cameras for step in (5999, 6000, 6001, 6002)]
    assert [(size.resolution, size.batch_size) for size in sizes] == [(32, 8), (32, 8), (32, 8), (128, 4)]
    elevations = [settings_at(released, step, 4).cameras.elevation_range for step in range(4)]
    assert elevations == [(0.0, 30.0), (0.0, 30.0), (15.0, 15.0), (0.0, 30.0)]


def test_weightless_correspondence_steps_are_guidance_steps_unless_as_released() -> None:
    for name, expected in ((CORRESPONDENCE[0], True), ("corrdream", False)):
        config = config_of(name, ("loss_weights.correspondence=0",))
        assert settings_at(config, 4000, 4).is_correspondence_step is expected


@pytest.mark.parametrize("name", [*RELEASED, "corrdream"])
def test_two_steps_at_test_size_are_taken(name: str, tiny_prior_file: Path) -> None:
    """A correspondence and a guidance step where there are both, after the change to shaded pictures."""
    trainer = tiny_trainer(name, tiny_prior_file)
    trainer.step = 6400
    first, second = trainer.train_step(), trainer.train_step()
    assert ("loss/correspondence" in first) == ("loss/sds" not in first) == (name not in BASELINES)
    assert "loss/sds" in second
    assert "loss/correspondence" not in second
    assert ("loss/orientation" in second) == (name != "mvdream-sd21")
    assert all(torch.isfinite(torch.tensor(row["loss/total"])) for row in (first, second))
    picture = trainer.preview()
    assert picture.rgb.shape == (4, 16, 16, 3)


def test_files_name_only_what_exists() -> None:
    """A plain reading of the YAML: no key twice, nothing left open."""
    for path in FILES:
        assert OmegaConf.missing_keys(OmegaConf.load(path)) == set()
