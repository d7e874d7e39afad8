"""What a grid varies: lists of choices, distributions, and on what each depends. A setting takes one choice of each.

guidance.guidance_rescale: [0, 0.5]                                          # or {values: [0, 0.5]}
guidance.guidance_scale: {distribution: uniform, min: 2, max: 20}            # for --search random and optuna
correspondence: [{label: "off", set: {correspondence.enabled: false}}, {label: "on", set: {}}]
loss_weights.correspondence:                                                 # applies only where ...
  when: {correspondence: "on"}                                               # ... that parameter, above it, is "on"
  distribution: log_uniform_values
  min: 100
  max: 10000

Names and meanings of the distributions are those of W&B's sweep files.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, assert_never, get_args

import numpy as np

import corrdream

Kind = Literal["uniform", "log_uniform_values", "int_uniform"]
KINDS = (*get_args(Kind), "categorical")
DIGITS = 4  # significant ones of a drawn value, so that the value in a table is the value that ran
MAX_REPEATS = 1000  # draws in a row that give a setting which is there already

T = TypeVar("T")


class GridError(ValueError):
    """A grid that cannot be run: one line that says where, what was given and what is accepted."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a parameter: its name in tables, and the configuration keys that it sets."""

    label: str
    overrides: Mapping[str, Any]


Setting = dict[str, Choice]  # of every parameter that applies


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A range of numbers to draw from, both ends included."""

    kind: Kind
    low: float
    high: float

    def to_plain(self) -> dict[str, Any]:
        """What `parse_distribution` reads."""
        return {"distribution": self.kind, "min": self.low, "max": self.high}

    def draw(self, generator: np.random.Generator) -> float:
        """One value."""
        return self.at(generator.random())

    def at(self, fraction: float) -> float:
        """The quantile at `fraction`, rounded to what a table shows."""
        match self.kind:
            case "uniform":
                return self.rounded(self.low + fraction * (self.high - self.low))
            case "log_uniform_values":
                return self.rounded(math.exp(math.log(self.low) + fraction * math.log(self.high / self.low)))
            case "int_uniform":
                return int(min(self.high, self.low + math.floor(fraction * (self.high - self.low + 1))))
            case _:
                assert_never(self.kind)

    def rounded(self, value: float) -> float:
        """The value with few digits, inside the range."""
        if self.kind == "int_uniform":
            return round(min(max(value, self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Choices or a distribution, and the choices of earlier parameters under which it applies."""

    key: str
    choices: tuple[Choice, ...] = ()
    distribution: Distribution | None = None
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def applies(self, setting: Mapping[str, Choice]) -> bool:
        """Whether the earlier parameters' choices ask for it."""
        return all(name in setting and setting[name].label in labels for name, labels in self.when.items())

    def number(self, value: float) -> Choice:
        """The choice of that value from its distribution."""
        return Choice(label=short(value), overrides={self.key: value})

    def extremes(self) -> tuple[Choice, ...]:
        """Its choices, or the ends of its range."""
        if self.distribution is None:
            return self.choices
        return self.number(self.distribution.at(0.0)), self.number(self.distribution.at(1.0))

    def draw(self, generator: np.random.Generator) -> Choice:
        """One choice at random."""
        if self.distribution is None:
            return self.choices[generator.integers(len(self.choices))]
        return self.number(self.distribution.draw(generator))


def all_settings(parameters: Sequence[Parameter]) -> list[Setting]:
    """Every combination of one choice (or end of a range) a parameter, the last parameter changing fastest."""
    settings: list[Setting] = [{}]
    for parameter in parameters:
        settings = [
            longer
            for setting in settings
            for longer in (
                [setting | {parameter.key: choice} for choice in parameter.extremes()]
                if parameter.applies(setting)
                else [setting]
            )
        ]
    return settings


def random_settings(parameters: Sequence[Parameter], seed: int) -> Iterator[Setting]:
    """Settings without repeats, the same ones for the same seed; ends when it finds no new ones."""
    generator = np.random.default_rng(seed)
    seen: set[tuple[tuple[str, str], ...]] = set()
    repeats = 0
    while repeats < MAX_REPEATS:
        setting: Setting = {}
        for parameter in parameters:
            if parameter.applies(setting):
                setting[parameter.key] = parameter.draw(generator)
        labels = tuple((key, choice.label) for key, choice in setting.items())
        repeats = repeats + 1 if labels in seen else 0
        if not repeats:
            seen.add(labels)
            yield setting


def parse_parameters(plain: Any, where: str) -> tuple[Parameter, ...]:
    """The parameters of a grid file, in its order; GridError says which one is wrong."""
    if not isinstance(plain, dict):
        raise GridError(f"{where} must map configuration keys to lists of values, got {corrdream.shown(plain)}.")
    parameters: list[Parameter] = []
    for key, values in plain.items():
        parameters.append(_parse_parameter(str(key), values, parameters, f"{where}.{key}"))
    return tuple(parameters)


def _parse_parameter(key: str, plain: Any, earlier: Sequence[Parameter], where: str) -> Parameter:
    when: dict[str, tuple[str, ...]] = {}
    if isinstance(plain, dict) and "when" in plain:
        when = _parse_condition(plain["when"], earlier, f"{where}.when")
        plain = {name: value for name, value in plain.items() if name != "when"}
    match plain:
        case {"distribution": "categorical", **rest}:
            plain = rest
        case {"distribution": _} | {"min": _} | {"max": _}:
            return Parameter(key=key, distribution=parse_distribution(plain, where), when=when)
    match plain:
        case {"value": value, **rest} if not rest:
            plain = [value]
        case {"values": list(listed), **rest} if not rest:
            plain = listed
    if not isinstance(plain, list):
        given = corrdream.shown(plain)
        raise GridError(
            f"{where} must be a list of values or a distribution, got {given}; write [{given}] for a single value."
        )
    if not plain:
        raise GridError(f"{where} is an empty list; give at least one value or remove it.")
    choices = tuple(_parse_choice(key, value, where) for value in plain)
    refuse_repeats([choice.label for choice in choices], where)
    return Parameter(key=key, choices=choices, when=when)


