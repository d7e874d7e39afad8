"""Optional packages: found, or refused with the cause and the cure."""

import math
from pathlib import Path

import pytest

from corrdream import doctor
from corrdream.backends import EXTRA, MissingBackendError, require


def test_installed_package_is_returned() -> None:
    assert require("math", "some.key") is math


@pytest.mark.parametrize(
    ("package", "cure"),
    [
        ("no_such_package_here", "pip install no_such_package_here"),
        ("no_such_package_here.inner", "pip install no_such_package_here"),
    ],
)
def test_missing_package_names_key_cause_and_cure(package: str, cure: str) -> None:
    with pytest.raises(MissingBackendError) as caught:
        require(package, "field.encoding=fast")
    message = str(caught.value)
    assert message.startswith(f"field.encoding=fast needs the package {package} ({cure})")
    assert "No module named 'no_such_package_here'" in message
    assert isinstance(caught.value.__cause__, ImportError)


def test_package_that_breaks_on_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one built for another torch does."""
    (tmp_path / "built_for_another_torch.py").write_text("raise ImportError('undefined symbol: _ZN2at')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingBackendError, match="import failed: undefined symbol: _ZN2at"):
        require("built_for_another_torch", "rendering.marching=fast")


def test_error_that_is_no_import_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "has_a_bug.py").write_text("raise ZeroDivisionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        require("has_a_bug", "some.key")


def test_known_package_is_cured_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRA, "no_such_package_here", "cuda")
    with pytest.raises(MissingBackendError, match=r"pip install 'corrdream\[cuda\]'"):
        require("no_such_package_here", "some.key")


def test_extras_that_errors_point_to_exist() -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for package, extra in EXTRA.items():
        section = pyproject.split("[project.optional-dependencies]")[1].split(f"\n{extra} = ")[1].split("\n]")[0]
        assert package in section or package.replace("cudann", "-cuda-nn") in section
        assert package in doctor.USE
