"""A process is known to be dead only where it could be seen."""

import dataclasses
import subprocess
import sys

from sweeps.processes import Process

SAY = "from sweeps.processes import Process; print(Process.this().to_text(), flush=True); input()"


def test_a_process_is_alive_until_it_ends_and_is_named_by_its_text():
    with subprocess.Popen(
        [sys.executable, "-c", SAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin
        assert other.stdout
        process = Process.of(other.stdout.readline().strip())
        assert process.to_words().startswith(f"process {other.pid} on ")
        assert not process.is_dead_here()
        other.kill()
        other.wait()
    assert process.is_dead_here()


def test_a_number_that_is_used_again_is_another_process():
    this = Process.this()
    assert Process.of(this.to_text()) == this
    assert not this.is_dead_here()
    assert dataclasses.replace(this, started="1").is_dead_here()


def test_of_another_node_or_boot_nothing_is_known():
    gone = dataclasses.replace(Process.this(), number="4194305")
    assert gone.is_dead_here()
    assert not dataclasses.replace(gone, node="another_node").is_dead_here()
    assert not dataclasses.replace(gone, place="0123-1").is_dead_here()
    assert Process.of(dataclasses.replace(gone, node="a_node_with_lines").to_text()).node == "a_node_with_lines"
