"""What an image is made of, and a name that follows from it.

The build sees a directory that holds exactly the files that were hashed, so that nothing else can get into an image and
an unchanged tag means an unchanged image.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.console import ClusterError
from dev.cluster.paths import REPOSITORY

IGNORED = ("__pycache__", ".pyc")


@dataclass(frozen=True)
class Image:
    """One of the project's images."""

    name: str
    containerfile: str
    usual: str

    def repository(self) -> str:
        return f"darkroom/{self.name}"


IMAGES = {
    "operator": Image("operator", "operator/Containerfile", usual="40 s, seconds after a change of code"),
    "trainer": Image("trainer", "trainer-image/Containerfile", usual="3 to 5 minutes, seconds after a change of code"),
}


def copied(containerfile: str) -> list[str]:
    """Return the sources of every COPY in a Containerfile, in order."""
    found: list[str] = []
    for line in containerfile.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith(("COPY ", "ADD ")) else []
        if any(word.startswith("--from=") for word in words):
            continue
        paths = [word for word in words[1:] if not word.startswith("--")]
        found += paths[:-1]
    return found


def inputs(image: Image, root: Path = REPOSITORY) -> Iterator[Path]:
    """Yield every file that goes into an image, relative to the repository, in a fixed order."""
    containerfile = root / image.containerfile
    if not containerfile.exists():
        raise ClusterError(f"{image.containerfile} is not there: it says how the {image.name} image is made")
    files = {Path(image.containerfile)}
    for source in copied(containerfile.read_text()):
        path = root / source
        if not path.exists():
            raise ClusterError(f"{image.containerfile}: COPY {source}: there is no such file in the repository")
        candidates = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
        files.update(entry.relative_to(root) for entry in candidates if not str(entry).endswith(IGNORED[1]))
    yield from sorted(path for path in files if IGNORED[0] not in path.parts)


def tag(image: Image, base: str, root: Path = REPOSITORY) -> str:
    """Return the image's tag: a hash of its files, their names and modes, and the image below it."""
    digest = hashlib.sha256(base.encode() + b"\0")
    for path in inputs(image, root):
        content = (root / path).read_bytes()
        executable = bool((root / path).stat().st_mode & 0o100)
        digest.update(f"{path}\0{executable}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def write_context(image: Image, target: Path, root: Path = REPOSITORY) -> None:
    """Copy the inputs, with times that do not matter: builders compare content."""
    for path in inputs(image, root):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, target / path)
        (target / path).chmod(0o755 if (root / path).stat().st_mode & 0o100 else 0o644)
