"""The validation loss: the run's own loss, weights and timesteps over pictures that it never trains on.

Noise and timesteps are the same at every validation, so two epochs differ by their weights alone; drawn anew they
would differ by luck, and by more than what an epoch learns. `choosing` makes decisions of the losses.

Shapes: B batch, C channels, H and W of the latents, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from darkroom_trainer import objectives
from darkroom_trainer.buckets import Size
from darkroom_trainer.captions import whole
from darkroom_trainer.fitting import cut, in_a_line
from darkroom_trainer.items import Item
from darkroom_trainer.randomness import noise_source
from darkroom_trainer.session import Session, require_finite


@dataclass(frozen=True)
class Look:
    """One of the times that a picture is looked at in a validation."""

    item: Item
    draw: int
    """From 0."""


def batches_of_looks(items: Sequence[Item], *, draws: int, batch_size: int) -> list[list[Look]]:
    """Return all looks of a validation in batches of one bucket each, always in the same order."""
    by_bucket: dict[Size, list[Look]] = {}
    for item in items:
        by_bucket.setdefault(item.placement.bucket, []).extend(Look(item, draw) for draw in range(draws))
    return [
        looks[start : start + batch_size]
        for _, looks in sorted(by_bucket.items())
        for start in range(0, len(looks), batch_size)
    ]


def fixed_noise(
    look: Look, shape: Sequence[int], *, seed: int, draws: int, timesteps: range
) -> tuple[torch.Tensor, int]:
    """Return the noise (C, H, W) and the timestep of a look; they follow from seed, content and draw alone.

    Each draw has a share of the timesteps to itself: the loss differs more between early and late timesteps than
    between epochs, so a sum over timesteps left to chance would measure them instead.
    """
    generator = noise_source(seed, "validation", look.item.picture.sha256, look.draw)
    first, after = (timesteps.start + len(timesteps) * number // draws for number in (look.draw, look.draw + 1))
    # Of fewer timesteps than draws some have no share of their own.
    timestep = int(torch.randint(first, max(after, first + 1), (), generator=generator))
    # Plain whatever the objective adds to noise in training: samplers begin with plain noise, so this is what the
    # checkpoint will see, and runs that differ in such an option alone can be compared.
    return torch.randn(tuple(shape), generator=generator), timestep


@torch.no_grad()
def validation_loss(session: Session, *, before_batch: Callable[[int, int], None]) -> float:
    """Return the mean loss over all held-out pictures and draws, with the weights as they are.

    Within `Session.evaluating` these are the checkpoint's, and the loss is the checkpoint's too.

    Args:
        session: The run.
        before_batch: Called before each batch with its number from 1 and the number of all; may raise to give up.

    Raises:
        RunError: A loss is not finite.
    """
    assert session.spec.validation, "a run without validation has no loss of it"
    draws = session.spec.validation.draws
    batches = batches_of_looks(session.course.validation, draws=draws, batch_size=session.course.batch_size)
    losses: list[float] = []
    for number, looks in enumerate(batches, start=1):
        before_batch(number, len(batches))
        found = _fitting_losses(session, looks, draws=draws)
        require_finite(f"validation loss of epoch {session.epoch}", math.fsum(found), [look.item for look in looks])
        losses += found
    return math.fsum(losses) / len(losses)


def _fitting_losses(session: Session, looks: Sequence[Look], *, draws: int) -> list[float]:
    """Return the losses of a batch, in smaller ones from now on if the memory is not enough for it.

    Raises:
        RunError: It is not for a single picture, or the spec forbids to do anything about it.
    """
    while True:
        pieces = cut(looks, session.adaptation.micro_batch)
        try:
            return [loss for piece in pieces for loss in _losses(session, piece, draws=draws)]
        except torch.OutOfMemoryError as error:
            lacking = in_a_line(error)
        place = f"the validation of epoch {session.epoch}"
        session.adapt(place, lacking, together=max(map(len, pieces)), trains=False)


def _losses(session: Session, looks: Sequence[Look], *, draws: int) -> list[float]:
    model, objective, items = session.model, session.spec.training.objective, [look.item for look in looks]
    alphas_T = model.scheduler.alphas_cumprod
    timesteps, seed = objectives.trained_timesteps(objective, alphas_T), session.spec.training.seed
    clean_BCHW = session.latents.means(items) * model.vae.config.scaling_factor
    drawn = [fixed_noise(look, clean_BCHW.shape[1:], seed=seed, draws=draws, timesteps=timesteps) for look in looks]
    noised = objectives.diffuse(
        clean_BCHW.to(model.device),
        torch.stack([noise for noise, _ in drawn]),
        torch.tensor([timestep for _, timestep in drawn]),
        alphas_T=alphas_T,
        velocity=model.nature.predicts_velocity,
    ).weighted(session.latents.weights(items))
    captions = [whole(item.picture.caption, session.spec.training.captions) for item in items]
    predicted_BCHW = session.predict(noised, captions, items)
    return session.losses(noised, predicted_BCHW).tolist()
