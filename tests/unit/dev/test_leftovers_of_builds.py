"""What installs and builds leave when they are stopped: nothing that lasts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dev.cluster import binaries, packages
from dev.cluster.console import ClusterError
from dev.cluster.waiting import wait_for
from dev.images.base import choose_mirror

SOURCES = """\
Third Party\tbookworm\t/etc/apt/sources.list.d/a.list:1\thttp://third/
Debian\tbookworm-security\t/etc/apt/sources.list.d/debian.sources:2\thttp://mirror/debian-security/
Debian\tbookworm\t/etc/apt/sources.list.d/debian.sources:1\thttp://mirror/debian/
"""


def test_debians_own_mirror_is_chosen_whatever_comes_first() -> None:
    assert choose_mirror(SOURCES) == ["http://mirror/debian/"]
    assert choose_mirror(SOURCES.replace("Debian\t", "\t")) == ["http://mirror/debian-security/"], "by the file's name"
    assert choose_mirror(SOURCES.splitlines()[0]) == []


def test_a_program_counts_wherever_it_is(tmp_path: Path) -> None:
    program = tmp_path / "containerd"
    program.touch(mode=0o755)
    assert packages.find("containerd", {"PATH": str(tmp_path)}) == str(program)
    assert packages.missing({"a": str(program), "b": str(tmp_path / "none"), "c": "no-such-program"}) == ["b", "c"]


def test_no_service_starts_and_a_foreign_policy_stays(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    for _ in range(2):
        with packages.no_services(policy):
            assert subprocess.run([policy], check=False).returncode == 101
        assert not policy.exists()
        policy.write_text(packages.POLICY_TEXT)  # as a hard stop leaves it
    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages.no_services(policy):
        assert policy.read_text().endswith("exit 0\n")
    assert policy.exists()


def test_an_old_go_is_named_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "go"
    program.write_text("#!/bin/sh\necho go version go1.9.7 linux/amd64\n")
    program.chmod(0o755)
    (tmp_path / "go.mod").write_text("module x\n\ngo 1.26.0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError, match=rf"{program} is too old: got 1\.9\.7, .* needs 1\.26\.0 or later"):
        binaries.go_for(tmp_path)
    program.write_text("#!/bin/sh\necho go version go1.30 linux/amd64\n")
    assert binaries.go_for(tmp_path) == str(program)


def test_a_terminated_build_ends_its_programs_and_removes_its_scratch(tmp_path: Path) -> None:
    build = (
        "import pathlib, sys\n"
        "from dev.cluster.console import unwind_when_terminated\n"
        "from dev.cluster.scratch import Scratch\n"
        "from dev.images.builder import run_logged\n"
        "unwind_when_terminated()\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "with Scratch(root / 'scratch'):\n"
        "    run_logged(['sh', '-c', f'sleep 100 & echo $! > {root}/pid.new; mv {root}/pid.new {root}/pid; wait'],\n"
        "               root / 'log', what='waiting')\n"
    )
    with subprocess.Popen([sys.executable, "-c", build, str(tmp_path)]) as process:
        wait_for((tmp_path / "pid").exists, "the build runs", timeout=20)
        assert list((tmp_path / "scratch").glob("*-*"))
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert not list((tmp_path / "scratch").glob("*-*"))
    grandchild = int((tmp_path / "pid").read_text())
    wait_for(
        lambda: (
            not Path(f"/proc/{grandchild}/cmdline").exists() or not Path(f"/proc/{grandchild}/cmdline").read_bytes()
        ),
        "what it started is gone",
        timeout=10,
    )
