"""Shapes: distances, normals, normalization, paint."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from corrdream.blocks.bounds import bounding_box, largest_norm
from corrdream.blocks.distance import has_second_color, part_distance
from corrdream.blocks.grammar import sample_caption
from corrdream.blocks.shapes import (
    HALF_EXTENT,
    LARGEST_NORM,
    Shape,
    build_shape,
    outward_normal,
    pack_shapes,
    signed_distance,
    surface_attributes,
)
from corrdream.blocks.sketch import MAX_PARTS, PATTERN_KINDS, PartKind, Sketch, Solid, toward, turn
from corrdream.blocks.vocabulary import COLORS, COMPOSITES, MARKED_PRIMITIVES, NOUNS, PATTERNS, PRIMITIVES

DIAGONAL = math.sqrt(0.5)
EVERY_THING = [*(f"a red {noun}" for noun in PRIMITIVES), *(f"a {noun}" for noun in COMPOSITES)]


def distance_of(kind: PartKind, size: tuple[float, ...], point: tuple[float, ...]) -> float:
    padded = torch.tensor([[[*size, *[0.0] * (5 - len(size))]]], dtype=torch.float64)
    return part_distance(kind, torch.tensor([[point]], dtype=torch.float64), padded).item()


def random_points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def surface_points(shape: Shape, count: int = 2000) -> torch.Tensor:
    """Random points moved onto the surface along the normal, by as many distance steps as bounds need."""
    packed, points = pack_shapes([shape]), random_points(count)
    for _ in range(25):
        points = points - signed_distance(packed, points)[..., None] * outward_normal(packed, points)
    return points[:, signed_distance(packed, points)[0].abs() < 1e-3]


@pytest.mark.parametrize(
    ("kind", "size", "point", "expected"),
    [
        ("ellipsoid", (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), 0.5),
        ("ellipsoid", (0.5, 0.5, 0.5), (0.0, 0.2, 0.0), -0.3),
        ("ellipsoid", (0.3, 0.4, 0.6), (0.0, 0.0, 0.6), 0.0),
        ("ellipsoid", (0.3, 0.4, 0.6), (0.0, 0.0, 1.0), 0.4),
        ("box", (0.5, 0.4, 0.3, 0.0), (1.0, 0.0, 0.0), 0.5),
        ("box", (0.5, 0.4, 0.3, 0.0), (0.8, 0.8, 0.0), 0.5),
        ("box", (0.5, 0.4, 0.3, 0.0), (0.0, 0.0, 0.1), -0.2),
        ("box", (0.5, 0.5, 0.5, 0.1), (0.7, 0.7, 0.0), 0.3 * math.sqrt(2.0) - 0.1),
        ("frustum", (0.4, 0.4, 0.5), (1.0, 0.0, 0.0), 0.6),
        ("frustum", (0.4, 0.4, 0.5), (0.7, 0.0, 0.9), 0.5),
        ("frustum", (0.4, 0.4, 0.5), (0.0, 0.3, 0.0), -0.1),
        ("frustum", (1.0, 0.0, 0.5), (0.0, 0.0, 1.0), 0.5),
        ("frustum", (1.0, 0.0, 0.5), (0.0, 1.0, 0.5), DIAGONAL),
        ("torus", (0.5, 0.1, 0.0, -1.0), (1.0, 0.0, 0.0), 0.4),
        ("torus", (0.5, 0.1, 0.0, -1.0), (0.0, 0.0, 0.0), 0.4),
        ("torus", (0.5, 0.1, 0.0, -1.0), (0.0, -0.5, 0.05), -0.05),
        ("torus", (0.5, 0.1, 1.0, 0.0), (0.0, 0.7, 0.0), 0.1),
        ("torus", (0.5, 0.1, 1.0, 0.0), (0.5, -0.3, 0.0), 0.2),
        ("capsule", (0.2, 0.5), (0.0, 0.0, 1.0), 0.3),
        ("capsule", (0.2, 0.5), (0.6, 0.0, 0.3), 0.4),
        ("capsule", (0.2, 0.5), (0.0, 0.0, 0.0), -0.2),
        ("taper", (0.5, 0.5, 0.0, 0.0, 0.5), (0.0, 0.0, -1.0), 0.5),
        ("taper", (0.5, 0.5, 0.0, 0.0, 0.5), (0.25, 0.0, 0.0), 0.0),
        ("taper", (0.5, 0.5, 0.0, 0.0, 0.5), (0.0, 0.0, -0.4), -0.1),
        ("taper", (0.5, 0.4, 0.0, 0.4, 0.5), (0.0, 0.6, 0.0), 0.2),
        ("cup", (0.5, 0.5, 0.1, 0.1), (0.0, 0.0, 0.0), 0.4),
        ("cup", (0.5, 0.5, 0.1, 0.1), (0.45, 0.0, 0.0), -0.05),
        ("cup", (0.5, 0.5, 0.1, 0.1), (0.0, 0.0, -0.45), -0.05),
        ("cup", (0.5, 0.5, 0.1, 0.0), (0.0, 0.0, -0.45), 0.4),
        ("bowl", (0.5, 0.0, 0.05), (0.0, 0.0, -0.5), -0.05),
        ("bowl", (0.5, 0.0, 0.05), (0.0, 0.0, 0.0), 0.45),
        ("bowl", (0.5, 0.0, 0.05), (0.5, 0.0, 0.4), 0.35),
    ],
)
def test_distance_to_a_part_is_the_known_one(
    kind: PartKind, size: tuple[float, ...], point: tuple[float, ...], expected: float
) -> None:
    assert distance_of(kind, size, point) == pytest.approx(expected, abs=1e-7)


def test_distance_to_a_shape_is_the_smallest_of_its_parts() -> None:
    packed = pack_shapes([build_shape("a red cube next to a blue sphere")])
    points = random_points(500)
    each = []
    for slot in range(2):
        local = (points - packed.center[:, slot]) @ packed.rotation[0, slot]
        kind: PartKind = ("box", "ellipsoid")[slot]
        each.append(part_distance(kind, local, packed.size[:, slot][:, None]))
    torch.testing.assert_close(signed_distance(packed, points), torch.minimum(*each))


def test_shapes_of_a_batch_do_not_mix() -> None:
    captions = ["a snowman", "a red cube", "a mug", "a blue torus on a green bowl", "a chair"]
    points = torch.cat([random_points(200, seed) for seed in range(len(captions))])
    packed = pack_shapes([build_shape(caption) for caption in captions])
    together = signed_distance(packed, points)
    colors, parts = surface_attributes(packed, points)
    for index, caption in enumerate(captions):
        alone = pack_shapes([build_shape(caption)])
        torch.testing.assert_close(together[index], signed_distance(alone, points[index : index + 1])[0])
        color, part = surface_attributes(alone, points[index : index + 1])
        assert torch.equal(colors[index], color[0])
        assert torch.equal(parts[index], part[0])


@pytest.mark.parametrize("caption", EVERY_THING)
def test_distance_never_grows_faster_than_the_way(caption: str) -> None:
    packed = pack_shapes([build_shape(caption)])
    points = random_points(3000)
    steps = 0.05 * torch.nn.functional.normalize(random_points(3000, seed=1), dim=-1)
    change = signed_distance(packed, points + steps) - signed_distance(packed, points)
    assert change.abs().max() <= 0.05 + 1e-5


@pytest.mark.parametrize("caption", EVERY_THING)
def test_shape_fills_its_bounds_and_no_more(caption: str) -> None:
    shape = build_shape(caption)
    packed = pack_shapes([shape])
    solids = [Solid(part.kind, part.name, part.center, part.size, part.rotation) for part in shape.parts]
    low, high = bounding_box(solids)
    torch.testing.assert_close(torch.tensor(low), -torch.tensor(high), atol=1e-6, rtol=0.0)
    norm = largest_norm(solids)
    assert max(high) <= HALF_EXTENT + 1e-6
    assert norm <= LARGEST_NORM + 1e-6
    assert max(high) > HALF_EXTENT - 1e-6 or norm > LARGEST_NORM - 1e-6
    points = random_points(20_000)
    beyond = (points.abs() > torch.tensor(high)).any(-1) | (points.norm(dim=-1) > norm)
    assert (signed_distance(packed, points)[beyond] > 0.0).all()
    # each face of the box touches the shape
    plane = torch.rand(1, 10_000, 3, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    for axis in range(3):
        for side in (-1.0, 1.0):
            face = plane * torch.tensor(high)
            face[..., axis] = side * high[axis]
            assert signed_distance(packed, face).min() < 0.02


@pytest.mark.parametrize(
    "rotation", [turn("x", 30.0), turn("y", -75.0), toward((1.0, 2.0, -0.5)), toward((-1.0, 0.0, 0.0))]
)
def test_bounds_hold_for_turned_solids(rotation: tuple[float, ...]) -> None:
    sketch = Sketch(None)
    sketch.ellipsoid("a", (0.1, 0.0, 0.0), (0.3, 0.1, 0.2), rotation)
    sketch.box("a", (0.1, 0.0, 0.0), (0.3, 0.1, 0.2), 0.05, rotation)
    sketch.torus("a", (0.1, 0.0, 0.0), (0.3, 0.1), rotation)
    sketch.torus("a", (0.1, 0.0, 0.0), (0.3, 0.1), rotation, 1.2)
    sketch.taper("a", (0.1, 0.0, 0.0), (0.3, 0.1), (0.0, 0.2), 0.3, rotation)
    sketch.bowl("a", (0.1, 0.0, 0.0), (0.4, 0.1, 0.03), rotation)
    sketch.solids += [Solid("frustum", "a", (0.1, 0.0, 0.0), (0.3, 0.1, 0.2), rotation)]
    sketch.solids += [Solid("capsule", "a", (0.1, 0.0, 0.0), (0.2, 0.3), rotation)]
    sketch.solids += [Solid("cup", "a", (0.1, 0.0, 0.0), (0.3, 0.2, 0.05, 0.05), rotation)]
    matrix = torch.tensor(rotation).view(3, 3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-6, rtol=0.0)
    assert torch.det(matrix) == pytest.approx(1.0, abs=1e-5)
    points = random_points(60_000)
    for solid in sketch.solids:
        size = torch.tensor([[[*solid.size, *[0.0] * (5 - len(solid.size))]]])
        local = (points - torch.tensor(solid.center)) @ matrix
        inside = points[part_distance(solid.kind, local, size) < 0.0]
        low, high = (torch.tensor(corner) for corner in bounding_box([solid]))
        # sampled arcs reach 0.3 (1 - cos 0.1) less than true ones
        assert (inside >= low - 2e-3).all()
        assert (inside <= high + 2e-3).all()
        # 60,000 random points come this near to a pointed end
        torch.testing.assert_close(inside.amin(0), low, atol=0.08, rtol=0.0)
        torch.testing.assert_close(inside.amax(0), high, atol=0.08, rtol=0.0)
        assert inside.norm(dim=-1).max() <= largest_norm([solid]) + 2e-3


def test_normals_of_sphere_cube_cone_and_torus_are_analytic() -> None:
    directions = torch.nn.functional.normalize(random_points(200), dim=-1)
    sphere = pack_shapes([build_shape("a red sphere")])
    torch.testing.assert_close(outward_normal(sphere, 0.66 * directions), directions, atol=1e-3, rtol=0.0)
    cube = pack_shapes([build_shape("a red cube")])
    face = torch.tensor([[[0.9, 0.1, -0.2], [0.0, -0.9, 0.1]]])
    torch.testing.assert_close(
        outward_normal(cube, face), torch.tensor([[[1.0, 0, 0], [0, -1.0, 0]]]), atol=1e-3, rtol=0
    )
    torus = build_shape("a red torus")
    ring, tube = torus.parts[0].size[:2]
    above = torch.tensor([[[ring, 0.0, tube], [0.0, ring - tube, 0.0]]])
    expected = torch.tensor([[[0.0, 0, 1.0], [0, -1.0, 0]]])
    torch.testing.assert_close(outward_normal(pack_shapes([torus]), above), expected, atol=1e-3, rtol=0.0)
    cone = build_shape("a red cone")
    radius, _, half = cone.parts[0].size
    slant = torch.nn.functional.normalize(torch.tensor([2 * half, 0.0, radius]), dim=0)
    normal = outward_normal(pack_shapes([cone]), torch.tensor([[[radius / 2, 0.0, 0.0]]]))[0, 0]
    torch.testing.assert_close(normal, slant, atol=1e-3, rtol=0.0)


def test_canonical_shape_is_one_and_jittered_shapes_are_near_it() -> None:
    assert build_shape("a snowman") == build_shape("a snowman")
    varied = build_shape("a snowman", np.random.default_rng(0))
    assert varied == build_shape("a snowman", np.random.default_rng(0))
    assert varied != build_shape("a snowman", np.random.default_rng(1))
    for part, canonical in zip(varied.parts, build_shape("a snowman").parts, strict=True):
        assert part.name == canonical.name
        assert part.size[0] == pytest.approx(canonical.size[0], rel=0.4)
        np.testing.assert_allclose(part.color, canonical.color, atol=0.0501)


def test_equal_colors_stay_equal_when_jittered() -> None:
    parts = build_shape("a brown chair", np.random.default_rng(0)).parts
    assert len({part.color for part in parts}) == 1


def test_every_training_shape_fits_its_bounds() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        shape = build_shape(sample_caption(random, "train"), random)
        solids = [Solid(part.kind, part.name, part.center, part.size, part.rotation) for part in shape.parts]
        assert 1 <= len(shape.parts) <= MAX_PARTS
        assert largest_norm(solids) <= LARGEST_NORM + 1e-6


@pytest.mark.parametrize("noun", COMPOSITES)
def test_every_part_that_a_caption_can_name_is_there(noun: str) -> None:
    shape = build_shape(f"a {noun}")
    assert {noun, *COMPOSITES[noun].parts} <= {part.name for part in shape.parts}
    assert len(shape.parts) + 2 <= MAX_PARTS  # room for two primitives below


@pytest.mark.parametrize("noun", COMPOSITES)
def test_named_part_wears_the_named_color(noun: str) -> None:
    for word in COMPOSITES[noun].parts:
        shape = build_shape(f"a blue {noun} with a pink {word}")
        assert shape.named_colors == ((noun, "blue"), (word, "pink"))
        assert all(part.color == COLORS["pink"] for part in shape.parts if part.name == word)
        assert all(part.color == COLORS["blue"] for part in shape.parts if part.name == noun)


def test_things_of_one_noun_are_told_apart_by_number() -> None:
    shape = build_shape("a red cube on a blue cube")
    assert shape.named_colors == (("cube 1", "red"), ("cube 2", "blue"))
    top, bottom = shape.parts
    assert top.name == "cube 1"
    assert top.center[2] > bottom.center[2]


def test_first_of_two_neighbors_is_on_the_left_seen_from_the_front() -> None:
    left, right = build_shape("a red sphere next to a blue sphere").parts
    assert left.color == COLORS["red"]
    assert left.center[1] < 0.0 < right.center[1]


def test_flags_say_what_the_surface_is_like() -> None:
    def flags(caption: str) -> tuple[bool, bool, bool, bool]:
        shape = build_shape(caption)
        return shape.textured, shape.homogeneous, shape.convex, shape.has_marker

    assert flags("a red sphere") == (False, True, True, False)
    assert flags("a red and white striped cube") == (True, False, True, False)
    assert flags("a blue cube with a yellow dot") == (True, False, True, True)
    assert flags("a snowman") == (False, False, False, False)
    assert flags("a clay model of a snowman") == (False, True, False, False)
    assert flags("a red torus") == (False, True, False, False)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("noun", NOUNS)
def test_pattern_shows_both_colors(noun: str, pattern: str) -> None:
    shape = build_shape(f"a red and white {pattern} {noun}")
    points = surface_points(shape, 800)
    color, part = surface_attributes(pack_shapes([shape]), points)
    patterned = torch.tensor([piece.pattern == pattern for piece in shape.parts])[part]
    white = (color[patterned] > 0.9).all(-1).float().mean()
    assert 0.05 < white < 0.75  # dots cover less, on thin shells and small parts least


@pytest.mark.parametrize("noun", MARKED_PRIMITIVES)
def test_marker_is_one_disk_on_the_front(noun: str) -> None:
    shape = build_shape(f"a red {noun} with a white dot")
    points = surface_points(shape)
    color, _ = surface_attributes(pack_shapes([shape]), points)
    marked = points[(color > 0.9).all(-1)]
    assert 10 < len(marked) < 0.2 * points.shape[1]
    assert (marked[:, 0] > 0.0).all()
    assert marked[:, 1:].std(0).max() < 0.2


def test_pattern_formulas_on_known_lattice_points() -> None:
    lattice = torch.tensor([[[0.2, 0.1, 0.1], [0.7, 0.2, 0.2], [0.9, 0.0, 0.0], [0.5, 0.5, 0.5], [-0.2, 0.1, 0.0]]])

    def shows(name: str) -> list[bool]:
        index = torch.full((1, 5), PATTERN_KINDS.index(name))
        return has_second_color(index, lattice)[0].tolist()

    assert shows("plain") == [False] * 5
    assert shows("striped") == [False, True, False, True, True]
    assert shows("checked") == [False, True, True, True, False]
    assert shows("dotted") == [True, False, True, False, True]
    assert shows("marker") == [True, True, True, True, False]


def test_packed_shapes_are_padded_and_can_move() -> None:
    packed = pack_shapes([build_shape("a red cube"), build_shape("a duck")])
    assert packed.kind.shape == (2, MAX_PARTS)
    assert (packed.kind >= 0).sum(1).tolist() == [len(kinds) for kinds in packed.kinds]
    moved = packed.to("meta")
    assert all(getattr(moved, f.name).is_meta for f in dataclasses.fields(moved) if f.name != "kinds")
