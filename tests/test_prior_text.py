"""The closed vocabulary and the small text encoder."""

import pytest
import torch

from corrdream.prior.text import PADDING, TextEncoder, UnknownWordError, Vocabulary

VOCABULARY = Vocabulary(words=("a", "blue", "cone", "cube", "on", "red"), max_tokens=8)


def test_words_are_numbered_from_one_and_padded() -> None:
    tokens = VOCABULARY.tokenize(["a red cone on a blue cube", ""])
    assert tokens.tolist() == [[1, 6, 3, 5, 1, 2, 4, PADDING], [PADDING] * 8]


def test_case_and_punctuation_do_not_matter() -> None:
    assert torch.equal(VOCABULARY.tokenize(["A red, cone."]), VOCABULARY.tokenize(["a red cone"]))


def test_order_of_the_words_matters() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(num_words=6, max_tokens=8, width=16, num_layers=1)
    first, second = encoder(VOCABULARY.tokenize(["a red cone on a blue cube", "a blue cone on a red cube"]))
    assert first.shape == (8, 16)
    assert (first - second).abs().max() > 1e-3


def test_unknown_word_is_named_with_what_is_near() -> None:
    with pytest.raises(ValueError, match=r'does not know the word "cones" in "a red cones"; near it: cone'):
        VOCABULARY.tokenize(["a red cones"])


def test_unknown_word_like_no_other_has_none_near() -> None:
    with pytest.raises(UnknownWordError, match=r'does not know the word "zzzzzz" in "a zzzzzz"\.$') as caught:
        VOCABULARY.tokenize(["a zzzzzz"])
    assert caught.value.near == []


def test_caption_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="has 9 words; the built-in prior reads 8"):
        VOCABULARY.tokenize(["a " * 9])
