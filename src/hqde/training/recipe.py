"""How one worker trains: everything that does not depend on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hqde.errors import ConfigError

Precision = Literal["fp32", "bf16-mixed", "fp16-mixed"]
Loss = Literal["cross_entropy", "mse", "gaussian_nll"]


@dataclass(frozen=True)
class Recipe:
    """A worker's training settings.

    Args:
        batch_size: examples per step.
        optimizer: ``"adamw"`` (Loshchilov & Hutter 2019) or ``"sgd"``.
        learning_rate: peak of the schedule.
        weight_decay: decoupled for AdamW, L2 for SGD; not applied to biases and normalisation parameters.
        momentum: of SGD.
        nesterov: SGD's momentum looks ahead (Nesterov 1983); ``False`` for heavy-ball momentum.
        schedule: ``"cosine"`` to zero over the real length of the run, or ``"constant"``; both after warm-up.
        warmup: fraction of the run over which the rate grows linearly from zero.
        restart_level: fraction of the peak at which the rate restarts when groups branch.
        label_smoothing: mass moved from the label to all classes (Szegedy et al. 2016).
        clip_norm: largest gradient norm; 0 switches clipping off.
        precision: ``"fp32"``, ``"bf16-mixed"`` or ``"fp16-mixed"`` (autocast; fp16 scales its loss).
        channels_last: images in NHWC memory order, faster for convolutions.
        loss: ``None`` takes cross-entropy for classes and MSE for numbers; ``"gaussian_nll"`` trains a model
            of two outputs, mean and log-variance.
        cycles: how often a cosine begins anew, at full height (Zhang et al. 2020); 1 falls once.
        temperature: T of Langevin dynamics: noise on every gradient, so that steps ``θ ← θ − η g`` draw from
            the posterior at temperature T (1 is the posterior itself, with L2 as its prior) where the rate is
            small. 0 is none. Of SGD without Nesterov's look-ahead; clipped gradients draw from something
            else.
        decoherence: rate at which T fades over the run, ``T · exp(−rate · progress)``.
        heat_from: fraction of each cycle from which on there is noise.

    Raises:
        ConfigError: a value is out of range, or noise is asked of an optimizer that makes no sampler.

    Example:
        >>> Recipe(learning_rate=0.1, optimizer="sgd").momentum
        0.9
    """

    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    restart_level: float = 0.67
    label_smoothing: float = 0.0
    clip_norm: float = 1.0
    precision: Precision = "fp32"
    channels_last: bool = True
    loss: Loss | None = None
    cycles: int = 1
    temperature: float = 0.0
    decoherence: float = 0.0
    heat_from: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must not be negative and be finite, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a fraction of the run in [0, 1), got {self.warmup}")
        if not 0 < self.restart_level <= 1:
            raise ConfigError(
                f"restart_level is a fraction of the peak rate in (0, 1], got {self.restart_level}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if not self.clip_norm >= 0:  # written so that NaN is refused
            raise ConfigError(f"clip_norm must be 0 (off) or positive, got {self.clip_norm}")
        _one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        _one_of("precision", self.precision, ("fp32", "bf16-mixed", "fp16-mixed"))
        _one_of("loss", self.loss, (None, "cross_entropy", "mse", "gaussian_nll"))
        self._check_heat()

    def loss_for(self, task: str) -> Loss:
        """The loss for a task, ``"classification"`` or ``"regression"``.

        Raises:
            ConfigError: the loss belongs to the other task.
        """
        if self.loss is None:
            return "cross_entropy" if task == "classification" else "mse"
        if (self.loss == "cross_entropy") != (task == "classification"):
            raise ConfigError(
                f"loss '{self.loss}' does not fit a {task} task; leave it out or choose another"
            )
        return self.loss

    def _check_heat(self) -> None:
        if self.cycles < 1 or (self.cycles > 1 and self.schedule != "cosine"):
            raise ConfigError(
                f"cycles must be at least 1, and 1 with another schedule than 'cosine', got {self.cycles} "
                f"with '{self.schedule}'"
            )
        for name in ("temperature", "decoherence"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must not be negative and be finite, got {getattr(self, name)}")
        if not 0 <= self.heat_from < 1:
            raise ConfigError(f"heat_from is a fraction of a cycle in [0, 1), got {self.heat_from}")
        looks_ahead = self.optimizer == "sgd" and self.nesterov and self.momentum > 0
        if self.temperature and (self.optimizer != "sgd" or looks_ahead):
            have = "sgd with nesterov" if looks_ahead else self.optimizer
            raise ConfigError(
                f"temperature={self.temperature:g} makes a sampler of plain SGD or heavy-ball momentum, "
                f"not of {have}; set optimizer = 'sgd' and nesterov = false"
            )


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        words = ", ".join(repr(option) for option in allowed)
        raise ConfigError(f"{name} must be one of {words}, got {value!r}")
