"""Which implementation runs where this machine may have a faster one than torch's; says which and why.

`auto` takes the fastest that can run. A choice by name that cannot run is a ConfigError with the cause and the cure.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from corrdream.backends import MissingBackendError, load_triton
from corrdream.config import Config, ConfigError
from corrdream.field.encodings_tcnn import load_tinycudann
from corrdream.rendering.marching_nerfacc import load_nerfacc

logger = logging.getLogger(__name__)

EncodingBackend = Literal["torch", "triton", "tinycudann"]
MarchingBackend = Literal["torch", "nerfacc"]
Name = TypeVar("Name", bound=str)

# The packages' names, fastest first, and what raises MissingBackendError where they cannot run.
ENCODING: Mapping[EncodingBackend, Callable[[str], object]] = {"triton": load_triton, "tinycudann": load_tinycudann}
MARCHING: Mapping[MarchingBackend, Callable[[str], object]] = {"nerfacc": load_nerfacc}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """What computes a run's encodings and its ray marching."""

    encoding: EncodingBackend = "torch"
    marching: MarchingBackend = "torch"


def choose_backends(config: Config, device: torch.device) -> Backends:
    """What the configuration names, or the fastest that can run on `device`; one line in the log says which and why."""
    encoding: EncodingBackend = "torch"
    why = "a dense grid has no other"
    if config.field.encoding == "hash_grid":
        encoding, why = _choose("field.backend", config.field.backend, ENCODING, "torch", device)
    marching, why_marching = _choose("rendering.backend", config.rendering.backend, MARCHING, "torch", device)
    logger.info("Encoding by %s (%s), ray marching by %s (%s).", encoding, why, marching, why_marching)
    return Backends(encoding=encoding, marching=marching)


def _choose(
    key: str,
    asked: Name | Literal["auto"],
    loaders: Mapping[Name, Callable[[str], object]],
    otherwise: Name,
    device: torch.device,
) -> tuple[Name, str]:
    """(name, why)."""
    if asked == otherwise:
        return otherwise, f"{key}={otherwise}"
    obstacles = []
    for name, load in loaders.items():
        if asked in ("auto", name):
            obstacle = _obstacle(f"{key}={name}", load, device)
            if obstacle is None:
                return name, f"{key}={asked}"
            obstacles.append(obstacle)
    if asked != "auto":
        raise ConfigError(f"{obstacles[0]} {key}=auto takes what there is.")
    return otherwise, "; ".join(obstacle.removesuffix(".") for obstacle in obstacles)


def _obstacle(choice: str, load: Callable[[str], object], device: torch.device) -> str | None:
    """Why a choice cannot run on the device; None if it can."""
    if device.type != "cuda":
        return f"{choice} needs an NVIDIA GPU, the device is {device.type}."
    try:
        load(choice)
    except MissingBackendError as error:
        return f"{str(error).removesuffix('.')}."
    return None
