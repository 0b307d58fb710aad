"""A small convolutional network, its training, its augmentation and its cache: what classifier and detector share."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from PIL import Image
from torch import nn

from examples.base_model import drawing, scenes, subjects
from examples.base_model.training import load_state, save_state

# Suffixes of tensors: B pictures, C channels, H rows, W columns, D features.

CACHE = Path.home() / ".cache" / "darkroom" / "instruments"
SIDE = 128  # pixels of a picture as it is painted
SEEN = 64  # pixels of a picture as the network sees it
WIDTHS = (24, 48, 96, 128)
FEATURES = 2 * WIDTHS[-1]


class Network(nn.Module):
    """Four strided convolutions, mean and maximum over the picture, and one linear layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, outputs)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Return features (B, D) of square pictures in [-1, 1]."""
        maps = self.body(shrink(images_BCHW))
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Return one number for each output, before softmax or sigmoid."""
        outputs: torch.Tensor = self.head(self.features(images_BCHW))
        return outputs


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return pictures of any size as (B, C, H, W) in [-1, 1] of side `SIDE`."""
    squares = [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1


def shrink(images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Bring pictures to the size that the network sees."""
    return F.adaptive_avg_pool2d(images_BCHW, SEEN)


def augment(images_BCHW: torch.Tensor, source: torch.Generator) -> torch.Tensor:  # noqa: N803
    """Bend, blur and add noise as a small denoiser does, so that its style is no reason for a wrong answer."""
    count, channels, side, _ = images_BCHW.shape
    bend = F.interpolate(torch.randn(count, 2, 5, 5, generator=source), size=(side, side), mode="bicubic") * 0.035
    straight = F.affine_grid(torch.eye(2, 3).repeat(count, 1, 1), [count, channels, side, side], align_corners=False)
    grid = straight + bend.permute(0, 2, 3, 1)
    bent = F.grid_sample(images_BCHW, grid, align_corners=False, padding_mode="border")
    blurred = F.avg_pool2d(F.pad(bent, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share, level = torch.rand(2, count, 1, 1, 1, generator=source)
    tint = 1 + 0.06 * torch.randn(count, channels, 1, 1, generator=source)
    noise = torch.randn(bent.shape, generator=source) * 0.1 * level
    changed: torch.Tensor = (bent.lerp(blurred, share) * tint + noise).clamp(-1, 1)
    return changed


def fit(
    network: Network,
    images_BCHW: torch.Tensor,  # noqa: N803
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    steps: int,
    seed: int = 0,
) -> None:
    """Train on augmented pictures; `loss` takes outputs and the indices of the pictures they are for."""
    small_BCHW = shrink(images_BCHW)  # noqa: N806
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(0, len(images_BCHW), (48,), generator=source)
        value = loss(network(augment(small_BCHW[index], source)), index)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()


def cached(name: str, outputs: int, *, made_by: ModuleType, key: str, train: Callable[[Network], None]) -> Network:
    """Return a trained network: from the cache if nothing that it was trained on has changed since.

    Args:
        name: Of the file in the cache.
        outputs: Of the network.
        made_by: The module whose source says how it is trained.
        key: Whatever else its training depends on.
        train: Trains a new one in place.
    """
    torch.manual_seed(0)
    network = Network(outputs)
    modules = (drawing, scenes, subjects, inspect.getmodule(cached), made_by)
    text = "".join(inspect.getsource(module) for module in modules if module) + key
    path = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pt"
    if state := load_state(path):
        network.load_state_dict(state)
    else:
        print(f"{name}: training on fresh drawings (about a minute, once)", flush=True)
        train(network)
        save_state(path, network.state_dict())
    return network.eval()
