"""DDIM: its timesteps, its exactness for a perfect model, and images from a prior."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrdream.cameras import orbit_cameras
from corrdream.diffusion import alphas_cumprod
from corrdream.prior.blocks import BlocksPrior
from corrdream.prior.sampling import ddim_schedule, ddim_steps, sample_views
from tests.contracts.multiview_prior import draw


def test_fifty_steps_visit_every_twentieth_timestep() -> None:
    schedule = ddim_schedule(alphas_cumprod(), 50)
    assert schedule.timesteps.tolist() == list(range(1, 1000, 20))
    assert (schedule.sigma == 0).all()


def test_a_perfect_model_leads_to_its_image() -> None:
    table = alphas_cumprod()
    truth, noise = draw(1, 3, 4, 4), draw(1, 3, 4, 4, seed=1)
    schedule = ddim_schedule(table, 20)

    def predict_noise(latents: Tensor, timestep: int) -> Tensor:
        alpha = table[timestep]
        return (latents - alpha.sqrt() * truth) / (1 - alpha).sqrt()

    start = table[schedule.timesteps[-1]].sqrt() * truth + (1 - table[schedule.timesteps[-1]]).sqrt() * noise
    steps = list(ddim_steps(predict_noise, start, schedule))
    assert len(steps) == 20
    torch.testing.assert_close(steps[-1].x0, truth, rtol=0, atol=1e-4)
    # The last step goes to alpha_cumprod[0], which is not quite 1.
    expected = table[0].sqrt() * truth + (1 - table[0]).sqrt() * noise
    torch.testing.assert_close(steps[-1].latents, expected, rtol=0, atol=1e-4)


def test_stochastic_steps_add_noise_but_the_last_one_hardly() -> None:
    schedule = ddim_schedule(alphas_cumprod(), 10, eta=1.0)
    assert (schedule.sigma > 0).all()
    assert schedule.sigma[0] < 0.05


def test_samples_depend_on_the_generator_only(tiny_prior_file: Path) -> None:
    prior = BlocksPrior.load(path=tiny_prior_file)
    cameras = orbit_cameras(4, elevation_deg=15.0, distance=2.5, fovy_deg=40.0, height=16, width=16)
    prompts = ["a red cube", "a snowman"]

    def sample(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample_views(prior, prompts, cameras.c2w, guidance_scale=3.0, num_steps=4, generator=generator)

    first = sample(0)
    assert first.shape == (2, 4, prior.image_size, prior.image_size, 3)
    assert torch.equal(first, sample(0))
    assert not torch.equal(first, sample(1))


@pytest.mark.parametrize("num_steps", [0, 3, 27, 1000, 1001])
def test_steps_beyond_the_table_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"cannot take {num_steps} of 1000"):
        ddim_schedule(alphas_cumprod(), num_steps)
