"""The state of the built-in prior's training, and one step of it. On N devices every rank holds the same state."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from corrdream.blocks.grammar import words
from corrdream.blocks.training_data import NUM_SETS, Objects, render_view_sets
from corrdream.blocks.training_losses import StepInput, StepLosses, TrainingModel, draw_pairs, draw_timesteps
from corrdream.cameras import normalize_camera
from corrdream.prior.blocks import BlocksNetworks, BlocksShape, load_networks, save_blocks_weights
from corrdream.prior.latents import FOLD, images_to_latents
from corrdream.prior.text import PADDING


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the built-in prior is trained."""

    num_objects: int = 128  # a step and device; each is seen by two sets of views
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup_steps: int = 200
    gradient_clip: float = 1.0
    ema_decay: float = 0.9995
    caption_dropout: float = 0.1
    feature_share: float = 0.2  # of the objects with a low timestep, for the features
    match_weight: float = 0.02
    coordinate_weight: float = 0.01
    pairs_per_object: int = 1
    points_per_pair: int = 128
    supersample: int = 2
    workers: int = 6
    seed: int = 0


class Training:
    """Networks, optimizer and averaged weights of a training."""

    def __init__(self, settings: TrainSettings, shape: BlocksShape, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.is_cuda = device.type == "cuda"
        torch.manual_seed(settings.seed)  # of the initial weights, equal on all ranks
        networks = BlocksNetworks(shape, words()).to(device)
        if self.is_cuda:
            networks.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
        self.model = TrainingModel(networks, compiled=self.is_cuda).to(device)
        self.parallel: torch.nn.Module = self.model
        if distributed.is_initialized():
            self.parallel = DistributedDataParallel(
                self.model, device_ids=[device], gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=self.is_cuda,
        )
        self._weights = networks.state_dict()  # the live tensors
        self.average = {name: weight.clone() for name, weight in self._weights.items()}
        self.step = 0
        self.elapsed_minutes = 0.0

    def make_input(self, objects: Objects, generator: torch.Generator) -> StepInput:
        """Everything that a step draws, rendered and on the device."""
        shape, settings = self.model.networks.shape, self.settings
        views = render_view_sets(
            objects.shapes.to(self.device),
            generator,
            num_views=shape.num_views,
            size=FOLD * shape.latent_size,
            supersample=settings.supersample,
        )
        latents = images_to_latents(views.images)
        noise_shape = (len(objects.captions), 1, shape.num_views, *latents.shape[1:])
        noise = torch.randn(noise_shape, generator=generator, device=self.device)
        timesteps, weight = draw_timesteps(generator, len(objects.captions), settings.feature_share)
        dropped = torch.rand(len(objects.captions), generator=generator, device=self.device) < settings.caption_dropout
        tokens = self.model.networks.vocabulary.tokenize(objects.captions).to(self.device)
        source, target, pixel = draw_pairs(
            generator,
            views.mask,
            num_views=shape.num_views,
            pairs_per_object=settings.pairs_per_object,
            num_points=settings.points_per_pair,
        )
        layout = torch.channels_last if self.is_cuda else torch.contiguous_format
        return StepInput(
            latents=latents.contiguous(memory_format=layout),
            noise=noise.expand(-1, NUM_SETS, -1, -1, -1, -1).flatten(0, 2).contiguous(memory_format=layout),
            timesteps=timesteps,
            diffusion_weight=weight,
            tokens=tokens.masked_fill(dropped[:, None], PADDING),
            camera=normalize_camera(views.cameras.c2w),
            mask=views.mask,
            position=views.position,
            source_image=source,
            target_image=target,
            source_pixel=pixel,
        )

    def train_step(self, step_input: StepInput, progress: float) -> StepLosses:
        """One update; the losses before it."""
        settings = self.settings
        warmup = min(1.0, (self.step + 1) / settings.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_cuda):
            losses: StepLosses = self.parallel(step_input)
        total = losses.diffusion + settings.match_weight * losses.match
        (total + settings.coordinate_weight * losses.coordinate).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average, whose decay warms up with the steps."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [self._weights[name] for name in self.average], 1 - decay)

    def save(self, directory: Path) -> None:
        """Writes the weights, and all that `load` needs to go on."""
        save_blocks_weights(directory / "blocks.safetensors", self.model.networks, self.average)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "elapsed_minutes": self.elapsed_minutes,
        }
        torch.save(state, directory / "state.pt")

    def start_from(self, weights: Path) -> None:
        """Begins with the networks of a weights file of the same sizes; the optimizer and the added heads are new."""
        self.model.networks.load_state_dict(load_networks(weights).state_dict())
        self.average = {name: weight.clone() for name, weight in self._weights.items()}

    def load(self, directory: Path) -> None:
        """Goes on where `save` was called."""
        state: dict[str, Any] = torch.load(directory / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.elapsed_minutes = state["step"], state["elapsed_minutes"]
