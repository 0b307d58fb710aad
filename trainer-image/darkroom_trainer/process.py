"""The pod's process: read the plan, open the store, train, and say how it ended.

Everything heavy is imported only once the store has been probed and the inputs looked at, so that a wrong name or key
ends the pod in a second or two. `__main__` is the door to it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.failures import FailureReason
from darkroom_api.names import PLAN_DIRECTORY, PLAN_FILE, PROGRESS_PORT, TERMINATION_MESSAGE_PATH, WORK_DIRECTORY
from darkroom_api.plan import RunPlan
from darkroom_api.progress import Stage
from darkroom_api.training import MUTABLE_FIELDS
from darkroom_trainer import ending, logs
from darkroom_trainer.connecting import open_store
from darkroom_trainer.errors import RunError
from darkroom_trainer.fetching import check_inputs, datasets, initial_weights
from darkroom_trainer.late_imports import hide
from darkroom_trainer.patience import Patience
from darkroom_trainer.probing import abandon_orphans, probe
from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.services import Services
from darkroom_trainer.serving import serve
from darkroom_trainer.stopping import StopSignal
from darkroom_trainer.store import Store
from darkroom_trainer.tracking.opening import Tracking, open_tracking

LOG: Final = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.1
_TRACKER_SECONDS: Final = 10.0
"""For trackers to take what is left, when all else is done; a node that is drained does not wait much longer."""
MAXIMUM_PLAN_BYTES: Final = 2**20
"""What a ConfigMap can hold."""


@dataclass(frozen=True)
class Surroundings:
    """What the pod's environment says."""

    plan: Path
    work: Path
    termination: Path
    pod: str
    port: int
    patience: float

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Surroundings:
        """Read the environment; each variable has the default of the pod contract."""
        return cls(
            plan=Path(environ.get("DARKROOM_PLAN", f"{PLAN_DIRECTORY}/{PLAN_FILE}")),
            work=Path(environ.get("DARKROOM_WORK", WORK_DIRECTORY)),
            termination=Path(environ.get("DARKROOM_TERMINATION_LOG", TERMINATION_MESSAGE_PATH)),
            pod=environ.get("DARKROOM_POD_NAME") or os.uname().nodename,
            port=int(environ.get("DARKROOM_PORT", PROGRESS_PORT)),
            patience=float(environ.get("DARKROOM_STORE_PATIENCE_SECONDS", "900")),
        )


@dataclass
class Attempt:
    """What is known so far, for the last word."""

    run: str = ""
    reporter: Reporter | None = None
    tracking: Tracking = field(default_factory=Tracking)


