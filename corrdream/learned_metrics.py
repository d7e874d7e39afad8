"""Quality by networks that others have trained: does a picture show its prompt, and do neighboring views agree?

Optional: packages come with `pip install 'corrdream[metrics]'`, weights are downloaded when they are first needed. What
cannot be had, or fails, is a measure that was skipped for a reason; the others and the run do not suffer from it.
Views are one full turn, unshaded. Embeddings are unit vectors of D channels; V views, N prompts, P and Q features.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from corrdream.backends import MissingBackendError, require
from corrdream.cameras import distance_to_depth, project, unproject
from corrdream.metrics import OPAQUE
from corrdream.quality import NUM_VIEWS, VIEWS_AT_ONCE
from corrdream.scene import SceneView
from corrdream.structures import CameraBatch

# By the ending of their metrics: open_clip's name and weights. The second was trained on other data than the first.
CLIP_MODELS = {"": ("ViT-L-14", "openai"), "_laion": ("ViT-B-16", "laion2b_s34b_b88k")}
CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean, deviation
CLIP_WEIGHT = 2.5  # w of arXiv:2104.08718
LPIPS_VIEWS, LPIPS_SIDE = 120, 256  # 3 degrees apart; pixels
FEATURES = "vit_small_patch14_dinov2.lvd142m"  # of timm; no part of any prior
FEATURE_COLORS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURE_SIDE, FEATURE_VIEWS = 518, 18  # pixels of 37 x 37 patches; 20 degrees apart
CONSISTENT = 0.02  # of the image's height

Colors = tuple[tuple[float, float, float], tuple[float, float, float]]
Turn = Callable[[int], tuple[Tensor, Tensor, Tensor, CameraBatch]]  # `_render` of a number of views
Loaded = TypeVar("Loaded")
logger = logging.getLogger(__name__)
_causes: dict[str, str] = {}  # of networks that could not be loaded


class MissingWeightsError(RuntimeError):
    """A network whose weights are neither here nor to be had."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What was measured, and why the rest was not."""

    values: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # reasons by metric
    embeddings: dict[str, Float[Tensor, "K D"]] = field(default_factory=dict)  # by CLIP model: the prompt's, the views'


def clip_score(views: Float[Tensor, "V D"], prompt: Float[Tensor, " D"]) -> float:
    """Mean of 2.5 max(cos, 0) between the views and the prompt (CLIP-S of arXiv:2104.08718)."""
    return CLIP_WEIGHT * (views @ prompt).clamp_min(0).mean().item()


def r_precision(views: Float[Tensor, "V D"], prompts: Float[Tensor, "N D"], own: int) -> float:
    """Share of the views that are nearer to their own prompt than to every other one of the pool."""
    similarity = views @ prompts.T
    others = similarity.index_fill(1, torch.tensor([own], device=similarity.device), -torch.inf)
    return (similarity[:, own] > others.amax(dim=1)).double().mean().item()


