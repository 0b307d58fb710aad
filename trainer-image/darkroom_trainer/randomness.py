"""All randomness of a run: each draw has a generator of its own, derived from the run's seed and what it is for.

Nothing is drawn from a shared stream, so a run that is resumed at step 840 draws what an undisturbed one draws there.
Generators live on the CPU: a GPU's would give other numbers on another model of GPU.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a number of 63 bits that depends on the seed and the purpose alone."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shuffler(seed: int, *purpose: str | int) -> random.Random:
    """Return Python's generator for one purpose, for shuffling and choosing."""
    return random.Random(derive(seed, *purpose))


def noise_source(seed: int, *purpose: str | int) -> torch.Generator:
    """Return torch's generator for one purpose, for noise."""
    import torch  # seconds that a check of captions must not cost

    return torch.Generator().manual_seed(derive(seed, *purpose))
