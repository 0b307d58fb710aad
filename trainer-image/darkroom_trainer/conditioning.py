"""What the UNet is told besides the noised latents: the prompt's states, and for SDXL its pooled state and sizes.

Training and sampling read prompts here, so that a sample shows what was trained. Long prompts are kohya's: 77, 152 or
227 states, the first mark, the chunks' insides and the last mark.

Shapes: B pictures, N chunks of all of them, L states, D their width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer.buckets import Size
from darkroom_trainer.families.model import StableDiffusion, TextEncoder
from darkroom_trainer.offloading import at_work
from darkroom_trainer.prompts import TokenizedPrompt, tokenize

_CACHED_BYTES: Final = 256 * 2**20
"""Prompts that are kept: about a thousand of SD 1.5, four hundred of SDXL."""


@dataclass(frozen=True)
class Conditions:
    """A batch of encoded prompts."""

    states_BLD: torch.Tensor
    pooled_BD: torch.Tensor | None = None
    """SDXL alone."""

    @property
    def num_bytes(self) -> int:
        """Return what they take in memory."""
        return sum(it.numel() * it.element_size() for it in (self.states_BLD, self.pooled_BD) if it is not None)


@dataclass(frozen=True)
class Frame:
    """How a picture lies in its original, which SDXL is told (Podell et al. 2023, arXiv 2307.01952); all in pixels."""

    original: Size
    crop: tuple[int, int]
    """What was cut off the scaled picture: left, top."""
    target: Size

    @classmethod
    def whole(cls, size: Size) -> Frame:
        """Return the frame of a picture that is asked for, not cut out of another."""
        return cls(size, (0, 0), size)

    @property
    def numbers(self) -> list[int]:
        """Return SDXL's six numbers: heights before widths, top before left."""
        return [*reversed(self.original), *reversed(self.crop), *reversed(self.target)]


def encode_prompts(model: StableDiffusion, texts: Sequence[str], spec: TextEncoding) -> Conditions:
    """Encode prompts with all text encoders of the model, on its device."""
    with at_work(model.text_parts.values(), model.device):
        read = [_encode(encoder, texts, spec, penultimate=model.family.penultimate) for encoder in model.text_encoders]
    states_BLD = torch.cat([states for states, _ in read], dim=-1)
    return Conditions(states_BLD, read[-1][1] if model.family.pooled else None)


def joined(parts: Sequence[Conditions]) -> Conditions:
    """Put encoded prompts into one batch."""
    pooled = [part.pooled_BD for part in parts if part.pooled_BD is not None]
    return Conditions(torch.cat([part.states_BLD for part in parts]), torch.cat(pooled) if pooled else None)


def unet_arguments(model: StableDiffusion, conditions: Conditions, frames: Sequence[Frame]) -> dict[str, Any]:
    """Return what the UNet is called with besides latents and timesteps."""
    arguments: dict[str, Any] = {"encoder_hidden_states": conditions.states_BLD}
    if conditions.pooled_BD is not None:
        sizes_B6 = torch.tensor([frame.numbers for frame in frames], dtype=torch.float32)
        arguments["added_cond_kwargs"] = {
            "text_embeds": conditions.pooled_BD,
            "time_ids": sizes_B6.to(model.device),
        }
    return arguments


def _encode(
    encoder: TextEncoder, texts: Sequence[str], spec: TextEncoding, *, penultimate: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    prompts = [
        tokenize(
            text,
            encoder.tokenizer,
            maximum_tokens=spec.maximum_tokens,
            weighted=spec.weighted,
            words=encoder.words,
        )
        for text in texts
    ]
    model = encoder.model
    ids_NL = torch.tensor([chunk for prompt in prompts for chunk in prompt.ids], device=model.device)
    output = model(ids_NL, output_hidden_states=True)
    if penultimate:
        states_NLD = output.hidden_states[-2]
    elif spec.clip_skip > 1:
        states_NLD = getattr(model, "text_model", model).final_layer_norm(output.hidden_states[-spec.clip_skip])
    else:
        states_NLD = output.last_hidden_state
    states_BLD = _weighed(_chunks_joined(states_NLD, num_prompts=len(texts)), prompts)
    pooled_ND = output.text_embeds if encoder.file.has_projection else None
    # Of a long prompt only the first chunk's pooled state counts, as kohya and A1111 have it.
    return states_BLD, None if pooled_ND is None else pooled_ND[:: len(prompts[0].ids)]


def _chunks_joined(states_NLD: torch.Tensor, *, num_prompts: int) -> torch.Tensor:
    states_BCLD = states_NLD.reshape(num_prompts, -1, *states_NLD.shape[1:])
    first, last = states_BCLD[:, 0, :1], states_BCLD[:, -1, -1:]
    return torch.cat([first, states_BCLD[:, :, 1:-1].flatten(1, 2), last], dim=1)


def _weighed(states_BLD: torch.Tensor, prompts: Sequence[TokenizedPrompt]) -> torch.Tensor:
    """Multiply each token's states by its weight and keep each prompt's mean, as A1111 does."""
    if not any(prompt.is_weighted for prompt in prompts):
        return states_BLD
    weights = [[1.0, *(it for chunk in prompt.weights for it in chunk[1:-1]), 1.0] for prompt in prompts]
    weighed_BLD = states_BLD * torch.tensor(weights, device=states_BLD.device, dtype=states_BLD.dtype).unsqueeze(-1)
    mean_B11 = states_BLD.mean(dim=(1, 2), keepdim=True)
    return weighed_BLD * (mean_B11 / weighed_BLD.mean(dim=(1, 2), keepdim=True))


@dataclass
class PromptCache:
    """Encoded prompts of text encoders that do not change, the last used ones within a bound.

    Each prompt is encoded alone: in batches its bits would depend on its neighbours, and so on when it was first seen.
    """

    model: StableDiffusion
    spec: TextEncoding
    maximum_bytes: int = _CACHED_BYTES
    has_forgotten: bool = False
    """Whether there was no room for a prompt, so that some must be encoded again."""
    _kept: OrderedDict[str, Conditions] = field(default_factory=OrderedDict)
    _bytes: int = 0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditions:
        """Return the conditions of prompts."""
        return joined([self._one(text) for text in texts])

    def _one(self, text: str) -> Conditions:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        found = self._kept[text] = encode_prompts(self.model, [text], self.spec)
        self._bytes += found.num_bytes
        while self._bytes > self.maximum_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].num_bytes
            self.has_forgotten = True
        return found
