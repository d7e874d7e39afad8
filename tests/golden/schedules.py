"""Annealed values, and every scheduled quantity of the published configurations, step by step."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

from corrdream.config import Config, load_config
from corrdream.schedules import Piecewise, value_at
from corrdream.trainer import StepSettings, settings_at

FILE = "schedules.json"
TOLERANCE = 1e-12  # of values; whole numbers are exact
CFG_SCHEDULE = {"steps": [0, 7000, 12000], "values": [50, 10, 50], "interpolate": "hold"}


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name, group in data.items():
        if name == "annealing":
            yield name, partial(compare_annealing, group)
        elif name == "progressive":
            for number, progressive in enumerate(group):
                yield f"{name}{number}", partial(compare_progressive, progressive)
        elif name.startswith("published"):
            yield name, partial(compare_published, group, name)
        else:
            raise AssertionError(f"unknown group {name} in {FILE}")


def annealed_value(spec: Any, *, global_step: int, epoch: int) -> float:
    """The value of a published annealing entry, by our schedule: the type of its last number decides what it counts."""
    if not isinstance(spec, list):
        return value_at(spec, global_step, horizon=1)
    start, first, last, end = spec if len(spec) == 4 else [0, *spec]
    # Ours count whole steps: a finer unit makes a start or an end between two of them whole.
    unit = math.lcm(Fraction(start).denominator, Fraction(end).denominator)
    schedule = Piecewise(steps=[int(start * unit), int(end * unit)], values=[float(first), float(last)])
    return value_at(schedule, (epoch if isinstance(end, float) else global_step) * unit, horizon=1)


def compare_annealing(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        value = annealed_value(row["spec"], global_step=row["global_step"], epoch=row["epoch"])
        assert abs(value - row["value"]) <= TOLERANCE * max(1.0, abs(row["value"])), row


def data_overrides(data: dict[str, Any]) -> dict[str, Any]:
    """Sizes and ranges of the published data configuration."""
    knots = [0, *data.get("resolution_milestones", [])]

    def hold(values: Any) -> Any:
        return values if not isinstance(values, list) else {"steps": knots, "values": values, "interpolate": "hold"}

    return {"cameras.resolution": hold(data["height"]), "cameras.batch_size": hold(data["batch_size"])}


def settings(config: Config, step: int) -> StepSettings:
    return settings_at(config, step, num_views=4)


def compare_published(group: dict[str, Any], name: str) -> None:
    def ramp(spec: Any) -> Any:
        if not isinstance(spec, list):
            return spec
        start, first, last, end = spec if len(spec) == 4 else [0, *spec]
        return {"steps": [start, end], "values": [first, last]}

    config = load_config(
        (),
        {
            "prompt": "a cube",
            "max_steps": 12000,
            "guidance.min_timestep": ramp(group["min_step_percent"]),
            "guidance.max_timestep": ramp(group["max_step_percent"]),
            "guidance.guidance_scale": CFG_SCHEDULE if "cfg_scheduling" in name else group["guidance_scale"][0],
            "loss_weights.orientation": ramp(group["lambda_orient_spec"]),
            "loss_weights.correspondence": group["lambda_corr"][0],
            "correspondence.at_zero_weight": "no_guidance",
            "correspondence.window": {"steps": [group["use_corr_after"], group["use_corr_until"]]},
            "shading.ambient_only": {"steps": [0, group["ambient_only_steps"]]},
            "cameras.progressive_until": 0,
        }
        | data_overrides(group["data"]),
    )
    for index, step in enumerate(group["steps"]):
        at = settings(config, step)
        assert at.timestep_range == (group["min_timestep"][index], group["max_timestep"][index]), step
    for index, step in enumerate(group["guidance_scale_steps"]):
        at = settings(config, step)
        assert at.guidance_scale == group["guidance_scale"][index], step
        assert abs(at.loss_weights["orientation"] - group["lambda_orient"][index]) <= TOLERANCE * 1000, step
        assert at.loss_weights["correspondence"] == group["lambda_corr"][index], step
        assert at.is_correspondence_step == group["correspondence_step"][index], step
        assert at.appearance.ambient_only == group["ambient_only"][index], step
    compare_rows(config, group["data"]["rows"])


def compare_progressive(group: dict[str, Any]) -> None:
    config = load_config(
        (),
        {
            "prompt": "a cube",
            "cameras.progressive_until": group["progressive_until"],
            "cameras.elevation_range": group["elevation_range"],
            "cameras.azimuth_range": group["azimuth_range"],
            "cameras.eval_elevation": group["eval_elevation_deg"],
        }
        | data_overrides(group["rows"][0]),
    )
    compare_rows(config, group["rows"])


def compare_rows(config: Config, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        cameras = settings(config, row["global_step"]).cameras
        assert cameras.resolution == row["height"] == row["width"], row
        assert cameras.batch_size == row["batch_size"], row
        for ours, published in (
            (cameras.elevation_range, row["elevation_range"]),
            (cameras.azimuth_range, row["azimuth_range"]),
        ):
            assert all(abs(a - b) <= TOLERANCE * 180 for a, b in zip(ours, published, strict=True)), row
