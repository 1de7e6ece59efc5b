"""The quickest of the candidates, and how long a run will take with it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hqde.errors import HqdeError, WorkerError
from hqde.planning.cache import PlanCache, plan_key
from hqde.planning.candidates import Candidate, candidates_for
from hqde.planning.probing import Probe, epoch_seconds, probe
from hqde.rounds import Experiment, Privacy
from hqde.seeding import generator
from hqde.training import Precision

# How far a loss after a few steps may lie from that of the plainest way: rounding grows with the steps.
TOLERANCE = {"fp32": 1e-3, "bf16-mixed": 0.05, "fp16-mixed": 0.05}

# Those that are so near the quickest, in predicted seconds, are tried again so often, in turns.
NEAR = 1.3
TURNS = 2

# If so many epochs take no more seconds than this, they are trained whole.
REHEARSED_EPOCHS = 5
REHEARSED_S = 2.0

# Rounds that are looked at for the mean time of one, where chance says who takes part.
NUM_DRAWS = 500


@dataclass(frozen=True)
class SpeedPlan:
    """What was found out.

    Attributes:
        probes: of every candidate, the plainest first.
        chosen: the quickest that computes what the plainest does.
        seconds: that the run's rounds will take, by candidate; ``None`` for those that cannot be taken.
        cached: whether the probes were made before.
        notes: what was out of the ordinary, a sentence each.
    """

    probes: tuple[Probe, ...]
    chosen: Candidate
    seconds: tuple[float | None, ...]
    cached: bool
    notes: tuple[str, ...]

    @property
    def predicted_s(self) -> float:
        """Seconds with the chosen one."""
        found = next(s for p, s in zip(self.probes, self.seconds, strict=True) if p.candidate == self.chosen)
        assert found is not None
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "chosen": self.chosen.name,
            "settings": self.chosen.settings(),
            "predicted_s": self.predicted_s,
            "cached": self.cached,
            "notes": list(self.notes),
            "candidates": [
                {"name": p.candidate.name, "predicted_s": s} | p.to_dict()
                for p, s in zip(self.probes, self.seconds, strict=True)
            ],
        }


class RunPlanner:
    """Tries every candidate for some steps and picks the quickest.

    Args:
        cache: where to look first, and to keep what was found; ``None`` tries anew and keeps nothing.
        precisions: to try beside that of the recipe. Another precision gives other weights, of the same
            accuracy in most cases; so a run takes one only if it is asked to.

    Example:
        >>> from hqde.testing import small_experiment
        >>> plan = RunPlanner().plan(small_experiment())
        >>> plan.chosen.backend in ("local", "vectorised"), plan.predicted_s > 0
        (True, True)
    """

    def __init__(self, cache: PlanCache | None = None, *, precisions: tuple[Precision, ...] = ()) -> None:
        self._cache = cache
        self._precisions = precisions

    def plan(self, experiment: Experiment, *, on_probe: Callable[[Probe], None] | None = None) -> SpeedPlan:
        """The plan for a run.

        Args:
            experiment: what is to be trained.
            on_probe: told of each probe that is made.

        Raises:
            WorkerError: no candidate can train it; with the reason of the plainest.
        """
        key = plan_key(experiment, self._precisions)
        known = None if self._cache is None else self._cache.load(key)
        probes = known
        if probes is None:
            say = on_probe or (lambda _: None)
            probes = _agreeing(self._probed(experiment, say))
            probes = self._run_off(probes, experiment, say)
            if self._cache is not None:
                self._cache.store(key, probes)
        problem = "" if self._cache is None else self._cache.problem
        seconds = tuple(predict_s(found, experiment) for found in probes)
        able = [(s, p.candidate) for p, s in zip(probes, seconds, strict=True) if s is not None]
        if not able:
            raise WorkerError(f"no way to train this was found: {probes[0].problem}")
        chosen = min(able, key=lambda pair: pair[0])[1]
        notes = [f"{p.candidate.name}: {p.problem}; {chosen.name} is taken" for p in probes if p.problem]
        notes += [p.note for p in probes if p.note]
        return SpeedPlan(
            probes, chosen, seconds, known is not None, (*([problem] if problem else []), *notes)
        )

    def _probed(self, experiment: Experiment, on_probe: Callable[[Probe], None]) -> list[Probe]:
        found = []
        for candidate in candidates_for(experiment, precisions=self._precisions):
            found.append(probe(candidate, experiment))
            on_probe(found[-1])
        return found

    def _run_off(
        self, probes: Sequence[Probe], experiment: Experiment, on_probe: Callable[[Probe], None]
    ) -> tuple[Probe, ...]:
        """Each one's probe, of those near the quickest a better one.

        These are tried again, because the machine is not always equally quick, and the one in the middle
        counts. Where an epoch is short, the first ones are then trained whole.
        """
        seconds = [predict_s(found, experiment) for found in probes]
        able = [s for s in seconds if s is not None]
        tries = {i: [probes[i]] for i, s in enumerate(seconds) if s is not None and s <= NEAR * min(able)}
        for _ in range(TURNS if len(tries) > 1 else 0):
            for found in tries.values():
                found.append(probe(found[0].candidate, experiment))
                on_probe(found[-1])
        better = {i: _rehearsed(_middle(found, experiment), experiment) for i, found in tries.items()}
        return tuple(better.get(i, found) for i, found in enumerate(probes))


def _middle(tries: Sequence[Probe], experiment: Experiment) -> Probe:
    """The one with the median prediction; one that failed, if any did."""
    failed = [found for found in tries if found.problem]
    if failed:
        return failed[0]
    middle = sorted(tries, key=lambda found: predict_s(found, experiment) or 0.0)[len(tries) // 2]
    return replace(middle, rss_bytes=max(found.rss_bytes for found in tries))  # later ones find memory there


def _rehearsed(found: Probe, experiment: Experiment) -> Probe:
    """With what rounds take beside their steps in the run itself, if its first epochs are short."""
    epochs = min(REHEARSED_EPOCHS, experiment.epochs)
    predicted = predict_s(found, experiment, epochs)
    if predicted is None or predicted > REHEARSED_S:
        return found
    try:
        took = epoch_seconds(found.candidate, experiment, epochs)
    except HqdeError as error:
        return replace(found, problem=str(error))
    first = predict_s(found, experiment, 1) or 0.0
    # What is done once is done in the first epoch.
    more = sum(took) - predicted if epochs == 1 else sum(took[1:]) - (predicted - first)
    rounds = sum(plan.epoch <= epochs and (plan.epoch > 1 or epochs == 1) for plan in experiment.plan())
    in_a_row = makespan([1.0] * experiment.num_workers, _lanes(found))
    return replace(found, round_s=max(0.0, found.round_s + more / rounds / in_a_row))


def predict_s(found: Probe, experiment: Experiment, epochs: int | None = None) -> float | None:
    """Seconds that the rounds of a run take, by a probe: training, and looks at the validation rows.

    Args:
        found: of a candidate.
        experiment: the run.
        epochs: only the first ones.
    """
    if found.samples_per_s is None or found.problem:
        return None
    lanes = _lanes(found)
    per_lane = found.samples_per_s / min(lanes, experiment.num_workers)
    rounds = Counter(plan.epoch for plan in experiment.plan())
    whole: dict[int, float] = {}
    total, last = 0.0, experiment.epochs if epochs is None else epochs
    for epoch in range(1, last + 1):
        active = experiment.active_workers(epoch)
        if active not in whole:
            shards = experiment.shards(epoch if active < experiment.num_workers else experiment.epochs)
            tasks = [len(rows) / per_lane + rounds[epoch] * found.round_s for rows in shards.values()]
            whole[active] = _expected_makespan(tasks, lanes, experiment.privacy)
        total += whole[active]
    looks = last // experiment.evaluate_every
    if last == experiment.epochs and last % experiment.evaluate_every:
        looks += 1
    rows = looks * len(experiment.splits.validation) * experiment.num_groups
    return total + (rows / found.predicted_rows_per_s if found.predicted_rows_per_s else 0.0)


def _lanes(found: Probe) -> int:
    """In which single workers take turns; stacks of any size go at one speed."""
    return 1 if found.candidate.backend == "vectorised" else found.candidate.lanes


def makespan(sizes: Sequence[float], lanes: int) -> float:
    """When the last of these tasks is done, begun in order in whichever lane is free.

    >>> makespan([3, 3, 3], 2), makespan([3, 3, 3], 1)
    (6.0, 9.0)
    """
    ends = [0.0] * max(1, min(lanes, len(sizes)))
    for size in sizes:
        heapq.heapreplace(ends, ends[0] + size)
    return max(ends)


def _expected_makespan(sizes: Sequence[float], lanes: int, privacy: Privacy) -> float:
    """The makespan, or its mean over who takes part in a round where that is left to chance."""
    if not privacy.enabled or privacy.sample_rate == 1.0:
        return makespan(sizes, lanes)
    draws = generator(0, "planning", "takes part")
    there = torch.rand(NUM_DRAWS, len(sizes), generator=draws) < privacy.sample_rate
    spans = (makespan([sizes[i] for i in row.nonzero().flatten().tolist()], lanes) for row in there)
    return sum(spans) / NUM_DRAWS


def _agreeing(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Those whose losses are not the plainest one's get a problem."""
    reference = next((p for p in probes if not p.problem), None)
    if reference is None:
        return tuple(probes)
    kept = []
    for found in probes:
        if not found.problem:
            expected, actual = reference.losses[0], found.losses[0]
            allowed = TOLERANCE[found.candidate.precision] * max(abs(expected), 1e-6)
            if not abs(actual - expected) <= allowed:
                why = (
                    f"its loss after the same steps is {actual:.6g}, that of the plainest way {expected:.6g}"
                )
                found = replace(found, problem=why)
        kept.append(found)
    return tuple(kept)
