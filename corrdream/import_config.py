"""Threestudio's YAML of CorrespondentDream or MVDream as our configuration: every key is carried over or reported."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from corrdream.config import ConfigError
from corrdream.upstream_keys import (
    ACCEPTED,
    BUILT_IN,
    BUILT_IN_CORRESPONDENCE,
    CFG_SCHEDULE,
    CORRESPONDENCE_SYSTEM,
    DEFAULTS,
    LEFT_BEHIND,
    MATERIAL_DEFAULTS,
    NO_MATERIAL,
    RENAMED,
    SCHEDULED,
)

PRECISIONS = {
    "16": "float16",
    "16-mixed": "float16",
    "bf16": "bfloat16",
    "bf16-mixed": "bfloat16",
    "32": "float32",
    "32-true": "float32",
}
NORMALS = {
    "analytic": "analytic",
    "pred": "predicted",
    "finite_difference": "finite_difference_released",
    "finite_difference_laplacian": "finite_difference_laplacian",
    None: "none",
}
DENSITY_BLOBS = {"blob_magic3d": "magic3d", "blob_dreamfusion": "dreamfusion"}
NOT_CORRESPONDENCE_WEIGHTS = (
    "system.loss.lambda_sparsity",
    "system.loss.lambda_opaque",
    "system.loss.lambda_z_variance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A translated configuration."""

    values: Mapping[str, Any]  # our dotted keys
    notes: tuple[str, ...]  # one line for each given key that was not carried over, with the reason

    def to_yaml(self) -> str:
        """The values as a configuration file."""
        nested = OmegaConf.create({})
        for key, value in self.values.items():
            OmegaConf.update(nested, key, OmegaConf.create(value) if isinstance(value, dict) else value)
        return OmegaConf.to_yaml(nested)

    def save(self, path: Path) -> None:
        """Writes the configuration file; ConfigError if it cannot."""
        try:
            path.write_text(self.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


def import_config(path: str | Path, overrides: Sequence[str] = ()) -> Imported:
    """Translates a file and `key=value` overrides in its own keys; ConfigError names a part that has no counterpart."""
    given = read_upstream(path, overrides)
    _refuse_unknown_parts(given)
    defaults = DEFAULTS if given.get("system.material_type") == NO_MATERIAL else DEFAULTS | MATERIAL_DEFAULTS
    translation = _Translation(given=given, known=defaults | given)
    translation.translate()
    return Imported(values=translation.values, notes=tuple(translation.notes))


def read_upstream(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Dotted keys and values, interpolations and threestudio's functions resolved; a missing value is left out."""
    try:
        with _upstream_functions():
            merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
            if OmegaConf.is_interpolation(merged, "tag"):  # made of the prompt, which a file leaves open
                OmegaConf.update(merged, "tag", "")
            plain = OmegaConf.to_container(merged, resolve=True)
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    return {key: value for key, value in _flatten(plain) if value != "???"}


@contextmanager
def _upstream_functions() -> Iterator[None]:
    """The functions that threestudio's files may call in an interpolation, known to OmegaConf for a while."""
    functions: dict[str, Callable[..., Any]] = {
        "calc_exp_lr_decay_rate": lambda factor, count: factor ** (1.0 / count),
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "idiv": lambda a, b: a // b,
        "basename": lambda name: Path(name).name,
        "rmspace": lambda text, substitute: text.replace(" ", substitute),
        "tuple2": lambda value: [float(value)] * 2,
        "gt0": lambda value: value > 0,
        "cmaxgt0": lambda value: _largest(value) > 0,
        "not": lambda value: not value,
        "cmaxgt0orcmaxgt0": lambda a, b: _largest(a) > 0 or _largest(b) > 0,
    }
    before = {name for name in functions if OmegaConf.has_resolver(name)}
    for name, function in functions.items():
        if name not in before:
            OmegaConf.register_resolver(name, function)
    try:
        yield
    finally:
        for name in functions.keys() - before:
            OmegaConf.clear_resolver(name)


def _largest(value: Any) -> float:
    """The larger end of a ramp, or the number itself."""
    return float(value) if isinstance(value, int | float) else float(max(list(value)[-3:-1]))


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _refuse_unknown_parts(given: Mapping[str, Any]) -> None:
    if "system_type" not in given:
        raise ConfigError("system_type is missing: this is no configuration of threestudio.")
    for key, accepted in ACCEPTED.items():
        if key in given and given[key] not in accepted:
            choices = ", ".join(str(choice) for choice in accepted)
            raise ConfigError(f"{key}={given[key]} has no counterpart; accepted: {choices}.")


class _Translation:
    """The state of one translation: values under our keys, and the notes."""

    def __init__(self, *, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self.given = given
        self.known = known  # given, or a class's default
        self.values: dict[str, Any] = {}
        self.notes: list[str] = []
        self.seen: set[str] = {*RENAMED, *SCHEDULED, *ACCEPTED}

    def translate(self) -> None:
        """Fills `values` and `notes`."""
        self.values |= BUILT_IN
        self.values |= {new: self.known[old] for old, new in RENAMED.items() if old in self.known}
        self.values |= {new: self.ramp(old) for old, new in SCHEDULED.items() if old in self.known}
        self._text_and_prior()
        self._cameras()
        self._scene()
        self._guidance()
        self._correspondence()
        self._output()
        for key in sorted(self.given.keys() - self.seen):
            self.note(key, _why_left_behind(key))

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, which then counts as seen."""
        self.seen.add(key)
        return self.known.get(key, default)

    def note(self, key: str, reason: str) -> None:
        """Reports a key as not carried over."""
        self.notes.append(f"{key}={self.given[key]}: {reason}.")

    def ramp(self, key: str) -> Any:
        """A number, or a linear schedule; threestudio counts epochs where the last entry is a float."""
        spec = self.take(key)
        if not isinstance(spec, list):
            return spec
        if len(spec) not in (3, 4):
            raise ConfigError(f"{key} must have three or four entries, got {spec}.")
        start, first, last, end = spec if len(spec) == 4 else [0, *spec]
        if isinstance(end, float):
            self.note(key, f"{end} counts epochs, of which there is one, so that the value stays {first}")
            return first
        return {"steps": [int(start), end], "values": [first, last]}

    def hold(self, key: str) -> Any:
        """A number, or one for each stretch between `data.resolution_milestones`."""
        values = self.take(key)
        milestones = self.take("data.resolution_milestones")
        if not isinstance(values, list):
            return values
        if len(values) == 1:
            return values[0]
        if len(values) != len(milestones) + 1:
            raise ConfigError(f"{key} must have one entry more than data.resolution_milestones, got {values}.")
        return {"steps": [0, *milestones], "values": values, "interpolate": "hold"}

    def _text_and_prior(self) -> None:
        prompt = self.take("system.prompt_processor.prompt")
        if prompt is not None:
            self.values["prompt"] = prompt
        self.values["prior.checkpoint"] = self.take("system.guidance.ckpt_path") or ""
        precision = str(self.take("trainer.precision"))
        if precision not in PRECISIONS:
            raise ConfigError(f"trainer.precision={precision} has no counterpart; accepted: {', '.join(PRECISIONS)}.")
        self.values["precision"] = PRECISIONS[precision]

    def _cameras(self) -> None:
        self.values["cameras.batch_size"] = self.hold("data.batch_size")
        self.values["cameras.resolution"] = self.hold("data.height")
        if self.take("data.width", self.known["data.height"]) != self.known["data.height"]:
            self.note("data.width", LEFT_BEHIND["data.width"])

    def _scene(self) -> None:
        normal = self.take("system.geometry.normal_type")
        if normal not in NORMALS:
            raise ConfigError(f"system.geometry.normal_type={normal} has no counterpart; accepted: {list(NORMALS)}.")
        self.values["field.normal"] = NORMALS[normal]
        eps = self.take("system.geometry.finite_difference_normal_eps")
        if str(normal).startswith("finite_difference"):
            self.values["field.finite_difference_eps"] = eps
        bias = self.take("system.geometry.density_bias")
        self.values["field.density_blob"] = DENSITY_BLOBS.get(bias, "constant")
        if bias not in DENSITY_BLOBS:
            self.values["field.density_blob_scale"] = bias
        ambient_only = self.take("system.material.ambient_only_steps")
        if ambient_only is None:  # no material: the albedo, always
            self.values |= {"shading.ambient_only": {"progress": [0.0, 1.0]}, "shading.soft": False}
            self.values["shading.diffuse_prob"] = 0.0
        else:
            self.values["shading.ambient_only"] = {"steps": [0, ambient_only]}
        chance = self.take("system.background.random_aug_prob")
        is_random = self.take("system.background.random_aug")
        self.values["background.random_prob"] = chance if is_random else 0.0
        if not is_random and "system.background.random_aug_prob" in self.given:
            self.note("system.background.random_aug_prob", "system.background.random_aug is off")
        color = self.take("system.background.eval_color")
        if color is not None:
            self.values["background.color"] = color
        network_lr = self.known.get("system.optimizer.params.geometry.density_network.lr")
        feature_lr = "system.optimizer.params.geometry.feature_network.lr"
        if self.take(feature_lr, network_lr) != network_lr:
            self.note(feature_lr, f"both networks have one rate, that of the density network, {network_lr}")

    def _guidance(self) -> None:
        scale, is_scheduled = (
            self.take("system.guidance.guidance_scale"),
            self.take("system.guidance.use_cfg_scheduling"),
        )
        self.values["guidance.guidance_scale"] = CFG_SCHEDULE if is_scheduled else scale
        if is_scheduled and scale != CFG_SCHEDULE["values"][0]:
            self.note("system.guidance.guidance_scale", "use_cfg_scheduling overwrites it")

    def _correspondence(self) -> None:
        self.values |= BUILT_IN_CORRESPONDENCE
        if self.given["system_type"] != CORRESPONDENCE_SYSTEM:
            self.values["correspondence.enabled"] = False
            return
        use = "system.loss.use_corr_loss"
        self.values["correspondence.enabled"] = bool(self.take(use, True))
        if not self.values["correspondence.enabled"]:
            self.note(use, "the released code refuses to run so; here every step is a guidance step")
        window, shift = ("use_corr_after", "use_corr_until"), ("azimuth_perturbation_start", "azimuth_perturbation_end")
        for new, (low, high) in {"window": window, "shift_range": shift}.items():
            bounds = [self.take(f"system.loss.{low}"), self.take(f"system.loss.{high}")]
            if None in bounds:
                raise ConfigError(f"system.loss.{low} and system.loss.{high} must both be given.")
            self.values[f"correspondence.{new}"] = {"steps": bounds} if new == "window" else bounds
        for key in NOT_CORRESPONDENCE_WEIGHTS:
            if self.known.get(key):
                self.values[SCHEDULED[key]] = 0.0
                self.note(key, f"{CORRESPONDENCE_SYSTEM} never reads it; set {SCHEDULED[key]} if you want it")

    def _output(self) -> None:
        keep, every = self.take("checkpoint.save_top_k"), self.known.get("checkpoint.every_n_train_steps")
        if keep is not None and every:
            steps = self.known.get("trainer.max_steps", every)
            self.values["output.checkpoint_keep"] = math.ceil(steps / every) if keep < 0 else max(keep, 1)


def _why_left_behind(key: str) -> str:
    """The reason in the table, or that there is none."""
    for known, reason in LEFT_BEHIND.items():
        if key == known or (known[-1] in "._" and key.startswith(known)):
            return reason
    return "no such setting here"