def adjacent_distance(
    views: Float[Tensor, "V H W 3"],
    distance: Callable[[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"]], Float[Tensor, " B"]],
) -> float:
    """Mean distance of each view of a full turn to the next one, the last to the first; A-LPIPS with LPIPS."""
    following = views.roll(-1, dims=0)
    parts = zip(views.split(VIEWS_AT_ONCE), following.split(VIEWS_AT_ONCE), strict=True)
    return torch.cat([distance(view, after) for view, after in parts]).double().mean().item()


def mutual_nearest(source: Float[Tensor, "P D"], target: Float[Tensor, "Q D"]) -> Int[Tensor, "M 2"]:
    """Pairs (p, q) of unit features, each the nearest of the other."""
    if not len(source) or not len(target):
        return torch.zeros((0, 2), dtype=torch.long, device=source.device)
    similarity = source @ target.T
    forward, backward = similarity.argmax(dim=1), similarity.argmax(dim=0)
    indices = torch.arange(len(source), device=source.device)
    is_mutual = backward[forward] == indices
    return torch.stack([indices[is_mutual], forward[is_mutual]], dim=-1)


def consistency_errors(
    source_xy: Float[Tensor, "M 2"],
    target_xy: Float[Tensor, "M 2"],
    depth: Float[Tensor, " M"],
    cameras: CameraBatch,
) -> Float[Tensor, " M"]:
    """Distance of each match to where the source's planar depth takes it, over the image's height.

    `cameras` are two: the source's and the target's.
    """
    count = len(depth)
    c2w, intrinsics = (part[:, None].expand(2, count, *part.shape[1:]) for part in (cameras.c2w, cameras.intrinsics))
    reached, _ = project(unproject(source_xy, depth, c2w[0], intrinsics[0]), c2w[1], intrinsics[1])
    errors: Tensor = (reached - target_xy).norm(dim=-1) / cameras.height
    return errors


def measure_learned(scene: SceneView, size: int) -> Learned:
    """CLIP-S with two models, A-LPIPS and the consistency error of a scene; pictures are `size` pixels a side."""
    found = Learned()
    turn = cache(partial(_render, scene, size))  # by number of views; only what a network asks for is rendered
    for ending, (model, weights) in CLIP_MODELS.items():
        keys = f"clip_score{ending}", f"clip_precision{ending}"  # the second is left to `precision_in_pool`
        with _may_be_skipped(found, *keys):
            prompt, views = _clip_embeddings(scene, turn, keys[0], model, weights)
            found.embeddings[keys[1]] = torch.cat([prompt[None], views]).cpu()
            found.values[keys[0]] = clip_score(views, prompt)
    with _may_be_skipped(found, "adjacent_lpips"):
        found.values["adjacent_lpips"] = _adjacent_lpips(scene, turn)
    with _may_be_skipped(found, "consistency_error", "consistent_share"):
        errors = _consistency(scene, turn)
        found.values["consistency_error"] = errors.median().item()
        found.values["consistent_share"] = (errors < CONSISTENT).double().mean().item()
    return found


def precision_in_pool(runs: Sequence[tuple[str, Path]], pool: Sequence[str]) -> list[dict[str, float]]:
    """R-precision by metric of each (prompt, file of embeddings), over a pool of prompts that all have such a run."""
    read = [_read(path) for _, path in runs]
    names = [prompt for prompt, _ in runs]
    found: list[dict[str, float]] = [{} for _ in runs]
    for key in dict.fromkeys(key for arrays in read for key in arrays):
        prompts = {name: arrays[key][0] for name, arrays in zip(names, read, strict=True) if key in arrays}
        if len(pool) == 1 or not prompts.keys() >= set(pool):
            continue  # among fewer prompts it is easier
        stacked = torch.stack([prompts[name] for name in pool])
        for values, name, arrays in zip(found, names, read, strict=True):
            if key in arrays:
                values[key] = r_precision(arrays[key][1:], stacked, pool.index(name))
    return found


def _read(path: Path) -> Mapping[str, Float[Tensor, "K D"]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]).float() for key in arrays}


@contextmanager
def _may_be_skipped(found: Learned, *keys: str) -> Iterator[None]:
    try:
        yield
    # Packages, downloads and their formats can fail in any way, and a run that is trained is not lost to a measure.
    except Exception as error:
        is_ours = isinstance(error, MissingBackendError | MissingWeightsError)
        reason = _one_line(error) if is_ours else f"{type(error).__name__}: {_one_line(error)}"
        for key in keys:
            found.skipped[key] = reason
            found.values.pop(key, None)
            logger.info("%s was skipped: %s", key, reason)


