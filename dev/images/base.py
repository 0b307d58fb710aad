"""The image below the others where no registry of base images can be reached: Debian from its own packages."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from dev.cluster.console import stage
from dev.cluster.paths import cache_directory
from dev.cluster.scratch import Scratch
from dev.images.builder import Buildah, run_logged

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv")


def reference() -> str:
    """Return the base image's name, which changes with its recipe."""
    recipe = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:8]
    return f"localhost/base:{SUITE}-{recipe}"


def choose_mirror(targets: str) -> list[str]:
    """Return Debian's own source among lines of (origin, codename, file, address); a third party's may come first.

    Before the first `apt-get update` no origin is known: then the file's usual name tells.
    """
    rows = [line.split("\t") for line in targets.splitlines()]
    ours = [row for row in rows if row[0] == "Debian" and row[1] == SUITE]
    named = [row for row in rows if Path(row[2].rpartition(":")[0]).name in ("debian.sources", "sources.list")]
    return [row[3] for row in ours + named][:1]


def mirror() -> list[str]:
    """Return the Debian mirror that this machine uses, nothing (debootstrap's default) on another distribution."""
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        return []
    form = "$(ORIGIN)\t$(CODENAME)\t$(SOURCESENTRY)\t$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    return choose_mirror(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def ensure(builder: Buildah) -> str:
    """Make the base image if it is not there, and return its name."""
    name = reference()
    if builder.has(name):
        return name
    log = cache_directory() / "logs" / "image-base.log"
    with (
        stage(f"make the base image {name} with debootstrap", usual="1 to 2 minutes, once"),
        Scratch(cache_directory() / "scratch") as scratch,
    ):
        root = scratch.path / "root"
        include = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", include, SUITE, str(root), *mirror()]
        run_logged(command, log, what="debootstrap")
        slim(root)
        container = subprocess.run(
            builder.command("from", "scratch"), capture_output=True, text=True, check=True
        ).stdout.strip()
        try:
            run_logged(builder.command("copy", container, root, "/"), log, what="copying the base")
            run_logged(builder.command("commit", container, name), log, what="committing the base")
        finally:
            subprocess.run(builder.command("rm", container), capture_output=True, check=False)
    return name


def slim(root: Path) -> None:
    """Remove what only debootstrap needed, and the name servers of this machine."""
    (root / "etc/resolv.conf").write_text("")
    (root / "etc/hostname").write_text("localhost\n")
    for directory in ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/locale"):
        for child in (root / directory).iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
