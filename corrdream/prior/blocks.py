"""The built-in prior: a small multi-view diffusion model of procedural shapes, its weights and its vocabulary.

Inside it predicts velocity; at its border that is noise, as of every `MultiviewPrior`. The weights file holds
half-precision tensors and, as metadata, all that is needed to build the networks: sizes and vocabulary.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from corrdream.cameras import normalize_camera
from corrdream.diffusion import alphas_cumprod, noise_from_velocity
from corrdream.files import once_per_version
from corrdream.prior.compiled import Compilation
from corrdream.prior.latents import FOLD, images_to_latents, latents_to_images, resize_images
from corrdream.prior.network import MultiviewUNet, NetworkShape, PreparedUNet
from corrdream.prior.text import TextEncoder, Vocabulary
from corrdream.structures import NoisePrediction
from corrdream.transfer import to_device

WEIGHTS = Path(__file__).parent / "weights" / "blocks.safetensors"
METADATA_KEY = "corrdream.blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksShape:
    """Sizes of the built-in prior; the defaults are the trained one's."""

    latent_size: int = 16
    num_views: int = 4
    channels: tuple[int, ...] = (96, 192, 192)
    heads: tuple[int, ...] = (3, 6, 6)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 1
    text_width: int = 128
    text_layers: int = 2
    max_tokens: int = 24
    norm_groups: int = 32

    @property
    def network(self) -> NetworkShape:
        """The part of it that the UNet needs."""
        return NetworkShape(
            latent_channels=3 * FOLD**2,
            latent_size=self.latent_size,
            num_views=self.num_views,
            channels=self.channels,
            heads=self.heads,
            attention=self.attention,
            layers_per_block=self.layers_per_block,
            text_width=self.text_width,
            norm_groups=self.norm_groups,
        )


class BlocksNetworks(nn.Module):
    """The trainable parts: the UNet, which predicts velocity, and the text encoder."""

    def __init__(self, shape: BlocksShape, words: Sequence[str]) -> None:
        super().__init__()
        self.shape = shape
        self.vocabulary = Vocabulary(words=tuple(words), max_tokens=shape.max_tokens)
        self.unet = MultiviewUNet(shape.network)
        self.text = TextEncoder(
            num_words=len(words), max_tokens=shape.max_tokens, width=shape.text_width, num_layers=shape.text_layers
        )


class BlocksPrior:
    """The built-in `MultiviewPrior`, frozen."""

    def __init__(
        self,
        networks: BlocksNetworks,
        *,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compilation: Compilation = "eager",
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.num_views = networks.shape.num_views
        self.latent_channels = networks.shape.network.latent_channels
        self.latent_size = networks.shape.latent_size
        self.image_size = FOLD * self.latent_size
        self.alphas_cumprod = alphas_cumprod().to(self.device)
        self.vocabulary = networks.vocabulary
        self._networks = networks.to(self.device, dtype).eval().requires_grad_(False)
        if self.device.type == "cpu":
            # A fifteenth of the call; torch leaves this argument out of its types.
            self._networks.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._unet = PreparedUNet(self._networks.unet, compilation)

    @classmethod
    def load(
        cls,
        device: torch.device | None = None,
        *,
        path: Path = WEIGHTS,
        dtype: torch.dtype = torch.float32,
        compilation: Compilation = "eager",
    ) -> "BlocksPrior":
        """The prior of a weights file; ValueError if the file is something else."""
        return cls(
            load_networks(path),
            fingerprint=blocks_fingerprint(path),
            device=device,
            dtype=dtype,
            compilation=compilation,
        )

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "P L D"]:
        """Text embeddings; ValueError for a word outside the vocabulary or a prompt that is too long."""
        embeddings: Tensor = self._networks.text(self.vocabulary.tokenize(prompts).to(self.device))
        return embeddings

    def encode_images(
        self, images: Float[Tensor, "B H W 3"], noise: Float[Tensor, "B C h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images in [0, 1]; there is no posterior to draw from, so `noise` changes nothing."""
        del noise
        return images_to_latents(resize_images(images, self.image_size).to(self.device, self.dtype))

    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W 3"]:
        """Images in [0, 1]."""
        return latents_to_images(latents)

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
        """The velocity that the network predicts, as noise, and the activations after `feature_blocks`."""
        latents = latents.to(self.device, self.dtype)
        timesteps = timesteps.to(self.device)
        velocity, features = self._unet.predict(latents, timesteps, text, self._camera(c2w), feature_blocks)
        alpha = self.alphas_cumprod[timesteps]
        return NoisePrediction(noise=noise_from_velocity(latents, velocity, alpha), features=features)

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
        latents = latents.to(self.device, self.dtype)
        return self._unet.features(latents, timesteps.to(self.device), text, self._camera(c2w), blocks)

    def _camera(self, c2w: Tensor) -> Tensor:
        return to_device(normalize_camera(c2w), self.device).to(self.dtype)


def save_blocks_weights(path: Path, networks: BlocksNetworks, weights: Mapping[str, Float[Tensor, "..."]]) -> None:
    """Write `weights` (a state dict of `networks`) in half precision, with what is needed to build the networks."""
    settings = {"shape": asdict(networks.shape), "words": networks.vocabulary.words}
    half = {name: weight.detach().half().contiguous().cpu() for name, weight in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path, metadata={METADATA_KEY: json.dumps(settings, sort_keys=True)})


def load_networks(path: Path) -> BlocksNetworks:
    """The networks of a weights file, in float32; ValueError if the file is something else."""
    shape, words = read_metadata(path)
    networks = BlocksNetworks(shape, words)
    networks.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return networks


@once_per_version
def read_metadata(path: Path) -> tuple[BlocksShape, tuple[str, ...]]:
    """Sizes and vocabulary of a weights file; ValueError if it is something else."""
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(METADATA_KEY)
    if metadata is None:
        raise ValueError(f"{path} does not hold weights of the built-in prior: no {METADATA_KEY} in its metadata.")
    settings = json.loads(metadata)
    sizes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings["shape"].items()
    }
    return BlocksShape(**sizes), tuple(settings["words"])


@once_per_version
def blocks_fingerprint(path: Path) -> str:
    """The start of the SHA-256 of a weights file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def check_words(prompt: str, path: Path = WEIGHTS) -> None:
    """ValueError that names a word of the prompt which the built-in prior does not know, and those near it."""
    shape, words = read_metadata(path)
    Vocabulary(words=words, max_tokens=shape.max_tokens).tokenize([prompt])
