"""Two programs that build and push images: buildah, which needs no daemon, and docker where an engine runs.

Docker pushes to plain HTTP only on loopback unless its daemon is configured, so the local cluster always uses buildah.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dev.cluster import packages
from dev.cluster.console import ClusterError, tail
from dev.cluster.paths import cache_directory

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSIDE = "/run/build-ca.crt"


class Builder(Protocol):
    """What it takes to make an image from a context and to bring it to a registry."""

    base: str | None
    """An image to use as BASE_IMAGE instead of the Containerfile's own default."""

    def has(self, reference: str) -> bool:
        """Tell whether the image is there already."""
        ...

    def build(self, reference: str, context: Path, *, containerfile: str, log: Path) -> None:
        """Build the image from a directory that holds everything it needs."""
        ...

    def push(self, reference: str, target: str, *, tls: bool, log: Path) -> None:
        """Bring the image to a registry."""
        ...


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command with everything it started, so that nothing goes on writing where a clean-up removes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        os.killpg(process.pid, signal.SIGKILL)


def run_logged(command: Sequence[str | Path], log: Path, *, what: str) -> None:
    """Run a long command into a log and raise with the log's end if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as out,
        subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
        ) as process,
    ):
        try:
            process.wait()
        except BaseException:
            _end_group(process)
            raise
    if process.returncode:
        raise ClusterError(f"{what} failed. The last lines of {log}:\n{tail(log)}")


def package_index(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the package index that this machine's pip is set to, None for the usual one."""
    if environment.get("PIP_INDEX_URL"):
        return environment["PIP_INDEX_URL"]
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None if result.returncode == 0 else None


class Buildah:
    """Buildah with storage of its own, on a base made by debootstrap (see `base`)."""

    def __init__(self, base: str | None = None) -> None:
        packages.ensure(packages.IMAGES)
        self.base = base
        self.directory = cache_directory() / "containers"

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a buildah command line on the project's own storage."""
        roots = ["--root", self.directory / "storage", "--runroot", self.directory / "run"]
        return [str(word) for word in ("buildah", *roots, "--storage-driver", "overlay", *arguments)]

    def has(self, reference: str) -> bool:
        command = self.command("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def build(self, reference: str, context: Path, *, containerfile: str, log: Path) -> None:
        """Build without a container runtime; the machine's certificates and package index are lent, not copied in."""
        options: list[str | Path] = ["--isolation", "chroot", "--network", "host", "--layers", "--format", "oci"]
        if self.base:
            options += ["--build-arg", f"BASE_IMAGE={self.base}"]
        if CERTIFICATES.exists():
            options += ["--volume", f"{CERTIFICATES}:{INSIDE}:ro", "--build-arg", f"PIP_CERT={INSIDE}"]
        index = package_index()
        if index:
            configuration = self.directory / "pip.conf"
            configuration.touch(mode=0o600)
            configuration.write_text(f"[global]\nindex-url = {index}\n")
            options += ["--volume", f"{configuration}:/etc/pip.conf:ro"]
        options += ["--file", context / containerfile, "--tag", reference, context]
        run_logged(self.command("bud", *options), log, what=f"building {reference}")

    def push(self, reference: str, target: str, *, tls: bool, log: Path) -> None:
        """Push; a layer that the registry has already is neither packed nor sent again.

        Zstandard at its fastest: for gigabytes of libraries a third of gzip's time, and smaller.
        """
        options = [f"--tls-verify={str(tls).lower()}", "--compression-format=zstd", "--compression-level=1"]
        run_logged(
            self.command("push", *options, reference, f"docker://{target}"),
            log,
            what=f"pushing {reference} to {target}",
        )


class Docker:
    """A docker engine, which takes the Containerfile's own base from its registry."""

    def __init__(self) -> None:
        self.base: str | None = None

    def has(self, reference: str) -> bool:
        return (
            subprocess.run(["docker", "image", "inspect", reference], capture_output=True, check=False).returncode == 0
        )

    def build(self, reference: str, context: Path, *, containerfile: str, log: Path) -> None:
        """Build with the engine's defaults."""
        command = ["docker", "build", "--file", str(context / containerfile), "--tag", reference, str(context)]
        run_logged(command, log, what=f"building {reference}")

    def push(self, reference: str, target: str, *, tls: bool, log: Path) -> None:
        """Push; whether a registry without TLS is allowed is the daemon's setting."""
        for command in (["docker", "tag", reference, target], ["docker", "push", target]):
            run_logged(command, log, what=f"pushing {reference} to {target}")


def docker_works() -> bool:
    """Tell whether there is a docker engine that answers."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


def choose(environment: Mapping[str, str], *, existing: bool) -> type[Buildah] | type[Docker]:
    """Return the builder to use: DARKROOM_BUILDER, or docker beside an existing cluster, else buildah."""
    given = environment.get("DARKROOM_BUILDER")
    known: dict[str, type[Buildah] | type[Docker]] = {"buildah": Buildah, "docker": Docker}
    if given:
        if given not in known:
            raise ClusterError(f"DARKROOM_BUILDER: got {given!r}, allowed are {', '.join(known)}")
        return known[given]
    return Docker if existing and docker_works() else Buildah
