"""Parts of the model that wait in host memory while they are not needed, so that steps have theirs.

Going there and back changes no bit. The VAE waits once all pictures are encoded, the text encoders once all captions
are, if neither changes. What needs one of them takes it to the accelerator for as long as it works, see `at_work`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import torch

from darkroom_trainer.captions import all_presented, whole, without_ends

if TYPE_CHECKING:
    from darkroom_trainer.session import Session

LOG: Final = logging.getLogger(__name__)
HOST: Final = torch.device("cpu")


@contextmanager
def at_work(modules: Iterable[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Hold modules on a device, and bring each back to where it was."""
    with ExitStack() as after:
        for module in modules:
            home = next(module.parameters()).device
            if home != device:
                after.callback(module.to, home)
                module.to(device)
        yield


def let_wait(session: Session, *, before_prompt: Callable[[], None]) -> None:
    """Move to host memory what the session's steps do not need.

    Args:
        session: Opened, its pictures encoded.
        before_prompt: Called before a prompt is encoded; may raise.
    """
    idle: dict[str, torch.nn.Module] = {}
    if not session.course.encodes_in_steps:
        idle["VAE"] = session.model.vae
    if encode_captions(session, before_prompt=before_prompt):
        idle |= {f"text encoder {number}": it for number, it in enumerate(session.model.text_parts.values(), start=1)}
    if session.model.device == HOST:
        return
    for module in idle.values():
        module.to(HOST)
    if idle:
        size = sum(it.numel() * it.element_size() for module in idle.values() for it in module.parameters())
        LOG.info("%s (%.1f GiB) wait in host memory until they are needed", " and ".join(idle), size / 2**30)


def encode_captions(session: Session, *, before_prompt: Callable[[], None]) -> bool:
    """Encode all that steps will ever read, and tell whether that is possible: then they need no text encoder."""
    captions = captions_known_ahead(session)
    if session.prompts is None or captions is None:
        return False
    # As in a step: in mixed precision the text encoders calculate in half of it there.
    with session.accelerator.autocast():
        for caption in captions:
            before_prompt()
            session.prompts.encode([caption])
            if session.prompts.has_forgotten:
                return False
    return True


def captions_known_ahead(session: Session) -> list[str] | None:
    """Return every caption that steps and validations will show; None if chance makes new ones."""
    course, spec = session.course, session.spec.training.captions
    shown = [all_presented(it.picture.caption, spec) for it in course.items]
    if course.prior:
        shown += [all_presented(it.picture.caption, without_ends(spec)) for it in dict.fromkeys(course.prior.items)]
    shown.append([whole(it.picture.caption, spec) for it in course.validation])
    if any(captions is None for captions in shown):
        return None
    return sorted({caption for captions in shown for caption in captions or []})
