"""A file is read again only when it has changed."""

import os
from pathlib import Path

from corrdream.files import once_per_version
from corrdream.prior.blocks import WEIGHTS, blocks_fingerprint


def test_a_file_is_read_once_until_it_changes(tmp_path: Path):
    reads = []

    @once_per_version
    def read(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("one")
    other.write_text("other")
    assert [read(file), read(file), read(other)] == ["one", "one", "other"]
    file.write_text("two")
    os.utime(file, ns=(0, 1))
    assert [read(file), read(file)] == ["two", "two"]
    assert reads == [file, other, file]


def test_the_identity_of_many_trials_reads_the_weights_once(tiny_prior_file: Path, monkeypatch):
    import corrdream
    from tests.sweep_folders import tiny_overrides

    config = corrdream.load_config((), tiny_overrides(tiny_prior_file))
    first = corrdream.identity(config)

    def fail(path: Path) -> bytes:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert corrdream.identity(config) == first


def test_the_weights_that_ship_have_a_fingerprint():
    assert len(blocks_fingerprint(WEIGHTS)) == 16
