"""Prompts by keywords: `lib:astronaut_horse` is the one prompt of a library file that has all the words. No torch."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

LIBRARY_PREFIX = "lib:"
NUM_NAMED = 3  # prompts that a complaint names


def prompt_of_library(prompt: str, library: str) -> str:
    """The prompt that `lib:WORD_WORD` names in a file; any other text as it is.

    The file is text with a prompt a line (# begins a comment), or JSON: a list, or lists by name as threestudio has it.
    ValueError, with the cure, where no prompt or more than one has all the words.
    """
    if not prompt.startswith(LIBRARY_PREFIX):
        return prompt
    if not library:
        raise ValueError(f"prompt={prompt} needs prompt_library=FILE, with a prompt a line.")
    words = prompt.removeprefix(LIBRARY_PREFIX).lower().split("_")
    known = _read(Path(library).expanduser())
    found = [line for line in known if all(word in line.lower() for word in words)]
    if len(found) != 1:
        named = "; ".join(found[:NUM_NAMED] or _near(words, known))
        which = f"names {len(found)} prompts ({named})" if found else "names no prompt"
        hint = f"near: {named}" if named and not found else "give words that only one prompt has"
        raise ValueError(f"prompt={prompt} {which} of prompt_library={library}; {hint}.")
    return found[0]


def _near(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """The prompts that have most of the words, or words spelled much like them."""

    def count(line: str) -> int:
        own = re.findall(r"\w+", line.lower())
        return sum(word in line.lower() or bool(get_close_matches(word, own, n=1)) for word in words)

    most = max(map(count, known), default=0)
    return [line for line in known if count(line) == most][:NUM_NAMED] if most else []


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        plain = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"prompt_library={path} cannot be read: {error}") from error
    lists = list(plain.values()) if isinstance(plain, dict) else [plain]
    if not all(isinstance(part, list) and all(isinstance(line, str) for line in part) for part in lists):
        raise ValueError(f"prompt_library={path} must be a list of texts, or lists by name.")
    stripped = (line.partition("#")[0].strip() for part in lists for line in part)
    return list(dict.fromkeys(line for line in stripped if line))
