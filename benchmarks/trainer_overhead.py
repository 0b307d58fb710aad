"""Measures what the trainer costs beside the mathematics: against a bare torch loop, and against other trainers.

    python -m benchmarks.trainer_overhead
    python -m benchmarks.trainer_overhead --peer ~/sd-scripts --full-size --resolution 256 --rank 8 --batch-size 1

Alone: blocks of steps of the trainer's loop and of a bare loop alternate over the same weights; two epochs before are
closed as in a run, with a real S3 server. With `--peer`, a checkout of kohya-ss/sd-scripts or of huggingface/diffusers
trains the same case in a process of its own, in turn with ours. Processor time counts on a CPU, where others may be at
work; on a GPU the clock does. OMP_NUM_THREADS is the number of threads of both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from benchmarks.instruments.bare_loop import BareLoop
from benchmarks.instruments.full_size import full_size_model
from benchmarks.instruments.painting import BASE_MODEL
from benchmarks.instruments.peers import Case, Program, open_peer
from benchmarks.instruments.sessions import Loop, open_run
from benchmarks.instruments.trainings import EXAMPLE, RUN, STUDIO
from benchmarks.instruments.watching import Watched, watch
from benchmarks.reporting import percent, report
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.plan import RunPlan
from darkroom_trainer.connecting import open_store
from darkroom_trainer.metadata import hash_base_model
from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.results import Results
from darkroom_trainer.services import Services
from darkroom_trainer.stopping import StopSignal
from dev.cluster.storage import ObjectStore
from examples.base_model.subjects import write_subject

ON_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Cost:
    """Seconds of a block or an epoch."""

    wall: float
    processor: float


def cost_of(work: Callable[[], None]) -> Cost:
    """Do something and return what it took, the GPU's work included."""
    _wait_for_gpu()
    wall, processor = time.perf_counter(), time.process_time()
    work()
    _wait_for_gpu()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def _wait_for_gpu() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Return the most that this process has taken so far, in GiB: of the GPU's memory if there is one."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def open_services(spec: LoraTrainingSpec, folder: Path) -> Iterator[tuple[LoraTrainingSpec, Services]]:
    """Start an S3 server and yield what a run needs of the outer world, with the spec that names this store."""
    with ObjectStore(buckets=(STUDIO,)) as server:
        values = spec.model_dump(by_alias=True, exclude_none=True) | {"storage": {"endpointURL": server.endpoint.url}}
        spec = LoraTrainingSpec.model_validate(values)
        plan = RunPlan(kind="LoraTraining", name="bench", namespace="studio", uid="u", run=RUN, spec=spec)
        store = open_store(spec.storage, server.endpoint.environment())
        reporter = Reporter(RUN, "bench")
        publisher = Publisher(store, plan, reporter)
        yield spec, Services(store=store, publisher=publisher, reporter=reporter, stop=StopSignal(), work=folder)
        publisher.flush()
        publisher.close()


def measure_epochs(loop: Loop, results: Results, *, epochs: int) -> None:
    """Train epochs as a run does and print how long the loop stood still for their checkpoints."""
    session, trained, closed = loop.session, list[float](), list[float]()

    def train_epoch() -> None:
        for _ in range(session.course.steps_per_epoch):
            loop.step()

    for epoch in range(1, epochs + 1):
        trained.append(cost_of(train_epoch).wall)
        closed.append(cost_of(lambda: results.close_epoch(epoch)).wall)  # noqa: B023 - called at once
    report("an epoch's steps", statistics.median(trained), "s")
    report("checkpoint and state, until training goes on", 1000 * statistics.median(closed), "ms")
    percent("checkpoint stall", statistics.median(closed) / statistics.median(trained), goal="< 1 % of an epoch")


def measure_steps(loop: Loop, bare: BareLoop, *, blocks: int, steps: int) -> None:
    """Print what a step of ours costs over one of the bare loop; the blocks of both alternate and change sides."""
    ours, floor = list[Cost](), list[Cost]()
    for block in range(blocks + 1):
        first = loop.session.position.step
        batches = [bare.gather(first + number) for number in range(steps)]

        def our_block() -> None:
            for _ in range(steps):
                loop.step()

        def bare_block() -> None:
            for batch in batches:  # noqa: B023 - called at once
                bare.step(batch)

        pair = [(ours, our_block), (floor, bare_block)]
        for kept, work in pair if block % 2 else reversed(pair):
            cost = cost_of(work)
            if block:  # the first of each warms up
                kept.append(cost)
    wall = statistics.median(our.wall / its.wall for our, its in zip(ours, floor, strict=True))
    processor = statistics.median(our.processor / its.processor for our, its in zip(ours, floor, strict=True))
    report("a step of the bare loop", statistics.median(it.wall for it in floor) / steps, "s")
    report("a step of the trainer", statistics.median(it.wall for it in ours) / steps, "s")
    percent("loop overhead by the clock", wall - 1)
    percent("loop overhead by processor time", processor - 1)
    ratio = wall if ON_GPU else processor
    percent("loop overhead", ratio - 1, goal="< 3 %")
    report("steps/s, the trainer to the bare loop", 1 / ratio, "ratio")


def measure_alone(model: Path, spec: LoraTrainingSpec, *, pictures: Path, given: argparse.Namespace) -> None:
    """Measure the trainer by itself."""
    with tempfile.TemporaryDirectory() as folder, open_services(spec, Path(folder)) as (placed, services):
        session = open_run(model, placed, pictures=pictures, folder=Path(folder))
        base = Future[object]()
        base.set_result(hash_base_model(model, "0" * 64))
        loop = Loop(session, services.reporter, services.stop)
        measure_epochs(loop, Results("bench", session, services, base), epochs=given.epochs)  # type: ignore[arg-type]
        report("peak memory", peak_memory(), "GiB of the GPU" if ON_GPU else "GiB")
        measure_steps(loop, BareLoop(session), blocks=given.blocks, steps=given.steps)


