"""Differential privacy of a run: what its groups release of their workers, and what that has cost."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hqde.aggregation import (
    Combination,
    Combined,
    FixedWeights,
    GaussianMechanism,
    Mean,
    Rule,
    norm_of,
)
from hqde.backends import Backend, WrappedBackend
from hqde.data import Bootstrap, Examples, Replicate, Split
from hqde.errors import ConfigError, PreconditionError
from hqde.quantum import privacy_spent
from hqde.seeding import unguessable
from hqde.training import Order, WorkerSpec

if TYPE_CHECKING:
    from hqde.rounds.experiment import Experiment


@dataclass(frozen=True)
class Privacy:
    """``[privacy]``: what the released weights may tell of a worker.

    In each round every worker takes part with probability q; its delta is clipped to the norm C; the sum
    over a group of n is given noise ``N(0, (z C)² I)`` and divided by q n. So whoever sees all weights a
    group ever committed, the members among them, can tell whether *one worker with all its rows* took part
    no better than (ε, δ) allows. Neither C nor z changes over the run: a noise that fades would be no such
    promise.

    Args:
        clip_norm: C; 0 is no privacy.
        noise_multiplier: z, above 0.
        delta: δ, below one over the number of workers.
        sample_rate: q, in (0, 1].
        key: of the noise and of who takes part. Left out, both come from the operating system and do not
            repeat. With a key they do, and *whoever knows it can take the noise out again*: for measurements
            only.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Privacy().enabled, Privacy(clip_norm=1.0).enabled
        (False, True)

    Source: McMahan et al. 2018, "Learning differentially private recurrent language models".
    """

    clip_norm: float = 0.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    sample_rate: float = 1.0
    key: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clip_norm < math.inf:
            raise ConfigError(
                f"privacy.clip_norm must be 0 (off) or a norm above 0 and finite, got {self.clip_norm}"
            )
        if not 0 < self.noise_multiplier < math.inf:
            raise ConfigError(
                f"privacy.noise_multiplier must be above 0 and finite, got {self.noise_multiplier}; without "
                f"noise there is no privacy"
            )
        if not 0 < self.delta < 1:
            raise ConfigError(f"privacy.delta lies between 0 and 1 (both excluded), got {self.delta}")
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"privacy.sample_rate lies in (0, 1], got {self.sample_rate}")

    @property
    def enabled(self) -> bool:
        """Whether anything is promised."""
        return self.clip_norm > 0

    def epsilon(self, rounds: int) -> float | None:
        """ε after so many rounds; ``None`` where nothing is promised.

        Raises:
            MissingExtraError: Opacus is not installed.
        """
        if not self.enabled:
            return None
        return privacy_spent(
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            rounds=rounds,
            delta=self.delta,
        )

    def figures(self, rounds: int, group_size: int) -> dict[str, Any] | None:
        """``privacy`` of ``metrics.json``; ``None`` where nothing is promised."""
        if not self.enabled:
            return None
        mechanism = GaussianMechanism(self.clip_norm, self.noise_multiplier)
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "rounds": rounds,
            "sample_rate": self.sample_rate,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
            "noise_std": mechanism.noise_std(self.sample_rate * group_size),
            "unit": "a worker with all its rows",
            "secret_noise": self.key is None,
        }


class PrivateBackend(WrappedBackend):
    """A backend whose groups release their workers' deltas through the Gaussian mechanism.

    Args:
        inner: where the workers live.
        privacy: enabled.
        group_size: workers of each group, n.
    """

    def __init__(self, inner: Backend, privacy: Privacy, *, group_size: int) -> None:
        super().__init__(inner)
        self._privacy = privacy
        self._expected = privacy.sample_rate * group_size
        self._mechanism = GaussianMechanism(privacy.clip_norm, privacy.noise_multiplier)
        self._key = secrets.randbits(128) if privacy.key is None else privacy.key
        self._round, self._released = 0, 0

    def start(self, specs: Sequence[WorkerSpec], examples: Examples) -> None:
        """Pass on, and make sure that ε can be told at the end, before anything is spent.

        Raises:
            MissingExtraError: Opacus is not installed.
            PreconditionError: a model has running statistics, which would tell of the rows.
        """
        self._privacy.epsilon(1)
        super().start(specs, examples)
        for spec in specs:
            layout = self.inner.layout(spec.worker_id)
            if layout.size > layout.num_parameters or layout.num_integers:
                self.close()
                raise PreconditionError(
                    f"model '{spec.model.name}' has running statistics "
                    f"({layout.size - layout.num_parameters} numbers and {layout.num_integers} counters), "
                    f"which noise would spoil; use model.norm=group, or a model without BatchNorm"
                )

    def begin_round(self, round_index: int, orders: Sequence[Order]) -> list[Order]:
        """The orders of those who take part in a round, each with probability q; maybe none."""
        self._round, self._released = round_index, 0
        return [order for order in orders if self._takes_part(order)]

    def combine(self, task: Combination) -> Combined:
        """Clip, sum, add noise; then the server optimizer. Without rows the noise alone is released."""
        norms = [norm_of(row) for row in task.rows]
        self._released += 1
        noise = self._mechanism.noise(
            len(task.base),
            expected=self._expected,
            dtype=task.base.dtype,
            generator=unguessable(self._key, "noise", self._round, self._released),
        )
        weights = self._mechanism.factors(norms, expected=self._expected)
        rule: Rule = FixedWeights((*weights, 1.0))
        count = len(task.rows) + 1
        shares = torch.full((count,), 1.0 / count, dtype=torch.float64)
        found = self.inner.combine(replace(task, rows=[*task.rows, noise], shares=shares, rule=rule))
        kept = torch.tensor(weights, dtype=torch.float64)
        return replace(found, decision=replace(found.decision, weights=kept))

    def _takes_part(self, order: Order) -> bool:
        rate = self._privacy.sample_rate
        if rate == 1.0:
            return True
        draws = unguessable(self._key, "takes part", order.round_index, order.worker_id)
        return float(draws.random()) < rate


def check_privacy(experiment: Experiment) -> None:
    """Refuse what the promise would not hold for.

    Raises:
        ConfigError: the sentence says why, and what to use.
    """
    privacy, rule, policy = experiment.privacy, experiment.rule, experiment.policy
    partitioner, num_workers = experiment.partitioner, experiment.num_workers
    if rule != Mean():
        raise ConfigError(
            f"privacy needs aggregation.rule = 'mean', got '{rule.name}': how far one worker moves another "
            "rule has no bound that noise could hide"
        )
    if policy.norm_bound or policy.uses_server_data or policy.reliability:
        raise ConfigError(
            "privacy excludes aggregation.norm_bound, max_loss_increase, learn_shares and reliability: what "
            "they refuse, weigh and remember tells of workers before any noise"
        )
    if isinstance(partitioner, Replicate | Split | Bootstrap):
        raise ConfigError(
            f"privacy hides a worker with all its rows, and with this data.partition "
            f"({type(partitioner).__name__.lower()}) other workers see them too, if not now then in "
            "another epoch; use 'iid' or 'dirichlet'"
        )
    if privacy.delta >= 1 / num_workers:
        raise ConfigError(
            f"privacy.delta={privacy.delta:g} would let one of {num_workers} workers be told outright; use "
            f"less than {1 / num_workers:.3g}"
        )
    if experiment.topology.branch_at is not None or experiment.balances:
        raise ConfigError(
            "privacy divides by a fixed number of workers with fixed rows; use no topology.branch_at, and "
            "run.balance = 'round_robin'"
        )
    if experiment.faults.min_workers > 1:
        raise ConfigError(
            f"privacy excludes faults.min_workers={experiment.faults.min_workers}: a round that is skipped "
            "tells how many took part; use 1"
        )
    if experiment.diversity.entangled_noise:
        raise ConfigError(
            f"privacy excludes diversity.entangled_noise={experiment.diversity.entangled_noise:g}: "
            "perturbations cancel over all workers of a group, and with privacy some may sit a round out and "
            "all are clipped; use 0"
        )


def taking_part(backend: Backend, round_index: int, orders: list[Order]) -> list[Order]:
    """The orders of a round that are carried out: all of them, but for a private run's."""
    return backend.begin_round(round_index, orders) if isinstance(backend, PrivateBackend) else orders


def with_privacy(backend: Backend, privacy: Privacy, *, group_size: int) -> Backend:
    """The backend, behind the mechanism where one is asked for."""
    return PrivateBackend(backend, privacy, group_size=group_size) if privacy.enabled else backend
