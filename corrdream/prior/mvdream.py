"""The published multi-view diffusion model MVDream (arXiv:2308.16512) as a prior, from its official checkpoint alone.

UNet, autoencoder and text tower all come out of the one file. The text tower is needed for prompts that no run has
seen yet: it is built for them and dropped again. On a GPU the UNet and the encoder run in half precision; latents and
noise are float32 at this border, because the x0 form divides by the small ends of the noise schedule.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from corrdream.cameras import normalize_camera
from corrdream.diffusion import alphas_cumprod
from corrdream.prior.attention import AttentionKind, build_attention
from corrdream.prior.autoencoder import Autoencoder, published_autoencoder_weights
from corrdream.prior.compiled import Compilation
from corrdream.prior.mvdream_checkpoint import (
    checkpoint_fingerprint,
    locate_checkpoint,
    read_checkpoint,
    recorded_shape,
)
from corrdream.prior.mvdream_layout import (
    AUTOENCODER,
    MODELS,
    TEXT,
    UNET,
    MvdreamShape,
    check_layout,
    is_ignored,
)
from corrdream.prior.network import MultiviewUNet, PreparedUNet, published_unet_weights
from corrdream.prior.text_cache import cached_embeddings, default_cache
from corrdream.prior.text_clip import ClipText, published_text_weights
from corrdream.prior.tokenizer import tokenize
from corrdream.structures import NoisePrediction
from corrdream.transfer import to_device

log = logging.getLogger(__name__)


class MvdreamPrior:
    """The published `MultiviewPrior`, frozen. Output blocks 8 and 5 are the features [-4] and [-7] of the release."""

    def __init__(
        self,
        weights: Mapping[str, Shaped[Tensor, "..."]],
        shape: MvdreamShape,
        *,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: AttentionKind = "sdpa",
        compilation: Compilation = "eager",
        cache: Path | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.num_views = shape.network.num_views
        self.latent_channels = shape.network.latent_channels
        self.latent_size = shape.network.latent_size
        self.image_size = shape.image_size
        self.alphas_cumprod = alphas_cumprod().to(self.device)
        self._shape = shape
        self._cache = cache or default_cache()
        self._text_weights = _below(weights, TEXT)
        self._unet = PreparedUNet(self._build_unet(_below(weights, UNET), attention), compilation)
        self._autoencoder = self._build_autoencoder(_below(weights, AUTOENCODER), compilation)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        checkpoint: str = "",
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        attention: AttentionKind = "sdpa",
        compilation: Compilation = "eager",
        shape: MvdreamShape | None = None,
        cache: Path | None = None,
    ) -> "MvdreamPrior":
        """The prior of a model's file; ValueError if there is none, or if it holds anything else.

        The sizes are `shape`, or what the file records, or the published model's.
        """
        path = locate_checkpoint(model, checkpoint)
        recorded = recorded_shape(path)
        shape = shape or (MvdreamShape.from_text(recorded) if recorded else MODELS[model])
        weights = read_checkpoint(path)
        check_layout({name: weight.shape for name, weight in weights.items()}, shape, str(path))
        log.info("The prior is %s from %s, in %s, with %s attention.", model, path, dtype, attention)
        return cls(
            {name: weight for name, weight in weights.items() if not is_ignored(name, shape)},
            shape,
            fingerprint=checkpoint_fingerprint(path),
            device=device,
            dtype=dtype,
            attention=attention,
            compilation=compilation,
            cache=cache,
        )

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "P L D"]:
        """Text embeddings, from the cache where a prompt is known; what is beyond 75 tokens is cut with a warning."""
        embeddings = cached_embeddings(
            prompts, directory=self._cache, revision=self.fingerprint, encode=self._encode_new_text
        )
        return embeddings.to(self.device, self.dtype)

    def encode_images(
        self, images: Float[Tensor, "B H W 3"], noise: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images in [0, 1]: drawn from the posterior by standard normal `noise`, or its mean without."""
        with self._precision():
            return self._autoencoder.encode(images.to(self.device), self.image_size, noise)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W 3"]:
        """Images in [0, 1]."""
        with torch.autocast(self.device.type, enabled=False):
            return self._autoencoder.decode(latents.to(self.device))

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
        with self._precision():
            noise, features = self._unet.predict(*self._inputs(latents, timesteps, text, c2w), feature_blocks)
        return NoisePrediction(noise=noise.float(), features=features)

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
        with self._precision():
            return self._unet.features(*self._inputs(latents, timesteps, text, c2w), blocks)

    def _precision(self) -> AbstractContextManager[Any]:
        """Networks in lower precision run as they are; those in float32 follow the caller's autocast, as released."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def _inputs(
        self, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents, text = latents.to(self.device, self.dtype), text.to(self.device, self.dtype)
        return latents, timesteps.to(self.device), text, to_device(normalize_camera(c2w), self.device).to(self.dtype)

    def _build_unet(self, weights: Mapping[str, Tensor], attention: AttentionKind) -> MultiviewUNet:
        with torch.device("meta"):  # no time and memory for values that are replaced at once
            unet = MultiviewUNet(self._shape.network, build_attention(attention, self.device, self.dtype))
        converted = published_unet_weights(unet, weights)
        assert len(converted) == len(weights), "each of the file's weights goes somewhere"
        unet.load_state_dict(converted, assign=True)
        unet.to(self.device, self.dtype)
        if self.device.type == "cuda":
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
        return unet.eval().requires_grad_(False)

    def _build_autoencoder(self, weights: Mapping[str, Tensor], compilation: Compilation) -> Autoencoder:
        with torch.device("meta"):
            autoencoder = Autoencoder(self._shape.autoencoder, compilation)
        converted = published_autoencoder_weights(autoencoder, weights)
        assert len(converted) == len(weights), "each of the file's weights goes somewhere"
        autoencoder.load_state_dict({name: weight.float() for name, weight in converted.items()}, assign=True)
        autoencoder.to(self.device)
        # The decoder, which only previews use, stays in float32: its activations can exceed the range of float16.
        autoencoder.vae.encoder.to(self.dtype)
        autoencoder.vae.quant_conv.to(self.dtype)
        return autoencoder.eval().requires_grad_(False)

    def _encode_new_text(self, prompts: Sequence[str]) -> Float[Tensor, "P L D"]:
        """Embeddings in float32, prompt by prompt, so that none depends on what else was asked for."""
        shape = self._shape.text
        with torch.device("meta"):
            tower = ClipText(shape)
        renamed = published_text_weights(shape, self._text_weights)
        tower.load_state_dict({name: weight.float() for name, weight in renamed.items()}, assign=True)
        tower.to(self.device).eval()
        tokens = tokenize(prompts, length=shape.max_tokens, padding=shape.padding).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([tower(row[None]) for row in tokens])


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, named without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
