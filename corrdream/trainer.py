"""The training step and the loop around it. Builds nothing: `engine.build` hands the parts over."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.artifacts import RunFolder, match_sheet, preview_sheet, write_picture
from corrdream.camera_sampling import sample_multiview_cameras
from corrdream.cameras import shift_azimuth
from corrdream.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    optimizer_tensors,
    prune_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from corrdream.config import Config, config_to_dict
from corrdream.correspondence import correspondence_loss, opaque_pixels
from corrdream.diffusion import add_noise
from corrdream.guidance import score_distillation
from corrdream.interfaces import Marching, Matching, MultiviewPrior
from corrdream.losses import regularization_losses
from corrdream.rendering import draw_appearance, render
from corrdream.scene import Scene, SceneView, load_scene
from corrdream.settings import StepSettings, correspondence_settings, settings_at
from corrdream.step_metrics import MetricsLog, StepMetrics
from corrdream.structures import Appearance, CameraBatch, LightBatch, Matches, RenderOutput
from corrdream.transfer import HostCopy, to_device

MIN_LOSS_SCALE = 2.0**-14  # of float16 training; it starts at 2^16


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is not finite; the last checkpoint is still good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where a run stands after a stretch of steps."""

    step: int
    max_steps: int
    seconds: float  # spent in this stretch
    metrics: Mapping[str, float]  # of the last step

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps."""
        return self.step >= self.max_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything random about one rendering of all views; two that share it differ by their cameras only."""

    appearance: Appearance
    jitter: Float[Tensor, " N"] | None
    with_normals: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchView:
    """The matches of one correspondence step and the images that they connect, detached."""

    source: Float[Tensor, "B H W 3"]
    target: Float[Tensor, "B H W 3"]
    matches: Matches
    errors: Float[Tensor, " M"]  # distance of match and reprojection, pixels


