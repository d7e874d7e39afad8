"""What is looked at when a training ends: losses on captions it never saw, by timestep, and a sheet of samples."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.artifacts import to_picture, write_json, write_picture
from corrdream.blocks.training import Training
from corrdream.blocks.training_data import ObjectStream, step_generator
from corrdream.blocks.training_losses import StepLosses
from corrdream.cameras import orbit_cameras
from corrdream.diffusion import alphas_cumprod
from corrdream.prior.blocks import BlocksPrior
from corrdream.prior.sampling import sample_views

TIMESTEPS = (0, 20, 100, 250, 500, 750, 950)
PREVIEW_PROMPTS = (
    "a red cone on a blue cube",
    "a snowman",
    "a brown chair",
    "a yellow duck",
    "a purple torus",
    "a pink rocket",
    "a green mug",
    "an orange house with a blue roof",
    "a red and white striped sphere",
    "a blue and yellow checked cube",
    "a black sphere",
    "a clay model of a car",
)
ELEVATION, FOVY, DISTANCE = 15.0, 40.0, 2.6  # degrees, degrees, world units: in the middle of training's cameras


def write_report(training: Training, directory: Path) -> list[dict[str, int | float]]:
    """The losses by timestep; writes them to DIR/losses.json, and DIR/samples.png."""
    rows = validation_losses(training)
    write_json(directory / "losses.json", rows)
    prior = BlocksPrior.load(training.device, path=directory / "blocks.safetensors")
    write_picture(directory / "samples.png", to_picture(sample_sheet(prior, PREVIEW_PROMPTS)))
    return rows


def validation_losses(training: Training) -> list[dict[str, int | float]]:
    """Losses of the averaged weights at fixed timesteps, on objects with a pair that training never shows."""
    networks, settings = training.model.networks, training.settings
    current = {name: weight.clone() for name, weight in networks.state_dict().items()}
    networks.load_state_dict(training.average)
    stream = ObjectStream(
        num_objects=settings.num_objects, num_steps=1, seed=settings.seed + 1, rank=0, split="held_out_pairs"
    )
    generator = step_generator(settings.seed + 1, 0, 0, training.device)
    drawn = training.make_input(stream[0], generator)
    rows: list[dict[str, int | float]] = []
    for timestep in TIMESTEPS:
        # Gradients stay on: without them the network would be compiled once more.
        with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=training.is_cuda):
            losses: StepLosses = training.model(drawn.at_timestep(timestep))
        alpha = float(alphas_cumprod()[timestep])  # by which the feature losses are weighted; told here without
        values = (losses.diffusion.item(), losses.match.item() / alpha, losses.coordinate.item() / alpha)
        diffusion, match, coordinate = (round(value, 5) for value in values)
        rows.append({"timestep": timestep, "diffusion": diffusion, "match": match, "coordinate": coordinate})
    networks.load_state_dict(current)
    return rows


def sample_sheet(prior: BlocksPrior, prompts: tuple[str, ...], *, num_steps: int = 50) -> Float[Tensor, "H W 3"]:
    """Samples at guidance scale 7.5: two prompts a row, each from four sides."""
    cameras = orbit_cameras(
        prior.num_views,
        elevation_deg=ELEVATION,
        distance=DISTANCE,
        fovy_deg=FOVY,
        height=prior.image_size,
        width=prior.image_size,
    )
    generator = torch.Generator().manual_seed(0)
    images = sample_views(
        prior, prompts, cameras.c2w, guidance_scale=7.5, num_steps=num_steps, generator=generator
    ).float()
    rows = images.reshape(len(prompts) // 2, -1, *images.shape[2:])  # row, column, H, W, 3
    return rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
