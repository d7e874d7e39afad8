"""Overrides that name what a grid varies: their values take the place of the grid's.

guidance.guidance_rescale=[0.3,0.5]      # or one value
guidance.guidance_scale=[7, 20 then 4]   # a name that the grid gives means what it means there
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import corrdream
from sweeps.parameters import Choice, GridError, Parameter, parse_parameters, short


def narrow(
    plain: Mapping[str, Any], parameters: Sequence[Parameter], overrides: Sequence[str], where: str
) -> dict[str, Any]:
    """A grid file's parameters with the values given; GridError if another one depends on a value that is gone."""
    narrowed = dict(plain)
    for parameter in parameters:
        for text in overrides:
            if text.startswith(f"{parameter.key}="):
                narrowed[parameter.key] = _to_plain(parameter, _choices(parameter, text))
                try:
                    parse_parameters(narrowed, where)
                except GridError as error:
                    raise GridError(f"override {text}: {error}") from error
    return narrowed


def for_all_trials(parameters: Sequence[Parameter], overrides: Sequence[str]) -> list[str]:
    """The overrides that narrow no parameter."""
    keys = tuple(f"{parameter.key}=" for parameter in parameters)
    return [text for text in overrides if not text.startswith(keys)]


def _choices(parameter: Parameter, text: str) -> list[Choice]:
    given = text.partition("=")[2]
    for choice in parameter.choices:
        if choice.label == given:
            return [choice]
    _, values = corrdream.parse_override(text)
    names = yaml.load(given, yaml.BaseLoader)  # texts as they stand, for YAML takes "off" for a truth value
    if not isinstance(values, list):
        names, values = [names], [values]
    return [_choice(parameter, name, value, text) for name, value in zip(names, values, strict=True)]


def _choice(parameter: Parameter, name: Any, value: Any, text: str) -> Choice:
    """The grid's choice of that name, or a new value; of what sets other keys there are the grid's choices only."""
    for choice in parameter.choices:
        if choice.label in (name, short(value)):
            return choice
    if any(choice.overrides.keys() != {parameter.key} for choice in parameter.choices):
        known = ", ".join(choice.label for choice in parameter.choices)
        raise GridError(f"override {text}: {parameter.key} has no value {short(value)!r}; it has {known}.")
    return Choice(label=short(value), overrides={parameter.key: value})


def _to_plain(parameter: Parameter, choices: Sequence[Choice]) -> dict[str, Any]:
    """What `parse_parameters` reads."""
    when = {"when": {name: list(labels) for name, labels in parameter.when.items()}} if parameter.when else {}
    return when | {"values": [{"label": choice.label, "set": dict(choice.overrides)} for choice in choices]}
