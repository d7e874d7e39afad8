"""What `make test-cluster` says where it cannot run."""

import os
import shutil

import pytest

from tests.cluster.hosts import missing


def test_a_user_who_may_not_build_hosts_is_told_how(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing() == "building hosts needs root: sudo make test-cluster"


def test_missing_packages_are_named_as_debian_names_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program in ("sshd", "ip") else f"/bin/{program}")
    assert missing() == "building hosts needs Debian packages: apt-get install iproute2 openssh-server"
