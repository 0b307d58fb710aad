"""``kubectl darkroom``: push pictures, watch a training, list its checkpoints, see its samples on one sheet."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from darkroom_api.uris import S3Location, check_key, parse_s3
from darkroom_cli.checkpoints import checkpoints
from darkroom_cli.errors import UserError
from darkroom_cli.pictures import Subject
from darkroom_cli.push import push
from darkroom_cli.resources import FORMS, ClusterReader, Reference, Training, parse_reference, read_existing
from darkroom_cli.store import Access, Store
from darkroom_cli.watch import watch

Command = Callable[[argparse.Namespace, Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for a failure, 2 for a wrong call, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    command: Command = given.command
    try:
        return command(given, Console(width=None if sys.stdout.isatty() else 10_000))
    except UserError as error:
        print(f"kubectl darkroom: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl darkroom", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_push(commands)
    _add_watch(commands)
    _add_checkpoints(commands)
    _add_sheet(commands)
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001  (argparse has no public name for it)


def _add_push(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("push", help="upload pictures and captions to the store, in kohya's layout")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="pictures and captions, or folders like '20_sks cat'"
    )
    parser.add_argument("name", metavar="NAME", help="name of the dataset: the folder below --to")
    parser.add_argument("--to", required=True, metavar="URI", help="where datasets lie, such as s3://studio/datasets")
    parser.add_argument("--trigger", metavar="WORD", help="word that calls the subject, such as sks")
    parser.add_argument("--class", dest="class_name", default="", metavar="WORDS", help="what it is, such as robot")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="times each picture is trained per epoch (default: 10)"
    )
    _add_store_flags(parser)
    parser.set_defaults(command=_push)


def _add_watch(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("watch", help="follow a training to its end; exit 0 if it succeeds, 1 if it fails")
    _add_cluster_flags(parser)
    parser.set_defaults(command=_watch)


def _add_checkpoints(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("checkpoints", help="list the checkpoints of a training")
    _add_cluster_flags(parser)
    parser.add_argument("--verify", action="store_true", help="look whether each lies in the store; exit 1 if not")
    _add_store_flags(parser)
    parser.set_defaults(command=_checkpoints)


def _add_sheet(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("sheet", help="put the sample pictures of all epochs on one sheet")
    _add_cluster_flags(parser)
    parser.add_argument(
        "--output", "-o", type=Path, default=Path("sheet.png"), help="PNG to write (default: sheet.png)"
    )
    _add_store_flags(parser)
    parser.set_defaults(command=_sheet)


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("resource", metavar="KIND/NAME", help=f"the training: {FORMS}")
    parser.add_argument("--namespace", "-n", help="its namespace (default: that of the kubeconfig's context)")
    parser.add_argument("--kubeconfig", type=Path, help="file to reach the cluster with (default: KUBECONFIG)")
    parser.add_argument("--context", help="context of the kubeconfig (default: the current one)")


def _add_store_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "store", "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
    )
    group.add_argument(
        "--endpoint-url", metavar="URL", help="S3 API, as it is reached from here (default: the resource's)"
    )
    group.add_argument("--region", help="region of request signatures (default: the resource's)")
    group.add_argument("--profile", help="profile of ~/.aws/credentials")


def _push(given: argparse.Namespace, console: Console) -> int:
    dataset = _dataset(given.to, given.name)
    store = Store(Access(given.endpoint_url, given.region, given.profile))
    push(given.folder, dataset, subject=_subject(given), store=store, console=console)
    return 0


def _dataset(to: str, name: str) -> S3Location:
    try:
        root = parse_s3(to)
    except ValueError as error:
        raise UserError(f"--to: {error}") from error
    if "/" in name or not name:
        raise UserError(f"NAME: {name!r} is not allowed; give a name without slashes, such as anna")
    return root.join(name)


def _subject(given: argparse.Namespace) -> Subject | None:
    if not given.trigger:
        if given.class_name or given.repeats is not None:
            raise UserError("--trigger: missing; --class and --repeats need it, give the word that calls the subject")
        return None
    repeats = 10 if given.repeats is None else given.repeats
    if repeats < 1:
        raise UserError(f"--repeats: {repeats} is not allowed; give 1 or more")
    subject = Subject(repeats, given.trigger.strip(), given.class_name.strip())
    if "/" in subject.folder:
        raise UserError(f"--trigger, --class: {subject.folder!r} is not allowed; give words without slashes")
    try:
        check_key(subject.folder)
    except ValueError as error:
        raise UserError(f"--trigger, --class: {error}") from error
    return subject


def _cluster(given: argparse.Namespace) -> tuple[ClusterReader, Reference]:
    reference = parse_reference(given.resource)
    reader = ClusterReader(reference, namespace=given.namespace, kubeconfig=given.kubeconfig, context=given.context)
    return reader, reference


def _store_of(training: Training, given: argparse.Namespace) -> Store:
    """Open the store of a training; a flag, then the environment, wins over what the pods use."""
    storage = training.spec.storage
    endpoint = given.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return Store(Access(endpoint or storage.endpoint_url, given.region or storage.region, given.profile))


def _watch(given: argparse.Namespace, console: Console) -> int:
    reader, reference = _cluster(given)
    return watch(reader, reference, console=console)


def _checkpoints(given: argparse.Namespace, console: Console) -> int:
    training = read_existing(*_cluster(given))
    return checkpoints(training, store=_store_of(training, given) if given.verify else None, console=console)


def _sheet(given: argparse.Namespace, console: Console) -> int:
    from darkroom_cli.sheet import sheet

    training = read_existing(*_cluster(given))
    store, best = _store_of(training, given), training.status.best_epoch
    picture = sheet(training.prefix, training.spec.samples, store=store, best=best)
    output: Path = given.output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(output, format="PNG")
    except OSError as error:
        raise UserError(f"--output {output}: {error}; give a path that can be written") from error
    console.print(f"wrote {output} ({picture.width}x{picture.height})", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
