"""Meshes from a field: iso-surface without floaters, textured obj and glb, ply with colored vertices.

V vertices and T triangles, counter-clockwise from outside, in world units and z-up; a glb is y-up, as its format asks.
Where no threshold is given, Otsu's method separates what is seen from what is not: it is applied to the opacity of one
sample of the training's rays, 1 - exp(-density * step), which is bounded and so blind to how dense the densest is. A
fixed opacity would lose soft objects, which many half-transparent samples make. Colors are those of unlit renderings.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import torch
import trimesh
import xatlas
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.exchange.obj import export_obj
from trimesh.visual.material import PBRMaterial, SimpleMaterial
from trimesh.visual.texture import TextureVisuals

from corrdream.interfaces import Field

MeshFormat = Literal["obj", "glb", "ply"]
AlbedoFunction = Callable[[Float[np.ndarray, "P 3"]], Float[np.ndarray, "P 3"]]

CHUNK = 1 << 18  # points a call of the field
VISIBLE = 0.01  # opacity of a sample
HISTOGRAM_BINS = 256
MIN_COMPONENT = 0.02  # of the largest component's volume
TEXTURE_SIZE = 1024  # side of the texture, about: charts decide
FILLED = 0.6  # of a texture that charts cover, about
GUTTER = 2  # texels between charts
TRIANGLES_AT_ONCE = 1 << 14
EDGE_TOLERANCE = 1e-6  # barycentric: texels on an edge belong to both triangles
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # x, y, z become x, z, -y


class ExportError(ValueError):
    """A field without a surface where it was looked for: says which density and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A closed surface in world space."""

    vertices: Float[np.ndarray, "V 3"]
    triangles: Int[np.ndarray, "T 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """A mesh cut open along seams and laid flat in width x height texels; `uv` in [0, 1] with v pointing up."""

    mesh: Mesh
    uv: Float[np.ndarray, "V 2"]
    width: int
    height: int


def automatic_threshold(density: Float[np.ndarray, "R R R"], step_size: float) -> float:
    """The density that separates the object from the rest: Otsu's threshold of the opacity of a sample.

    Raises ExportError where nothing could be seen.
    """
    opacity = -np.expm1(-density.astype(np.float64) * step_size)
    if not opacity.max() > VISIBLE:
        raise ExportError(
            f"the field is empty: its highest density, {density.max():.4g}, hides {opacity.max():.1%} of the light in "
            f"a sample, less than {VISIBLE:.0%}; train longer, or give a --threshold below that density."
        )
    return -math.log1p(-otsu_threshold(opacity.ravel())) / step_size


def otsu_threshold(values: Float[np.ndarray, " P"]) -> float:
    """The threshold between two classes whose means are furthest apart (Otsu, 1979), from a histogram.

    Where nothing lies between the classes every threshold there is as good: the middle one is taken.
    """
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    below = counts.cumsum()[:-1] / counts.sum()
    moment = (counts * (edges[:-1] + edges[1:]) / 2).cumsum() / counts.sum()
    variance = (moment[-1] * below - moment[:-1]) ** 2 / (below * (1 - below))  # the lowest and highest bin hold values
    best = np.flatnonzero(variance >= variance.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())


def extract_mesh(density: Float[np.ndarray, "R R R"], *, radius: float, threshold: float) -> Mesh:
    """The surface where the density is `threshold`; floaters and cavities are left out.

    Raises ExportError where no node is denser.
    """
    if not density.max() > threshold > 0:
        raise ExportError(
            f"the surface at density {threshold:.4g} is empty: the field's densities reach from 0 to "
            f"{density.max():.4g}; choose a --threshold between."
        )
    return largest_components(iso_surface(density, threshold=threshold, radius=radius), MIN_COMPONENT)


@torch.no_grad()
def density_grid(field: Field, *, radius: float, resolution: int, device: torch.device) -> Float[np.ndarray, "R R R"]:
    """Densities at equally spaced nodes from -radius to radius on each axis, indexed x, y, z."""
    axis = torch.linspace(-radius, radius, resolution, device=device)
    points = torch.cartesian_prod(axis, axis, axis)
    density = torch.cat([field.density(chunk).float().cpu() for chunk in points.split(CHUNK)])
    return density.reshape(resolution, resolution, resolution).numpy()


def iso_surface(density: Float[np.ndarray, "R R R"], *, threshold: float, radius: float) -> Mesh:
    """Marching cubes (Lewiner's); where the object leaves the box, the surface is closed on the box's face."""
    spacing = 2 * radius / (len(density) - 1)
    vertices, triangles, _, _ = marching_cubes(np.pad(density, 1), threshold, allow_degenerate=False)
    # A node more on each side: index 1 is -radius. What lies between the box and the empty node goes back to the box.
    world = ((vertices - 1) * spacing - radius).clip(-radius, radius)
    return Mesh(vertices=world.astype(np.float32), triangles=triangles[:, ::-1].astype(np.int64))


def largest_components(mesh: Mesh, min_fraction: float) -> Mesh:
    """The connected components that enclose at least `min_fraction` of the largest one's volume.

    A cavity, whose surface is turned inside out, encloses a negative volume: it goes as well.
    """
    count = len(mesh.vertices)
    first, second, third = mesh.triangles.T
    edges = coo_array((np.ones(2 * len(first)), (np.tile(first, 2), np.concatenate([second, third]))), (count, count))
    _, component = connected_components(edges, directed=False)
    corner = mesh.vertices.astype(np.float64)[mesh.triangles]
    sixths = (corner[:, 0] * np.cross(corner[:, 1], corner[:, 2])).sum(axis=1)
    volume = np.bincount(component[first], weights=sixths / 6)
    keep = (volume > 0) & (volume >= min_fraction * volume.max())
    kept = mesh.triangles[keep[component[first]]]
    used, renumbered = np.unique(kept, return_inverse=True)
    return Mesh(vertices=mesh.vertices[used], triangles=renumbered.reshape(-1, 3))


def albedo_function(field: Field, device: torch.device | None = None) -> AlbedoFunction:
    """The field's unlit color in [0, 1] at world points, in chunks."""

    @torch.no_grad()
    def albedo(points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        chunks = torch.from_numpy(points).float().split(CHUNK)
        colors: list[Tensor] = [field(chunk.to(device), with_normal=False).albedo.float().cpu() for chunk in chunks]
        return torch.cat(colors).clamp(0, 1).numpy()

    return albedo


def unwrap(mesh: Mesh, texture_size: int = TEXTURE_SIZE) -> Atlas:
    """Charts of the surface, packed by xatlas into about `texture_size`^2 texels."""
    corner = mesh.vertices.astype(np.float64)[mesh.triangles]
    normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    packing = xatlas.PackOptions()
    packing.texels_per_unit = texture_size * math.sqrt(FILLED / (np.linalg.norm(normals, axis=1).sum() / 2))
    packing.padding = GUTTER
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.triangles.astype(np.uint32))
    atlas.generate(pack_options=packing)
    original, triangles, uv = atlas[0]
    cut = Mesh(vertices=mesh.vertices[original], triangles=triangles.astype(np.int64))
    return Atlas(mesh=cut, uv=uv, width=atlas.width, height=atlas.height)


def paint(atlas: Atlas, albedo: AlbedoFunction) -> UInt8[np.ndarray, "H W 3"]:
    """The texture: each texel has the color at its own point of the surface; gaps take the nearest texel's."""
    texel, triangle, weights = rasterize(atlas.uv, atlas.mesh.triangles, width=atlas.width, height=atlas.height)
    corners = atlas.mesh.vertices[atlas.mesh.triangles[triangle]]
    texture = np.zeros((atlas.height * atlas.width, 3), np.uint8)
    texture[texel] = to_bytes(albedo((weights[:, :, None] * corners).sum(axis=1).astype(np.float32)))
    empty = np.ones(len(texture), bool)
    empty[texel] = False
    shape = (atlas.height, atlas.width)
    row, column = distance_transform_edt(empty.reshape(shape), return_distances=False, return_indices=True)
    filled: UInt8[np.ndarray, "H W 3"] = texture.reshape(*shape, 3)[row, column]
    return filled


def rasterize(
    uv: Float[np.ndarray, "V 2"], triangles: Int[np.ndarray, "T 3"], *, width: int, height: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], Float[np.ndarray, "K 3"]]:
    """Texels whose centre a triangle covers: number (row-major, row 0 is v = 1), triangle, barycentric weights."""
    pixels = np.stack([uv[:, 0] * width, (1 - uv[:, 1]) * height], axis=1).astype(np.float64)
    last = [width - 1, height - 1]
    parts = []
    for start in range(0, len(triangles), TRIANGLES_AT_ONCE):
        corner = pixels[triangles[start : start + TRIANGLES_AT_ONCE]]
        low = np.floor(corner.min(axis=1)).astype(np.int64).clip(0, last)
        extent = np.floor(corner.max(axis=1)).astype(np.int64).clip(0, last) - low + 1
        area = extent.prod(axis=1)
        owner = np.repeat(np.arange(len(corner)), area)
        place = np.arange(len(owner)) - np.repeat(area.cumsum() - area, area)  # within the owner's bounding box
        x, y = low[owner, 0] + place % extent[owner, 0], low[owner, 1] + place // extent[owner, 0]
        weights = barycentric(np.stack([x, y], axis=1) + 0.5, corner[owner])
        covered = (weights >= -EDGE_TOLERANCE).all(axis=1)
        parts.append(((y * width + x)[covered], owner[covered] + start, weights[covered]))
    texel, triangle, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return texel, triangle, weights


