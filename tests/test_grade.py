import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdream.blocks.grade import DESCRIPTIONS, Grade, format_grade, grade_field
from corrdream.blocks.grammar import CaptionError
from corrdream.blocks.observe import RESOLUTION, VolumeMarching, held_out_cameras
from corrdream.blocks.shapes import build_shape, pack_shapes, signed_distance, surface_attributes
from corrdream.blocks.truth import true_shape
from corrdream.cameras import camera_rays
from corrdream.field import DenseGrid, RadianceField
from corrdream.structures import FieldOutput

VOXEL = 2 / RESOLUTION
WALL = 0.1 * VOXEL  # softness of an analytic field's surface
CUBE = "a blue cube with a yellow dot"
SNOWMAN = "a snowman"


class AnalyticField:
    """A caption's true shape as a field: opacity one half at the surface; geometry and colors can be broken."""

    def __init__(
        self,
        caption: str,
        bend: Callable[[Tensor, Tensor], Tensor] = lambda distance, points: distance,
        paint: Callable[[Tensor, Tensor], Tensor] = lambda albedo, points: albedo,
        move: Callable[[Tensor], Tensor] = lambda points: points,
    ) -> None:
        self.packed = pack_shapes([build_shape(caption)])
        self.bend, self.paint, self.move = bend, paint, move

    def density(self, points: Tensor) -> Tensor:
        distance = signed_distance(self.packed, self.move(points)[None])[0]
        return F.softplus(-self.bend(distance, points) / WALL) / VOXEL

    def __call__(self, points: Tensor, *, with_normal: bool) -> FieldOutput:
        albedo = surface_attributes(self.packed, self.move(points)[None])[0][0]
        return FieldOutput(density=self.density(points), albedo=self.paint(albedo, points), normal=None)


def ball(points: Tensor, center: tuple[float, float, float], radius: float) -> Tensor:
    return (points - torch.tensor(center)).norm(dim=-1) - radius


