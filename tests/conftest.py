"""Options and fixtures that every test shares."""

from pathlib import Path

import pytest

REFERENCES = Path(__file__).parent / "references"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=REFERENCES, help="directory of reference data to compare with")
