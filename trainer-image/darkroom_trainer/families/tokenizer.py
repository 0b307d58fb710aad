"""CLIP's tokenizer without the network: a single-file checkpoint carries no vocabulary, so the package does."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from transformers import CLIPTokenizer

START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
OPEN_CLIP_PAD: Final = "!"
"""Token 0, which OpenCLIP fills up with."""
MAXIMUM_TOKENS: Final = 77


def byte_symbols() -> list[str]:
    """Return CLIP's printable symbol for every byte, in the vocabulary's order.

    Source: `bytes_to_unicode` of GPT-2 and CLIP. Bytes that print stand for themselves and come first.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(num_others)]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Derive the ids of all tokens from the merges: bytes, bytes at a word's end, merges, the two marks."""
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(merge) for merge in merges), START, END]
    return {word: index for index, word in enumerate(words)}


def load_tokenizer(pad: str = END) -> CLIPTokenizer:
    """Build CLIP's tokenizer, which all families read prompts with.

    Args:
        pad: What fills a prompt up: CLIP ViT-L's own end mark, or `OPEN_CLIP_PAD` for an OpenCLIP text encoder.
    """
    text = (files("darkroom_trainer.families") / "clip_vocabulary" / "merges.txt").read_text(encoding="utf-8")
    merges = [(left, right) for left, right in (line.split(" ") for line in text.splitlines())]
    return CLIPTokenizer(
        vocab=vocabulary(merges), merges=merges, model_max_length=MAXIMUM_TOKENS, pad_token=pad, unk_token=END
    )
