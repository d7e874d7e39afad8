"""The built-in prior's text: a closed vocabulary of words and a small transformer over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrdream.words import near

PADDING = 0  # token of the places after the last word; the empty caption is padding throughout
PUNCTUATION = ".,;:!?\"'"


class UnknownWordError(ValueError):
    """A word that the prior was not trained on, and those near it."""

    def __init__(self, word: str, caption: str, known: Sequence[str]) -> None:
        self.near = near(word, known)
        hint = f"; near it: {', '.join(self.near)}" if self.near else ""
        super().__init__(f'the built-in prior does not know the word "{word}" in "{caption}"{hint}.')


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The words that captions are made of; word i is token i + 1."""

    words: tuple[str, ...]
    max_tokens: int

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "P L"]:
        """Tokens of each caption, padded; ValueError for an unknown word or a caption that is too long."""
        index = {word: token for token, word in enumerate(self.words, start=PADDING + 1)}
        tokens = torch.full((len(captions), self.max_tokens), PADDING, dtype=torch.long)
        for row, caption in enumerate(captions):
            words = [stripped for word in caption.lower().split() if (stripped := word.strip(PUNCTUATION))]
            if len(words) > self.max_tokens:
                raise ValueError(f'"{caption}" has {len(words)} words; the built-in prior reads {self.max_tokens}.')
            for unknown in (word for word in words if word not in index):
                raise UnknownWordError(unknown, caption, self.words)
            tokens[row, : len(words)] = torch.tensor([index[word] for word in words], dtype=torch.long)
        return tokens


class TextEncoder(nn.Module):
    """Learned word and position embeddings, then transformer layers over all places, padding included."""

    def __init__(self, *, num_words: int, max_tokens: int, width: int, num_layers: int, num_heads: int = 4) -> None:
        super().__init__()
        self.word = nn.Embedding(num_words + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Int[Tensor, "P L"]) -> Float[Tensor, "P L D"]:
        """One embedding a place."""
        hidden: Tensor = self.word(tokens) + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        normalized: Tensor = self.norm(hidden)
        return normalized
