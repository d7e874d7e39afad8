"""Captions: what they mean, which are kept out of training, and how errors read."""

from itertools import pairwise

import numpy as np
import pytest

from corrdream.blocks.grammar import (
    MAX_TOKENS,
    CaptionError,
    Description,
    Split,
    Thing,
    parse_caption,
    sample_caption,
    words,
)
from corrdream.blocks.vocabulary import COLORS, COMPOSITES, HELD_OUT_PAIRS, PART_WORDS, PRIMITIVES


@pytest.fixture(scope="module")
def trained() -> list[Description]:
    """What training captions mean, enough of them that a frequent event is seen for sure."""
    return [parse_caption(caption) for caption in draw("train", 3000)]


def draw(split: Split, count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [sample_caption(random, split) for _ in range(count)]


def test_vocabulary_is_sorted_and_small() -> None:
    assert list(words()) == sorted(set(words()))
    assert 80 <= len(words()) <= 110
    assert len(HELD_OUT_PAIRS) == 14


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a red cone on a blue cube",
            Description(
                caption="a red cone on a blue cube",
                things=(Thing(noun="cone", color="red"), Thing(noun="cube", color="blue")),
                relation="on",
                clay=False,
            ),
        ),
        (
            "an ice cream with a white cherry next to a red and white striped egg",
            Description(
                caption="an ice cream with a white cherry next to a red and white striped egg",
                things=(
                    Thing(noun="ice cream", part="cherry", part_color="white"),
                    Thing(noun="egg", color="red", second_color="white", pattern="striped"),
                ),
                relation="next to",
                clay=False,
            ),
        ),
        (
            "a blue cube with a yellow dot",
            Description(
                caption="a blue cube with a yellow dot",
                things=(Thing(noun="cube", color="blue", dot_color="yellow"),),
                relation="alone",
                clay=False,
            ),
        ),
        (
            "a clay model of a chair",
            Description(caption="a clay model of a chair", things=(Thing(noun="chair"),), relation="alone", clay=True),
        ),
    ],
)
def test_caption_means_what_it_says(caption: str, expected: Description) -> None:
    assert parse_caption(caption) == expected


def test_stack_of_three_is_read_from_top_to_bottom_and_held_out() -> None:
    description = parse_caption("a red cone on a blue cube on a green cylinder")
    assert [thing.noun for thing in description.things] == ["cone", "cube", "cylinder"]
    assert description.is_held_out_composition()
    assert not description.is_held_out_pair()


def test_article_and_case_do_not_matter() -> None:
    assert parse_caption("a orange house").things == parse_caption("An orange house.").things


def test_prompts_of_the_benchmark_are_held_out_as_stated() -> None:
    held_out = ["a purple torus", "a pink rocket", "a green mug", "an orange house with a blue roof"]
    assert all(parse_caption(caption).is_held_out_pair() for caption in held_out)
    seen = ["a red cone on a blue cube", "a snowman", "a brown chair", "a yellow duck"]
    assert not any(parse_caption(caption).is_held_out_pair() for caption in seen)


def test_pattern_counts_both_of_its_colors_as_pairs() -> None:
    assert parse_caption("a red and black striped sphere").is_held_out_pair()


@pytest.mark.parametrize("noun", COMPOSITES)
def test_default_colors_of_composites_are_in_training(noun: str) -> None:
    assert not parse_caption(f"a {noun}").is_held_out_pair()


@pytest.mark.parametrize("split", ["train", "held_out_pairs", "held_out_composition"])
def test_sampled_captions_are_readable_short_and_in_vocabulary(split: Split) -> None:
    vocabulary = set(words())
    for caption in draw(split, 200):
        parse_caption(caption)
        assert set(caption.split()) <= vocabulary
        assert len(caption.split()) <= MAX_TOKENS


def test_training_never_shows_what_is_held_out(trained: list[Description]) -> None:
    for description in trained:
        assert not description.is_held_out_pair(), description.caption
        assert not description.is_held_out_composition(), description.caption
        # nor are the two words ever neighbors, whatever the parser makes of them
        assert HELD_OUT_PAIRS.isdisjoint(pairwise(description.caption.split()))


def test_held_out_splits_hold_only_their_own() -> None:
    assert all(parse_caption(caption).is_held_out_pair() for caption in draw("held_out_pairs", 200))
    for caption in draw("held_out_composition", 200):
        description = parse_caption(caption)
        assert description.is_held_out_composition()
        assert not description.is_held_out_pair()


def test_training_shares_are_as_stated(trained: list[Description]) -> None:
    textured = np.mean([any(thing.pattern or thing.dot_color for thing in d.things) for d in trained])
    clay = np.mean([d.clay for d in trained])
    assert textured == pytest.approx(0.4, abs=0.03)
    assert clay == pytest.approx(0.1, abs=0.02)


def test_training_shows_every_word_that_can_be_said(trained: list[Description]) -> None:
    seen = {word for description in trained for word in description.caption.split()}
    assert seen == set(words())


def test_training_shows_every_allowed_pair_of_color_and_primitive(trained: list[Description]) -> None:
    seen = {pair for description in trained for thing in description.things for pair in thing.pairs()}
    wanted = {(color, noun) for color in COLORS for noun in PRIMITIVES} - HELD_OUT_PAIRS
    assert wanted <= seen


def test_same_generator_same_captions() -> None:
    assert draw("train", 20, seed=3) == draw("train", 20, seed=3)
    assert draw("train", 20, seed=3) != draw("train", 20, seed=4)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red spere", r"no word 'spere'.*did you mean 'sphere'"),
        ("a red zeppelin", r"no word 'zeppelin'.*colors: red, .*nouns: sphere, cube"),
        ("a sphere", r"'sphere' needs a color, as in 'a red sphere'"),
        ("a red and blue sphere", r"needs another color and one of striped, checked, dotted"),
        ("a red and red striped sphere", r"needs another color"),
        ("a red house with a blue seat", r"'house' can be 'with' a color and one of: roof, door"),
        ("a red bowl with a blue dot", r"'bowl' can be 'with' a color and one of: nothing"),
        ("a red and blue striped sphere with a green dot", r"a pattern or a dot, not both"),
        ("a clay model of a red chair", r"a clay model has no colors"),
        ("a red", r"expected a noun, found 'the end'"),
        ("a dog on a car", r"at most one thing may be other than sphere, cube"),
        ("a red cone on a red cube on a red cube on a red cube", r"cannot go on at 'on a red cube'"),
        ("", r"1 to 24 words, got 0"),
        ("a " * 30 + "snowman", r"1 to 24 words, got 31"),
    ],
)
def test_caption_error_names_the_word_or_the_form(caption: str, message: str) -> None:
    with pytest.raises(CaptionError, match=message) as caught:
        parse_caption(caption)
    assert "\n" not in str(caught.value)


def test_every_part_word_is_some_composites_part() -> None:
    assert set(PART_WORDS) == {word for composite in COMPOSITES.values() for word in composite.parts}