def carve(caption: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Dents: eight balls taken out of what training cameras see of the lower half."""
    seen = true_shape(caption).trained_points
    centers = np.random.default_rng(0).choice(seen[seen[:, 2] < 0], 8)

    def bend(distance: Tensor, points: Tensor) -> Tensor:
        for center in centers:
            distance = torch.maximum(distance, -ball(points, tuple(center.tolist()), 0.12))
        return distance

    return bend


def add_floaters(distance: Tensor, points: Tensor) -> Tensor:
    corners = [(x, y, z) for x in (-0.88, 0.88) for y in (-0.88, 0.88) for z in (-0.88, 0.88)]
    return torch.stack([distance, *(ball(points, corner, 0.1) for corner in corners)]).amin(dim=0)


def hollow(distance: Tensor, points: Tensor) -> Tensor:
    return torch.maximum(distance, -(distance + 4 * VOXEL))


def second_face(albedo: Tensor, points: Tensor) -> Tensor:
    """The front's dot once more, on the back."""
    mark = (points[:, 0] < 0) & (points[:, 1:].norm(dim=-1) < 0.25)
    return torch.where(mark[:, None], torch.tensor((0.97, 0.88, 0.12)), albedo)


# What may change of a clean grade without anything being wrong with what the metric looks at.
NOISE = {
    "viou_solid": 0.01, "viou_raw": 0.01, "viou_best_yaw": 0.01, "viou_best_threshold": 0.01, "best_yaw_deg": 0.0,
    "silhouette_iou": 0.01, "chamfer": 1e-3, "f_1": 0.01, "f_2": 0.01,
    "depth_error": 1e-3, "depth_far_share": 0.01, "normal_error": 0.5,
    "dent_error": 5e-4, "dent_share": 0.003, "bulge_error": 5e-4, "hull_deficit": 0.005, "floaters": 1e-3,
    "color_error": 0.3, "color_error_median": 0.1, "attribute_accuracy": 0.0,
    "saturation_ratio": 0.02, "saturation_shift": 0.01, "clipped_share": 0.0, "janus_regions": 0.0,
    "shape_retrieved": 0.0,
}  # fmt: skip

SHAPE = {"viou_solid", "viou_raw", "viou_best_yaw", "viou_best_threshold", "chamfer", "f_1", "f_2"}
LOOKS = {"silhouette_iou", "depth_error", "depth_far_share", "normal_error"}


@dataclasses.dataclass(frozen=True)
class Broken:
    caption: str
    moves: dict[str, float]  # by at least this much, with its sign
    may_follow: set[str]  # metrics that see the same fault
    bend: Callable[[str], Callable[[Tensor, Tensor], Tensor]] = lambda caption: lambda distance, points: distance
    paint: Callable[[Tensor, Tensor], Tensor] = lambda albedo, points: albedo


BROKEN = {
    # cuts show the color of the part behind them, and floaters hide some of the object
    "dents": Broken(SNOWMAN, {"dent_error": 0.003, "dent_share": 0.05}, SHAPE | LOOKS | {"color_error"}, carve),
    "dents in a convex shape": Broken(
        CUBE, {"dent_error": 0.002, "hull_deficit": 0.011}, SHAPE | LOOKS | {"dent_share"}, carve
    ),
    "floaters": Broken(
        SNOWMAN, {"floaters": 0.1}, SHAPE | LOOKS | {"color_error", "saturation_ratio", "saturation_shift"},
        lambda caption: add_floaters,
    ),
    "swelling": Broken(
        SNOWMAN, {"bulge_error": 0.01, "viou_solid": -0.1},
        SHAPE | LOOKS | {"floaters", "color_error", "saturation_ratio", "saturation_shift"},
        lambda caption: lambda distance, points: distance - 1.8 * VOXEL,
    ),
    "a hollow interior": Broken(SNOWMAN, {"viou_raw": -0.2}, {"viou_best_threshold"}, lambda caption: hollow),
    "shifted colors": Broken(
        SNOWMAN, {"color_error": 3, "color_error_median": 3}, {"saturation_ratio", "saturation_shift"},
        paint=lambda albedo, points: albedo * 0.9,
    ),
    "swapped colors": Broken(
        CUBE, {"color_error": 20, "attribute_accuracy": -0.9},
        {"color_error_median", "saturation_ratio", "saturation_shift", "janus_regions"},
        paint=lambda albedo, points: albedo.roll(1, dims=-1),
    ),
    "oversaturation": Broken(
        CUBE, {"saturation_ratio": 0.1, "saturation_shift": 0.1, "clipped_share": 0.5},
        {"color_error", "color_error_median"}, paint=lambda albedo, points: ((albedo - 0.45) * 1.5 + 0.45).clamp(0, 1),
    ),
    "a second face": Broken(CUBE, {"janus_regions": 1}, {"color_error", "saturation_ratio"}, paint=second_face),
}  # fmt: skip

_clean: dict[str, Grade] = {}


def clean(caption: str) -> Grade:
    if caption not in _clean:
        _clean[caption] = grade_field(AnalyticField(caption), caption)
    return _clean[caption]


@pytest.mark.parametrize("caption", [SNOWMAN, CUBE, "a mug"])
def test_perfect_field_gets_the_best_of_every_measure(caption):
    grade = clean(caption)
    assert grade.viou_solid > 0.995
    assert grade.viou_raw > 0.995
    assert (grade.viou_best_yaw > 0.99, grade.best_yaw_deg) == (True, 0)
    assert grade.silhouette_iou > 0.97
    assert grade.chamfer < 0.005
    assert grade.f_1 > 0.98
    assert grade.depth_error < 0.008
    assert grade.normal_error < 6
    assert max(grade.dent_error, grade.bulge_error) < 0.001
    assert grade.floaters < 1e-3
    assert grade.color_error < 0.6
    assert grade.attribute_accuracy == 1
    assert grade.saturation_ratio == pytest.approx(1, abs=0.02)
    assert grade.saturation_shift == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_moves_its_own_measures_beyond_their_noise_and_no_others(fault):
    broken = BROKEN[fault]
    field = AnalyticField(broken.caption, bend=broken.bend(broken.caption), paint=broken.paint)
    before, after = clean(broken.caption).to_dict(), grade_field(field, broken.caption).to_dict()
    for name, least in broken.moves.items():
        change = (after[name] - before[name]) / least
        assert change >= 1, f"{name} moved from {before[name]:.4f} to {after[name]:.4f}, not by {least}"
        assert abs(least) > 2 * NOISE[name]
    for name in before.keys() - broken.moves.keys() - broken.may_follow:
        if before[name] is None:
            assert after[name] is None
        else:
            assert after[name] == pytest.approx(before[name], abs=NOISE[name]), name


def test_turned_shape_is_wrong_where_it_stands_and_right_at_its_best_yaw():
    duck = "a yellow duck"
    turned = AnalyticField(duck, move=lambda points: torch.stack([points[:, 1], -points[:, 0], points[:, 2]], dim=-1))
    grade = grade_field(turned, duck)
    assert grade.viou_solid < 0.7
    assert clean(duck).shape_retrieved == 1
    assert (grade.viou_best_yaw, grade.best_yaw_deg) == (pytest.approx(1, abs=0.02), 270)


def test_another_shape_is_retrieved_as_what_it_is():
    assert grade_field(AnalyticField("a red sphere"), CUBE).shape_retrieved == 0


def test_measures_that_do_not_apply_are_none():
    assert clean(SNOWMAN).hull_deficit is None  # not convex
    assert clean("a mug").janus_regions is None  # no marker
    assert clean(CUBE).hull_deficit == pytest.approx(0, abs=0.01)
    assert clean(CUBE).janus_regions == 1


@pytest.mark.parametrize("distance", [1.0, -1.0])
def test_empty_and_full_boxes_are_graded_with_finite_numbers(distance):
    grade = grade_field(AnalyticField(SNOWMAN, bend=lambda _, points: torch.full_like(points[:, 0], distance)), SNOWMAN)
    values = grade.to_dict()
    assert all(value is None or np.isfinite(value) for value in values.values())
    assert grade.viou_solid < 0.2
    if distance > 0:
        assert (grade.silhouette_iou, grade.f_2, grade.color_error, grade.chamfer) == (0, 0, None, None)
        assert grade.dent_error == pytest.approx(0.2)


def test_trainable_fields_are_graded_where_their_parameters_are():
    field = RadianceField(encoding=DenseGrid(resolutions=(8, 16)))
    assert 0 <= grade_field(field, SNOWMAN).viou_solid <= 1
    assert all(parameter.grad is None for parameter in field.parameters())


def test_same_field_gets_the_same_grade_to_the_last_bit():
    assert grade_field(AnalyticField(CUBE), CUBE) == clean(CUBE)


def test_marching_finds_the_true_depth_to_within_a_voxel():
    truth, field = true_shape(SNOWMAN), AnalyticField(SNOWMAN)
    rays = camera_rays(held_out_cameras(torch.device("cpu")))
    opacity = torch.sigmoid(-torch.from_numpy(truth.signed_distance) / WALL)
    samples = VolumeMarching(opacity).sample(rays, density=field.density, jitter=None)
    assert (samples.ray_indices.diff() >= 0).all()
    first = torch.full((len(rays.origins),), torch.inf)
    first = first.scatter_reduce(0, samples.ray_indices, samples.t_starts, "amin")
    mask, distance = truth.views.mask.reshape(-1), truth.views.distance.reshape(-1)
    assert torch.isfinite(first[mask]).float().mean() > 0.995
    reached = mask & torch.isfinite(first)
    assert (first[reached] <= distance[reached] + VOXEL).float().mean() > 0.99
    assert len(samples.t_starts) < 30 * mask.sum()  # of 128 or more across the box


def test_unknown_captions_are_refused():
    with pytest.raises(CaptionError):
        grade_field(AnalyticField(SNOWMAN), "an astronaut riding a horse")


def test_grade_is_plain_json_and_its_table_names_every_measure():
    values = clean(SNOWMAN).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert list(values)[:3] == ["viou_solid", "dent_error", "color_error"]
    assert values.keys() == NOISE.keys()
    assert values.keys() <= DESCRIPTIONS.keys()
    lines = format_grade(values).splitlines()
    assert [line.split()[0] for line in lines] == list(values)
    assert next(line for line in lines if line.startswith("hull_deficit")).split()[1] == "-"
