"""What to say and to do when a GPU's memory is full: peak figures, whether floaters filled it, a smaller ray chunk."""

import torch

from corrdream.artifacts import RunFolder
from corrdream.metrics import floater_share
from corrdream.settings import settings_at
from corrdream.trainer import Trainer

FEWER = 4  # times fewer rays at a time after the memory ran out
FLOATING = 0.05  # share of the occupied volume apart from the object that counts as the failure
GROWN = 2.0  # times more samples a step than in the run's first steps
FIRST_ROWS = 20
LOWER_RESCALE = 0.3  # what the method's authors suggest


def smaller_ray_chunk(trainer: Trainer) -> int:
    """A quarter of the rays that were rendered at a time; results stay the same to rounding."""
    cameras = settings_at(trainer.config, trainer.step, trainer.prior.num_views).cameras
    return max(1, (trainer.ray_chunk or cameras.batch_size * cameras.resolution**2) // FEWER)


def explain_out_of_memory(trainer: Trainer, run: RunFolder) -> str:
    """One line: where, the peak, and floaters if there are any, with the cure."""
    rays = f"{trainer.ray_chunk} rays" if trainer.ray_chunk else "all rays"
    return (
        f"out of memory at step {trainer.step} with {rays} at a time{_peak(trainer.device)}.{_floaters(trainer, run)}"
    )


def _peak(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    gib = 2**30
    peak, reserved = torch.cuda.max_memory_allocated(device) / gib, torch.cuda.max_memory_reserved(device) / gib
    total = torch.cuda.get_device_properties(device).total_memory / gib
    return f" (peak {peak:.2f} GiB allocated, {reserved:.2f} GiB reserved of {total:.2f} GiB)"


def _floaters(trainer: Trainer, run: RunFolder) -> str:
    """A large guidance rescale can fill the scene with floating noise, whose samples fill the memory."""
    share = floater_share(trainer.scene.occupancy.binary)
    samples = [row["samples"] for row in run.read_metrics() if "samples" in row]
    first = sorted(samples[:FIRST_ROWS])[len(samples[:FIRST_ROWS]) // 2] if samples else 0.0
    rescale = settings_at(trainer.config, trainer.step, trainer.prior.num_views).guidance_rescale
    has_grown = bool(samples) and samples[-1] > GROWN * first
    if share is None or (share < FLOATING and not has_grown):
        return ""
    grown = f" and samples a step grew from {first:.0f} to {samples[-1]:.0f}" if has_grown else ""
    cure = f"try {LOWER_RESCALE}" if rescale > LOWER_RESCALE else "try 0"
    return (
        f" {share:.0%} of the occupied volume floats apart from the object{grown}: floating noise, which a large "
        f"guidance.guidance_rescale ({rescale:g} here) can cause; {cure}."
    )
