"""The built-in prior: the contract, its border between velocity and noise, and its weights file."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corrdream.blocks.grammar import MAX_TOKENS, words
from corrdream.cameras import normalize_camera, orbit_cameras
from corrdream.diffusion import add_noise
from corrdream.prior.blocks import (
    WEIGHTS,
    BlocksNetworks,
    BlocksPrior,
    BlocksShape,
    blocks_fingerprint,
    check_words,
    read_metadata,
)
from tests.contracts.multiview_prior import MultiviewPriorContract, draw

LARGEST_FILE = 32_000_000  # bytes that a checkout can bear


@pytest.fixture
def prior(tiny_prior_file: Path) -> BlocksPrior:
    return BlocksPrior.load(path=tiny_prior_file)


class TestBlocksPrior(MultiviewPriorContract):
    @pytest.fixture
    def prior(self, tiny_prior_file: Path) -> BlocksPrior:
        return BlocksPrior.load(path=tiny_prior_file)

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return "a red cone on a blue cube", "a snowman"


def test_latents_hold_the_image_itself(prior: BlocksPrior) -> None:
    images = torch.rand(2, prior.image_size, prior.image_size, 3)
    torch.testing.assert_close(prior.decode_latents(prior.encode_images(images)), images)


def test_noise_is_what_the_predicted_velocity_implies(prior: BlocksPrior) -> None:
    # v = sqrt(a) noise - sqrt(1 - a) x0 and z = sqrt(a) x0 + sqrt(1 - a) noise, solved for x0 and noised again.
    latents = draw(4, prior.latent_channels, prior.latent_size, prior.latent_size)
    timesteps = torch.full((4,), 400)
    text = prior.encode_text(["a red cube"]).repeat(4, 1, 1)
    cameras = orbit_cameras(4, elevation_deg=0.0, distance=2.0, fovy_deg=40.0, height=8, width=8)
    noise = prior.predict_noise(latents, timesteps, text=text, c2w=cameras.c2w).noise
    with torch.no_grad():
        velocity, _ = prior._networks.unet(latents, timesteps, text, normalize_camera(cameras.c2w))
    alpha = prior.alphas_cumprod[timesteps].to(latents)
    scale = alpha[:, None, None, None]
    x0 = scale.sqrt() * latents - (1 - scale).sqrt() * velocity
    torch.testing.assert_close(add_noise(x0, noise, alpha), latents, rtol=0, atol=1e-5)


def test_nothing_in_it_can_be_trained(prior: BlocksPrior) -> None:
    assert not any(parameter.requires_grad for parameter in prior._networks.parameters())
    assert not prior._networks.training


def test_file_gives_back_sizes_vocabulary_and_fingerprint(tiny_prior_file: Path, prior: BlocksPrior) -> None:
    shape, vocabulary = read_metadata(tiny_prior_file)
    assert shape.channels == (32, 32)
    assert vocabulary == words()
    expected = hashlib.sha256(tiny_prior_file.read_bytes()).hexdigest()[:16]
    assert prior.fingerprint == blocks_fingerprint(tiny_prior_file) == expected


def test_default_size_fits_into_a_checkout_and_reads_every_caption() -> None:
    shape = BlocksShape()
    networks = BlocksNetworks(shape, words())
    assert 2 * sum(parameter.numel() for parameter in networks.parameters()) < LARGEST_FILE
    assert shape.max_tokens == MAX_TOKENS
    assert shape.num_views == 4


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the trained weights are not in this checkout")
def test_trained_weights_know_the_words_of_the_built_in_world() -> None:
    shape, vocabulary = read_metadata(WEIGHTS)
    assert vocabulary == words()
    assert shape == BlocksShape()
    assert WEIGHTS.stat().st_size < LARGEST_FILE


def test_unknown_word_is_named_with_what_is_near(tiny_prior_file: Path) -> None:
    check_words("a red cone", tiny_prior_file)
    with pytest.raises(ValueError, match=r'"conne".*near it: cone'):
        check_words("a red conne", tiny_prior_file)


def test_refuses_another_model_s_weights(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold weights of the built-in prior"):
        BlocksPrior.load(path=path)
