"""Prompts by keywords from a library file."""

import json
from pathlib import Path

import pytest

from corrdream import check_prompt, load_config
from corrdream.config import ConfigError
from corrdream.prompts import prompt_of_library

LIBRARY = "An astronaut riding a horse\n# animals\nA knitted owl  # small\nAn owl on a horse\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(LIBRARY, encoding="utf-8")
    return path


def test_keywords_name_the_one_prompt_that_has_them_all(library: Path) -> None:
    assert prompt_of_library("lib:ASTRONAUT_horse", str(library)) == "An astronaut riding a horse"
    assert prompt_of_library("lib:knit", str(library)) == "A knitted owl"


def test_other_prompts_stay_as_they_are() -> None:
    assert prompt_of_library("a library: old", "") == "a library: old"


def test_lists_by_name_are_one_library(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"one": ["a cat"], "two": ["a dog", "a cat"]}), encoding="utf-8")
    assert prompt_of_library("lib:cat", str(path)) == "a cat"


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("lib:astronot_horses", "names no prompt of prompt_library=.*; near: An astronaut riding a horse"),
        ("lib:knit_horse", "near: An astronaut riding a horse; A knitted owl; An owl on a horse"),
        ("lib:zebra", "names no prompt .*; give words that only one prompt has"),
        ("lib:owl", r"names 2 prompts \(A knitted owl; An owl on a horse\)"),
    ],
)
def test_none_or_several_prompts_are_an_error(library: Path, prompt: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        prompt_of_library(prompt, str(library))


def test_a_file_that_is_no_library_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    for text in ("[1]", "{", '{"a": "text"}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"prompt_library=.*prompts\.json"):
            prompt_of_library("lib:a", str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        prompt_of_library("lib:a", str(tmp_path / "absent.txt"))


def test_configuration_holds_the_prompt_itself(library: Path) -> None:
    config = load_config((), ["prompt=lib:astronaut", f"prompt_library={library}"])
    assert config.prompt == "An astronaut riding a horse"
    assert config == load_config((), ["prompt=An astronaut riding a horse"])


def test_configuration_names_a_missing_library() -> None:
    with pytest.raises(ConfigError, match="prompt=lib:owl needs prompt_library=FILE"):
        load_config((), ["prompt=lib:owl"])


def test_library_that_ships_has_what_it_promises() -> None:
    shipped = Path(__file__).parent.parent / "configs" / "prompts.txt"
    config = load_config((), {"prior.kind": "mvdream", "prompt": "lib:astronaut_horse", "prompt_library": str(shipped)})
    check_prompt(config)
    assert config.prompt == "An astronaut riding a horse"
