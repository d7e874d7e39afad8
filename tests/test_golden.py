"""Our functions against data recorded from the published implementation.

`pytest tests/test_golden.py --golden DIR` compares with any other directory of the same format, and
`--golden-device cuda` on a GPU. A module of tests/golden/ knows one file: FILE is its name, and cases(data) yields
(name, comparison) for all that is in it.
"""

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tests.golden

MODULES = [
    importlib.import_module(f"tests.golden.{info.name}")
    for info in pkgutil.iter_modules(tests.golden.__path__)
    if info.name != "helpers"
]


def load(path: Path) -> Any:
    """The content of a reference file: a mapping of arrays, or parsed JSON."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def cases_of(module: ModuleType, path: Path) -> list[tuple[str, Any]]:
    """The file's cases; one that fails where the file is not of the format, so that it is named among the others."""
    try:
        cases = list(module.cases(load(path)))
        assert cases, f"{path} holds no case that tests/golden knows"
    except Exception as error:  # raised again by the test

        def unreadable(error: Exception = error) -> None:
            raise error

        return [("format", unreadable)]
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "comparison" not in metafunc.fixturenames:
        return
    directory: Path = metafunc.config.getoption("--golden")
    params = []
    for module in MODULES:
        path = directory / module.FILE
        if not path.is_file():
            skip = pytest.mark.skip(reason=f"{module.FILE} is not in {directory}")
            params.append(pytest.param(None, id=module.FILE, marks=skip))
            continue
        cases = cases_of(module, path)
        params.extend(pytest.param(comparison, id=f"{module.FILE}-{name}") for name, comparison in cases)
    metafunc.parametrize("comparison", params)


def test_agrees_with_the_published_implementation(comparison: Any, request: pytest.FixtureRequest) -> None:
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.device(request.config.getoption("--golden-device")), exact:
        comparison()


def test_directory_holds_reference_files(request: pytest.FixtureRequest) -> None:
    directory: Path = request.config.getoption("--golden")
    assert any((directory / module.FILE).is_file() for module in MODULES), f"no reference file in {directory}"
