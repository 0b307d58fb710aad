"""The Debian packages a node needs, installed when one of their programs is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dev.cluster.console import ClusterError, stage, tail
from dev.cluster.paths import cache_directory

NODE = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables-restore",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "nftables": "nft",
    "socat": "socat",
    "iproute2": "ip",
}
IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap"}

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# darkroom: while packages are installed, no service is started\nexit 101\n"


def find(program: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return where a program is, whoever installed it: docker's own containerd and runc do as well as Debian's."""
    return shutil.which(program, path=f"{environment.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin")


def missing(programs: Mapping[str, str]) -> list[str]:
    """Return the packages whose program is not there."""
    return [package for package, program in programs.items() if find(program) is None]


@contextmanager
def no_services(policy: Path = POLICY) -> Iterator[None]:
    """Keep what is installed meanwhile from starting its services; a policy that the machine has is left as it is."""
    foreign = policy.exists() and policy.read_text() != POLICY_TEXT  # ours is left by a hard stop
    if not foreign:
        policy.write_text(POLICY_TEXT)
        policy.chmod(0o755)
    try:
        yield
    finally:
        if not foreign:
            policy.unlink(missing_ok=True)


def _apt_get(log: Path, *arguments: str) -> None:
    with log.open("a") as out:
        result = subprocess.run(
            ["apt-get", "-q", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
        )
    if result.returncode:
        raise ClusterError(f"apt-get {arguments[0]} failed. The last lines of {log}:\n{tail(log)}")


def ensure(programs: Mapping[str, str]) -> None:
    """Install what is missing; the package lists are fetched only when they are needed, and nothing is removed."""
    absent = missing(programs)
    if not absent:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"these programs are missing: {', '.join(programs[name] for name in absent)}; they come from Debian's "
            "packages of the same name, and this machine has no apt-get. Use another cluster: CLUSTER=existing"
        )
    log = cache_directory() / "logs" / "apt.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with stage(f"install {', '.join(absent)} with apt-get", usual="1 to 2 minutes, once"), no_services():
        _apt_get(log, "update")
        _apt_get(log, "install", "-y", "--no-remove", "--no-install-recommends", *absent)
