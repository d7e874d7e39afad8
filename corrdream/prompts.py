"""Prompts by keywords: `lib:astronaut_horse` is the one prompt of a library file that has all the words. No torch."""

import json
from pathlib import Path

PREFIX = "lib:"


def prompt_of_library(prompt: str, library: str) -> str:
    """The prompt that `lib:WORD_WORD` names in a file; any other text as it is.

    The file is text with a prompt a line (# begins a comment), or JSON: a list, or lists by name as threestudio has it.
    ValueError, with the cure, where no prompt or more than one has all the words.
    """
    if not prompt.startswith(PREFIX):
        return prompt
    if not library:
        raise ValueError(f"prompt={prompt} needs prompt_library=FILE, with a prompt a line.")
    words = prompt.removeprefix(PREFIX).lower().split("_")
    found = [known for known in _read(Path(library).expanduser()) if all(word in known.lower() for word in words)]
    if len(found) != 1:
        which = f"names {len(found)} prompts ({'; '.join(found[:3])})" if found else "names no prompt"
        raise ValueError(f"prompt={prompt} {which} of prompt_library={library}; give words that only one prompt has.")
    return found[0]


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
