"""Training of the built-in prior at a tiny size: what is drawn, the losses, and going on where a call stopped."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corrdream.blocks.shapes import build_shape, pack_shapes
from corrdream.blocks.train import Budget, train
from corrdream.blocks.training import Training, TrainSettings
from corrdream.blocks.training_data import (
    NUM_SETS,
    ObjectStream,
    ViewSets,
    draw_cameras,
    object_loader,
    render_view_sets,
    step_generator,
)
from corrdream.blocks.training_losses import (
    TEMPERATURE,
    StepInput,
    coordinate_loss,
    draw_pairs,
    draw_timesteps,
    match_loss,
    match_targets,
    upsample,
)
from corrdream.blocks.training_report import sample_sheet, validation_losses
from corrdream.blocks.true_features import position_waves
from corrdream.cameras import project
from corrdream.prior.blocks import BlocksPrior, BlocksShape
from corrdream.prior.latents import FOLD

CPU = torch.device("cpu")
SHAPE = BlocksShape(
    latent_size=8,
    channels=(16, 16, 16),
    heads=(1, 1, 1),
    attention=(False, False, True),
    text_width=16,
    text_layers=1,
    norm_groups=4,
)
SETTINGS = TrainSettings(num_objects=2, points_per_pair=16, supersample=1, warmup_steps=5, workers=0)
VIEWS = 4
SIZE = 32


def new_training() -> Training:
    with torch.random.fork_rng(devices=[]):
        return Training(SETTINGS, SHAPE, CPU)


def step_input(training: Training, step: int = 0) -> StepInput:
    stream = ObjectStream(num_objects=2, num_steps=100, seed=0, rank=0, split="train")
    return training.make_input(stream[step], step_generator(0, 0, step, CPU))


def view_sets(size: int = SIZE) -> ViewSets:
    shapes = pack_shapes([build_shape("a red cone on a blue cube"), build_shape("a yellow duck")])
    generator = torch.Generator().manual_seed(0)
    return render_view_sets(shapes, generator, num_views=VIEWS, size=size, supersample=1)


def pairs_of(views: ViewSets, num_points: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return draw_pairs(generator, views.mask, num_views=VIEWS, pairs_per_object=2, num_points=num_points)


def test_twins_differ_in_azimuth_alone_by_10_to_30_degrees() -> None:
    cameras = draw_cameras(torch.Generator().manual_seed(0), 50, VIEWS, SIZE)
    azimuth = torch.rad2deg(cameras.azimuth).reshape(50, NUM_SETS, VIEWS)
    turn = azimuth[:, 1] - azimuth[:, 0]
    assert ((turn.abs() > 10) & (turn.abs() < 30)).all()
    assert (turn < 0).any()
    assert (turn > 0).any()
    torch.testing.assert_close(azimuth.diff(dim=2), torch.full((50, NUM_SETS, 3), 90.0), rtol=0, atol=1e-3)
    for value in (cameras.elevation, cameras.distance, cameras.intrinsics[:, 0, 0]):
        by_object = value.reshape(50, -1)
        assert torch.equal(by_object, by_object[:, :1].expand_as(by_object))


def test_objects_of_a_step_follow_from_its_number() -> None:
    stream = ObjectStream(num_objects=3, num_steps=10, seed=0, rank=0, split="train")
    objects = list(object_loader(stream, first_step=8, num_workers=0))
    assert len(objects) == 2
    assert objects[0].captions == stream[8].captions != stream[9].captions
    assert torch.equal(objects[0].shapes.center, stream[8].shapes.center)
    assert dataclasses.replace(objects[0].shapes).center.shape[0] == 3


def test_both_sets_share_noise_timestep_and_background() -> None:
    training = new_training()
    drawn = step_input(training)
    noise = drawn.noise.reshape(2, NUM_SETS, VIEWS, -1)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert not torch.equal(noise[:, 0, 0], noise[:, 0, 1])
    assert drawn.timesteps.shape == (2,)
    corners = drawn.latents[:, :: FOLD**2, 0, 0].reshape(2, NUM_SETS * VIEWS, 3)
    assert torch.equal(corners, corners[:, :1].expand_as(corners))


def test_timesteps_are_often_zero_and_their_weights_make_up_for_it() -> None:
    count = 200_000
    timesteps, weight = draw_timesteps(torch.Generator().manual_seed(0), count, feature_share=0.4)
    assert 0.19 < (timesteps == 0).float().mean() < 0.21
    assert weight.mean().item() == pytest.approx(1.0, abs=0.01)
    # Weighted, the expectation is that of the uniform distribution.
    assert (weight * timesteps).mean().item() == pytest.approx(499.5, rel=0.01)


def test_upsampling_is_torch_s_bicubic_interpolation() -> None:
    feature = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(feature, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(upsample(feature, 16), expected, rtol=0, atol=1e-5)


def test_pairs_are_equal_views_of_the_two_sets_and_sources_lie_on_the_object() -> None:
    views = view_sets()
    source, target, pixel = pairs_of(views)
    assert source.shape == target.shape == (4,)
    assert (source // (NUM_SETS * VIEWS) == target // (NUM_SETS * VIEWS)).all()
    assert (source % VIEWS == target % VIEWS).all()
    assert (source // VIEWS != target // VIEWS).all()
    assert views.mask[source].flatten(1).gather(1, pixel).all()


def test_soft_targets_lie_where_the_surface_point_is_seen() -> None:
    views = view_sets(size=32)
    source, target, pixel = pairs_of(views)
    distribution, visible = match_targets(views.mask, views.position, source, target, pixel)
    torch.testing.assert_close(distribution.sum(-1)[visible], torch.ones(int(visible.sum())))
    assert 0.3 < visible.float().mean() < 1
    points = views.position[source].flatten(1, 2).gather(1, pixel[..., None].expand(-1, -1, 3))
    cameras = views.cameras
    each = target.repeat_interleave(pixel.shape[1])
    xy, _ = project(points.flatten(0, 1), cameras.c2w[each], cameras.intrinsics[each])
    place = torch.stack([torch.arange(32 * 32) % 32, torch.arange(32 * 32) // 32], dim=-1) + 0.5
    mean_xy = (distribution[..., None] * place).sum(2).flatten(0, 1)
    gaps = (mean_xy - xy).norm(dim=-1)[visible.flatten()]
    assert gaps.median() < 0.6
    assert (gaps < 1.5).float().mean() > 0.9


def test_match_loss_is_the_cross_entropy_of_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 4, 4, generator=generator)
    distribution = torch.rand(1, 3, 16, generator=generator)
    distribution /= distribution.sum(-1, keepdim=True)
    weight = torch.tensor([[0.5, 0.2, 0.0]])
    pixel = torch.tensor([[0, 5, 9]])
    actual = match_loss(feature, distribution, weight, torch.tensor([0]), torch.tensor([1]), pixel)
    expected = 0.0
    for index in range(3):
        point = feature[0].flatten(1)[:, pixel[0, index]]
        logits = torch.stack(
            [F.cosine_similarity(point, other, dim=0) / TEMPERATURE for other in feature[1].flatten(1).T]
        )
        expected = expected - weight[0, index] * (distribution[0, index] * logits.log_softmax(0)).sum()
    torch.testing.assert_close(actual, expected)


def test_features_that_know_the_surface_point_match_best() -> None:
    views = view_sets()
    pairs = pairs_of(views)
    distribution, visible = match_targets(views.mask, views.position, *pairs)
    weight = visible.float() / visible.sum()
    knowing = position_waves(views.position)
    random = torch.randn(knowing.shape, generator=torch.Generator().manual_seed(1))
    good, bad = (match_loss(feature, distribution, weight, *pairs) for feature in (knowing, random))
    assert good < bad / 2


def test_coordinate_loss_vanishes_for_the_truth_and_counts_whole_cells_only() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    mask[:, 1, 3] = False
    position = torch.full((1, 4, 4, 3), 0.5)
    predicted = torch.full((1, 3, 2, 2), 100.0)
    predicted[:, :, 0, 0] = 0.5  # the one cell that lies wholly on the object
    assert coordinate_loss(predicted, mask, position, torch.ones(1)) == 0
    predicted[:, 0, 0, 0] = 1.5
    expected = 1.0 - 0.05 / 2  # Huber's, linear beyond 0.05
    assert coordinate_loss(predicted, mask, position, torch.ones(1)).item() == pytest.approx(expected)


def test_losses_fall_on_one_batch() -> None:
    training = new_training()
    drawn = step_input(training)
    losses = [training.train_step(drawn, progress=0.0) for _ in range(50)]
    for name in ("diffusion", "match", "coordinate"):
        assert getattr(losses[-1], name) < 0.8 * getattr(losses[0], name), name


def test_a_resumed_training_equals_one_that_went_through(tmp_path: Path) -> None:
    through, first, resumed = new_training(), new_training(), new_training()
    for step in range(3):
        through.train_step(step_input(through, step), progress=step / 3)
    for step in range(2):
        first.train_step(step_input(first, step), progress=step / 3)
    first.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.step == 2
    resumed.train_step(step_input(resumed, 2), progress=2 / 3)
    for ours, theirs in ((resumed.model.state_dict(), through.model.state_dict()), (resumed.average, through.average)):
        for name, weight in theirs.items():
            assert torch.equal(ours[name], weight), name


def test_a_training_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first, second = new_training(), new_training()
    first.train_step(step_input(first), progress=0.0)
    first.save(tmp_path)
    second.start_from(tmp_path / "blocks.safetensors")
    assert second.step == 0
    for name, weight in second.model.networks.state_dict().items():
        torch.testing.assert_close(weight, first.average[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(second.average[name], weight), name


def test_same_seed_same_weights() -> None:
    one, other = new_training(), new_training()
    for training in (one, other):
        train(training, Budget(steps=2), start=time.monotonic())
    for name, weight in one.average.items():
        assert torch.equal(weight, other.average[name]), name


def test_saved_weights_are_the_averaged_ones_and_sample(tmp_path: Path) -> None:
    training = new_training()
    train(training, Budget(steps=2), start=time.monotonic())
    training.save(tmp_path)
    prior = BlocksPrior.load(path=tmp_path / "blocks.safetensors")
    for name, weight in prior._networks.state_dict().items():
        torch.testing.assert_close(weight, training.average[name], rtol=1e-3, atol=1e-4)
    sheet = sample_sheet(prior, ("a red cube", "a snowman"), num_steps=2)
    assert sheet.shape == (SIZE, 2 * VIEWS * SIZE, 3)


def test_report_tells_losses_by_timestep_and_leaves_the_training_alone() -> None:
    training = new_training()
    before = {name: weight.clone() for name, weight in training.model.state_dict().items()}
    rows = validation_losses(training)
    assert [row["timestep"] for row in rows] == [0, 20, 100, 250, 500, 750, 950]
    assert all(row["diffusion"] > 0 for row in rows)
    for name, weight in training.model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_budget_of_minutes_stops_calls_and_ends_with_their_sum() -> None:
    budget = Budget(minutes=9.0, total_minutes=18.0)
    assert budget.progress(step=5, elapsed_minutes=9.0) == 0.5
    assert budget.is_spent(step=5, call_minutes=9.0, elapsed_minutes=9.0)
    assert not budget.is_spent(step=5, call_minutes=8.0, elapsed_minutes=17.0)
    assert budget.is_spent(step=5, call_minutes=8.0, elapsed_minutes=18.0)
