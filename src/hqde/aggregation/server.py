"""Server optimizers: from a group's aggregated delta to its new weights.

Each is a frozen object with a pair of pure functions: ``init(weights) -> state`` and
``update(delta, state) -> (step, state)``; the new parameters are ``x + step``. They see parameters only:
buffers take the plain average. With Δ the aggregated delta (the negative of a pseudo-gradient) and η the
learning rate:

    fedavg    x ← x + η Δ                                        McMahan et al. 2017
    momentum  b ← μ b + Δ;  x ← x + η b                           Hsu et al. 2019 (FedAvgM)
    nesterov  b ← μ b + Δ;  x ← x + η (Δ + μ b)                   Douillard et al. 2023 (DiLoCo)
    adaptive  m ← β₁ m + (1-β₁) Δ;  x ← x + η m / (√v + τ)        Reddi et al. 2021, Algorithm 2
      adagrad   v ← v + Δ²
      adam      v ← β₂ v + (1-β₂) Δ²
      yogi      v ← v - (1-β₂) Δ² sign(v - Δ²)                    with v₀ = τ²
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hqde.errors import ConfigError, did_you_mean

ServerState = dict[str, Tensor]


class ServerOptimizer(Protocol):
    """State in, state out; never mutates what it is given."""

    def init(self, parameters: Tensor) -> ServerState:
        """The state before the first round, for parameters ``(p,)``."""
        ...

    def update(self, delta: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        """The step ``(p,)`` to add to the parameters, and the next state."""
        ...


@dataclass(frozen=True)
class FedAvg:
    """Takes the aggregated delta as it is (times the learning rate).

    Example:
        >>> FedAvg().update(torch.tensor([2.0]), {})
        (tensor([2.]), {})
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_rate("fedavg", self.learning_rate)

    def init(self, parameters: Tensor) -> ServerState:  # noqa: ARG002 - the protocol's signature
        """No state."""
        return {}

    def update(self, delta: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        """η Δ."""
        return delta * self.learning_rate, state


@dataclass(frozen=True)
class Momentum:
    """Heavy-ball momentum on the deltas; with ``nesterov=True`` the outer optimizer of DiLoCo.

    Example:
        >>> step, state = Momentum(learning_rate=0.5, momentum=0.5).update(
        ...     torch.tensor([1.0]), {"momentum": torch.tensor([2.0])})
        >>> step, state["momentum"]
        (tensor([1.]), tensor([2.]))
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_rate("nesterov" if self.nesterov else "momentum", self.learning_rate)
        _check_fraction("momentum", self.momentum)

    def init(self, parameters: Tensor) -> ServerState:
        """A zero buffer b."""
        return {"momentum": torch.zeros_like(parameters)}

    def update(self, delta: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        """b ← μ b + Δ; η b, or η (Δ + μ b)."""
        buffer = state["momentum"] * self.momentum + delta
        direction = delta + buffer * self.momentum if self.nesterov else buffer
        return direction * self.learning_rate, {"momentum": buffer}


@dataclass(frozen=True)
class Adaptive:
    """FedAdagrad, FedAdam or FedYogi, without bias correction as published.

    The default rate is small because the step is about η per coordinate whatever the size of Δ: a rate of 1
    moves every weight by about 1 and destroys a model in its first round.

    Args:
        kind: ``"adagrad"``, ``"adam"`` or ``"yogi"``.
        learning_rate: η.
        beta1, beta2: decay of the first and second moment (``beta2`` unused by adagrad).
        tau: τ, the degree of adaptivity; also sets v₀ = τ².

    Example:
        >>> adam = Adaptive("adam", learning_rate=0.1, beta1=0.0, beta2=0.0, tau=1e-3)
        >>> adam.update(torch.tensor([0.5]), adam.init(torch.zeros(1)))[0]
        tensor([0.0998])
    """

    kind: str = "adam"
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in ("adagrad", "adam", "yogi"):
            raise ConfigError(f"kind must be 'adagrad', 'adam' or 'yogi', got '{self.kind}'")
        _check_rate(f"fed{self.kind}", self.learning_rate)
        _check_fraction("beta1", self.beta1)
        _check_fraction("beta2", self.beta2)
        if not self.tau > 0:
            raise ConfigError(f"tau must be above 0, got {self.tau}")

    def init(self, parameters: Tensor) -> ServerState:
        """m = 0, v = τ²."""
        return {"m": torch.zeros_like(parameters), "v": torch.full_like(parameters, self.tau**2)}

    def update(self, delta: Tensor, state: ServerState) -> tuple[Tensor, ServerState]:
        """η m / (√v + τ)."""
        square = delta.square()
        m = state["m"] * self.beta1 + delta * (1 - self.beta1)
        if self.kind == "adagrad":
            v = state["v"] + square
        elif self.kind == "adam":
            v = state["v"] * self.beta2 + square * (1 - self.beta2)
        else:
            v = state["v"] - square * (1 - self.beta2) * torch.sign(state["v"] - square)
        return m / (v.sqrt() + self.tau) * self.learning_rate, {"m": m, "v": v}


SERVER_OPTIMIZERS = ("fedavg", "momentum", "nesterov", "fedadagrad", "fedadam", "fedyogi")


def make_server_optimizer(
    name: str, *, learning_rate: float | None = None, momentum: float | None = None
) -> ServerOptimizer:
    """A server optimizer by name; ``None`` takes its default.

    Raises:
        ConfigError: an unknown name, a value out of range, or a momentum where there is none.

    Example:
        >>> make_server_optimizer("nesterov")
        Momentum(learning_rate=0.7, momentum=0.9, nesterov=True)
    """
    if name not in SERVER_OPTIMIZERS:
        raise ConfigError(f"unknown server optimizer '{name}'; {did_you_mean(name, SERVER_OPTIMIZERS)}")
    options = {"learning_rate": learning_rate} if learning_rate is not None else {}
    if momentum is not None:
        if name not in ("momentum", "nesterov"):
            raise ConfigError(f"server optimizer '{name}' takes no momentum; leave it out")
        options["momentum"] = momentum
    if name == "fedavg":
        return FedAvg(**options)
    if name in ("momentum", "nesterov"):
        return Momentum(**options, nesterov=name == "nesterov")
    return Adaptive(name.removeprefix("fed"), **options)


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate < math.inf:
        raise ConfigError(
            f"the learning rate of server optimizer '{name}' must be above 0 and finite, got {rate}"
        )


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must lie in [0, 1), got {value}")
