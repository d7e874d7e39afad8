"""The authors' package behind the same interface, at a tiny size; skipped where the package is not installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from corrdream.backends import MissingBackendError
from corrdream.cameras import orbit_cameras
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_layout import checkpoint_layout
from corrdream.prior.mvdream_package import MvdreamPackagePrior, check_open_clip, check_package
from tests.contracts.multiview_prior import MultiviewPriorContract, draw
from tests.mvdream_files import random_weights, tiny_shape

INSTALLED = all(importlib.util.find_spec(name) for name in ("mvdream", "open_clip"))
installed = pytest.mark.skipif(not INSTALLED, reason="the packages mvdream and open_clip are not installed")


@pytest.fixture(scope="module")
def package_model() -> Any:
    """The package's own classes at the sizes of `tiny_shape`, with its weights."""
    from mvdream.ldm.interface import LatentDiffusionInterface
    from mvdream.ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
    from open_clip.model import CLIP

    shape = tiny_shape()
    network, text, channels = shape.network, shape.text, shape.autoencoder.channels
    embedder = FrozenOpenCLIPEmbedder.__new__(FrozenOpenCLIPEmbedder)  # its __init__ downloads a full-size model
    torch.nn.Module.__init__(embedder)
    embedder.model = CLIP(
        text.width,
        {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        {
            "context_length": text.max_tokens,
            "vocab_size": text.num_tokens,
            "width": text.width,
            "heads": text.heads,
            "layers": text.num_layers,
        },
    )
    del embedder.model.visual
    embedder.layer_idx = 1
    unet = {
        "image_size": network.latent_size,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": network.channels[0],
        "attention_resolutions": [1, 2],
        "num_res_blocks": network.layers_per_block,
        "channel_mult": [width // network.channels[0] for width in network.channels],
        "num_head_channels": network.channels[0],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": text.width,
        "use_checkpoint": False,
        "legacy": False,
        "camera_dim": 16,
    }
    autoencoder = {
        "double_z": True,
        "z_channels": 4,
        "resolution": shape.image_size,
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [width // channels[0] for width in channels],
        "num_res_blocks": shape.autoencoder.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    model = LatentDiffusionInterface(
        {"target": "mvdream.ldm.modules.diffusionmodules.openaimodel.MultiViewUNetModel", "params": unet},
        {"target": "torch.nn.Identity"},
        {
            "target": "mvdream.ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": autoencoder, "lossconfig": {"target": "torch.nn.Identity"}},
        },
    )
    model.cond_stage_model = embedder
    schedule = {name: buffer for name, buffer in model.named_buffers() if "." not in name}
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == checkpoint_layout(shape)
    model.load_state_dict(random_weights(shape) | schedule)
    return model


@pytest.fixture
def package_prior(package_model: Any) -> MvdreamPackagePrior:
    return MvdreamPackagePrior(package_model, num_views=4, latent_size=8, image_size=64, fingerprint="tiny")


@installed
class TestMvdreamPackagePrior(MultiviewPriorContract):
    @pytest.fixture
    def prior(self, package_prior: MvdreamPackagePrior) -> MvdreamPackagePrior:
        return package_prior

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "an astronaut riding a horse", "a corgi, 3D asset"


@installed
def test_our_prior_equals_the_package(package_prior: MvdreamPackagePrior, tmp_path: Path) -> None:
    prior = MvdreamPrior(random_weights(tiny_shape()), tiny_shape(), fingerprint="tiny", cache=tmp_path)
    prompts = ["a hippo's café", "word " * 100, ""]
    text = package_prior.encode_text(prompts)
    torch.testing.assert_close(prior.encode_text(prompts), text, rtol=0, atol=2e-5)
    latents, timesteps = draw(8, 4, 8, 8), torch.arange(8) * 100
    text = text[:2].repeat_interleave(4, dim=0)
    c2w = orbit_cameras(8, elevation_deg=15.0, distance=2.5, fovy_deg=40.0, height=8, width=8).c2w
    blocks = tuple(range(6))
    expected = package_prior.predict_noise(latents, timesteps, text=text, c2w=c2w, feature_blocks=blocks)
    actual = prior.predict_noise(latents, timesteps, text=text, c2w=c2w, feature_blocks=blocks)
    pairs = zip((actual.noise, *actual.features), (expected.noise, *expected.features), strict=True)
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 5e-5 * theirs.abs().max()
    images = torch.rand(2, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    for noise in (None, latents[:2]):
        encoded = package_prior.encode_images(images, noise)
        torch.testing.assert_close(prior.encode_images(images, noise), encoded, rtol=0, atol=5e-5)
    decoded = package_prior.decode_latents(latents)
    torch.testing.assert_close(prior.decode_latents(latents), decoded, rtol=0, atol=5e-5)
    torch.testing.assert_close(prior.alphas_cumprod, package_prior.alphas_cumprod, rtol=1e-6, atol=0.0)


@installed
def test_lower_precision_is_near(package_model: Any, package_prior: MvdreamPackagePrior) -> None:
    lower = MvdreamPackagePrior(
        package_model, num_views=4, latent_size=8, image_size=64, fingerprint="tiny", dtype=torch.bfloat16
    )
    latents, timesteps, c2w = draw(4, 4, 8, 8), torch.full((4,), 500), torch.eye(4).expand(4, 4, 4)
    text = package_prior.encode_text(["a cat"]).repeat(4, 1, 1)
    expected = package_prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
    actual = lower.predict_noise(latents, timesteps, text=text.bfloat16(), c2w=c2w, feature_blocks=(1,))
    assert actual.noise.dtype == torch.float32
    assert 0 < (actual.noise - expected).norm() < 0.05 * expected.norm()
    assert lower.encode_images(torch.rand(1, 64, 64, 3)).dtype == torch.float32


@pytest.mark.skipif(INSTALLED, reason="the package is installed here")
def test_missing_package_is_named_with_the_cure() -> None:
    with pytest.raises(
        MissingBackendError, match=r"prior\.kind=mvdream_package: mvdream is not installed.*pip install"
    ):
        check_package()


def test_open_clip_with_the_other_layout_is_refused() -> None:
    check_open_clip("2.7.0")
    check_open_clip("2.24.0")
    for version in ("2.26.1", "3.3.0"):
        with pytest.raises(MissingBackendError, match=rf"open_clip {version} the package computes wrong"):
            check_open_clip(version)
