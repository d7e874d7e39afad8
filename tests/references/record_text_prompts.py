"""Records text_prompts.npz from open_clip's tokenizer and text transformer: `python record_text_prompts.py`.

Needs open-clip-torch 2.7.0 and ftfy 6.3.1, which nothing else here does. Weights are drawn, not downloaded.
"""

from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

PROMPTS = [
    "",
    "a snowman",
    "An astronaut riding a horse, 3d asset",
    "A DSLR photo of a corgi wearing a top hat",
    "a zoomed-out photo of Sydney's opera house; aerial view, 8K!",
    "Michelangelo-style statue of dog reading news on a cellphone",
    "caf\xe9 \u201cna\xefve\u201d &amp; \U0001f98a",
    "  two   spaces\tand\na line  ",
    ", ".join(["highly detailed stone castle on a green hill"] * 10),
    "supercalifragilisticexpialidocious " * 12,
]
WIDTH, HEADS, LAYERS, LENGTH, WORDS = 24, 3, 3, 77, 49408
FILE = Path(__file__).parent / "text_prompts.npz"


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=32)
    text = CLIPTextCfg(context_length=LENGTH, vocab_size=WORDS, width=WIDTH, heads=HEADS, layers=LAYERS)
    model = CLIP(8, vision, text).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            weight.copy_((around + 0.3 * torch.randn(weight.shape, generator=generator)).half().float())
    tokens = open_clip.tokenize(PROMPTS)
    read = tokens.unique()
    kept = {
        f"weights/model.{name}": weight.detach().half().numpy()
        for name, weight in model.named_parameters()
        if name.startswith(("transformer.", "positional_embedding", "ln_final."))
    }
    np.savez_compressed(
        FILE,
        **kept,
        **{
            "cfg/heads": np.array(HEADS),
            "cfg/layers": np.array(LAYERS),
            "cfg/num_tokens": np.array(WORDS),
            "in/prompts": np.array(PROMPTS),
            "embedding/tokens": read.numpy().astype(np.int32),
            "embedding/rows": model.token_embedding.weight[read].detach().half().numpy(),
            "out/tokens": tokens.numpy().astype(np.int32),
            "out/last": hidden_states(model, tokens),
            "out/penultimate": hidden_states(without_last_layer(model), tokens),
        },
    )


def hidden_states(model: CLIP, tokens: torch.Tensor) -> np.ndarray:
    """What the final layer norm gives on the way of `encode_text`."""
    seen: list[torch.Tensor] = []
    handle = model.ln_final.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model.encode_text(tokens)
    handle.remove()
    return seen[0].numpy()


def without_last_layer(model: CLIP) -> CLIP:
    model.transformer.resblocks = model.transformer.resblocks[:-1]
    return model


if __name__ == "__main__":
    main()
