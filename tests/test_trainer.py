"""The step and the loop: what they change, what they leave alone, and how they fail."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from corrdream.artifacts import RunFolder
from corrdream.camera_sampling import sample_multiview_cameras
from corrdream.cameras import shift_azimuth
from corrdream.checkpoint import load_checkpoint, valid_checkpoints
from corrdream.config import CorrespondenceConfig, load_config
from corrdream.diffusion import add_noise
from corrdream.engine import build
from corrdream.prior.blocks import BlocksPrior
from corrdream.settings import settings_at
from corrdream.trainer import MIN_LOSS_SCALE, Trainer, TrainingDivergedError
from tests.sweep_folders import tiny_overrides

MATCH_ALL = {  # a random prior and a blob: only without filters is there a match
    "correspondence.window": {"steps": [0, 100]},
    "correspondence.every": 1,
    "correspondence.opacity_threshold": -1.0,
    "correspondence.epipolar_threshold": 1e6,
}
HASH_GRID = {
    "field.encoding": "hash_grid",
    "field.normal": "analytic",
    "field.hash_grid.num_levels": 4,
    "field.hash_grid.log2_table_size": 12,
    "background.kind": "network",
    "background.random_prob": 0.5,
}


@pytest.fixture(scope="module")
def prior(tiny_prior_file: Path) -> BlocksPrior:
    return BlocksPrior.load(path=tiny_prior_file)


@pytest.fixture
def make(prior: BlocksPrior, tiny_prior_file: Path):
    def make(**overrides: Any) -> Trainer:
        changes = {"max_steps": 8, "device": "cpu"} | overrides
        return build(load_config((), tiny_overrides(tiny_prior_file, **changes)), prior=prior)

    return make


def correspondence_choices() -> list[tuple[str, str]]:
    hints = get_type_hints(CorrespondenceConfig)
    return [(name, choice) for name, hint in hints.items() if get_origin(hint) is Literal for choice in get_args(hint)]


def test_a_step_changes_the_scene_and_says_so(make) -> None:
    trainer = make()
    before = {name: value.clone() for name, value in trainer.scene.named_parameters()}
    metrics = trainer.train_step()
    assert trainer.step == 1
    assert any(not torch.equal(before[name], value) for name, value in trainer.scene.named_parameters())
    assert {"loss/sds", "loss/total", "grad_norm", "guidance/timestep", "opacity", "samples"} <= metrics.keys()
    assert metrics["loss/total"] == pytest.approx(metrics["loss/sds"])


def test_the_same_seed_gives_the_same_steps_and_another_one_others(make) -> None:
    losses = [[make(seed=seed).train_step()["loss/total"] for _ in range(2)] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_training_lowers_the_loss_that_it_is_given(make) -> None:
    only_sparsity = {"correspondence.enabled": False, "loss_weights.sds": 0.0, "loss_weights.sparsity": 1.0}
    trainer = make(**only_sparsity, **{"max_steps": 30, "optimizer.encoding_lr": 0.5})
    losses = [trainer.train_step()["loss/total"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_the_prior_is_not_trained(make, prior: BlocksPrior) -> None:
    before = {name: value.clone() for name, value in prior._networks.state_dict().items()}
    trainer = make(**MATCH_ALL | {"correspondence.every": 2})
    for _ in range(4):
        trainer.train_step()
    for name, value in prior._networks.state_dict().items():
        assert torch.equal(before[name], value), name
    assert all(parameter.grad is None for parameter in prior._networks.parameters())
    assert not any("network" in name and "prior" in name for name in trainer.scene.state_dict())


def test_correspondence_steps_replace_distillation_inside_the_window_only(make) -> None:
    trainer = make(**MATCH_ALL | {"correspondence.window": {"steps": [2, 6]}, "correspondence.every": 2})
    steps = [trainer.train_step() for _ in range(8)]
    assert ["loss/correspondence" in metrics for metrics in steps] == [
        False,
        False,
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert all(("loss/sds" in metrics) != ("loss/correspondence" in metrics) for metrics in steps)


def test_without_correspondence_every_step_distills(make) -> None:
    trainer = make(**MATCH_ALL | {"correspondence.enabled": False})
    assert all("loss/sds" in trainer.train_step() for _ in range(3))


@pytest.mark.parametrize(("name", "choice"), correspondence_choices())
def test_every_choice_of_the_correspondence_loss_takes_a_step(make, name: str, choice: str) -> None:
    trainer = make(**MATCH_ALL | {f"correspondence.{name}": choice})
    before = [parameter.clone() for parameter in trainer.scene.field.parameters()]
    metrics = trainer.train_step()
    assert metrics["correspondence/matches"] > 0
    assert metrics["grad_norm"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.scene.field.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_the_run_with_step_and_cure(make) -> None:
    trainer = make(**{"guidance.guidance_scale": {"steps": [0, 1], "values": [7.5, 1e300], "interpolate": "hold"}})
    trainer.train_step()
    before = [parameter.clone() for parameter in trainer.scene.parameters()]
    with pytest.raises(TrainingDivergedError, match=r"step 1: the gradient is not finite.*guidance\.guidance_rescale"):
        trainer.train_step()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.scene.parameters(), strict=True))


def test_half_precision_leaves_out_a_step_but_not_every_step(make) -> None:
    trainer = make(precision="float16")
    # As after thirty steps whose gradient was not finite.
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": MIN_LOSS_SCALE})
    before = [parameter.clone() for parameter in trainer.scene.parameters()]

    def diverge() -> None:
        trainer.update(torch.stack([parameter.sum() for parameter in trainer.scene.parameters()]).sum() * math.inf)

    diverge()
    assert trainer.scaler.get_scale() == MIN_LOSS_SCALE / 2
    with pytest.raises(TrainingDivergedError, match=r"step 0: the gradient is not finite"):
        diverge()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.scene.parameters(), strict=True))


def test_a_checkpoint_fits_another_precision(make, tmp_path: Path) -> None:
    trainer = make()
    trainer.train_step()
    trainer.save(tmp_path / "step-000001.safetensors")
    half = make(precision="float16")
    half.load(load_checkpoint(tmp_path / "step-000001.safetensors"))
    assert half.step == 1
    assert half.scaler.get_scale() == 2.0**16


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, HASH_GRID], ids=["dense grid", "hash grid"])
def test_the_first_steps_on_a_gpu_are_those_on_a_cpu(make, tiny_prior_file: Path, changes: dict[str, Any]) -> None:
    gpu = torch.device("cuda")
    changes = MATCH_ALL | {"correspondence.every": 2, "loss_weights.orientation": 0.1} | changes
    on_gpu = load_config((), tiny_overrides(tiny_prior_file, **{"max_steps": 8, "device": "cuda"} | changes))
    trainers = make(**changes), build(on_gpu, prior=BlocksPrior.load(gpu, path=tiny_prior_file))
    for step in range(4):
        cpu, cuda = (trainer.train_step() for trainer in trainers)
        assert cpu["guidance/scale"] == cuda["guidance/scale"]
        assert cpu.keys() == cuda.keys()
        assert cuda["samples"] == pytest.approx(cpu["samples"], rel=1e-2)
        # The same cameras, lights and noise; then AdamW turns rounding into signs where a gradient is almost zero.
        assert cuda["loss/total"] == pytest.approx(cpu["loss/total"], rel=1e-3 if step == 0 else 3e-2), step


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precision_trains_on_a_gpu(tiny_prior_file: Path, tmp_path: Path, precision: str) -> None:
    overrides = {"device": "cuda", "precision": precision, "max_steps": 6, "output.preview_every": 3}
    config = load_config((), tiny_overrides(tiny_prior_file, **MATCH_ALL | {"correspondence.every": 2} | overrides))
    run = RunFolder(tmp_path)
    trainer = build(config, prior=BlocksPrior.load(torch.device("cuda"), path=tiny_prior_file))
    trainer.fit(run)
    assert all(math.isfinite(row["loss/total"]) for row in run.read_metrics())
    assert run.preview(6).is_file()
    resumed = build(config, prior=trainer.prior)
    resumed.load(next(valid_checkpoints(run.checkpoints)))
    assert resumed.step == 6
    assert resumed.scaler.state_dict() == trainer.scaler.state_dict()
    state = trainer.scene.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.scene.state_dict().items())


@pytest.mark.gpu("tinycudann", "nerfacc")
def test_a_checkpoint_of_one_backend_continues_on_the_other(tiny_prior_file: Path, tmp_path: Path) -> None:
    prior = BlocksPrior.load(torch.device("cuda"), path=tiny_prior_file)
    fast = {"field.backend": "tinycudann", "rendering.backend": "nerfacc"}
    slow = {"field.backend": "torch", "rendering.backend": "torch"}

    def trainer(backends: dict[str, str]) -> Trainer:
        changes = {"device": "cuda", "max_steps": 8} | HASH_GRID | backends
        return build(load_config((), tiny_overrides(tiny_prior_file, **changes)), prior=prior)

    first = trainer(fast)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "step-000003.safetensors")
    losses = []
    for backends in (fast, slow):
        continued = trainer(backends)
        continued.load(load_checkpoint(tmp_path / "step-000003.safetensors"))
        losses.append(continued.train_step()["loss/total"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_fewer_rays_at_a_time_change_no_result(make) -> None:
    whole, chunked = make(**MATCH_ALL), make(**MATCH_ALL)
    chunked.ray_chunk = 100
    for step in range(3):
        first, second = whole.train_step(), chunked.train_step()
        assert second["samples"] == pytest.approx(first["samples"], rel=1e-3)
        assert second["loss/total"] == pytest.approx(first["loss/total"], rel=1e-4 if step == 0 else 1e-2)
        if step == 0:  # later, AdamW has turned rounding into signs where a gradient is almost zero
            for one, other in zip(whole.scene.parameters(), chunked.scene.parameters(), strict=True):
                if one.grad is not None:
                    torch.testing.assert_close(other.grad, one.grad, atol=1e-4 * float(one.grad.abs().max()), rtol=1e-3)


def test_matches_are_drawn_with_the_preview_that_follows_them(make, tmp_path: Path) -> None:
    trainer = make(**MATCH_ALL | {"correspondence.every": 2, "output.preview_every": 3, "max_steps": 6})
    trainer.fit(RunFolder(tmp_path))
    # Steps 0, 2 and 4 are correspondence steps: the last before the previews after 3 and 6 steps are 2 and 4.
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        "matches-000003.png",
        "matches-000006.png",
        "step-000003.png",
        "step-000006.png",
    ]
    assert trainer.match_view is None


def test_no_picture_is_kept_when_none_is_due(make) -> None:
    trainer = make(**MATCH_ALL | {"output.preview_every": 0})
    trainer.train_step()
    assert trainer.match_view is None


def test_the_loop_stops_when_told_and_leaves_a_checkpoint(make, tmp_path: Path) -> None:
    trainer = make()
    run = RunFolder(tmp_path)
    report = trainer.fit(run, should_stop=lambda: trainer.step >= 3)
    assert (report.step, report.finished) == (3, False)
    assert (run.checkpoints / "step-000003.safetensors").is_file()
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]


def test_settings_follow_the_schedules() -> None:
    config = load_config(
        (),
        {
            "prompt": "a snowman",
            "max_steps": 100,
            "cameras.resolution": {"steps": [0, 60], "values": [32, 64], "interpolate": "hold"},
            "guidance.guidance_scale": {"progress": [0.5, 1.0], "values": [50.0, 10.0]},
            "guidance.guidance_rescale": 0.3,
            "guidance.min_timestep": {"progress": [0.0, 0.5], "values": [0.9, 0.1]},
            "guidance.max_timestep": 0.9,
            "correspondence.window": {"steps": [40, 60]},
            "correspondence.every": 4,
        },
    )
    table = {  # step: resolution, guidance scale, timesteps, correspondence
        0: (32, 50.0, (900, 900), False),
        25: (32, 50.0, (500, 900), False),
        40: (32, 50.0, (260, 900), True),
        42: (32, 50.0, (228, 900), False),
        59: (32, 42.8, (100, 900), False),
        60: (64, 42.0, (100, 900), False),
        100: (64, 10.0, (100, 900), False),
    }
    for step, (resolution, scale, timesteps, is_correspondence) in table.items():
        settings = settings_at(config, step, 4)
        assert settings.cameras.resolution == resolution, step
        assert settings.guidance_scale == pytest.approx(scale), step
        assert settings.guidance_rescale == 0.3
        assert settings.timestep_range == pytest.approx(timesteps, abs=1), step
        assert settings.is_correspondence_step == is_correspondence, step
        assert settings.loss_weights.keys() == {field.name for field in dataclasses.fields(config.loss_weights)}


def test_features_of_both_view_sets_are_those_of_two_whole_calls(make) -> None:
    trainer = make(**MATCH_ALL)
    prior, config = trainer.prior, trainer.config.correspondence
    settings = settings_at(trainer.config, 0, prior.num_views)
    cameras, lights = sample_multiview_cameras(settings.cameras, trainer.generator)
    twin_cameras, twin_lights = shift_azimuth(cameras, lights, torch.full((len(cameras.c2w),), 0.3))
    look = trainer.draw_look(settings)
    images, twin = trainer.render(cameras, lights, look), trainer.render(twin_cameras, twin_lights, look)
    state = trainer.generator.get_state()
    source, target = trainer.twin_features(images, twin, cameras, twin_cameras)
    trainer.generator.set_state(state)
    sets = trainer.encode(torch.cat([images.rgb, twin.rgb])).detach().chunk(2)
    noise = trainer.draw_noise(sets[0])
    for latents, poses, ours in zip(sets, (cameras.c2w, twin_cameras.c2w), (source, target), strict=True):
        noisy = add_noise(latents, noise, prior.alphas_cumprod[config.timestep])
        whole = prior.predict_noise(
            torch.cat([noisy, noisy]),
            torch.full((2 * len(noisy),), config.timestep),
            text=trainer.text.repeat_interleave(len(noisy), dim=0),
            c2w=torch.cat([poses, poses]),
            feature_blocks=config.feature_blocks,
        )
        for mine, both_halves in zip(ours, whole.features, strict=True):
            assert not mine.requires_grad
            expected = both_halves[: len(noisy)]
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("choices", "most"),
    [
        ({}, 5),  # rays, lattice, cells, visible samples; finite gradient
        (MATCH_ALL, 13),  # the first four twice; opaque pixels and their rows, both ways; finite gradient
    ],
)
def test_host_waits_for_the_gpu_only_where_sampling_and_the_figures_need_it(
    tiny_prior_file: Path, choices: dict[str, Any], most: int
) -> None:
    overrides = {"max_steps": 8, "device": "cuda", "rendering.backend": "torch"} | choices
    trainer = build(load_config((), tiny_overrides(tiny_prior_file, **overrides)))
    for _ in range(3):  # what happens once: compilation, occupancy
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{wait.filename}:{wait.lineno}" for wait in waits if "synchroniz" in str(wait.message)]
    assert len(places) <= most, places
