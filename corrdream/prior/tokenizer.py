"""CLIP's tokenizer: lower-cased text as byte pairs, between a start and an end token.

`weights/clip_merges.txt.gz` holds its merges; where they come from is in the license file beside it.
"""

import gzip
import html
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

MERGES = Path(__file__).parent / "weights" / "clip_merges.txt.gz"
START = 49406
END = 49407
WORD_END = "</w>"
# English contractions, runs of letters, single digits, runs of anything else
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
STRAIGHT_QUOTES = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})

log = logging.getLogger(__name__)


def tokenize(prompts: Sequence[str], *, length: int, padding: int) -> Int[Tensor, "P L"]:
    """Tokens of each prompt, `padding` after its end token; what is too long is cut in front of the end token.

    As CLIP's, after Unicode's canonical composition, HTML entities and curly quotes; mis-encoded text is not repaired.
    """
    tokens = torch.full((len(prompts), length), padding, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        text = html.unescape(html.unescape(prompt)).translate(STRAIGHT_QUOTES)
        words = _byte_pairs().encode(text).ids
        if len(words) > length - 2:
            log.warning("%r has %d tokens; the prior reads the first %d.", prompt, len(words), length - 2)
        ids = [START, *words[: length - 2], END]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


@cache
def _byte_pairs() -> Tokenizer:
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = [(left, right) for left, right in (line.split() for line in file)]
    letters = byte_letters()
    vocabulary = [*letters, *(letter + WORD_END for letter in letters), *(left + right for left, right in merges)]
    assert len(vocabulary) == START, f"{MERGES} gives {len(vocabulary)} tokens, expected {START}"
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(vocabulary)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def byte_letters() -> list[str]:
    """The letter that stands for each byte, printable bytes first: the order in which the tokens are numbered."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]
