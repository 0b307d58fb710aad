"""The commands: `draw-subject`, `draw-class`, `train`, `export`, `sheet`. Each says what it wrote.

`commands` is imported only where it is used: drawing a subject needs Pillow, not the seconds that torch takes to load.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.base_model.scenes import THINGS
from examples.base_model.subjects import SUBJECTS, write_class, write_subject

CACHE = Path.home() / ".cache" / "darkroom" / "base-model"
DEFAULT_FILE = Path(__file__).parents[1] / "base-model" / "tiny-sd15.safetensors"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.base_model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    subject = commands.add_parser("draw-subject", help="draw a new character or a style as a training folder")
    subject.add_argument("--name", choices=sorted(SUBJECTS), default="robot")
    subject.add_argument("--output", type=Path, required=True)
    subject.add_argument("--count", type=int, default=15)
    subject.add_argument("--seed", type=int, default=7)
    ordinary = commands.add_parser("draw-class", help="draw ordinary things as a regularisation folder")
    ordinary.add_argument("--name", choices=THINGS, default="robot")
    ordinary.add_argument("--output", type=Path, required=True)
    ordinary.add_argument("--count", type=int, default=60)
    ordinary.add_argument("--seed", type=int, default=8)
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("--cache", type=Path, default=CACHE, help="where training states lie")
    training = commands.add_parser("train", parents=[trained], help="pretrain the base model; resumes by itself")
    training.add_argument("--vae-steps", type=int, default=1500, help="steps of the autoencoder")
    training.add_argument("--unet-steps", type=int, default=5000, help="steps of the denoiser and the text encoder")
    training.add_argument("--smoke", action="store_true", help="one minute: proves the chain, paints nothing")
    exporting = commands.add_parser("export", parents=[trained], help="write the checkpoint and prove that it reloads")
    exporting.add_argument("--output", type=Path, default=DEFAULT_FILE)
    sheet = commands.add_parser("sheet", parents=[trained], help="draw a contact sheet")
    sheet.add_argument("--model", type=Path, default=DEFAULT_FILE)
    sheet.add_argument("--output", type=Path, required=True)
    sheet.add_argument("--count", type=int, default=32)
    sheet.add_argument("--seed", type=int, default=1000)
    sheet.add_argument("--steps", type=int, default=20)
    sheet.add_argument("--guidance", type=float, default=3.0)
    sheet.add_argument("--prompt", action="append", help="draw these instead of sampled captions")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "draw-subject":
        print(write_subject(parsed.name, parsed.output, count=parsed.count, seed=parsed.seed))
        return 0
    if parsed.command == "draw-class":
        print(write_class(parsed.name, parsed.output, count=parsed.count, seed=parsed.seed))
        return 0
    from examples.base_model import commands

    actions = {"train": commands.train_command, "export": commands.export_command, "sheet": commands.sheet_command}
    actions[parsed.command](parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