class Trainer:
    """One run: the parts, the step, and the state that a checkpoint holds."""

    def __init__(
        self,
        *,
        config: Config,
        prior: MultiviewPrior,
        scene: Scene,
        marching: Marching,
        matching: Matching,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        true_features: Callable[[CameraBatch], Float[Tensor, "B C H W"]] | None = None,
    ) -> None:
        """`true_features` are matched instead of the prior's."""
        self.config = config
        self.prior = prior
        self.scene = scene
        self.marching = marching
        self.matching = matching
        self.optimizer = optimizer
        self.device = device
        self.true_features = true_features
        self.step = 0
        self.ray_chunk: int | None = None  # rays rendered at a time; None: all. Costs time; results equal to rounding
        self.match_view: MatchView | None = None  # for the next preview; no part of the state
        # On the CPU whatever the device, so that a seed means the same cameras, lights and noise everywhere.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.loss_scale = self.copy_loss_scale()
        self.text = prior.encode_text([config.prompt, config.negative_prompt]).to(device)

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps."""
        return self.step >= self.config.max_steps

    def train_step(self) -> StepMetrics:
        """One optimizer step; returns what to log of it."""
        settings = settings_at(self.config, self.step, self.prior.num_views)
        cameras, lights = sample_multiview_cameras(settings.cameras, self.generator)  # on the host
        self.scene.occupancy.update(self.scene.field.density, self.step, self.generator)
        with self.autocast():
            look = self.draw_look(settings)
            images = self.render(cameras, lights, look)
            if settings.is_correspondence_step:
                terms, metrics = self.correspondence_losses(images, cameras, lights, look, settings)
            else:
                terms, metrics = self.guidance_losses(images, cameras, settings)
            losses = regularization_losses(images, self.scene.field, settings.loss_weights) | terms
            loss = weighted_sum(losses, settings.loss_weights)
        metrics["grad_norm"] = self.update(loss)
        self.step += 1
        return summarize(losses, loss, metrics, images, settings)

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision where the configuration asks for it."""
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def draw_look(self, settings: StepSettings) -> Look:
        """Everything random about one rendering of all views."""
        cameras = settings.cameras
        num_rays = cameras.batch_size * cameras.resolution**2
        appearance = draw_appearance(
            settings.appearance, num_images=cameras.batch_size, generator=self.generator, device=self.device
        )
        stratified = self.config.rendering.stratified
        return Look(
            appearance=appearance,
            jitter=to_device(torch.rand(num_rays, generator=self.generator), self.device) if stratified else None,
            with_normals=settings.loss_weights["orientation"] > 0,
        )

    def render(self, cameras: CameraBatch, lights: LightBatch, look: Look) -> RenderOutput:
        """The scene as it is now."""
        return render(
            cameras.to(self.device),
            lights.to(self.device),
            look.appearance,
            field=self.scene.field,
            background=self.scene.background,
            marching=self.marching,
            jitter=look.jitter,
            with_normals=look.with_normals,
            chunk=self.ray_chunk,
        )

    def guidance_losses(
        self, images: RenderOutput, cameras: CameraBatch, settings: StepSettings
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Score distillation from the prior, at one timestep for the whole batch; the loss and what to log."""
        latents = self.encode(images.rgb)
        low, high = settings.timestep_range
        timestep = to_device(torch.randint(low, high + 1, (), generator=self.generator), self.device)
        guidance = score_distillation(
            latents,
            noise=self.draw_noise(latents),
            timestep=timestep,
            prior=self.prior,
            text=self.text,
            c2w=cameras.c2w,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
        )
        return {"sds": guidance.loss}, {
            "guidance/timestep": timestep,
            "guidance/std_ratio": guidance.std_ratio.mean(),
            "guidance/grad_norm": guidance.grad_norm,
        }

    def correspondence_losses(
        self, images: RenderOutput, cameras: CameraBatch, lights: LightBatch, look: Look, settings: StepSettings
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Agreement of the depths with the matches between the views and their azimuth-shifted twins."""
        config = self.config.correspondence
        twin_cameras, twin_lights = shift_azimuth(cameras, lights, self.draw_shift(len(cameras.c2w)))
        twin_look = look if config.appearance == "shared" else self.draw_look(settings)
        with torch.set_grad_enabled(config.direction == "both"):
            twin = self.render(twin_cameras, twin_lights, twin_look)
        matching_settings = correspondence_settings(config)
        source_pixels, target_pixels = opaque_pixels(
            images.opacity, twin.opacity, settings=matching_settings, generator=self.generator
        )
        source_features, target_features = self.twin_features(images, twin, cameras, twin_cameras)
        output = correspondence_loss(
            images,
            twin,
            cameras,
            twin_cameras,
            source_pixels=source_pixels,
            target_pixels=target_pixels,
            source_features=source_features,
            target_features=target_features,
            matching=self.matching,
            settings=matching_settings,
        )
        if self.is_last_before_preview():
            self.match_view = MatchView(
                source=images.rgb.detach(),
                target=twin.rgb.detach(),
                matches=output.matches[0].kept(),
                errors=output.errors[0][output.matches[0].survives],
            )
        return {"correspondence": output.loss}, {
            "correspondence/matches": torch.cat([matches.survives for matches in output.matches]).sum().float(),
            "correspondence/residual": output.residual,
        }

    @torch.no_grad()
    def twin_features(
        self, images: RenderOutput, twin: RenderOutput, cameras: CameraBatch, twin_cameras: CameraBatch
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The prior's text-conditioned activations for both view sets, under the same noise."""
        if self.true_features is not None:
            source, target = (self.true_features(views.to(self.device)) for views in (cameras, twin_cameras))
            return [source], [target]
        config = self.config.correspondence
        latents = self.encode(torch.cat([images.rgb, twin.rgb]))
        noise = self.draw_noise(latents[: len(latents) // 2])
        timesteps = torch.full((len(latents),), config.timestep, device=self.device)
        noisy = add_noise(latents, torch.cat([noise, noise]), self.prior.alphas_cumprod[config.timestep])
        features = self.prior.features(
            noisy,
            timesteps,
            text=self.text[:1].expand(len(noisy), -1, -1),
            c2w=torch.cat([cameras.c2w, twin_cameras.c2w]),
            blocks=config.feature_blocks,
        )
        halves = [feature.chunk(2) for feature in features]
        return [source for source, _ in halves], [target for _, target in halves]

    def draw_shift(self, batch_size: int) -> Float[Tensor, " B"]:
        """Azimuth from each view to its twin, radians, on the host."""
        config = self.config.correspondence
        low, high = config.shift_range
        match config.shift:
            case "positive_integer":
                shift = torch.randint(int(low), int(high) + 1, (1,), generator=self.generator).expand(batch_size)
            case "signed":
                draws = torch.rand(2, batch_size // self.prior.num_views, generator=self.generator)
                magnitude = low + draws[0] * (high - low)
                signed = torch.where(draws[1] < 0.5, -magnitude, magnitude)
                shift = signed.repeat_interleave(self.prior.num_views)
            case _:
                assert_never(config.shift)
        return torch.deg2rad(shift.float())

    def encode(self, images: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B C h w"]:
        """Latents drawn from the encoder's posterior, as released; a prior without one takes no notice of the noise."""
        side, channels = self.prior.latent_size, self.prior.latent_channels
        noise = torch.randn(len(images), channels, side, side, generator=self.generator)
        return self.prior.encode_images(images, to_device(noise, images.device).to(images))

    def draw_noise(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Standard normal noise from the run's own generator."""
        return to_device(torch.randn(latents.shape, generator=self.generator), latents.device).to(latents)

    def show(self) -> SceneView:
        """The scene as it is now, to be looked at."""
        return SceneView(
            config=self.config, scene=self.scene, marching=self.marching, device=self.device, step=self.step
        )

    def is_last_before_preview(self) -> bool:
        """Whether the next preview comes before the next correspondence step."""
        every = self.config.output.preview_every
        return every > 0 and -(self.step + 1) % every < self.config.correspondence.every

    def write_previews(self, run: RunFolder) -> None:
        """The evaluation views, and the matches of the last correspondence step if there was one since the last."""
        write_picture(run.preview(self.step), preview_sheet(self.preview()))
        if self.match_view is not None:
            shown = self.match_view
            sheet = match_sheet(shown.source, shown.target, shown.matches, shown.errors)
            write_picture(run.matches(self.step), sheet)
            self.match_view = None

    def preview(self) -> RenderOutput:
        """Four evaluation views of the scene as it is."""
        view = self.show()
        return view.render(view.orbit(4, size=self.config.output.preview_size))

    def update(self, loss: Tensor) -> Tensor:
        """Backward and one optimizer step; returns the gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.scene.parameters() if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        # The scaler leaves out such a step and halves its scale: in 16 bits one is no accident, thirty in a row are.
        hopeless = not self.scaler.is_enabled() or self.loss_scale.read() < MIN_LOSS_SCALE
        if hopeless and not bool(torch.isfinite(grad_norm)):  # sync
            raise TrainingDivergedError(
                f"step {self.step}: the gradient is not finite (loss {loss.item():.4g}); lower "
                "guidance.guidance_rescale or guidance.guidance_scale. The last checkpoint is still good."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss_scale = self.copy_loss_scale()
        return grad_norm

    def copy_loss_scale(self) -> HostCopy:
        """The scaler's factor as it is now; the next step reads it, when it has come without waiting."""
        return HostCopy(self.scaler.scale(torch.ones((), device=self.device)))

    def fit(
        self,
        run: RunFolder,
        *,
        seconds: float | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Report:
        """Steps until the run is finished, `seconds` have passed or `should_stop` says so; keeps the folder up to date.

        Checkpoints every `output.checkpoint_every` steps, at the end, and when it was told to stop.
        """
        start = time.monotonic()
        log = MetricsLog(run)
        while not self.finished and (seconds is None or time.monotonic() - start < seconds):
            if should_stop is not None and should_stop():
                log.flush()
                self.save_to(run)
                break
            begun = time.monotonic()
            metrics = self.train_step()
            log.add(self.step, time.monotonic() - begun, metrics)
            output = self.config.output
            if output.preview_every and self.step % output.preview_every == 0:
                self.write_previews(run)
            if self.step % output.checkpoint_every == 0 or self.finished:
                log.flush()
                self.save_to(run)
        log.flush()
        spent = time.monotonic() - start
        return Report(step=self.step, max_steps=self.config.max_steps, seconds=spent, metrics=log.last)

    def save_to(self, run: RunFolder) -> None:
        """Writes this step's checkpoint into the run's folder and drops the oldest."""
        self.save(checkpoint_path(run.checkpoints, self.step))
        prune_checkpoints(run.checkpoints, self.config.output.checkpoint_keep)

    def save(self, path: Path) -> None:
        """Writes everything that the next step depends on."""
        tensors = {f"scene/{name}": value for name, value in self.scene.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors["generator"] = self.generator.get_state()
        info = {
            "config": config_to_dict(self.config),
            "prior": self.prior.fingerprint,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(path, step=self.step, tensors=tensors, info=info)

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes to the checkpoint's step, so that the next step is the one that would have followed."""
        load_scene(self.scene, checkpoint)
        try:
            restore_optimizer(self.optimizer, checkpoint.tensors)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this configuration: {error}") from error
        self.generator.set_state(checkpoint.tensors["generator"])
        if checkpoint.info["scaler"]:  # none where the checkpoint was written in another precision
            self.scaler.load_state_dict(checkpoint.info["scaler"])
            self.loss_scale = self.copy_loss_scale()
        self.step = checkpoint.step


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total loss; each term is looked up by name among the weights."""
    return torch.stack([weights[name] * loss.float() for name, loss in losses.items()]).sum()


def summarize(
    losses: Mapping[str, Tensor],
    loss: Tensor,
    metrics: Mapping[str, Tensor],
    images: RenderOutput,
    settings: StepSettings,
) -> StepMetrics:
    """A step's figures under stable names."""
    tensors = {f"loss/{name}": value for name, value in losses.items()}
    tensors |= {"loss/total": loss, **metrics, "opacity": images.opacity.mean()}
    known = {
        "samples": float(len(images.weights)),
        "guidance/scale": settings.guidance_scale,
        "guidance/rescale": settings.guidance_rescale,
    }
    return StepMetrics(tensors, known)
