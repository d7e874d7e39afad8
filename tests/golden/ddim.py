"""ddim.npz: the sampler, on a stub model with prescribed noise."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from corrdream.diffusion import alphas_cumprod, classifier_free_guidance
from corrdream.prior.sampling import ddim_schedule, ddim_steps
from tests.golden.helpers import assert_relative, group, group_names, tensor

FILE = "ddim.npz"
TOLERANCE = 1e-4


def compare(data: Mapping[str, np.ndarray], name: str) -> None:
    inputs, expected = group(data, f"{name}/in"), group(data, f"{name}/out")
    mixing, projection, drift = (tensor(inputs[key]) for key in ("A", "W", "v"))

    def stub(latents: Tensor, timestep: int, context: Tensor) -> Tensor:
        mixed = torch.einsum("cd,bdij->bcij", mixing, latents)
        constant = context.mean(1) @ projection + timestep / 1000 * drift
        return mixed + constant[:, :, None, None]

    def predict_noise(latents: Tensor, timestep: int) -> Tensor:
        text = stub(latents, timestep, tensor(inputs["context"]))
        unconditional = stub(latents, timestep, tensor(inputs["uncond_context"]))
        return classifier_free_guidance(text, unconditional, float(inputs["guidance_scale"]))

    schedule = ddim_schedule(alphas_cumprod(), int(inputs["steps"]), float(inputs["eta"]))
    assert_relative(schedule.alpha, expected["ddim_alphas"], TOLERANCE, "alphas")
    assert_relative(schedule.alpha_next, expected["ddim_alphas_prev"], TOLERANCE, "alphas_prev")
    assert_relative(schedule.sigma, expected["ddim_sigmas"], TOLERANCE, "sigmas")
    noises = iter(inputs.get("noises", []))
    steps = list(ddim_steps(predict_noise, tensor(inputs["x_T"]), schedule, lambda: tensor(next(noises))))
    assert [step.timestep for step in steps] == expected["timesteps"].tolist()
    for index, step in enumerate(steps):
        assert_relative(step.latents, expected["x"][index], TOLERANCE, f"x after step {index}")
        assert_relative(step.x0, expected["x0"][index], TOLERANCE, f"x0 of step {index}")
    assert_relative(steps[-1].latents, expected["sample"], TOLERANCE, "sample")


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        yield name, lambda name=name: compare(data, name)