def run_program(program: Program, folder: Path, *, warm_up: int) -> Watched:
    """Run one program to its end, with the environment that all have in common."""
    environ = {**os.environ, "ACCELERATE_USE_CPU": "false" if ON_GPU else "true", **program.environ}
    log = folder / f"{program.name.replace(' ', '-')}.log"
    return watch(program.command, environ=environ, directory=program.directory, log=log, warm_up=warm_up)


def our_program(case: Case, folder: Path) -> Program:
    """Return the trainer's own way to train a case."""
    spec = folder / "spec.json"
    spec.write_text(case.spec.model_dump_json(by_alias=True, exclude_none=True))
    arguments = [str(case.model), str(spec), str(case.pictures), str(case.steps)]
    return Program(
        "Darkroom", [sys.executable, "-m", "benchmarks.instruments.sessions", *arguments], Path.cwd(), {}, True
    )


def measure_peer(case: Case, given: argparse.Namespace) -> None:
    """Run ours and the peer's programs in turn and print steps/s as ratios, the strictest last."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = list(open_peer(given.peer).programs(case, python=str(given.peer_python), folder=folder))
        programs = [our_program(case, folder), *theirs]
        found: dict[str, list[Watched]] = {program.name: [] for program in programs}
        for _ in range(given.rounds):
            for program in programs:
                found[program.name].append(run_program(program, folder, warm_up=given.warm_up))
        for program_name, watched in found.items():
            tell(program_name, watched)
        ours = found[programs[0].name]
        for program in sorted(theirs, key=lambda it: it.is_cached):
            compare(program, ours, found[program.name])


def tell(name: str, watched: list[Watched]) -> None:
    """Print what a program cost."""
    report(f"{name}: steps/s", 1 / statistics.median(it.wall_per_step for it in watched), "1/s")
    report(f"{name}: a step", statistics.median(it.processor_per_step for it in watched), "s of one core")
    report(f"{name}: from start to first step", statistics.median(it.first_step for it in watched), "s")
    report(f"{name}: peak memory of the process", max(it.memory_bytes for it in watched) / 2**30, "GiB")


def compare(program: Program, ours: list[Watched], theirs: list[Watched]) -> None:
    """Print how much faster ours is, by the clock and by work."""
    goal = ("> 1.3" if ON_GPU else ">= 1") if program.is_cached else "> 1.5"
    work, clock = (
        statistics.median(getattr(it, name) for it in theirs) / statistics.median(getattr(it, name) for it in ours)
        for name in ("processor_per_step", "wall_per_step")
    )
    report(f"work per step, {program.name} to Darkroom", work, "ratio")
    report(f"steps/s, Darkroom to {program.name}", clock, "ratio", goal=goal)


def spec_of(given: argparse.Namespace) -> LoraTrainingSpec:
    """Return the example's spec with what was given; beside a peer, what both can do alike."""
    spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
    spec["samples"] = {"prompts": []}
    spec["compute"] = {"gpus": 0}
    chosen = {"resolution": given.resolution, "batchSize": given.batch_size, "precision": given.precision}
    spec["training"] |= {name: value for name, value in chosen.items() if value is not None}
    spec["network"] = {"type": "LoRA", "rank": given.rank, "alpha": given.rank}
    if given.peer:
        spec["training"] |= {"buckets": {"enabled": False}, "objective": {}}
        spec["training"]["optimizer"] = {
            "type": "AdamW",
            "learningRate": 1e-4,
            "textEncoderLearningRate": 5e-5 if given.text_encoder else 0,
        }
    return LoraTrainingSpec.model_validate(spec)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer_overhead", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE_MODEL, help="a single-file SD 1.5")
    parser.add_argument("--full-size", action="store_true", help="use a full-size SD 1.5 with random weights")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=["FP32", "BF16"])
    parser.add_argument("--epochs", type=int, default=2, help="to measure the stall over")
    parser.add_argument("--blocks", type=int, default=40, help="pairs of blocks; short ones see the same neighbours")
    parser.add_argument(
        "--steps", type=int, help="of a block (2; on a GPU 10), beside a peer of each program (12; 100)"
    )
    parser.add_argument("--peer", type=Path, help="checkout of kohya-ss/sd-scripts or huggingface/diffusers")
    parser.add_argument("--peer-python", type=Path, help="its interpreter; default: .venv/bin/python of the checkout")
    parser.add_argument("--text-encoder", action="store_true", help="beside a peer, train the text encoder too")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of a program that do not count")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each program")
    given = parser.parse_args()
    given.steps = given.steps or ((100 if ON_GPU else 12) if given.peer else (10 if ON_GPU else 2))
    if given.peer:
        given.peer = given.peer.expanduser().resolve()
        own = given.peer / ".venv" / "bin" / "python"
        given.peer_python = given.peer_python or (own if own.exists() else Path(sys.executable))
    return given


def main() -> int:
    """Run and print."""
    given = parse()
    model = full_size_model() if given.full_size else given.model
    spec = spec_of(given)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        write_subject("robot", pictures)
        if given.peer:
            measure_peer(Case(model.resolve(), pictures, spec, given.steps), given)
        else:
            measure_alone(model, spec, pictures=pictures, given=given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
