"""Choices, distributions and conditions: what a setting may be."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from sweeps.parameters import (
    Distribution,
    GridError,
    all_settings,
    describe,
    parse_distribution,
    parse_parameters,
    random_settings,
    short,
)

CONDITIONAL = {
    "method": [{"label": "off", "set": {"correspondence.enabled": False}}, {"label": "on", "set": {}}],
    "loss_weights.correspondence": {"when": {"method": "on"}, "values": [300, 1000]},
    "guidance.guidance_rescale": [0, 0.5],
}


def labels(settings: Any) -> list[dict[str, str]]:
    return [{key: choice.label for key, choice in setting.items()} for setting in settings]


def test_a_conditional_parameter_is_in_those_settings_only_that_ask_for_it():
    settings = labels(all_settings(parse_parameters(CONDITIONAL, "here")))
    assert len(settings) == 2 + 2 * 2
    assert [setting for setting in settings if setting["method"] == "off"] == [
        {"method": "off", "guidance.guidance_rescale": "0"},
        {"method": "off", "guidance.guidance_rescale": "0.5"},
    ]
    assert {setting["loss_weights.correspondence"] for setting in settings if setting["method"] == "on"} == {
        "300",
        "1000",
    }


def test_a_condition_on_a_parameter_that_does_not_apply_is_not_met():
    chain = CONDITIONAL | {"deeper": {"when": {"loss_weights.correspondence": [300]}, "values": [1, 2]}}
    for setting in labels(all_settings(parse_parameters(chain, "here"))):
        assert ("deeper" in setting) == (setting.get("loss_weights.correspondence") == "300")


def test_random_settings_are_replayed_by_their_seed_and_fewer_are_the_first_of_more():
    plain = CONDITIONAL | {"guidance.guidance_scale": {"distribution": "uniform", "min": 2, "max": 20}}
    parameters = parse_parameters(plain, "here")
    twenty = labels(itertools.islice(random_settings(parameters, 3), 20))
    assert labels(itertools.islice(random_settings(parameters, 3), 8)) == twenty[:8]
    assert labels(itertools.islice(random_settings(parameters, 4), 20)) != twenty
    assert len({tuple(setting.items()) for setting in twenty}) == 20
    assert all(("loss_weights.correspondence" in setting) == (setting["method"] == "on") for setting in twenty)


def test_random_settings_end_when_all_were_drawn():
    parameters = parse_parameters(CONDITIONAL, "here")
    drawn = labels(random_settings(parameters, 0))
    assert sorted(map(str, drawn)) == sorted(map(str, labels(all_settings(parameters))))


@pytest.mark.parametrize(
    ("kind", "low", "high", "quantile"),
    [
        ("uniform", 2.0, 20.0, lambda q: 2 + 18 * q),
        ("log_uniform_values", 0.01, 100.0, lambda q: 10 ** (4 * q - 2)),
    ],
)
def test_drawn_numbers_follow_their_distribution(kind: Any, low: float, high: float, quantile: Any):
    generator = np.random.default_rng(0)
    drawn = sorted(Distribution(kind=kind, low=low, high=high).draw(generator) for _ in range(4000))
    for q in (0.1, 0.5, 0.9):  # 5 standard deviations of a quantile's rank are 160 of 4000
        assert quantile(q - 0.04) < drawn[int(q * 4000)] < quantile(q + 0.04)
    assert low <= drawn[0]
    assert drawn[-1] <= high


def test_whole_numbers_are_drawn_equally_often_both_ends_included():
    generator = np.random.default_rng(0)
    die = Distribution(kind="int_uniform", low=1, high=6)
    drawn = [die.draw(generator) for _ in range(6000)]
    counts = [drawn.count(face) for face in range(1, 7)]
    assert sum(counts) == 6000
    assert all(850 < count < 1150 for count in counts)


def test_a_drawn_value_is_the_one_that_its_label_shows():
    parameters = parse_parameters({"x": {"distribution": "log_uniform_values", "min": 1e-5, "max": 7}}, "here")
    for setting in itertools.islice(random_settings(parameters, 0), 200):
        assert setting["x"].overrides == {"x": float(setting["x"].label)}


def test_as_in_wandb_bounds_alone_mean_whole_numbers_if_they_are_whole():
    assert parse_distribution({"min": 1, "max": 6}, "x").kind == "int_uniform"
    assert parse_distribution({"min": 1, "max": 6.0}, "x").kind == "uniform"


def test_categorical_is_a_list_of_values():
    listed, categorical = (
        parse_parameters({"x": plain}, "here")[0]
        for plain in ([1, "a"], {"distribution": "categorical", "values": [1, "a"]})
    )
    assert listed == categorical


def test_a_schedule_without_a_label_has_a_readable_one_of_its_own():
    held = {"progress": [0, 0.5833], "values": [20, 4], "interpolate": "hold"}
    assert short(held) == "20 then 4 at 0%, 58.33%"
    assert short({"steps": [0, 7000], "values": [50, 10]}) == "50 to 10 at 0, 7000"
    assert short(held | {"progress": [0, 0.6]}) != short(held)


BAD = {
    "unknown kind": (
        {"x": {"distribution": "normal", "min": 0, "max": 1}},
        "must be one of uniform, log_uniform_values",
    ),
    "exponents": ({"x": {"distribution": "log_uniform", "min": 0, "max": 1}}, "write log_uniform_values"),
    "no bounds": ({"x": {"distribution": "uniform"}}, "x.min must be a number, got null"),
    "half a whole number": (
        {"x": {"distribution": "int_uniform", "min": 0.5, "max": 2}},
        "x.min must be a whole number",
    ),
    "infinite": ({"x": {"distribution": "uniform", "min": 0, "max": math.inf}}, "x.max must be a number, got inf"),
    "reversed": ({"x": {"distribution": "uniform", "min": 2, "max": 1}}, "min must be below max, got 2 and 1"),
    "logarithm of zero": ({"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}, "above 0"),
    "other keys": (
        {"x": {"distribution": "uniform", "min": 0, "max": 1, "mu": 2}},
        "here.x: mu=2: there is no such key; a distribution has distribution, min, max.",
    ),
    "condition on nothing": ({"x": {"when": {"y": 1}, "values": [1]}}, "y is no parameter with listed values above"),
    "condition on a later one": (
        {"x": {"when": {"y": 1}, "values": [1]}, "y": [1, 2]},
        "y is no parameter with listed values above this one; there are none",
    ),
    "condition on a range": (
        {"y": {"distribution": "uniform", "min": 0, "max": 1}, "x": {"when": {"y": 1}, "values": [1]}},
        "y is no parameter with listed values",
    ),
    "condition on another value": (
        {"y": [1, 2], "x": {"when": {"y": 3}, "values": [1]}},
        "y has no value '3'; it has 1, 2",
    ),
    "empty condition": ({"x": {"when": {}, "values": [1]}}, "x.when must map a parameter"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_parameter_is_refused_in_one_line(case: str):
    plain, message = BAD[case]
    with pytest.raises(GridError) as caught:
        parse_parameters(plain, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_is_described_by_the_last_parts_of_its_keys():
    assert describe({"a.b": "1", "c": "x"}) == "b=1, c=x"
    assert describe({}) == "the base"
