"""Measures the built-in prior: `python -m corrdream.blocks.evaluate samples|features --out JSON`.

samples: colors and carved solids of the prior's own images, on captions like training's, on pairs of color and noun
that training never shows, and on stacks of three. features: how well they match two views, on textured, plain (several
colors) and homogeneous shapes. Runs on a GPU if there is one; `--prompts` keeps a run on a CPU short.
"""

import argparse
import dataclasses
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from corrdream.artifacts import write_json
from corrdream.blocks.grammar import Split, sample_caption
from corrdream.blocks.match_quality import MatchQuality, measure_matches
from corrdream.blocks.sample_quality import SampleQuality, measure_samples
from corrdream.blocks.shapes import Shape, build_shape
from corrdream.prior.blocks import WEIGHTS, BlocksPrior

SPLITS: tuple[Split, ...] = ("train", "held_out_pairs", "held_out_composition")
KINDS = ("textured", "plain", "homogeneous")
TURNS = (10.0, 20.0, 30.0)  # degrees between the two views
TIMESTEPS = (0, 20, 100, 250)
BLOCK_SETS = ("0", "1", "2", "3", "4", "5", "3,5")  # blocks that are matched together
PROMPTS_AT_ONCE = 25


def evaluate_samples(
    prior: BlocksPrior, *, prompts: int, num_steps: int, guidance_scale: float, seed: int
) -> dict[str, Any]:
    """Means by split, and every caption's measures; `prompts` captions a split."""
    generator = torch.Generator(prior.device).manual_seed(seed)
    report: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": guidance_scale, "splits": {}, "captions": {}}
    for split in SPLITS:
        captions = draw_captions(split, prompts, seed)
        found: list[SampleQuality] = []
        for first in range(0, prompts, PROMPTS_AT_ONCE):
            shapes = [build_shape(caption) for caption in captions[first : first + PROMPTS_AT_ONCE]]
            found += measure_samples(
                prior, shapes, num_steps=num_steps, guidance_scale=guidance_scale, generator=generator
            )
        report["splits"][split] = summarize_samples(found)
        report["captions"][split] = [dataclasses.asdict(quality) for quality in found]
    return report


def summarize_samples(found: list[SampleQuality]) -> dict[str, float]:
    """Shares and means over captions."""
    named = [quality for quality in found if quality.colors_named]
    num_colors = sum(quality.colors_named for quality in named)
    return {
        "captions": float(len(found)),
        "named_colors": float(num_colors),
        "color_accuracy": sum(quality.colors_right for quality in named) / max(num_colors, 1),
        "all_colors_right": fmean(quality.colors_right == quality.colors_named for quality in named) if named else 1.0,
        "hull_iou": fmean(quality.hull_iou for quality in found),
        "solid_iou": fmean(quality.solid_iou for quality in found),
        "ceiling_iou": fmean(quality.ceiling_iou for quality in found),
    }


def evaluate_features(
    prior: BlocksPrior,
    *,
    prompts: int,
    timesteps: tuple[int, ...],
    blocks: tuple[str, ...],
    turns: tuple[float, ...],
    seed: int,
) -> dict[str, Any]:
    """Shares of right matches by kind of surface, features, timestep and turn; `prompts` captions a kind."""
    totals: dict[tuple[str, str, int], MatchQuality] = {}
    block_sets = [tuple(int(block) for block in named.split(",")) for named in blocks]
    by_turn: dict[tuple[float, str, int], MatchQuality] = {}
    for kind in KINDS:
        shapes = draw_shapes(kind, prompts, seed)
        for turn in turns:
            generator = torch.Generator(prior.device).manual_seed(seed + int(turn))
            found = measure_matches(
                prior, shapes, turn_deg=turn, timesteps=timesteps, block_sets=block_sets, generator=generator
            )
            for (features, timestep), quality in found.items():
                for table, key in ((totals, kind), (totals, "all"), (by_turn, turn)):
                    place: Any = (key, features, timestep)
                    table[place] = table[place] + quality if place in table else quality
    return {
        "by_kind": [_row("kind", place, quality) for place, quality in totals.items()],
        "by_turn": [_row("turn_deg", place, quality) for place, quality in by_turn.items()],
    }


def _row(name: str, place: tuple[Any, str, int], quality: MatchQuality) -> dict[str, Any]:
    return {name: place[0], "features": place[1], "timestep": place[2], **quality.shares()}


def draw_captions(split: Split, count: int, seed: int) -> list[str]:
    """Different captions of a split."""
    random = np.random.default_rng((seed, SPLITS.index(split)))
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[sample_caption(random, split)] = None
    return list(captions)


def draw_shapes(kind: str, count: int, seed: int) -> list[Shape]:
    """Canonical shapes of one kind of surface, of captions with a pair that training never shows."""
    random = np.random.default_rng((seed, KINDS.index(kind)))
    shapes: dict[str, Shape] = {}
    while len(shapes) < count:
        # A held-out pair has colors of its own, so that one-colored shapes are rare among them: take clay ones too.
        split: Split = "train" if kind == "homogeneous" and random.random() < 0.5 else "held_out_pairs"
        shape = build_shape(sample_caption(random, split))
        if kind_of(shape) == kind:
            shapes[shape.caption] = shape
    return list(shapes.values())


def kind_of(shape: Shape) -> str:
    """textured, homogeneous, or plain: several colors without a pattern."""
    return "textured" if shape.textured else "homogeneous" if shape.homogeneous else "plain"


def samples_table(report: dict[str, Any]) -> str:
    """One line a split."""
    return "\n".join(
        f"{split:22s}" + "  ".join(f"{name} {value:.3f}" for name, value in row.items())
        for split, row in report["splits"].items()
    )


def features_table(report: dict[str, Any]) -> str:
    """One line a kind, features and timestep."""
    lines = []
    rows = defaultdict(list)
    for row in report["by_kind"]:
        rows[row["kind"]].append(row)
    for kind, of_kind in rows.items():
        for row in of_kind:
            shares = "  ".join(
                f"{name} {row[name]:.3f}" for name in ("raw_2px", "raw_4px", "kept", "kept_2px", "kept_4px")
            )
            lines.append(f"{kind:12s} {row['features']:10s} t={row['timestep']:<4d} {shares}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="Measure the built-in prior.")
    parser.add_argument("what", choices=("samples", "features"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--prompts", type=int, help="captions a split (100), or shapes a kind of surface (20)")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(TIMESTEPS), help="of the features")
    parser.add_argument("--blocks", nargs="+", default=list(BLOCK_SETS), help="of the features, as 3 or 1,3")
    parser.add_argument("--turns", type=float, nargs="+", default=list(TURNS), help="degrees between the views")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = BlocksPrior.load(device, path=arguments.weights)
    if arguments.what == "samples":
        report = evaluate_samples(
            prior,
            prompts=arguments.prompts or 100,
            num_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
        )
        table = samples_table(report)
    else:
        report = evaluate_features(
            prior,
            prompts=arguments.prompts or 20,
            timesteps=tuple(arguments.timesteps),
            blocks=tuple(arguments.blocks),
            turns=tuple(arguments.turns),
            seed=arguments.seed,
        )
        table = features_table(report)
    header = {"fingerprint": prior.fingerprint, "seed": arguments.seed, "device": str(device)}
    write_json(arguments.out, header | report)
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