def read_plan(path: Path) -> RunPlan:
    """Read and check the plan.

    Raises:
        RunError: It cannot be read, or it breaks the contract; every problem is told at once.
    """
    try:
        with path.open("rb") as file:
            return RunPlan.model_validate_json(file.read(MAXIMUM_PLAN_BYTES))
    except OSError as error:
        raise RunError(FailureReason.INVALID_SPEC, f"the plan {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RunError(FailureReason.INVALID_SPEC, explain(error, "plan")) from error


def keep_plan(store: Store, plan: RunPlan) -> None:
    """Put the plan beside the results; a later attempt must follow the same plan.

    Raises:
        RunError: The run began with another plan, so its state must not be continued.
    """
    at = plan.prefix.join(PLAN_FILE)
    there = store.find(at)
    if there is None:
        store.create(at, plan.model_dump_json(by_alias=True, indent=1).encode())
        return
    try:
        earlier = RunPlan.model_validate_json(there)
    except ValidationError:
        LOG.warning("%s was written by another version of Darkroom; it stays as it is", at)
        return
    changed = [field for field in _differences(earlier, plan) if field not in MUTABLE_FIELDS]
    if changed:
        raise RunError(
            FailureReason.INVALID_SPEC,
            f"this run began with another plan ({at}): {', '.join(changed)} changed",
            advice="Apply the changed spec under a new name; this run can only go on as it began.",
        )


def _differences(earlier: RunPlan, later: RunPlan) -> list[str]:
    one, other = (plan.spec.model_dump(by_alias=True, mode="json") for plan in (earlier, later))
    # Where a run's pods are placed, which key opens the store and who is told does not change what is trained.
    harmless = {"compute", "storage", "trackers"}
    changed = [field for field in one if field not in harmless and one[field] != other.get(field)]
    # But how many processes share a step changes what a step is.
    shared = earlier.spec.compute.num_processes == later.spec.compute.num_processes
    return changed if shared else [*changed, "compute"]


def load_training(stop: StopSignal) -> Callable[[RunPlan, Services], None]:
    """Import the trainer proper: seconds of torch, in a thread so that a request to stop is heeded meanwhile."""
    failures: list[BaseException] = []

    def load() -> None:
        try:
            importlib.import_module("darkroom_trainer.train")
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    hide("bitsandbytes")
    thread = threading.Thread(target=load, name="import", daemon=True)
    thread.start()
    while thread.is_alive():
        stop.check()
        thread.join(_LOOK_SECONDS)
    if failures:
        raise failures[0]
    train: Callable[[RunPlan, Services], None] = importlib.import_module("darkroom_trainer.train").train
    return train


def run(attempt: Attempt, environ: Mapping[str, str], stop: StopSignal) -> None:
    """Do everything from the plan to the last upload."""
    here = Surroundings.of(environ)
    attempt.run = _run_of(here.plan)
    plan = read_plan(here.plan)
    reporter = attempt.reporter = Reporter(plan.run, here.pod)
    attempt.tracking = open_tracking(plan, environ, here.work / "trackers")
    reporter.follow(attempt.tracking.measured)
    LOG.info("Run %s of %s/%s in pod %s", plan.run, plan.namespace, plan.name, here.pod)
    for folder in (here.work, environ.get("HOME"), environ.get("TMPDIR")):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    server = serve(reporter, here.port)
    try:
        services = _connect(plan, here, environ, stop=stop, reporter=reporter)
        train = load_training(stop)
        stop.check()
        train(plan, services)
        services.publisher.flush()
        reporter.stage(Stage.DONE)
    finally:
        server.close()


def _connect(
    plan: RunPlan, here: Surroundings, environ: Mapping[str, str], *, stop: StopSignal, reporter: Reporter
) -> Services:
    reporter.stage(Stage.STARTING, "Opening the store")
    patience = Patience(
        total_seconds=here.patience, check=stop.check, on_away=reporter.storage_away, on_back=reporter.storage_back
    )
    store = open_store(plan.spec.storage, environ, patience=patience)
    probe(store, plan.prefix)
    keep_plan(store, plan)
    check_inputs(store, plan.spec.base_model, datasets(plan.spec), initial=initial_weights(plan.spec))
    abandon_orphans(store, plan.prefix)
    publisher = Publisher(store.uninterrupted(), plan, reporter)
    LOG.info("The store at %s is as it should be; loading the trainer", store.endpoint)
    reporter.stage(Stage.STARTING, "Loading the trainer")
    return Services(store=store, publisher=publisher, reporter=reporter, stop=stop, work=here.work)


def _run_of(path: Path) -> str:
    """Return the run id of a plan that may be wrong in every other way."""
    try:
        value = json.loads(path.read_bytes()).get("run", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return value[:63] if isinstance(value, str) else ""


def main(environ: Mapping[str, str], stop: StopSignal) -> int:
    """Run, write the termination message and return the exit code."""
    logs.configure(environ)
    attempt, error = Attempt(), None
    try:
        run(attempt, environ, stop)
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it gets an exit code and a last word
        error = raised
    end = ending.judge(error, run=attempt.run, reporter=attempt.reporter, secrets=logs.secrets_of(environ))
    ending.announce(end, error)
    ending.leave_message(end.result, Path(environ.get("DARKROOM_TERMINATION_LOG", TERMINATION_MESSAGE_PATH)))
    attempt.tracking.close(end.result.outcome, patience=_TRACKER_SECONDS)
    return end.code
