"""Images to latents and back by the autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`, published weights.

Latents are 0.18215 times a draw from the encoder's posterior, or its mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor, nn

from corrdream.prior.compiled import Compilation, PreparedFunction
from corrdream.prior.latents import resize_images

LATENT_CHANNELS = 4
SCALE = 0.18215


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderShape:
    """Sizes of the autoencoder; one entry of `channels` a level, finest first."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # residual blocks a level on the way down; one more on the way up
    norm_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Pixels a latent pixel."""
        return 1 << (len(self.channels) - 1)


class Autoencoder(nn.Module):
    """The autoencoder, images in [0, 1] outside and [-1, 1] inside."""

    def __init__(self, shape: AutoencoderShape, compilation: Compilation = "eager") -> None:
        super().__init__()
        self.moments = PreparedFunction(self._moments, "the autoencoder", compilation)
        levels = len(shape.channels)
        self.vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=LATENT_CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=shape.channels,
            layers_per_block=shape.layers_per_block,
            norm_num_groups=shape.norm_groups,
        )
        # One head of 512 channels: too wide for fused attention, whose fallback takes ten times longer backward.
        attention = self.vae.encoder.mid_block.attentions[0]
        attention.set_processor(AttnProcessor())
        attention.upcast_softmax = False  # torch's is exact enough in any type, and keeps float64

    def encode(
        self, images: Float[Tensor, "B H W 3"], size: int, noise: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Scaled latents of images resized to `size`: drawn by standard normal `noise`, or the mean without it."""
        posterior = self.posterior(2 * resize_images(images, size).permute(0, 3, 1, 2) - 1)
        return SCALE * draw(posterior, noise)

    def posterior(self, pixels: Float[Tensor, "B 3 H W"]) -> DiagonalGaussianDistribution:
        """The latents' distribution, unscaled, of pixels in [-1, 1]."""
        (moments,) = self.moments(pixels.to(self.vae.quant_conv.weight.dtype))
        return DiagonalGaussianDistribution(moments)

    def _moments(self, pixels: Tensor) -> tuple[Tensor]:
        """Mean and log-variance of the latents, one after the other along the channels."""
        return (self.vae.quant_conv(self.vae.encoder(pixels)),)

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W 3"]:
        """Images of scaled latents, cut to [0, 1]."""
        return (self.pixels(latents).permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def pixels(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """What the decoder makes of scaled latents: about [-1, 1], not cut."""
        decoded: Tensor = self.vae.decode(latents.to(self.vae.post_quant_conv.weight.dtype) / SCALE).sample
        return decoded


def draw(posterior: DiagonalGaussianDistribution, noise: Float[Tensor, "B C h w"] | None) -> Float[Tensor, "B C h w"]:
    """mean + exp(logvar / 2) noise, the log-variance cut to [-30, 20]; the mean alone without noise."""
    mean: Tensor = posterior.mean.to(torch.promote_types(posterior.mean.dtype, torch.float32))
    return mean if noise is None else mean + posterior.std.to(mean) * noise.to(mean)


def published_autoencoder_weights(
    autoencoder: Autoencoder, weights: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """The autoencoder's state dict from the published names (those after `first_stage_model.`)."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    prefixed = {f"first_stage_model.{name}": weight for name, weight in weights.items()}
    converted = convert_ldm_vae_checkpoint(prefixed, config=dict(autoencoder.vae.config))
    return {f"vae.{name}": weight for name, weight in converted.items()}
