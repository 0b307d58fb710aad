"""The Muon optimizer in single precision, with Adam for all that is no hidden matrix.

torch has a Muon of its own; it takes matrices only and iterates in bfloat16, which processors without that type emulate
slowly. On the autoencoder, 150 s of one core reached 24.5 dB with Muon and 22.0 dB with Adam.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices_NRC: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Replace the singular values of matrices (N, rows, columns) by values near one.

    The quintic Newton-Schulz iteration of Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
    (2024), with its coefficients. All its factors are polynomials of the first Gram matrix, so they are multiplied
    there, at the size of the shorter side, and meet the long one only twice instead of ten times.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if is_tall else matrices_NRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    product = one.expand_as(gram)
    for _ in range(ITERATIONS):
        factor = a * one + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    orthogonal: torch.Tensor = product @ x
    return orthogonal.mT if is_tall else orthogonal


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum; a convolution counts as a matrix with a row for each output channel.

    A step has the root mean square that Adam's has in practice (0.2 times the rate; Liu et al., "Muon is Scalable for
    LLM Training", 2025), so both take the same rates.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            for parameters in self._by_shape(group["params"]):
                updates = torch.stack([self._momentum(it, group["momentum"]) for it in parameters])
                rows, columns = updates.shape[1:]
                length = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=length)

    @staticmethod
    def _by_shape(parameters: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        return shapes.values()

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).flatten(1)


class Optimizer:
    """Muon over the hidden matrices and Adam over the rest, as one; rates are shares of each one's peak."""

    def __init__(self, module: nn.Module, *, muon: float, adam: float, not_hidden: tuple[str, ...]) -> None:
        trained = {name: it for name, it in module.named_parameters() if it.requires_grad}
        hidden = {name: it for name, it in trained.items() if it.ndim >= 2 and not any(s in name for s in not_hidden)}
        rest = [it for name, it in trained.items() if name not in hidden]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            Muon(hidden.values(), lr=muon),
            torch.optim.Adam(rest, lr=adam, betas=(0.9, 0.99)),
        )
        self.peaks = (muon, adam)

    def step(self, *, factor: float) -> None:
        """Move by `factor` of the peak rates and forget the gradients."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            part.param_groups[0]["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
