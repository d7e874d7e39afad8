"""Which known words are taken for a misspelled one."""

import pytest

from corrdream.blocks.grammar import words
from corrdream.words import near


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("snowmen", ["snowman"]),
        ("cilinder", ["cylinder"]),
        ("grean", ["green"]),
        ("wheel", ["wheels"]),
        ("tabel", ["table", "label"]),
        ("plane", ["plate", "airplane"]),
        ("cat", []),
        ("xylophone", []),
    ],
)
def test_words_of_the_built_in_world_near_another(word: str, meant: list[str]) -> None:
    assert near(word, words()) == meant