def parse_distribution(plain: Mapping[str, Any], where: str) -> Distribution:
    """`{distribution: KIND, min: A, max: B}`; as in W&B, whole bounds without a kind mean whole numbers."""
    unknown = [name for name in plain if name not in ("distribution", "min", "max")]
    if unknown:
        known = ("distribution", "min", "max")
        raise GridError(
            f"{where}: {corrdream.explain_unknown(str(unknown[0]), plain[unknown[0]], known, 'a distribution')}"
        )
    low, high = plain.get("min"), plain.get("max")
    kind = plain.get("distribution", "int_uniform" if type(low) is type(high) is int else "uniform")
    if kind == "log_uniform":
        raise GridError(
            f"{where}.distribution: min and max of W&B's log_uniform are exponents; write log_uniform_values and the"
            " values themselves."
        )
    if kind not in get_args(Kind):
        raise GridError(f"{where}.distribution must be one of {', '.join(KINDS)}, got {corrdream.shown(kind)}.")
    for name, bound in (("min", low), ("max", high)):
        accepted = int if kind == "int_uniform" else int | float
        if not isinstance(bound, accepted) or isinstance(bound, bool) or not math.isfinite(bound):
            what = "whole number" if kind == "int_uniform" else "number"
            raise GridError(f"{where}.{name} must be a {what}, got {corrdream.shown(bound)}.")
    assert isinstance(low, int | float), "checked above"
    assert isinstance(high, int | float), "checked above"
    if low >= high:
        raise GridError(f"{where}: min must be below max, got {low:g} and {high:g}.")
    if kind == "log_uniform_values" and low <= 0:
        raise GridError(f"{where}.min must be above 0 for log_uniform_values, got {low:g}.")
    return Distribution(kind=kind, low=low, high=high)


def _parse_condition(plain: Any, earlier: Sequence[Parameter], where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(plain, dict) or not plain:
        raise GridError(
            f"{where} must map a parameter to one of its values or a list of them, got {corrdream.shown(plain)}."
        )
    known = {parameter.key: [choice.label for choice in parameter.choices] for parameter in earlier}
    condition = {}
    for name, values in plain.items():
        if not known.get(str(name)):
            listed = [key for key, labels in known.items() if labels]
            raise GridError(
                f"{where}: {name} is no parameter with listed values above this one; there are "
                f"{', '.join(listed) or 'none'}."
            )
        labels = tuple(short(value) for value in (values if isinstance(values, list) else [values]))
        unknown = next((label for label in labels if label not in known[str(name)]), None)
        if unknown is not None:
            raise GridError(f"{where}: {name} has no value {unknown!r}; it has {', '.join(known[str(name)])}.")
        condition[str(name)] = labels
    return condition


def _parse_choice(key: str, value: Any, where: str) -> Choice:
    if not (isinstance(value, dict) and ("label" in value or "set" in value)):
        return Choice(label=short(value), overrides={key: value})
    label = value.get("label")
    if not isinstance(label, str) or not label.strip():
        raise GridError(f"{where}: label must be text, got {corrdream.shown(label)}; quote words like 'off' and '1'.")
    match value:
        case {"label": _, "value": chosen, **rest} if not rest:
            return Choice(label=label, overrides={key: chosen})
        case {"label": _, "set": dict(overrides), **rest} if not rest:
            return Choice(label=label, overrides=parse_overrides(overrides, f"{where} {label!r}"))
    raise GridError(f"{where} {label!r} must have label and one of value and set, got {', '.join(map(str, value))}.")


def parse_overrides(plain: Any, where: str) -> dict[str, Any]:
    """Configuration keys to values."""
    if not isinstance(plain, dict):
        raise GridError(f"{where} must map configuration keys to values, got {corrdream.shown(plain)}.")
    return {str(key): value for key, value in plain.items()}


def refuse_repeats(values: list[T], where: str) -> list[T]:
    """The values; GridError if there are none or one is there twice."""
    if not values:
        raise GridError(f"{where} is empty; give at least one.")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise GridError(f"{where} has {value!r} twice.")
    return values


def describe(labels: Mapping[str, str]) -> str:
    """`guidance_rescale=0.5, guidance_scale=25 then 5`, or `the base` without parameters."""
    return ", ".join(f"{leaf(key)}={label}" for key, label in labels.items()) or "the base"


def value_of(plain: Mapping[str, Any], key: str) -> Any:
    """What a plain configuration has at a dotted key; None if nothing."""
    value: Any = plain
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def leaf(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def short(value: Any) -> str:
    """A value as people write it: text without quotes, whole numbers without a point, a schedule in words."""
    match value:
        case str():
            return value
        case float():
            return f"{value:g}"
        case {"values": list(values), "interpolate": "hold", **knots}:
            return f"{' then '.join(map(short, values))}{_knots(knots)}"
        case {"values": list(values), **knots}:
            return f"{' to '.join(map(short, values))}{_knots(knots)}"
    return json.dumps(value)


def _knots(knots: Mapping[Any, Any]) -> str:
    """Where a schedule's values stand, for two schedules of the same values must not share a name."""
    match knots:
        case {"progress": list(places)}:
            return f" at {', '.join(f'{100 * place:g}%' for place in places)}"
        case {"steps": list(places)}:
            return f" at {', '.join(map(short, places))}"
    return ""
