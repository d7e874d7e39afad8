"""Misspelled words: keys of a configuration, words of a prompt."""

import difflib
from collections.abc import Iterable

NEAR = 0.75  # difflib's ratio; below, "nose" and "tower" are near "snowmen"
MAX_NEAR = 3


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known words that were probably meant, the nearest first."""
    return difflib.get_close_matches(word, list(known), n=MAX_NEAR, cutoff=NEAR)
