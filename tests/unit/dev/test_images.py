"""An image's tag follows from what the build can see, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.cluster.console import ClusterError
from dev.images.builder import Buildah, Docker, choose
from dev.images.context import IMAGES, Image, copied, inputs, tag, write_context

IMAGE = Image("one", "one/Containerfile", usual="")
CONTAINERFILE = """\
ARG BASE_IMAGE=debian
FROM ${BASE_IMAGE}
# COPY not/this /tmp
COPY --chown=1:1 requirements.txt \\
     setup.cfg /tmp/
COPY --from=other /x /y
RUN echo COPY neither /this
COPY src /opt/src
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for path, content in {
        "one/Containerfile": CONTAINERFILE,
        "requirements.txt": "a==1",
        "setup.cfg": "",
        "src/main.py": "print(1)",
        "src/deep/data.txt": "x",
        "unrelated.txt": "y",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_sources_of_every_copy() -> None:
    assert copied(CONTAINERFILE) == ["requirements.txt", "setup.cfg", "src"]


def test_the_context_holds_exactly_the_inputs(repository: Path, tmp_path: Path) -> None:
    cache = repository / "src" / "__pycache__"
    cache.mkdir()
    (cache / "main.cpython-311.pyc").write_bytes(b"1")
    write_context(IMAGE, tmp_path / "context", repository)
    found = {
        str(path.relative_to(tmp_path / "context")) for path in (tmp_path / "context").rglob("*") if path.is_file()
    }
    assert found == {"one/Containerfile", "requirements.txt", "setup.cfg", "src/main.py", "src/deep/data.txt"}


def test_the_tag_is_stable_and_ignores_what_is_not_copied(repository: Path) -> None:
    before = tag(IMAGE, "base", repository)
    (repository / "unrelated.txt").write_text("changed")
    (repository / "src" / "main.pyc").write_bytes(b"cache")
    assert tag(IMAGE, "base", repository) == before


@pytest.mark.parametrize("path", ["one/Containerfile", "requirements.txt", "src/deep/data.txt", "src/new.py"])
def test_the_tag_changes_with_every_input(repository: Path, path: str) -> None:
    before = tag(IMAGE, "base", repository)
    with (repository / path).open("a") as file:
        file.write("\n")
    assert tag(IMAGE, "base", repository) != before


def test_the_tag_changes_with_names_modes_and_the_base(repository: Path) -> None:
    before = tag(IMAGE, "base", repository)
    assert tag(IMAGE, "another", repository) != before
    (repository / "src/main.py").chmod(0o755)
    executable = tag(IMAGE, "base", repository)
    assert executable != before
    (repository / "src/main.py").rename(repository / "src/other.py")
    assert tag(IMAGE, "base", repository) not in (before, executable)


def test_a_missing_source_is_named(repository: Path) -> None:
    (repository / "setup.cfg").unlink()
    with pytest.raises(ClusterError, match=r"one/Containerfile: COPY setup\.cfg: there is no such file"):
        list(inputs(IMAGE, repository))


@pytest.mark.parametrize("name", IMAGES)
def test_the_projects_images_find_all_their_inputs(name: str) -> None:
    found = [str(path) for path in inputs(IMAGES[name])]
    assert f"requirements/{name}.txt" in found
    assert any(path.endswith("__main__.py") for path in found)


def test_the_builder_can_be_chosen() -> None:
    assert choose({"DARKROOM_BUILDER": "docker"}, existing=False) is Docker
    assert choose({}, existing=False) is Buildah
    with pytest.raises(ClusterError, match="DARKROOM_BUILDER: got 'podman', allowed are buildah, docker"):
        choose({"DARKROOM_BUILDER": "podman"}, existing=True)
