"""Muon: momentum whose update is made orthogonal, matrix by matrix; the rest is left to AdamW.

Jordan and others 2024, "Muon: an optimizer for hidden layers in neural networks". torch.optim.Muon takes
matrices only; here a convolution's kernel counts as the matrix [out, in x height x width].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# A fifth-order iteration that brings every singular value near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """Newton-Schulz: the nearest (semi-)orthogonal matrix, roughly."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                update = orthogonal(ahead) * max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])


class Pair:
    """Muon for the kernels between the first and the last layer, AdamW for everything else, as one.

    Rates are given for AdamW; Muon's is `MUON_RATE` times that.
    """

    MUON_RATE = 20.0

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        kernels, rest = [], []
        for name, parameter in named:
            outer = any(word in name for word in ("conv_in.", "conv_out.", "embedding", "quant_conv"))
            (kernels if parameter.ndim >= 2 and not outer else rest).append(parameter)
        self.muon = Muon(kernels, lr * self.MUON_RATE)
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)

    def rate(self, lr: float) -> None:
        for optimiser, factor in ((self.muon, self.MUON_RATE), (self.adam, 1.0)):
            for group in optimiser.param_groups:
                group["lr"] = lr * factor

    def zero_grad(self) -> None:
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
