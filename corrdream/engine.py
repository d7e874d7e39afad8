"""Composition root: builds every part from the configuration, opens run folders. The only reader of `kind` fields."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, assert_never

import torch
from safetensors import SafetensorError

from corrdream.acceleration import choose_backends
from corrdream.backends import MissingBackendError
from corrdream.blocks.true_features import TrueFeatures
from corrdream.blocks.vocabulary import KINDS_OF_WORDS
from corrdream.checkpoint import Checkpoint, file_fingerprint, fingerprint, load_checkpoint, sources_fingerprint
from corrdream.config import Config, ConfigError, config_to_dict
from corrdream.correspondence import StreamedMatching
from corrdream.interfaces import MultiviewPrior
from corrdream.prior.blocks import WEIGHTS, BlocksPrior, blocks_fingerprint, check_words, read_metadata
from corrdream.prior.compiled import Compilation
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_checkpoint import checkpoint_fingerprint, locate_checkpoint
from corrdream.prior.mvdream_package import MvdreamPackagePrior
from corrdream.prior.text import UnknownWordError
from corrdream.scene import SceneView, load_scene
from corrdream.scene_building import build_marching, build_optimizer, build_scene
from corrdream.trainer import Trainer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def pick_device(config: Config) -> torch.device:
    """The device that `device` names; auto takes a GPU when there is one."""
    match config.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise ConfigError("device=cuda, but torch sees no CUDA device; use device=auto or device=cpu.")
            return torch.device("cuda")
        case "cpu":
            return torch.device("cpu")
        case _:
            assert_never(config.device)


def build_prior(config: Config, device: torch.device | None = None) -> MultiviewPrior:
    """The frozen prior, on its device."""
    device = device or pick_device(config)
    match config.prior.kind:
        case "blocks":
            return BlocksPrior.load(
                device,
                path=_weights(config),
                dtype=_prior_dtype(config, device),
                compilation=pick_compilation(config, device),
            )
        case "mvdream":
            return _named_as_config(
                lambda: MvdreamPrior.load(
                    config.prior.model,
                    checkpoint=config.prior.checkpoint,
                    device=device,
                    dtype=_prior_dtype(config, device),
                    attention=config.prior.attention,
                    compilation=pick_compilation(config, device),
                )
            )
        case "mvdream_package":
            return _named_as_config(
                lambda: MvdreamPackagePrior.load(
                    config.prior.model,
                    checkpoint=config.prior.checkpoint,
                    device=device,
                    dtype=_prior_dtype(config, device),
                )
            )
        case _:
            assert_never(config.prior.kind)


def _prior_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What the prior's networks compute in."""
    match config.prior.precision:
        case "auto":
            return torch.float16 if device.type == "cuda" and config.prior.kind != "blocks" else torch.float32
        case "float32":
            return torch.float32
        case "float16":
            return torch.float16
        case "bfloat16":
            return torch.bfloat16
        case _:
            assert_never(config.prior.precision)


def pick_compilation(config: Config, device: torch.device) -> Compilation:
    """How the prior's networks are prepared."""
    match config.prior.compile:
        case "auto":
            if device.type != "cuda":
                return "eager"
            return "full" if config.prior.kind == "mvdream" else "graph"
        case "full" | "graph" | "eager":
            return config.prior.compile
        case _:
            assert_never(config.prior.compile)


def _named_as_config(action: Callable[[], Result]) -> Result:
    """What `action` returns; what is wrong with a file or package that the configuration names is a ConfigError."""
    try:
        return action()
    except (ValueError, MissingBackendError) as error:
        raise ConfigError(str(error)) from error


def _weights(config: Config) -> Path:
    """The built-in prior's weights file."""
    path = Path(config.prior.checkpoint) if config.prior.checkpoint else WEIGHTS
    if not path.is_file():
        raise ConfigError(f"prior.checkpoint={path} does not exist; leave it empty for the weights that ship.")
    try:
        read_metadata(path)
    except (ValueError, SafetensorError) as error:
        raise ConfigError(f"prior.checkpoint={path} is not a weights file of the built-in prior: {error}") from error
    return path


