"""A published checkpoint's file: where it is, what identifies it, and its weights, read without running any code."""

import hashlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from corrdream.files import once_per_version

REPOSITORY = "MVDream/MVDream"
EDGE_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
NUM_SAMPLES = 64
SHAPE_KEY = "corrdream.mvdream_shape"  # in the metadata of a safetensors file

log = logging.getLogger(__name__)


def locate_checkpoint(model: str, checkpoint: str = "") -> Path:
    """The file that `checkpoint` names, or else the model's from the Hugging Face cache, downloaded if need be.

    What is in the cache is taken without asking the hub, so a node downloads it once. ValueError, with the cure, where
    there is none.
    """
    if checkpoint:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            fault = "is not a file" if path.exists() else "does not exist"
            raise ValueError(f"prior.checkpoint={checkpoint} {fault}; leave it empty to download {model}.")
        return path
    file = f"{model}.pt"
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(REPOSITORY, file, local_files_only=True))
    log.warning(
        "%s is not in the Hugging Face cache: downloading it from %s (about 5 GB, once). "
        "Give prior.checkpoint=PATH to use a copy.",
        file,
        REPOSITORY,
    )
    try:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(REPOSITORY, file, local_files_only=True))
        return Path(hf_hub_download(REPOSITORY, file))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise ValueError(
            f"prior.model={model} is not in the Hugging Face cache and cannot be downloaded. Where there is a network, "
            f"run `hf download {REPOSITORY} {file}`; or give prior.checkpoint=PATH of a copy. It says: {error}"
        ) from error


@once_per_version
def checkpoint_fingerprint(path: Path) -> str:
    """The start of a SHA-256 over the file's size, its first and last MiB and 64 samples between, read in milliseconds.

    The ends hold the directory of a zip or safetensors file: every weight's name and place, and in a zip its checksum.
    The time of modification does not enter, so that a copy of the file on another machine is the same prior.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE_BYTES))
        for sample in range(1, NUM_SAMPLES + 1):
            file.seek(size * sample // (NUM_SAMPLES + 1))
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:16]


def read_checkpoint(path: Path) -> dict[str, Shaped[Tensor, "..."]]:
    """The weights by name, on the CPU, mapped from the file where its format allows.

    ValueError for a file that would run code when loaded, and for one that holds anything but tensors.
    """
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else _load_pickled_tensors(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it does not hold tensors alone, and to load anything else can run code. Take the "
            "published file, or convert this one to .safetensors where you trust it."
        ) from error
    # Of a damaged pickle anything can come: a text file gives a KeyError.
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: {cause}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(weight, Tensor) for weight in loaded.values()):
        raise ValueError(f"{path} is not a checkpoint of prior.model: it must map names to tensors.")
    return dict(loaded)


def recorded_shape(path: Path) -> str | None:
    """The sizes that a safetensors file records beside its weights; none in published files, whose sizes are known."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    return metadata.get(SHAPE_KEY)


def _load_pickled_tensors(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a pickle that is refused anyway
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
