"""Text embeddings on disk, by content: one file a prompt and model, which many processes may read and write at once.

Other results that depend on a prompt and a model alone are kept beside them in the same way.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

FORMAT = 1  # to be raised when the same prompt and weights come to give other embeddings
KEY = "embedding"

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """CORRDREAM_CACHE, or corrdream's folder in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("CORRDREAM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corrdream"


def cached_embeddings(
    prompts: Sequence[str],
    *,
    directory: Path,
    revision: str,
    encode: Callable[[Sequence[str]], Float[Tensor, "P L D"]],
) -> Float[Tensor, "P L D"]:
    """Embeddings on the CPU, from the files in `directory`; `encode` gives those that are missing, which are kept.

    `revision` identifies the weights. A prompt is encoded once, however often it is asked for.
    """
    unique = list(dict.fromkeys(prompts))
    paths = {prompt: directory / "text" / f"{_key(prompt, revision)}.safetensors" for prompt in unique}
    known = {prompt: embedding for prompt in unique if (embedding := read_tensor(paths[prompt])) is not None}
    if missing := [prompt for prompt in unique if prompt not in known]:
        for prompt, embedding in zip(missing, encode(missing).cpu(), strict=True):
            known[prompt] = embedding
            write_tensor(paths[prompt], embedding)
    return torch.stack([known[prompt] for prompt in prompts])


def _key(prompt: str, revision: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, revision, prompt]).encode()).hexdigest()


def read_tensor(path: Path) -> Shaped[Tensor, "..."] | None:
    """What `write_tensor` kept there; None, with a warning unless there is no file, where it cannot be read."""
    try:
        tensor: Tensor = load_file(path)[KEY]
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError) as error:
        log.warning("%s is not what was kept there (%s); it is computed again.", path, error)
        return None
    return tensor


def write_tensor(path: Path, tensor: Shaped[Tensor, "..."]) -> None:
    """Whole or not at all: another process sees no half-written file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(save({KEY: tensor.contiguous()}))
        Path(temporary).replace(path)
    except OSError as error:
        log.warning("What was computed cannot be kept in %s (%s); set CORRDREAM_CACHE.", path.parent, error)
