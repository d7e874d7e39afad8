"""Plain data as a typed configuration: what does not fit is refused with its key, its value and what is accepted.

A configuration is a tree of frozen dataclasses whose annotations describe it completely: types, choices (`Literal`) and
ranges (`Annotated[float, Range(low=0, high=1)]`). Files, `key=value` overrides and what a grid varies all come through
`changed`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from corrdream.schedules import Piecewise, ScheduleError, Window
from corrdream.words import near

MAX_SHOWN = 100  # characters of a value in a message
# Dataclasses that are values: they replace what is below them as a whole.
FORMS = {
    Piecewise: "a schedule such as {progress: [0, 0.5], values: [25, 5]}",
    Window: "a window such as {steps: [0, 100]} or {progress: [0, 0.5]}",
}
WORDS = {int: "whole number", float: "number", str: "text"}

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, the value and what is accepted."""


class _MismatchError(Exception):
    """A value that is not of the annotated type."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a field accepts, in an annotation; of a schedule its values, of a list its entries."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: int | float = -math.inf  # a lower end that is not accepted itself
    whole: bool = False  # of a field whose type also holds fractions

    def __contains__(self, number: int | float) -> bool:
        return self.low <= number <= self.high and number > self.above and (not self.whole or number == int(number))

    def __str__(self) -> str:
        whole = "whole and " if self.whole else ""
        if self.above > -math.inf:
            upper = f" and at most {self.high:g}" if self.high < math.inf else ""
            return f"{whole}above {self.above:g}{upper}"
        if self.high < math.inf:
            return f"{whole}in [{self.low:g}, {self.high:g}]"
        return f"{whole}at least {self.low:g}" if self.low > -math.inf else "a number"


def changed(below: T, plain: Any, key: str = "", root: type | None = None) -> T:
    """The configuration (or its part at `key`) with the differences that a plain mapping holds."""
    kind: type = type(below)
    root, hints = root or kind, _hints(kind)
    if not isinstance(plain, Mapping):
        what = f"{key} must be a section" if key else "a configuration must be a mapping"
        raise ConfigError(f"{what} with {', '.join(hints)}, got {shown(plain)}.")
    changes = {}
    for name, value in plain.items():
        place = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise ConfigError(_unknown(place, value, list(hints), key, root))
        if _is_section(hints[name]):
            changes[name] = changed(getattr(below, name), value, place, root)
        else:
            changes[name] = _read(hints[name], value, place)
    return dataclasses.replace(below, **changes)  # type: ignore[type-var]  # a dataclass, which TypeVar cannot say


def nested(key: str, value: Any) -> dict[str, Any]:
    """`{a: {b: value}}` of the dotted key `a.b`."""
    first, separator, rest = key.partition(".")
    return {first: nested(rest, value) if separator else value}


def explain_unknown(key: str, value: Any, known: Sequence[str], of: str, meant: Sequence[str] | None = None) -> str:
    """One line about a key that is none of the known ones; those near it are looked for where they are not given."""
    meant = near(key, known) if meant is None else meant
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"{of} has {', '.join(known)}."
    return f"{key}={shown(value)}: there is no such key; {hint}"


def shown(value: Any) -> str:
    """A value as YAML has it on one line, shortened; text in quotes."""
    text = _flow(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def read_yaml(path: str | Path, what: str) -> Any:
    """What a YAML file holds; an empty one holds `{}`."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist.") from error
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be read: {error.strerror or 'it is no mapping of keys to values'}."
        ) from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{what} {path} cannot be read: {explain_yaml(error)}.") from error


