"""What every implementation of `MultiviewPrior` must do."""

import pytest
import torch
from torch import Tensor

from corrdream.cameras import orbit_cameras
from corrdream.interfaces import MultiviewPrior

NUM_OBJECTS = 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class MultiviewPriorContract:
    """Derive, and give the implementation as `prior` and two prompts that it understands as `prompts`."""

    @pytest.fixture
    def prior(self) -> MultiviewPrior:
        raise NotImplementedError

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        raise NotImplementedError

    @pytest.fixture
    def num_images(self, prior: MultiviewPrior) -> int:
        return NUM_OBJECTS * prior.num_views

    @pytest.fixture
    def latents(self, prior: MultiviewPrior, num_images: int) -> Tensor:
        return draw(num_images, prior.latent_channels, prior.latent_size, prior.latent_size).to(prior.device)

    @pytest.fixture
    def timesteps(self, prior: MultiviewPrior, num_images: int) -> Tensor:
        return torch.full((num_images,), 300, device=prior.device)

    @pytest.fixture
    def text(self, prior: MultiviewPrior, prompts: tuple[str, str]) -> Tensor:
        return prior.encode_text(prompts).repeat_interleave(prior.num_views, dim=0)

    @pytest.fixture
    def c2w(self, num_images: int) -> Tensor:
        cameras = orbit_cameras(num_images, elevation_deg=15.0, distance=2.5, fovy_deg=40.0, height=8, width=8)
        return cameras.c2w  # on the host, where a run's cameras are

    def test_is_a_multiview_prior(self, prior: MultiviewPrior) -> None:
        assert isinstance(prior, MultiviewPrior)
        assert isinstance(prior.fingerprint, str)
        assert prior.fingerprint

    def test_noise_schedule_falls_from_almost_one_to_almost_zero(self, prior: MultiviewPrior) -> None:
        alphas = prior.alphas_cumprod.cpu()
        assert alphas.dtype == torch.float64
        assert (alphas.diff() < 0).all()
        assert alphas[0] > 0.99
        assert alphas[-1] < 0.01

    def test_text_has_one_embedding_a_prompt(self, prior: MultiviewPrior, prompts: tuple[str, str]) -> None:
        first, second = prompts
        embeddings = prior.encode_text([first, second, first, ""])
        assert embeddings.ndim == 3
        assert len(embeddings) == 4
        torch.testing.assert_close(embeddings[0], embeddings[2])
        assert not torch.allclose(embeddings[0], embeddings[1])
        assert not torch.allclose(embeddings[0], embeddings[3])
        assert not embeddings.requires_grad

    @pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
    def test_images_of_any_side_become_latents(self, prior: MultiviewPrior, factor: float) -> None:
        side = int(factor * prior.image_size)
        latents = prior.encode_images(torch.rand(2, side, side, 3, device=prior.device))
        assert latents.shape == (2, prior.latent_channels, prior.latent_size, prior.latent_size)

    def test_latents_are_differentiable_in_the_images(self, prior: MultiviewPrior) -> None:
        images = torch.rand(2, prior.image_size, prior.image_size, 3, device=prior.device).requires_grad_()
        latents = prior.encode_images(images)
        (gradient,) = torch.autograd.grad(latents, images, torch.ones_like(latents))
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()

    def test_decoded_images_lie_between_zero_and_one(self, prior: MultiviewPrior, latents: Tensor) -> None:
        images = prior.decode_latents(3 * latents)
        assert images.shape == (len(latents), prior.image_size, prior.image_size, 3)
        assert images.min() >= 0
        assert images.max() <= 1

    def test_noise_has_the_latents_shape_and_no_graph(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        prediction = prior.predict_noise(latents.clone().requires_grad_(), timesteps, text=text, c2w=c2w)
        assert prediction.noise.shape == latents.shape
        assert not prediction.noise.requires_grad
        assert prediction.features == ()

    def test_prediction_is_repeatable_and_changes_no_argument(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        arguments = (latents, timesteps, text, c2w)
        copies = [argument.clone() for argument in arguments]
        first = prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
        second = prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
        assert torch.equal(first, second)
        assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, copies, strict=True))

    def test_views_of_one_object_see_each_other_and_no_other_object(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        changed = latents.clone()
        changed[0] = -changed[0]
        before = prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
        after = prior.predict_noise(changed, timesteps, text=text, c2w=c2w).noise
        moved = (after - before).flatten(1).abs().amax(dim=1)
        assert (moved[1 : prior.num_views] > 1e-5).all()
        assert (moved[prior.num_views :] < 1e-5).all()

    def test_text_and_timestep_and_pose_matter_but_not_the_distance(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        expected = prior.predict_noise(latents, timesteps, text=text, c2w=c2w).noise
        farther = c2w.clone()
        farther[:, :3, 3] *= 1.7
        same = prior.predict_noise(latents, timesteps, text=text, c2w=farther).noise
        torch.testing.assert_close(same, expected, rtol=0, atol=1e-5)
        others = [
            prior.predict_noise(latents, timesteps, text=text, c2w=c2w.roll(1, 0)).noise,
            prior.predict_noise(latents, timesteps, text=text.flip(0), c2w=c2w).noise,
            prior.predict_noise(latents, timesteps + 300, text=text, c2w=c2w).noise,
        ]
        assert all((other - expected).abs().max() > 1e-3 for other in others)

    def test_features_are_those_of_the_prediction_in_the_order_asked(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        blocks = (2, 0, 1)
        prediction = prior.predict_noise(latents, timesteps, text=text, c2w=c2w, feature_blocks=blocks)
        alone = prior.features(latents, timesteps, text=text, c2w=c2w, blocks=blocks)
        assert len(alone) == len(blocks)
        for feature, expected in zip(alone, prediction.features, strict=True):
            assert len(feature) == len(latents)
            torch.testing.assert_close(feature, expected)
            assert not feature.requires_grad
        (second,) = prior.features(latents, timesteps, text=text, c2w=c2w, blocks=(0,))
        torch.testing.assert_close(second, alone[1])

    def test_refuses_a_block_that_does_not_exist(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        with pytest.raises(ValueError, match="1000"):
            prior.features(latents, timesteps, text=text, c2w=c2w, blocks=(1000,))

    def test_refuses_an_incomplete_set_of_views(
        self, prior: MultiviewPrior, latents: Tensor, timesteps: Tensor, text: Tensor, c2w: Tensor
    ) -> None:
        with pytest.raises(ValueError, match="views"):
            prior.predict_noise(latents[1:], timesteps[1:], text=text[1:], c2w=c2w[1:])