def barycentric(points: Float[np.ndarray, "K 2"], corners: Float[np.ndarray, "K 3 2"]) -> Float[np.ndarray, "K 3"]:
    """Weights of the corners, which sum to one; those of a triangle without area are -1."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    offset = points - corners[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    safe = np.where(area == 0, 1.0, area)
    along_first = (offset[:, 0] * second[:, 1] - offset[:, 1] * second[:, 0]) / safe
    along_second = (first[:, 0] * offset[:, 1] - first[:, 1] * offset[:, 0]) / safe
    weights = np.stack([1 - along_first - along_second, along_first, along_second], axis=1)
    return np.where(area[:, None] == 0, -1.0, weights)


def to_bytes(colors: Float[np.ndarray, "P 3"]) -> UInt8[np.ndarray, "P 3"]:
    """Colors in [0, 1] as 8-bit values."""
    return (colors * 255 + 0.5).astype(np.uint8)


def write_mesh(
    mesh: Mesh, folder: Path, *, kind: MeshFormat, albedo: AlbedoFunction, texture_size: int = TEXTURE_SIZE
) -> Path:
    """Writes FOLDER/mesh.KIND, an obj with mesh.mtl and mesh.png beside it; returns its path.

    A ply, and a glb with a `texture_size` of zero, have a color a vertex instead of a texture, which is much faster.
    """
    files: dict[str, bytes]
    match kind:
        case "ply":
            files = {"mesh.ply": _colored(mesh, albedo).export(file_type="ply")}
        case "obj":
            files = _obj_files(_textured(mesh, albedo, texture_size, kind))
        case "glb":
            shown = _textured(mesh, albedo, texture_size, kind) if texture_size else _colored(mesh, albedo)
            shown.apply_transform(Y_UP)
            files = {"mesh.glb": shown.export(file_type="glb")}
        case _:
            assert_never(kind)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = folder / f".{os.getpid()}-{name}"
        temporary.write_bytes(content)
        temporary.replace(folder / name)
    return folder / f"mesh.{kind}"


def _colored(mesh: Mesh, albedo: AlbedoFunction) -> trimesh.Trimesh:
    colors = to_bytes(albedo(mesh.vertices))
    return trimesh.Trimesh(mesh.vertices, mesh.triangles, vertex_colors=colors, process=False)


def _textured(mesh: Mesh, albedo: AlbedoFunction, texture_size: int, kind: MeshFormat) -> trimesh.Trimesh:
    atlas = unwrap(mesh, texture_size)
    image = Image.fromarray(paint(atlas, albedo))
    material = (
        PBRMaterial(name="mesh", baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
        if kind == "glb"
        else SimpleMaterial(name="mesh", image=image, diffuse=[255, 255, 255])
    )
    visual = TextureVisuals(uv=atlas.uv, material=material)
    return trimesh.Trimesh(atlas.mesh.vertices, atlas.mesh.triangles, visual=visual, process=False)


def _obj_files(textured: trimesh.Trimesh) -> dict[str, bytes]:
    """What belongs to an obj, itself last, so that it is never there without its material."""
    text, beside = export_obj(textured, include_texture=True, return_texture=True, mtl_name="mesh.mtl")
    return {**beside, "mesh.obj": text.encode()}