def _load(what: str, load: Callable[[], Loaded]) -> Loaded:
    """The network; what failed once is not tried again by this process, for a download can take a minute to fail."""
    try:
        if what not in _causes:
            return load()
    except Exception as error:  # raised again
        _causes[what] = _one_line(error)
    raise MissingWeightsError(f"the weights of {what} could not be loaded: {_causes[what]}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@torch.no_grad()
def _clip_embeddings(
    scene: SceneView, turn: Turn, key: str, model: str, weights: str
) -> tuple[Float[Tensor, " D"], Float[Tensor, "V D"]]:
    open_clip = require("open_clip", key)
    network = _load(
        f"CLIP {model} ({weights})",
        # OpenAI's networks approximate the GELU; open_clip 3 would only warn that the name does not say so.
        lambda: open_clip.create_model(
            model, pretrained=weights, device=scene.device, force_quick_gelu=weights == "openai"
        ).eval(),
    )
    side = network.visual.image_size
    rgb = turn(NUM_VIEWS)[0]
    images = _as_input(rgb, side if isinstance(side, int) else side[0], CLIP_COLORS)
    views = torch.cat([network.encode_image(part) for part in images.split(VIEWS_AT_ONCE)])
    prompt = network.encode_text(open_clip.tokenize([scene.config.prompt]).to(scene.device))[0]
    return F.normalize(prompt.float(), dim=0), F.normalize(views.float(), dim=1)


@torch.no_grad()
def _adjacent_lpips(scene: SceneView, turn: Turn) -> float:
    lpips = require("lpips", "adjacent_lpips")
    network = _load(
        "LPIPS (AlexNet)", lambda: lpips.LPIPS(net="alex", verbose=False).to(scene.device).eval().requires_grad_(False)
    )
    halves = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # it takes [-1, 1]

    def distance(view: Float[Tensor, "B H W 3"], after: Float[Tensor, "B H W 3"]) -> Float[Tensor, " B"]:
        found: Tensor = network(_as_input(view, LPIPS_SIDE, halves), _as_input(after, LPIPS_SIDE, halves))
        return found.flatten()

    return adjacent_distance(turn(LPIPS_VIEWS)[0], distance)


@torch.no_grad()
def _consistency(scene: SceneView, turn: Turn) -> Float[Tensor, " M"]:
    """The errors of all matches of neighboring views; one patch is 1/37 of the height."""
    timm = require("timm", "consistency_error")
    network: Any = _load(
        FEATURES,
        lambda: (
            timm.create_model(FEATURES, pretrained=True, num_classes=0, img_size=FEATURE_SIDE).to(scene.device).eval()
        ),
    )
    rgb, opacity, distance, cameras = turn(FEATURE_VIEWS)
    images = _as_input(rgb, FEATURE_SIDE, FEATURE_COLORS)
    tokens = torch.cat([network.forward_features(part) for part in images.split(VIEWS_AT_ONCE)])
    features = F.normalize(tokens[:, network.num_prefix_tokens :].float(), dim=-1)
    patches = round(features.shape[1] ** 0.5)
    opacity, distance = (_at_patches(values, patches) for values in (opacity, distance))
    axis = (torch.arange(patches, device=scene.device) + 0.5) * (cameras.height / patches)
    xy = torch.cartesian_prod(axis, axis).flip(-1)
    errors = []
    for here in range(FEATURE_VIEWS):
        there = (here + 1) % FEATURE_VIEWS
        source, target = ((opacity[view] > OPAQUE).nonzero().flatten() for view in (here, there))
        matches = mutual_nearest(features[here, source], features[there, target])
        points, reached = source[matches[:, 0]], target[matches[:, 1]]
        length = distance[here, points] / opacity[here, points]
        intrinsics = cameras.intrinsics[here].expand(len(points), 3, 3)
        pair = cameras.select(torch.tensor([here, there], device=scene.device))
        errors.append(
            consistency_errors(xy[points], xy[reached], distance_to_depth(length, xy[points], intrinsics), pair)
        )
    found = torch.cat(errors)
    if not len(found):
        raise ValueError("no match of opaque patches.")
    return found


def _render(
    scene: SceneView, size: int, num_views: int
) -> tuple[Float[Tensor, "V H W 3"], Float[Tensor, "V H W"], Float[Tensor, "V H W"], CameraBatch]:
    """Colors, opacity and accumulated distance of a full turn."""
    cameras = scene.orbit(num_views, size=size)
    parts = [scene.render(cameras.select(slice(k, k + VIEWS_AT_ONCE))) for k in range(0, num_views, VIEWS_AT_ONCE)]
    rgb, opacity, distance = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("rgb", "opacity", "distance")
    )
    return rgb, opacity, distance, cameras


def _as_input(rgb: Float[Tensor, "B H W 3"], side: int, colors: Colors) -> Float[Tensor, "B 3 S S"]:
    resized = F.interpolate(rgb.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (resized.new_tensor(color)[:, None, None] for color in colors)
    return (resized - mean) / deviation


def _at_patches(values: Float[Tensor, "V H W"], patches: int) -> Float[Tensor, "V P"]:
    """Bilinear values at the centres of a square grid of patches, row by row."""
    resized = F.interpolate(values[:, None], size=(patches, patches), mode="bilinear", align_corners=False)
    return resized.flatten(1)
