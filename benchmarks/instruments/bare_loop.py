"""The floor: a torch loop that does what a session's step does, written for one case and nothing else.

Its batches lie ready on the device, its random numbers are drawn there by one generator, it checks nothing, reports
nothing and could not be resumed. Model, adapter and mathematics are the session's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from darkroom_api.optimizers import AdamW
from darkroom_trainer import objectives
from darkroom_trainer.conditioning import encode_prompts
from darkroom_trainer.items import Item
from darkroom_trainer.pixels import to_pixels
from darkroom_trainer.session import Session


@dataclass(frozen=True)
class Batch:
    """What a step needs of its pictures."""

    mean_BCHW: torch.Tensor
    deviation_BCHW: torch.Tensor
    ids_BL: torch.Tensor
    states_BLD: torch.Tensor | None
    """Of text encoders that are not trained."""


class BareLoop:
    """A loop over a session's weights with an optimizer of its own.

    Raises:
        ValueError: The session's spec asks for what the loop does not do.
    """

    def __init__(self, session: Session) -> None:
        model, training = session.model, session.spec.training
        optimizer = training.optimizer
        if not isinstance(optimizer, AdamW) or training.gradient_accumulation > 1 or model.family.pooled:
            raise ValueError("the bare loop knows AdamW, no accumulation, and families with one text encoder")
        self._session, self._model, self._training = session, model, training
        parts = [named for part in model.parts if (named := session.trainee.named_parameters(part))]
        groups = [
            {"params": list(named.values()), "lr": rate} for named, rate in zip(parts, session.peaks, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._encoded: dict[Item, tuple[torch.Tensor, torch.Tensor]] = {}
        self._parameters = list(session.trainee.named_parameters().values())
        self._trains_text = any(session.trainee.named_parameters(part) for part in model.text_parts)
        alphas_T = model.scheduler.alphas_cumprod
        weights_T = objectives.weights(torch.arange(len(alphas_T)), alphas_T, training.objective)
        self._alphas_T, self._weights_T = alphas_T.to(model.device), weights_T.to(model.device)

    def gather(self, step: int) -> Batch:
        """Put a step's pictures and captions onto the device; no part of what is measured."""
        (items,) = self._session.course.window(step)
        parts = [self._encode(item) for item in items]
        captions, device = [item.picture.caption for item in items], self._model.device
        tokens: Any = self._model.text_encoders[0].tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        states = None
        if not self._trains_text:
            with torch.no_grad():
                states = encode_prompts(self._model, captions, self._training.text_encoding).states_BLD
        mean_BCHW, deviation_BCHW = (torch.stack(it) for it in zip(*parts, strict=True))
        return Batch(mean_BCHW, deviation_BCHW, tokens.input_ids.to(device), states)

    @torch.no_grad()
    def _encode(self, item: Item) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a picture's mean and deviation, each picture encoded once."""
        if item not in self._encoded:
            distribution = self._model.vae.encode(to_pixels(item)[None].to(self._model.device)).latent_dist
            self._encoded[item] = distribution.mean[0], distribution.std[0]
        return self._encoded[item]

    def step(self, batch: Batch) -> float:
        """Train on a batch and return its loss."""
        clean_BCHW = batch.mean_BCHW + batch.deviation_BCHW * torch.randn_like(batch.mean_BCHW)
        clean_BCHW = clean_BCHW * self._model.vae.config.scaling_factor
        timesteps_B = torch.randint(len(self._alphas_T), (len(clean_BCHW),), device=clean_BCHW.device)
        loss = self.loss(clean_BCHW, torch.randn_like(clean_BCHW), timesteps_B, batch=batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._training.maximum_gradient_norm)
        self._optimizer.step()
        return loss.item()

    def loss(
        self, clean_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, batch: Batch
    ) -> torch.Tensor:
        """Return the weighted mean error of the predicted noise."""
        alphas_B111 = self._alphas_T[timesteps_B].view(-1, 1, 1, 1)
        noised_BCHW = alphas_B111.sqrt() * clean_BCHW + (1 - alphas_B111).sqrt() * noise_BCHW
        is_mixed = self._training.precision != "FP32"
        with torch.autocast(clean_BCHW.device.type, torch.bfloat16, enabled=is_mixed):
            states_BLD = batch.states_BLD
            if states_BLD is None:
                states_BLD = self._model.text_encoders[0].model(batch.ids_BL).last_hidden_state
            predicted_BCHW = self._model.unet(
                noised_BCHW.to(self._model.dtype), timesteps_B, encoder_hidden_states=states_BLD, return_dict=False
            )[0]
        errors_B = (predicted_BCHW.float() - noise_BCHW).square().mean(dim=(1, 2, 3))
        weighed_B: torch.Tensor = errors_B * self._weights_T[timesteps_B]
        return weighed_B.mean()