def check_prompt(config: Config) -> None:
    """ConfigError unless the prior can express the prompt."""
    match config.prior.kind:
        case "blocks":
            for key, prompt in (("prompt", config.prompt), ("negative_prompt", config.negative_prompt)):
                try:
                    check_words(prompt, _weights(config))
                except ValueError as error:
                    hint = f" {KINDS_OF_WORDS}." if isinstance(error, UnknownWordError) and not error.near else ""
                    raise ConfigError(f"{key}={prompt!r}: {error}{hint}") from error
        case "mvdream" | "mvdream_package":
            pass  # they read any text
        case _:
            assert_never(config.prior.kind)


def identity(config: Config) -> str:
    """Identifies a run's result: its resolved configuration, corrdream's sources and the prior's weights."""
    plain = config_to_dict(config)
    del plain["output"]
    return fingerprint([plain, fingerprints(config)])


def fingerprints(config: Config) -> dict[str, str]:
    """What a run's result depends on besides its configuration, by name."""
    return {
        "sources": sources_fingerprint(),
        "prior": _prior_fingerprint(config),
        "weights": file_fingerprint(_start_weights(config)) if config.weights else "",
    }


def _prior_fingerprint(config: Config) -> str:
    match config.prior.kind:
        case "blocks":
            return blocks_fingerprint(_weights(config))
        case "mvdream" | "mvdream_package":
            prior = config.prior
            return _named_as_config(lambda: checkpoint_fingerprint(locate_checkpoint(prior.model, prior.checkpoint)))
        case _:
            assert_never(config.prior.kind)


def _start_weights(config: Config) -> Path:
    """The checkpoint that a new run starts from."""
    path = Path(config.weights)
    if not path.is_file():
        raise ConfigError(
            f"weights={path} does not exist; give a run's checkpoint, or weights='' (a run that is resumed needs none)."
        )
    return path


def sampling_style(config: Config) -> tuple[str, float]:
    """What MVDream's own sampler adds to a prompt, and a guidance scale, for images straight from the prior."""
    match config.prior.kind:
        case "blocks":
            return "", 7.5
        case "mvdream" | "mvdream_package":
            return ", 3d asset", 10.0
        case _:
            assert_never(config.prior.kind)


def build(config: Config, *, prior: MultiviewPrior | None = None, device: torch.device | None = None) -> Trainer:
    """A trainer at step 0; give `prior` to share one that is loaded."""
    device = device or pick_device(config)
    check_prompt(config)
    backends = choose_backends(config, device)
    prior = prior or build_prior(config, device)
    _check_against_prior(config, prior)
    generator = torch.Generator().manual_seed(config.seed)
    scene = build_scene(config, generator, backends).to(device)
    if config.weights:
        start = load_checkpoint(_start_weights(config))
        load_scene(scene, start)
        logger.info("Starting from the weights of %s (step %d).", config.weights, start.step)
    return Trainer(
        config=config,
        prior=prior,
        scene=scene,
        marching=build_marching(config, scene, backends),
        matching=StreamedMatching(),
        optimizer=build_optimizer(config, scene),
        device=device,
        true_features=TrueFeatures(config.prompt) if config.correspondence.features == "truth" else None,
    )


def build_view(config: Config, checkpoint: Checkpoint) -> SceneView:
    """The scene of a checkpoint, to be looked at; the prior is not loaded."""
    device = pick_device(config)
    backends = choose_backends(config, device)
    scene = build_scene(config, torch.Generator(), backends).to(device)
    load_scene(scene, checkpoint)
    marching = build_marching(config, scene, backends)
    return SceneView(config=config, scene=scene, marching=marching, device=device, step=checkpoint.step)


def _check_against_prior(config: Config, prior: MultiviewPrior) -> None:
    """What only the loaded prior knows."""
    sizes = config.cameras.batch_size
    for size in sizes.values if not isinstance(sizes, int | float) else [sizes]:
        if size % prior.num_views:
            raise ConfigError(
                f"cameras.batch_size must be a multiple of the prior's {prior.num_views} views, got {size}."
            )
