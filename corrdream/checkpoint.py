"""Checkpoints: one safetensors file each, written atomically, so nothing in storage is ever unpickled.

A file is `step-000150.safetensors`: the tensors by name, and in its header the step and whatever else is plain JSON.
A file that was cut short does not parse, is reported and skipped, and the one before it is used.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from corrdream.files import once_per_version

logger = logging.getLogger(__name__)

FORMAT = 1
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # starts: torch.save, pickle


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file and why."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint in a format that can execute code when it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds."""

    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]


def save_checkpoint(path: Path, *, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Writes the file under a temporary name, flushes it to the disk, then renames it."""
    header = {"corrdream": json.dumps({"format": FORMAT, "step": step, "info": dict(info)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, header)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """The file's content on the CPU; CheckpointError if it is missing, torn, a pickle or not one of ours."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
            if head.startswith(PICKLES) and head[8:] != b"{":  # safetensors: the header's length, then its JSON
                raise UnsafeCheckpointError(
                    f"checkpoint {path} is refused: it is a pickle, which can execute code when it is read; "
                    "only safetensors files are."
                )
        with safe_open(path, framework="pt") as archive:
            header = json.loads((archive.metadata() or {}).get("corrdream", "null"))
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist.") from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {path} is torn or not a safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} was not written by corrdream (format {FORMAT}).")
    return Checkpoint(step=header["step"], tensors=tensors, info=header["info"])


def checkpoint_path(directory: Path, step: int) -> Path:
    """The file name of a step's checkpoint."""
    return directory / f"step-{step:06d}.safetensors"


def checkpoint_paths(directory: Path) -> list[Path]:
    """All checkpoints of a directory, newest first."""
    return sorted(directory.glob("step-*.safetensors"), reverse=True)


def valid_checkpoints(directory: Path) -> Iterator[Checkpoint]:
    """Those that can be read, newest first; each torn or unsafe one is reported and left out."""
    for path in checkpoint_paths(directory):
        try:
            yield load_checkpoint(path)
        except CheckpointError as error:
            fault = "checkpoint_refused" if isinstance(error, UnsafeCheckpointError) else "checkpoint_torn"
            logger.warning("%s Using the one before it.", error, extra={"fault": fault})


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Deletes all but the `keep` newest."""
    for path in checkpoint_paths(directory)[keep:]:
        path.unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `optimizer/<parameter number>/<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer/{index}/{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Sets the state that `optimizer_tensors` gave; the hyperparameters stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, entry = name.split("/")
            state.setdefault(int(index), {})[entry] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def fingerprint(plain: Any) -> str:
    """Sixteen hexadecimal digits that identify a JSON-able value: 2 is 2.0, and the order of keys does not matter."""
    text = json.dumps(_alike(plain), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _alike(plain: Any) -> Any:
    """The same with whole numbers as int."""
    match plain:
        case dict():
            return {key: _alike(value) for key, value in plain.items()}
        case list() | tuple():
            return [_alike(value) for value in plain]
        case float() if plain.is_integer():
            return int(plain)
        case _:
            return plain


@once_per_version
def file_fingerprint(path: Path) -> str:
    """The start of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def sources_fingerprint() -> str:
    """Identifies the installed sources of corrdream: any change of the code changes it."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
