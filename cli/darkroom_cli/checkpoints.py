"""``kubectl darkroom checkpoints``: the epochs of a training, which is the best, and whether each is in the store."""

from __future__ import annotations

from rich.console import Console

from darkroom_api.status import CheckpointStatus
from darkroom_api.uris import S3Location, parse_s3
from darkroom_cli.lines import validation_text
from darkroom_cli.resources import Training
from darkroom_cli.store import Store
from darkroom_cli.text import size_text


def checkpoints(training: Training, *, store: Store | None, console: Console) -> int:
    """Print the checkpoints as a table; with a store verify each. Return 1 if one is missing or differs."""
    records = training.status.checkpoints
    if not records:
        console.print(f"{training.reference} has no checkpoint yet", highlight=False)
        return 0
    found = [verdict(record, store) if store else "" for record in records]
    columns = {
        "EPOCH": [str(record.epoch) for record in records],
        "STEP": [str(record.step) for record in records],
        "SIZE": [size_text(record.size_bytes) for record in records],
        "VALIDATION": [validation_text(record, best=training.status.best_epoch) for record in records],
        "IN THE STORE": found,
        "URI": [record.uri for record in records],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    widths = [max(map(len, (title, *cells))) for title, cells in shown.items()]
    for row in (tuple(shown), *zip(*shown.values(), strict=True)):
        # Plain text, not rich's table: that would cut an address which is longer than the terminal is wide.
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 1 if store and any(state != "verified" for state in found) else 0


def verdict(record: CheckpointStatus, store: Store) -> str:
    """Say whether a checkpoint lies in the store as the status and its manifest say: size, hash and presence.

    The hash is compared with the manifest's, which was computed before the upload; the file itself is not downloaded.
    """
    location = parse_s3(record.uri)
    folder, _, name = location.key.rpartition("/")
    manifest = store.manifest(S3Location(location.bucket, folder))
    if manifest is None:
        return "no manifest"
    vouched = next((file for file in manifest.files if file.name == name), None)
    if vouched is None or (vouched.sha256, vouched.size_bytes) != (record.sha256, record.size_bytes):
        return "manifest differs"
    entry = store.entry(location)
    if entry is None:
        return "missing"
    return "verified" if entry.size == record.size_bytes else f"size differs: {size_text(entry.size)}"
