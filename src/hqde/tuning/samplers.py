"""Who proposes: Optuna's samplers, and walkers that tunnel, as one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hqde.quantum import Tunnelling
from hqde.seeding import derive_seed
from hqde.tuning.space import Dimension

INDEX = "index"  # of a trial among those that were not abandoned


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it; choices as JSON, so that they may be lists too."""
    if dimension.choices:
        return CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def told(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna has it, as the setting's own."""
    return json.loads(value) if dimension.choices else value


def make_sampler(name: str, space: Sequence[Dimension], *, index: int, budget: int, seed: int) -> BaseSampler:
    """The sampler for one trial.

    Each has its own, with a seed of its own, so that a study that is resumed proposes what it would have.

    Args:
        name: ``tpe``, ``random`` or ``tunnelling``.
        space: what is searched.
        index: of the trial.
        budget: trials in all.
        seed: of the study.
    """
    own = derive_seed(seed, "tune", index) % 2**32
    if name == "random":
        return RandomSampler(seed=own)
    if name == "tpe":
        return TPESampler(seed=own, constant_liar=True)
    return TunnellingSampler(space, index=index, budget=budget, seed=seed)


class TunnellingSampler(BaseSampler):
    """`hqde.quantum.Tunnelling` as a sampler of Optuna.

    Args:
        space: what is searched.
        index: of the trial it is asked for.
        budget: trials in all.
        seed: of every draw.
        walkers: how they go.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        *,
        index: int,
        budget: int,
        seed: int,
        walkers: Tunnelling = Tunnelling(),
    ) -> None:
        self._space, self._index, self._budget, self._seed = tuple(space), index, budget, seed
        self._walkers = walkers

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002 - the base's signature
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """All dimensions at once."""
        return {dimension.name: distribution_of(dimension) for dimension in self._space}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - the base's signature
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Where the walker whose turn it is looks."""
        seen = {
            done.user_attrs[INDEX]: (self._point(done), float(done.value or 0.0))
            for done in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
        point = self._walkers.propose(
            seen, self._index, dimensions=len(self._space), budget=self._budget, seed=self._seed
        )
        values = {d.name: d.at(x) for d, x in zip(self._space, point.tolist(), strict=True)}
        return {d.name: json.dumps(values[d.name]) if d.choices else values[d.name] for d in self._space}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002 - the base's signature
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        """Never: what is searched is known beforehand."""
        raise AssertionError(f"{param_name} is no dimension of the search")

    def _point(self, trial: FrozenTrial) -> torch.Tensor:
        places = [d.place(told(d, trial.params[d.name])) for d in self._space]
        return torch.tensor(places, dtype=torch.float64)
