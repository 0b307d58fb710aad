"""From sources to a cluster: name, build if needed, push if needed, load. A second run finds all of it done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dev.cluster import node, registry
from dev.cluster.console import ClusterError, stage
from dev.cluster.full import State
from dev.cluster.paths import cache_directory, full_layout
from dev.cluster.scratch import Scratch
from dev.images import base
from dev.images.builder import Buildah, Builder, Docker, choose
from dev.images.context import IMAGES, Image, tag, write_context


def _base_name(kind: type[Buildah] | type[Docker]) -> str:
    return base.reference() if kind is Buildah else "default"


def _log(image: Image) -> Path:
    return cache_directory() / "logs" / f"image-{image.name}.log"


class Pipeline:
    """Builds and delivers images for one cluster."""

    def __init__(self, state: State | None, *, existing: bool, environment: Mapping[str, str] = os.environ) -> None:
        self._state = state
        self._existing = existing
        self._kind = choose(environment, existing=existing)
        self._builder: Builder | None = None

    def builder(self) -> Builder:
        """Return the builder, made ready when it is first needed: a run that finds everything done needs none."""
        if self._builder is None:
            builder = self._kind()
            if isinstance(builder, Buildah):
                builder.base = base.ensure(builder)
            self._builder = builder
        return self._builder

    def tag(self, image: Image) -> str:
        return tag(image, _base_name(self._kind))

    def reference(self, image: Image) -> str:
        """Return the name under which the cluster pulls the image."""
        if self._state is None:
            raise ClusterError("the cluster is not running (start it: python -m dev.cluster up)")
        return f"{self._state.registry}/{image.repository()}:{self.tag(image)}"

    def build(self, image: Image) -> str:
        """Build unless it is built, and return the local name."""
        name = f"localhost/{image.repository()}:{self.tag(image)}"
        builder = self.builder()
        if builder.has(name):
            return name
        with (
            stage(f"build the {image.name} image", usual=image.usual),
            Scratch(cache_directory() / "scratch") as scratch,
        ):
            context = scratch.path / "context"
            write_context(image, context)
            _log(image).unlink(missing_ok=True)
            builder.build(name, context, containerfile=image.containerfile, log=_log(image))
        return name

    def push(self, image: Image) -> str:
        """Push unless the registry has it, and return the name under which the cluster pulls it."""
        target = self.reference(image)
        host, _, path = target.partition("/")
        repository, _, wanted = path.rpartition(":")
        tls = registry.speaks_tls(host)
        if tls is None:
            raise ClusterError(f"no image registry answers at {host} (is the cluster up? python -m dev.cluster status)")
        if not registry.has_image(host, repository, wanted, tls=tls):
            name = self.build(image)
            with stage(f"push the {image.name} image to {host}", usual="2 minutes for the first trainer, else seconds"):
                self.builder().push(name, target, tls=tls, log=_log(image))
        return target

    def load(self, image: Image) -> str:
        """Have the node pull the image now, so that no pod waits for it; another's cluster pulls by itself."""
        target = self.push(image)
        layout = full_layout()
        if self._existing or target in node.ctr(layout, "images", "ls", "-q").split():
            return target
        with stage(f"have the node pull the {image.name} image", usual="2 minutes for the first trainer, else seconds"):
            node.ctr(layout, "images", "pull", "--plain-http", target)
        return target


def selected(names: Iterable[str]) -> list[Image]:
    """Return the named images, all of them if none is named."""
    return [IMAGES[name] for name in names] or list(IMAGES.values())
