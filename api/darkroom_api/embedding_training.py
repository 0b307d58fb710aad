"""The EmbeddingTraining resource: an embedding per epoch, by textual inversion."""

from __future__ import annotations

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.rates import EmbeddingAdamW, EmbeddingOptimizer
from darkroom_api.training import Training, TrainingSpec


class Embedding(Model):
    """A new word, as the vectors that the text encoder reads for it (Gal et al. 2022, arXiv 2208.01618)."""

    token: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[^\s,()\[\]{}|\\]+$",
        description="The new word, as captions and prompts have it, such as 'sks'; capital letters do not count. "
        "Without spaces, commas, brackets, | and \\; one that the model does not know is wise.",
    )
    num_vectors: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Vectors that the word stands for; each takes one of a prompt's 75 tokens. More hold more detail, "
        "and need more pictures.",
    )
    initializer: str = Field(
        default="",
        max_length=255,
        description="Words that the vectors start from, such as 'robot': they take the words' tokens in turn, from the "
        "first again where there are fewer tokens than vectors; tokens beyond the vectors are left out. "
        "Default: random vectors, as long as those of the vocabulary usually are.",
    )


class EmbeddingSettings(Training):
    """How long, how large and how fast an embedding is trained."""

    optimizer: EmbeddingOptimizer = Field(default_factory=EmbeddingAdamW, description="How the vectors are updated.")


class EmbeddingTrainingSpec(TrainingSpec):
    """What to train an embedding on, and how."""

    embedding: Embedding = Field(description="The word that is trained.")
    training: EmbeddingSettings = Field(
        default_factory=EmbeddingSettings, description="How long, how large and how fast."
    )
