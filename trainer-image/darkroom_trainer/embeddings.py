"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): vectors for a new word, which each text encoder reads.

The vectors lie beside the frozen table of the vocabulary, under ids from its end on, so that no other word can drift.
Neighbours: `prompts` finds the word in captions, `word_check` refuses captions that lack it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from darkroom_api.embedding_training import Embedding
from darkroom_trainer.families.model import StableDiffusion, TextEncoder
from darkroom_trainer.number_formats import copied, held_as
from darkroom_trainer.prompts import new_word
from darkroom_trainer.randomness import noise_source
from darkroom_trainer.safetensors_file import encode
from darkroom_trainer.trainees import Write


@dataclass(frozen=True)
class Vectors:
    """What one text encoder reads for the word."""

    part: str
    """As in `StableDiffusion.parts`."""
    name: str
    """The tensor's name in a file."""
    weight: torch.nn.Parameter
    """A row for each vector."""


@dataclass(frozen=True)
class NewWord:
    """A trained word, as vectors of all the model's text encoders."""

    vectors: tuple[Vectors, ...]

    def named_parameters(self, part: str | None = None) -> dict[str, torch.nn.Parameter]:
        """Return the trained weights, of one part or of all, always in the same order."""
        return {f"{it.part}.vectors": it.weight for it in self.vectors if part in (None, it.part)}

    def rounded(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Hold the weights as a file of this number format would give them back, to paint what the file paints."""
        return held_as(self.named_parameters().values(), dtype)

    def draft(self, dtype: torch.dtype) -> Write:
        """Copy the weights to host memory and return what writes the copy to a file.

        Raises:
            RunError: A weight is too large for this number format.
        """
        tensors = copied({it.name: it.weight for it in self.vectors}, dtype)

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            path.write_bytes(encode(tensors, metadata))

        return write


class _WithNewRows(torch.nn.Module):
    """A table of vectors by id, and further rows behind its end."""

    def __init__(self, table: torch.nn.Embedding, rows: torch.nn.Parameter) -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        end = self.table.num_embeddings
        known, new = self.table(ids.clamp(max=end - 1)), self.rows[(ids - end).clamp(min=0)]
        # Also without a new id the rows stay in the graph: a batch of captions left out has the gradient 0.
        return torch.where((ids >= end).unsqueeze(-1), new.to(known.dtype), known)


def insert(embedding: Embedding, model: StableDiffusion, *, seed: int) -> NewWord:
    """Give a model the word that a spec asks for, in all its text encoders."""
    return NewWord(tuple(_insert(embedding, encoder, seed=seed) for encoder in model.text_encoders))


def _insert(embedding: Embedding, encoder: TextEncoder, *, seed: int) -> Vectors:
    table: torch.nn.Embedding = encoder.model.get_input_embeddings()
    weight = torch.nn.Parameter(_first_rows(embedding, encoder, table.weight, seed=seed).to(table.weight.device))
    encoder.model.set_input_embeddings(_WithNewRows(table, weight))
    end = table.num_embeddings
    encoder.words[new_word(embedding.token)] = list(range(end, end + embedding.num_vectors))
    return Vectors(encoder.file.part, encoder.file.embedding, weight)


def _first_rows(embedding: Embedding, encoder: TextEncoder, table: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return what the vectors start from, in fp32: rows of the table, or noise as long as a row usually is."""
    count = embedding.num_vectors
    if ids := encoder.tokenizer(embedding.initializer, add_special_tokens=False, verbose=False).input_ids:
        return table[[ids[index % len(ids)] for index in range(count)]].float()
    noise = torch.randn((count, table.shape[1]), generator=noise_source(seed, "embedding", encoder.file.part))
    usual = torch.linalg.vector_norm(table.cpu().float(), dim=1).median()
    vectors: torch.Tensor = noise * (usual / torch.linalg.vector_norm(noise, dim=1, keepdim=True))
    return vectors
