"""The trainer's Prometheus metrics: a view of the reporter, taken when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from darkroom_trainer.reporting import Reporter

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX: Final = "darkroom_training"


class _View(Collector):
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def collect(self) -> Iterator[Metric]:
        progress, counters = self._reporter.snapshot(), self._reporter.counters()
        stage = GaugeMetricFamily(f"{_PREFIX}_stage", "1 for what the pod is doing.", labels=["stage"])
        stage.add_metric([progress.stage.value], 1)
        yield stage
        planned = progress.plan.total_steps if progress.plan else None
        gauges: list[tuple[str, str, float | None]] = [
            ("epoch", "Epoch being trained, from 1.", progress.epoch),
            ("step", "Optimizer steps done.", progress.step),
            ("steps_planned", "Optimizer steps of the whole run.", planned),
            ("loss", "Mean loss of the last steps.", progress.loss),
            ("learning_rate", "Learning rate of the last step.", progress.learning_rate),
            ("steps_per_second", "Speed over the last steps.", progress.steps_per_second),
            ("remaining_seconds", "Estimated time to the end.", progress.estimated_remaining_seconds),
            ("validation_loss", "Loss of the last validation.", progress.validation_loss),
            ("best_epoch", "Epoch of the least validation loss.", progress.best_epoch),
            ("checkpoints", "Checkpoints in the store.", len(progress.checkpoints)),
            ("checkpoint_age_seconds", "Time since a checkpoint became durable.", counters.checkpoint_age),
            ("state_age_seconds", "Time since a resume state became durable.", counters.state_age),
            ("waiting_uploads", "Directories that wait for their upload.", counters.waiting_uploads),
        ]
        for name, text, value in gauges:
            if value is not None:
                yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        yield CounterMetricFamily(f"{_PREFIX}_uploaded_bytes", "Bytes put into the store.", counters.uploaded_bytes)
        yield CounterMetricFamily(f"{_PREFIX}_downloaded_bytes", "Bytes fetched.", counters.downloaded_bytes)
        yield CounterMetricFamily(
            f"{_PREFIX}_storage_failures", "Attempts that found the store away.", counters.storage_failures
        )


def exposition(reporter: Reporter) -> bytes:
    """Return the metrics in Prometheus' text format; the registry is the call's own, so nothing is global."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_View(reporter))
    return generate_latest(registry)