def parse_override(text: str) -> tuple[str, Any]:
    """(dotted key, value) of `key=value`, the value read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r} must have the form key=value, as max_steps=100.")
    try:
        return key, OmegaConf.to_container(OmegaConf.create(f"- {value}"))[0]  # type: ignore[index]  # a one-entry list
    except (OmegaConfBaseException, YAMLError) as error:
        problem = getattr(error, "problem", None) or explain_yaml(error)
        raise ConfigError(f"{key} must be YAML, got {value!r}: {problem}.") from error


def explain_yaml(error: Exception) -> str:
    """One line: what is wrong and where, of an error of the YAML parser."""
    if isinstance(error, MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else error.problem
    return " ".join(str(error).split())


def _flow(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return f"{{{', '.join(f'{name}: {_flow(entry)}' for name, entry in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(_flow, value))}]"
    return repr(value)


def _read(annotation: Any, value: Any, key: str) -> Any:
    """The value as its annotation has it."""
    hint, accepted = _split(annotation)
    try:
        result = _converted(hint, value, key)
    except _MismatchError:
        limits = "" if accepted == Range() else f" ({accepted})"
        quote = ""
        if hint is str and not isinstance(value, Mapping | list):
            quote = f"; quote it: {key}='\"{'' if value is None else _flow(value)}\"'"
        raise ConfigError(f"{key} must be {_describe(hint)}{limits}, got {shown(value)}{quote}.") from None
    outside = next((number for number in _numbers(result) if number not in accepted), None)
    if outside is not None:
        raise ConfigError(f"{key} must be {accepted}, got {outside!r}.")
    return result


def _split(annotation: Any) -> tuple[Any, Range]:
    """(type, range) of an annotation; a range for all numbers where it gives none."""
    if get_origin(annotation) is Annotated:
        hint, accepted = get_args(annotation)
        return hint, accepted
    return annotation, Range()


def _converted(hint: Any, value: Any, key: str) -> Any:
    """The value as the type has it; _MismatchError if it is of another one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_fitting(arguments, value, key)
    if origin is Literal:
        fits = value in arguments
    elif origin in (tuple, list):
        fits = isinstance(value, list | tuple) and len(value) == _length(hint, len(value))
        if fits:
            return origin(_converted(arguments[0], entry, key) for entry in value)
    elif hint in FORMS:
        if isinstance(value, Mapping):
            return _checked(changed(hint(), value, key), key)
        fits = False
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is bool:  # 0 and 1, as flags are written elsewhere
        fits = type(value) is bool or (type(value) is int and value in (0, 1))
        value = bool(value)
    else:
        fits = type(value) is hint
    if not fits:
        raise _MismatchError
    return value


def _first_fitting(hints: Sequence[Any], value: Any, key: str) -> Any:
    for hint in hints:
        try:
            return _converted(hint, value, key)
        except _MismatchError:
            continue
    raise _MismatchError


def _length(hint: Any, given: int) -> int:
    """The number of entries that a list must have; `given` where any will do."""
    arguments = get_args(hint)
    return given if get_origin(hint) is list or arguments[-1] is Ellipsis else len(arguments)


def _checked(value: Any, key: str) -> Any:
    try:
        value.check(key)
    except ScheduleError as error:
        raise ConfigError(str(error)) from error
    return value


def _numbers(value: Any) -> Iterator[int | float]:
    match value:
        case bool():
            return
        case int() | float():
            yield value
        case Piecewise():
            yield from value.values
        case list() | tuple():
            for entry in value:
                yield from _numbers(entry)


def _describe(hint: Any) -> str:
    """What a type accepts, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        words = [_describe(member) for member in arguments if not (member is int and float in arguments)]
        return " or ".join(words)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (tuple, list):
        is_fixed = origin is tuple and arguments[-1] is not Ellipsis
        return f"a list of {f'{len(arguments)} ' if is_fixed else ''}{WORDS[arguments[0]]}s"
    if hint is bool:
        return "true or false"
    if hint is NoneType:
        return "null"
    return FORMS[hint] if hint in FORMS else WORDS[hint] if hint is str else f"a {WORDS[hint]}"


def _unknown(place: str, value: Any, known: Sequence[str], section: str, root: type) -> str:
    """One line about a key that does not exist: those near it, here or in other sections, else what there is here."""
    name, rest = place.rpartition(".")[2], ""
    while isinstance(value, Mapping) and len(value) == 1:  # name what was written, a.b=1 and not a={b: 1}
        ((first, value),) = value.items()
        rest += f".{first}"
    every = _all_keys(root)
    prefix = f"{section}." if section else ""
    here = [f"{prefix}{other}" for other in near(name, known)]
    meant = [f"{other}{rest}" if f"{other}{rest}" in every else other for other in here]
    if not meant:
        leaf = f"{name}{rest}".rpartition(".")[2]
        leaves = near(leaf, {other.rpartition(".")[2] for other in every})
        meant = [other for other in every if leaves and other.rpartition(".")[2] == leaves[0]]
    return explain_unknown(f"{place}{rest}", value, known, section or "the configuration", meant)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and hint not in FORMS


@functools.cache
def _all_keys(root: type, prefix: str = "") -> tuple[str, ...]:
    """Every dotted key of a configuration, sections included."""
    keys: list[str] = []
    for name, hint in _hints(root).items():
        keys.append(f"{prefix}{name}")
        if _is_section(hint):
            keys += _all_keys(hint, f"{prefix}{name}.")
    return tuple(keys)
