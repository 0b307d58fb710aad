"""How much pictures differ: a model that has overtrained paints the same picture again and again."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature


def vendi_score(features_BD: torch.Tensor) -> float:  # noqa: N803
    """Return how many different pictures there are in effect, from 1 to their number.

    The exponential of the entropy of the eigenvalues of the similarity matrix over B (Friedman and Dieng, "The Vendi
    Score", 2023), with the cosine of features as similarity.

    Args:
        features_BD: Features (B, D) of pictures.
    """
    normal_BD = F.normalize(features_BD.double(), dim=1)  # noqa: N806
    values = torch.linalg.eigvalsh(normal_BD @ normal_BD.T / len(normal_BD)).clamp(min=0)
    positive = values[values > 1e-12]
    return float(torch.exp(-(positive * positive.log()).sum()))


def mean_distance(images_BCHW: torch.Tensor) -> float:  # noqa: N803
    """Return the mean over all pairs of pictures of their root mean square difference, in the pictures' unit."""
    count = len(images_BCHW)
    distances = torch.pdist(images_BCHW.flatten(1).double()) / images_BCHW[0].numel() ** 0.5
    return float(distances.sum() / (count * (count - 1) / 2))
