"""The operator's Prometheus metrics, in a registry of their own so that several operators fit into one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


@dataclass
class Metrics:
    """Everything that is measured."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.reconcile_seconds = Histogram(
            "darkroom_reconcile_seconds", "Time of one reconciliation.", registry=self.registry
        )
        self.reconciles = Counter(
            "darkroom_reconciles", "Reconciliations by result.", ["result"], registry=self.registry
        )
        self.writes = Counter(
            "darkroom_api_writes",
            "Writes to the API server by verb, kind and status code (0: no answer).",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self.polls = Counter("darkroom_polls", "Polls of pods by result.", ["result"], registry=self.registry)

    def collect_from(self, collector: Collector) -> None:
        """Take gauges from what is known at the time of a scrape."""
        self.registry.register(collector)


class LiveGauges(Collector):
    """Gauges that are read off the operator's state when somebody asks."""

    def __init__(self, *, queue_depth: Callable[[], float], phases: Callable[[], dict[tuple[str, str], int]]) -> None:
        self._queue_depth = queue_depth
        self._phases = phases
        self._ages: dict[str, tuple[str, Callable[[], float]]] = {}

    def add_age(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge of an age in seconds."""
        self._ages[name] = (help_text, read)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Read everything."""
        depth = GaugeMetricFamily("darkroom_queue_depth", "Trainings that wait for a worker.")
        depth.add_metric([], self._queue_depth())
        yield depth
        runs = GaugeMetricFamily("darkroom_runs", "Trainings by kind and phase.", labels=["kind", "phase"])
        for labels, number in self._phases().items():
            runs.add_metric(labels, number)
        yield runs
        for name, (help_text, read) in self._ages.items():
            age = GaugeMetricFamily(name, help_text)
            age.add_metric([], read())
            yield age
