"""Sweep folders with small data, as trials would have left them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

import corrdream
from corrdream.artifacts import RunFolder, write_json, write_picture
from sweeps.folders import PlannedTrial, Status, Sweep, SweepFolder, create_sweep, write_status

RESCALE = "guidance.guidance_rescale"
LABELS = ("0", "0.3", "0.5", "0.7")
STEPS = {"0": 320, "0.5": 80}  # of the trial that is killed, and of one that finishes before the driver is killed
WINDOW = (40, 310)  # whose even steps are correspondence steps


def plan_sweep(
    name: str, *, prompts: tuple[str, ...], seeds: tuple[int, ...], labels: tuple[str, ...] = LABELS
) -> Sweep:
    """A sweep over the rescale factor; identities are made up."""
    base = corrdream.load_config((), [f"prompt={prompts[0]}", "max_steps=40"])
    trials = []
    for seed in seeds:
        for prompt in prompts:
            for label in labels:
                guidance = dataclasses.replace(base.guidance, guidance_rescale=float(label))
                config = dataclasses.replace(base, prompt=prompt, seed=seed, guidance=guidance)
                trial_name = f"rescale={label}_{prompt.replace(' ', '-')}_seed={seed}"
                trials.append(
                    PlannedTrial(
                        name=trial_name,
                        labels={RESCALE: label},
                        prompt=prompt,
                        seed=seed,
                        identity=trial_name,
                        config=corrdream.config_to_dict(config),
                    )
                )
    return Sweep(
        name=name,
        grid="rescale",
        created="2026-01-01T00:00:00Z",
        commands=[["sweeps/run.py", "--grid", "rescale"]],
        options={"grid": "rescale", "config": None, "prompts": None, "seeds": None, "max_steps": None, "overrides": []},
        metric="viou_solid",
        mode="max",
        default={RESCALE: "0.5"},
        trials=tuple(trials),
        base=corrdream.config_to_dict(base),
        versions={"corrdream": "0.1.0"},
        fingerprints={"sources": "0123", "prior": "4567", "weights": ""},
    )


def finish_trial(folder: SweepFolder, trial: PlannedTrial, *, viou: float, seconds: float = 80.0) -> None:
    """What a finished trial leaves: grade, metrics, pictures, status."""
    path = folder.trial(trial.name)
    grade = {"viou_solid": viou, "silhouette_iou": viou + 0.1, "dent_error": 0.02, "color_error": 8.0}
    grade |= {"saturation_ratio": 1.1, "floaters": None}
    run = RunFolder(path)
    write_json(run.grade, grade)
    quality = {"hull_gap": 0.05, "floater_share": 0.0, "fuzziness": 0.2, "saturation_distance": 0.1}
    skipped = {"adjacent_lpips": "needs lpips <which is not here>", "consistency_error": "needs timm"}
    write_json(run.quality, quality | {"contrast_ratio": 0.9, "peak_memory_gb": 1.5, "skipped": skipped})
    generator = np.random.default_rng(trial.seed)
    for step in range(1, 41):
        row = {"step": float(step), "loss/sds": 10 / step + generator.normal(0, 0.1), "opacity": step / 80}
        run.append_metrics(row | ({"correspondence/residual": 40.0 / step} if step % 4 == 0 else {}))
    for name in ("turntable", "normals"):
        write_picture(path / f"{name}.png", draw_strip(viou, trial.seed + len(trial.prompt)))
    write_status(
        path, Status(identity=trial.identity, state="finished", step=40, max_steps=40, seconds=seconds, attempts=1)
    )


def draw_strip(radius: float, hue: int) -> np.ndarray:
    """Eight disks on white."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    color = np.array([[200, 60, 40], [40, 90, 200], [60, 160, 70]], np.uint8)[hue % 3]
    disk = np.where((x**2 + y**2 < radius**2)[..., None], color, np.uint8(255)).astype(np.uint8)
    return np.concatenate([disk] * 8, axis=1)


def write_sweep(path: Path, *, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[SweepFolder, Sweep]:
    """A finished sweep in which 0.7 is best, but for one failed trial and one that was never started."""
    folder = SweepFolder(path)
    sweep = plan_sweep(path.name, prompts=prompts, seeds=seeds)
    create_sweep(folder, sweep)
    generator = np.random.default_rng(0)
    spread = {prompt: generator.normal(0, 0.1) for prompt in prompts}
    for trial in sweep.trials[:-2]:
        effect = 0.1 * float(trial.labels[RESCALE])
        finish_trial(folder, trial, viou=0.6 + effect + spread[trial.prompt] + generator.normal(0, 0.005))
    failed = sweep.trials[-2]
    status = Status(identity=failed.identity, state="failed", step=7, max_steps=40, attempts=1, error="diverged <at> 7")
    write_status(folder.trial(failed.name), status)
    return folder, sweep


def read_json(path: Path) -> dict[str, object]:
    plain = json.loads(path.read_text())
    assert isinstance(plain, dict)
    return plain


def tiny_overrides(prior: Path, **changes: Any) -> dict[str, Any]:
    """The smallest run of the real parts, some 25 ms a step: the tiny prior, 16 px, a coarse grid."""
    return {
        "prompt": "a snowman",
        "prior.checkpoint": str(prior),
        "cameras.resolution": 16,
        "rendering.num_samples_per_ray": 16,
        "field.dense_grid.resolutions": [8],
        "correspondence.feature_blocks": [1],
        "output.checkpoint_every": 2,
        "output.video": False,
    } | changes


def blob_overrides(prior: Path) -> dict[str, Any]:
    """The smallest run whose first field is a solid blob."""
    return tiny_overrides(prior, **{"prompt": "snowman red", "device": "cpu", "field.density_blob_scale": 400})


def write_grid(folder: Path, prior: Path, **changes: Any) -> Path:
    base = tiny_overrides(prior) | {"output.checkpoint_every": 10}
    base["correspondence.window"] = {"steps": list(WINDOW)}
    del base["prompt"]
    choices = [
        {"label": label, "set": {RESCALE: float(label), "max_steps": steps, "schedule_steps": STEPS["0"]}}
        for label, steps in STEPS.items()
    ]
    plain = {"parameters": {RESCALE: choices}, "prompts": ["a snowman"], "overrides": base}
    (folder / "base.yaml").write_text("device: cpu\n")
    path = folder / "small.yaml"
    path.write_text(OmegaConf.to_yaml({"config": "base.yaml", "seeds": [0]} | plain | changes))
    return path
