"""Where the cluster keeps what: costly things in the user's cache, sockets and records under /run.

Everything else in `dev` asks here, so that a test can put a whole cluster elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of everything that is costly to make; `DARKROOM_CACHE` moves it."""
    given = environment.get("DARKROOM_CACHE")
    return Path(given).resolve() if given else Path.home() / ".cache" / "darkroom"


@dataclass(frozen=True)
class Layout:
    """The directories of one cluster.

    `run` is short (a Unix socket's path holds 107 bytes) and holds what dies with the machine;
    `data` holds what may be worth keeping: pulled images, objects, logs.
    """

    data: Path
    run: Path

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def pki(self) -> Path:
        return self.data / "pki"

    @property
    def records(self) -> Path:
        return self.run / "processes"

    @property
    def kubeconfig(self) -> Path:
        return self.data / "admin.kubeconfig"

    @property
    def kubelet(self) -> Path:
        return self.data / "kubelet"

    @property
    def state_file(self) -> Path:
        """What `env` and `status` need to know about the cluster that runs."""
        return self.run / "cluster.json"

    @property
    def lock_file(self) -> Path:
        """Beside `run`, which a `down` removes, and the same for callers with different homes."""
        return self.run.parent / f"{self.run.name}.lock"

    def record(self) -> None:
        """Remember where the data of what runs lies: another caller may have another home or DARKROOM_CACHE."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "data").write_text(str(self.data))

    def recorded(self) -> Layout:
        """Return this layout with the data directory of what runs, itself if nothing does."""
        try:
            text = (self.run / "data").read_text()
        except OSError:
            return self
        return replace(self, data=Path(text)) if text.startswith("/") else self


def full_layout() -> Layout:
    """Return the layout of the one full cluster of this machine."""
    return Layout(data=cache_directory() / "cluster", run=Path("/run/darkroom")).recorded()


def existing_layout() -> Layout:
    """Return the layout of what runs here beside a cluster that is somebody else's (at most an S3 store)."""
    return Layout(data=cache_directory() / "existing", run=cache_directory() / "existing" / "run")
