"""What training needs of the outer world, in one bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.stopping import StopSignal
from darkroom_trainer.store import Store


@dataclass(frozen=True)
class Services:
    """The store, uploads in the background, the report, the request to stop and a folder to work in."""

    store: Store
    publisher: Publisher
    reporter: Reporter
    stop: StopSignal
    work: Path
