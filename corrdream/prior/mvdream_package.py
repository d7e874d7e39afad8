"""The published model as computed by the authors' own package `mvdream`: a second implementation to compare with.

The package is not on PyPI, asks for a module that newer setuptools lack, and with newer open_clip its text encoder runs
over the wrong axis without a word: all three are checked before anything is downloaded. It gets its features from
forward hooks on the UNet's output blocks.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float, Int
from omegaconf import OmegaConf
from torch import Tensor, nn

from corrdream.backends import MissingBackendError, require
from corrdream.cameras import normalize_camera
from corrdream.diffusion import alphas_cumprod
from corrdream.prior.latents import resize_images
from corrdream.prior.mvdream_checkpoint import checkpoint_fingerprint, locate_checkpoint, read_checkpoint
from corrdream.prior.mvdream_layout import MODELS, POSITION_IDS, check_layout
from corrdream.structures import NoisePrediction
from corrdream.transfer import to_device

KEY = "prior.kind=mvdream_package"
CURE = "pip install git+https://github.com/bytedance/MVDream 'open-clip-torch==2.7.0' 'setuptools<81'"
# From here on open_clip's text layers take [prompt, token] where the package gives [token, prompt].
FIRST_WRONG_OPEN_CLIP = (2, 25)


class _LastFeature(Exception):  # noqa: N818 - it ends a forward pass, nothing is wrong
    """All features that were asked for are there."""


class MvdreamPackagePrior:
    """The published `MultiviewPrior` around a model of the package, frozen."""

    def __init__(
        self,
        model: Any,
        *,
        num_views: int,
        latent_size: int,
        image_size: int,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.num_views = num_views
        self.latent_size = latent_size
        self.image_size = image_size
        self._model = model.to(self.device).eval().requires_grad_(False)
        self._model.cond_stage_model.device = self.device  # its own default is cuda
        self.latent_channels = int(self._unet.in_channels)
        self.alphas_cumprod = alphas_cumprod().to(self.device)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        checkpoint: str = "",
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "MvdreamPackagePrior":
        """The prior of a model's file; MissingBackendError with the cure unless the package works here."""
        check_package()
        path = locate_checkpoint(model, checkpoint)
        shape = MODELS[model]
        weights = read_checkpoint(path)
        check_layout({name: weight.shape for name, weight in weights.items()}, shape, str(path))
        return cls(
            _build(model, weights),
            num_views=shape.network.num_views,
            latent_size=shape.network.latent_size,
            image_size=shape.image_size,
            fingerprint=checkpoint_fingerprint(path),
            device=device,
            dtype=dtype,
        )

    @property
    def _unet(self) -> Any:
        return self._model.model.diffusion_model

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "P L D"]:
        """Text embeddings, computed in float32."""
        embeddings: Tensor = self._model.get_learned_conditioning(list(prompts))
        return embeddings.to(self.dtype)

    def encode_images(
        self, images: Float[Tensor, "B H W 3"], noise: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images in [0, 1]: drawn from the posterior by standard normal `noise`, or its mean without."""
        pixels = 2 * resize_images(images.to(self.device), self.image_size).permute(0, 3, 1, 2) - 1
        with self._precision():
            posterior = self._model.encode_first_stage(pixels)
        latents = posterior.mean.float()
        if noise is not None:
            latents = latents + posterior.std.float() * noise.to(self.device)
        scaled: Tensor = self._model.scale_factor * latents
        return scaled

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W 3"]:
        """Images in [0, 1]."""
        decoded: Tensor = self._model.decode_first_stage(latents.to(self.device).float())
        return (decoded.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict_noise(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        *,
        text: Float[Tensor, "B L D"],
        c2w: Float[Tensor, "B 4 4"],
        feature_blocks: Sequence[int] = (),
    ) -> NoisePrediction:
        """The noise that the network predicts, and the activations after `feature_blocks`."""
        with self._kept_outputs(latents, feature_blocks) as kept:
            noise = self._run(latents, timesteps, text, c2w)
        return NoisePrediction(noise=noise.float(), features=tuple(kept[block] for block in feature_blocks))

    @torch.no_grad()
    def features(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        *,
        text: Float[Tensor, "B L D"],
        c2w: Float[Tensor, "B 4 4"],
        blocks: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """The same activations as `predict_noise`, computing nothing after the last block that is asked for."""
        last = max(blocks, default=0)
        with self._kept_outputs(latents, blocks, stop_after=last) as kept, suppress(_LastFeature):
            self._run(latents, timesteps, text, c2w)
        return tuple(kept[block] for block in blocks)

    def _run(self, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor) -> Tensor:
        condition = {
            "context": text.to(self.device, self.dtype),
            "camera": to_device(normalize_camera(c2w), self.device).to(self.dtype),
            "num_frames": self.num_views,
        }
        with self._precision():
            noise: Tensor = self._model.apply_model(latents.to(self.device), timesteps.to(self.device), condition)
        return noise

    def _precision(self) -> AbstractContextManager[Any]:
        """The package has float32 weights, and lower precision by autocast only."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    @contextmanager
    def _kept_outputs(
        self, latents: Tensor, blocks: Sequence[int], stop_after: int | None = None
    ) -> Iterator[dict[int, Tensor]]:
        """The outputs of blocks, filled in while the UNet runs inside the context."""
        modules: Sequence[nn.Module] = self._unet.output_blocks
        if len(latents) % self.num_views:
            raise ValueError(f"The prior sees {self.num_views} views an object; got {len(latents)} latents.")
        if wrong := [block for block in blocks if not 0 <= block < len(modules)]:
            raise ValueError(f"Feature blocks count from 0 to {len(modules) - 1} in forward order, got {wrong[0]}.")
        kept: dict[int, Tensor] = {}

        def keep(block: int, output: Tensor) -> None:
            kept[block] = output
            if block == stop_after:
                raise _LastFeature

        hooks = [
            modules[block].register_forward_hook(lambda _module, _inputs, output, block=block: keep(block, output))
            for block in set(blocks)
        ]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()


def _build(model: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """The package's model with these weights; unlike its own `build_model` it downloads no OpenCLIP first."""
    zoo = require("mvdream.model_zoo", KEY)
    config = OmegaConf.load(zoo.get_config_file(zoo.PRETRAINED_MODELS[model]["config"]))
    if MODELS[model].text.family == "open_clip":
        OmegaConf.update(config, "model.params.cond_stage_config.params.version", None, force_add=True)
    built: nn.Module = zoo.instantiate_from_config(config.model)
    own = built.state_dict().keys()
    built.load_state_dict({name: weight for name, weight in weights.items() if name in own or name != POSITION_IDS})
    return built


def check_package() -> None:
    """MissingBackendError, with the cause and the cure, unless the package and what it needs are there and fit."""
    for module, why in (
        ("mvdream", "is not installed, and is not on PyPI"),
        ("pkg_resources", "is missing: setuptools dropped it in version 81"),
        ("open_clip", "is not installed"),
    ):
        if importlib.util.find_spec(module) is None:
            raise MissingBackendError(f"{KEY}: {module} {why}. {CURE}")
    check_open_clip(metadata.version("open-clip-torch"))


def check_open_clip(version: str) -> None:
    """MissingBackendError for a version of open_clip with which the package computes wrong text embeddings."""
    if tuple(int(part) for part in version.split(".")[:2]) >= FIRST_WRONG_OPEN_CLIP:
        raise MissingBackendError(
            f"{KEY}: with open_clip {version} the package computes wrong text embeddings without an error, because the "
            f"layout of the text layers' input changed. {CURE}"
        )
