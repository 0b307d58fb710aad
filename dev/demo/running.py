"""Apply the training, follow it to its end, and show what came of it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from darkroom_api.names import LABEL_NAME
from darkroom_cli.checkpoints import checkpoints
from darkroom_cli.resources import ClusterReader, Training, parse_reference, read_existing
from darkroom_cli.sheet import sheet
from darkroom_cli.watch import watch
from dev.cluster.console import ClusterError, stage
from dev.cluster.paths import REPOSITORY
from dev.demo.data import open_store
from dev.demo.installing import operator_log
from dev.demo.ownership import LABELS, TRAININGS
from dev.demo.site import NAMESPACE, SHEET, Site

REMOVAL_SECONDS = 150
"""A pod that still trains saves its state first; its grace period is 120 s."""


def name_of(site: Site) -> str:
    """Return the name of the example's training."""
    return str(site.example()["metadata"]["name"])


def apply_training(site: Site) -> None:
    """Apply the example; one of an earlier demo makes way, its checkpoints in the store stay."""
    name = name_of(site)
    if site.get(TRAININGS, name, "--namespace", NAMESPACE):
        with stage(f"remove the training {name} of an earlier demo (its checkpoints stay in the store)"):
            site.kubectl(
                "delete",
                TRAININGS,
                name,
                "--namespace",
                NAMESPACE,
                "--cascade=foreground",
                f"--timeout={REMOVAL_SECONDS}s",
            )
    manifest = site.example()
    manifest["metadata"] |= {"namespace": NAMESPACE, "labels": LABELS}
    with stage("kubectl apply -f examples/lora-training.yaml"):
        site.apply(manifest)


def follow(site: Site, console: Console) -> Training:
    """Follow the training to its end, as `kubectl darkroom watch` does; return it.

    Raises:
        ClusterError: The training failed; with the last lines of pod and operator.
    """
    reader = _reader(site)
    if watch(reader, reader.reference, console=console) != 0:
        raise ClusterError(f"the training failed\n{pod_state(site)}\n{operator_log(site)}")
    return read_existing(reader, reader.reference)


def _reader(site: Site) -> ClusterReader:
    reference = parse_reference(f"lora/{name_of(site)}")
    return ClusterReader(reference, namespace=NAMESPACE, kubeconfig=Path(site.state.kubeconfig), context=None)


def show_results(site: Site, training: Training, console: Console) -> None:
    """List the checkpoints, each verified in the store, and write the sheet of samples."""
    store = open_store(site.state.s3)
    if checkpoints(training, store=store, console=console) != 0:
        raise ClusterError(f"a checkpoint is not in the store as the status says; see {training.prefix}")
    with stage("download the samples and put them on one sheet"):
        picture = sheet(training.prefix, training.spec.samples, store=store)
        SHEET.parent.mkdir(parents=True, exist_ok=True)
        picture.save(SHEET)
    console.print(
        f"\nThe samples before, during and after training: {SHEET.relative_to(REPOSITORY)} "
        f"({picture.width}x{picture.height})",
        highlight=False,
        soft_wrap=True,
    )


def pod_state(site: Site) -> str:
    """Return what helps to see why a training fails: its pods, the warnings and the last lines."""
    where = ("--namespace", NAMESPACE)
    selector = f"--selector={LABEL_NAME}={name_of(site)}"
    return "\n".join(
        [
            site.kubectl("get", "pods", *where, selector, "--output=wide", check=False),
            site.kubectl("get", "events", *where, "--field-selector=type=Warning", check=False),
            "the trainer's last lines:",
            site.kubectl("logs", *where, selector, "--tail=30", "--prefix", check=False),
        ]
    )


def elapsed(since: float) -> str:
    """Return the time since then, as a person says it."""
    minutes, seconds = divmod(round(time.monotonic() - since), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
