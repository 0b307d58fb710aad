"""The training of one run, from its inputs in the store to its last checkpoint there. Read this file first."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack

from darkroom_api.plan import RunPlan
from darkroom_api.progress import Stage
from darkroom_trainer.errors import StopRequested
from darkroom_trainer.following import followed
from darkroom_trainer.hardware import memory_limit
from darkroom_trainer.preparing import LATENTS, fetch, prepare
from darkroom_trainer.restoring import restore
from darkroom_trainer.results import Results
from darkroom_trainer.services import Services


def train(plan: RunPlan, services: Services) -> None:
    """Train until the last epoch is handed over, or until asked to stop.

    Raises:
        RunError: Inputs are wrong, or training cannot go on.
        StopRequested: After the state is saved and durable.
    """
    reporter, publisher, stop = services.reporter, services.publisher, services.stop
    with memory_limit(), ExitStack() as stack:
        inputs = fetch(plan, services)
        reporter.planned(inputs.plan)
        session = prepare(plan, services, inputs)
        stack.enter_context(
            followed(
                session,
                model=inputs.model.path,
                latents=services.work / LATENTS,
                initial=inputs.initial.path if inputs.initial else None,
                check=stop.check,
            )
        )
        restored = restore(services.store, plan.prefix, services.work)
        publisher.adopt(restored)
        if restored.state_directory:
            reporter.stage(Stage.RESUMING)
            session.load(restored.state_directory)
            shutil.rmtree(restored.state_directory)  # a whole model's takes tens of gigabytes
            reporter.restored(epoch=session.epoch, step=session.position.step, validations=session.position.validations)
            if session.early_stop:
                reporter.stopped_early(session.early_stop)

        results = Results(plan.name, session, services, inputs.base)
        saved_at = time.monotonic()
        while not session.is_finished:
            try:
                if (epoch := session.epoch_to_close) is not None:
                    results.close_epoch(epoch)
                    saved_at = time.monotonic()
                    continue
                reporter.stage(Stage.TRAINING)
                began = time.monotonic()
                done = session.step()
                reporter.stepped(
                    epoch=session.epoch,
                    step=session.position.step,
                    loss=done.loss,
                    learning_rate=done.learning_rate,
                    seconds=time.monotonic() - began,
                )
                publisher.check()
                is_due = time.monotonic() - saved_at >= plan.spec.checkpoints.state_every_seconds
                if is_due and session.epoch_to_close is None:
                    results.save_state()
                    saved_at = time.monotonic()
                stop.check()
            except StopRequested:
                results.save_state()
                results.flush()
                raise
            except Exception:
                results.salvage()
                raise
            finally:
                reporter.adapted(session.adapted)
        results.flush()
