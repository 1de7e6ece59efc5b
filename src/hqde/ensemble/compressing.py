"""Compression at rest: how many bits each tensor of an ensemble gets, to a width, a size or an accuracy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hqde.compression import BLOCK, allocate_bits, block_spread
from hqde.data import Inputs, as_examples
from hqde.ensemble.artefact import artefact_content, measure_artefact
from hqde.ensemble.evaluation import Evaluation
from hqde.ensemble.members import Member
from hqde.ensemble.packed_weights import pack_small, pack_weights, quantisable, refuse_nonfinite
from hqde.ensemble.recentring import observe, recentre
from hqde.ensemble.sensitivity import MAX_ROWS, WIDTHS, measure_sensitivity, sample_rows
from hqde.errors import ConfigError, PreconditionError

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble

MIN_BITS, MAX_BITS = 2, 16
DEFAULT_BITS = 4.0
STEP = 8  # the search for an accuracy goes in eighths of a bit …
MODEST_BITS = 8  # … up to here first
FEWEST_ROWS = 16  # means of fewer would bring in as much noise as they take out
LABEL = "at_rest"
"""The entry of ``Ensemble.provenance`` that says how an ensemble was compressed."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compressed:
    """What ``compress_ensemble`` found.

    Attributes:
        ensemble: the new one.
        bits: average width of its quantised weights, scales not counted; None if it has none.
        nbytes: of the directory that ``ensemble.save`` writes.
        before, after: figures on the rows given, of the old ensemble and of the new; None without rows.
    """

    ensemble: Ensemble
    bits: float | None
    nbytes: int
    before: Evaluation | None = None
    after: Evaluation | None = None


def compress_ensemble(
    ensemble: Ensemble,
    *,
    bits: float | None = None,
    budget_bytes: int | None = None,
    max_accuracy_loss: float | None = None,
    data: Any = None,
    batch_size: int = 128,
    on_progress: Progress = lambda *_: None,
) -> Compressed:
    """Quantise an ensemble's weights; its members then hold what a reader of the saved artefact decodes.

    Parameters of two or more dimensions and at least 1024 elements become codes of 2 to 16 bits in blocks of
    128 with a scale each; what is smaller becomes float16 where it bears it (``pack_weights``). Bits go to
    the blocks, over all tensors of a member, that lower Σ cₜ · (squared error of block) most, which is the
    optimum because the error of a block is convex in its bits. With data, cₜ is the measured sensitivity of
    the tensor (``measure_sensitivity``), and biases and running statistics are moved so that the means of
    layers stay (``recentre``, from 16 rows on); without, cₜ is 1. No random numbers: equal arguments give
    equal bits.

    Of the three modes one may be given; by default 4 bits.

    Evaluations with data: two on all rows, 2 · tensors · members on at most 128 rows each and a few more
    of these, and for ``max_accuracy_loss`` at most 8 more on all rows.

    Args:
        ensemble: left as it is.
        bits: average width over the quantised weights of each member, 2 to 16.
        budget_bytes: the largest directory; the most bits that fit.
        max_accuracy_loss: the fewest bits, in eighths, whose accuracy on ``data`` is at most so much lower,
            as a fraction (0.005 is half a point); for regression, whose RMSE is at most so much larger,
            relative to what it was. Found by bisection, which takes for granted that more bits are not worse.
        data: labelled rows, raw, as for ``Ensemble.evaluate``; rows that were not trained on. A subset serves
            to measure sensitivities.
        batch_size: rows at a time.
        on_progress: called with what is being done, steps done and steps in all.

    Returns:
        the new ensemble, with sizes and figures.

    Raises:
        ConfigError: bits or a loss out of range, or two modes.
        PreconditionError: a budget below the smallest directory, an accuracy without data or out of reach,
            or an ensemble that is compressed already.
        NonFiniteError: weights that are NaN or infinite.

    Example:
        >>> from hqde.data import Normalization, Schema
        >>> from hqde.ensemble import Ensemble, Member
        >>> from hqde.models import ModelSpec
        >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 512, "out_features": 3})
        >>> schema = Schema("classification", "tabular", ("a", "b", "c"), (512,))
        >>> member = Member(0, spec, spec.build())
        >>> whole = Ensemble([member], schema=schema, normalization=Normalization.identity())
        >>> small = compress_ensemble(whole, bits=3)
        >>> small.bits, small.nbytes < measure_artefact(**artefact_content(whole)) / 2
        (3.0, True)

    Source: marginal analysis, Fox 1966, "Discrete optimization via marginal analysis"; the quadratic model of
    the loss, LeCun et al. 1990, "Optimal brain damage".
    """
    _check_modes(ensemble, bits, budget_bytes, max_accuracy_loss, data)
    rows = None if data is None else as_examples(data, task=ensemble.schema.task)
    if rows is not None and len(rows) == 0:
        raise PreconditionError("there are 0 rows to judge the compressed ensemble on: give at least one.")
    tensors = [quantisable(member.model) for member in ensemble.members]
    search = _Search(ensemble, tensors, [dict.fromkeys(named, 1.0) for named in tensors])
    if budget_bytes is not None:
        search.smallest(budget_bytes)  # refuses before anything takes long
    before = None
    if rows is not None:
        on_progress("uncompressed", 0, 1)
        before = ensemble.evaluate(rows, batch_size=batch_size)
        inputs = sample_rows(rows)
        search = replace(
            search,
            costs=_measure(ensemble, tensors, inputs, on_progress),
            inputs=inputs if len(rows) >= FEWEST_ROWS else None,
        )

    def judge(found: Ensemble) -> Evaluation | None:
        return None if rows is None else found.evaluate(rows, batch_size=batch_size)

    after = None
    if max_accuracy_loss is not None and before is not None:
        found, after = search.to_loss(before, max_accuracy_loss, judge, on_progress)
    elif budget_bytes is not None:
        found = search.to_budget(budget_bytes)
    else:
        found = search.at(DEFAULT_BITS if bits is None else bits)
    if after is None and rows is not None:
        on_progress("compressed", 0, 1)
        after = judge(found.ensemble)
    return replace(found, before=before, after=after)


@dataclass(frozen=True)
class _Search:
    """Compressed ensembles by average width."""

    ensemble: Ensemble
    tensors: list[dict[str, Tensor]]
    costs: list[dict[str, float]]
    inputs: Inputs | None = None

    def at(self, average_bits: float) -> Compressed:
        """The ensemble with this average width in each member."""
        members, total, count = [], 0.0, 0
        for member, tensors, costs in zip(self.ensemble.members, self.tensors, self.costs, strict=True):
            widths = share_bits(tensors, average_bits, costs)
            packed = pack_weights(member.model, widths)
            made = replace(member, model=copy.deepcopy(member.model), packed=packed)
            made.model.load_state_dict({**made.model.state_dict(), **packed.decode()})
            if self.inputs is not None:
                recentre(made.model, self._feeding(made), observe(member.model, self._feeding(member)))
                made.packed = pack_small(made.model, packed)
                made.model.load_state_dict({**made.model.state_dict(), **made.packed.decode_halved()})
            members.append(made)
            total += sum(widths[name] * tensor.numel() for name, tensor in tensors.items())
            count += sum(tensor.numel() for tensor in tensors.values())
        found = self.ensemble.with_members(members)
        bits = total / count if count else None
        found.provenance = {**found.provenance, LABEL: {"bits": None if bits is None else round(bits, 4)}}
        return Compressed(found, bits, measure_artefact(**artefact_content(found)))

    def _feeding(self, member: Member) -> Callable[[], Any]:
        """A function that feeds the rows to a member's model, in one batch."""
        alone, rows = self.ensemble.with_members([member]), self.inputs
        return lambda: alone.predict_members(rows, batch_size=MAX_ROWS)

    def smallest(self, budget_bytes: int) -> Compressed:
        """The narrowest, if it fits."""
        found = self.at(MIN_BITS)
        if found.nbytes > budget_bytes:
            raise PreconditionError(
                f"the smallest directory, at {MIN_BITS} bits, has {found.nbytes} bytes and the budget is "
                f"{budget_bytes}: allow at least {found.nbytes}, or keep fewer members."
            )
        return found

    def to_budget(self, budget_bytes: int) -> Compressed:
        """The widest that fits."""
        found = self.smallest(budget_bytes)
        weights = sum(tensor.numel() for tensors in self.tensors for tensor in tensors.values())
        if not weights:
            return found
        spare = min(budget_bytes - found.nbytes, weights * (MAX_BITS - MIN_BITS) // 8)
        bits = MIN_BITS + 8.0 * spare / weights
        while bits > MIN_BITS:  # the first is right but for the tables of widths
            wider = self.at(bits)
            if wider.nbytes <= budget_bytes:
                return wider
            bits -= 8.0 * (wider.nbytes - budget_bytes + 1) / weights
        return found

    def to_loss(
        self,
        before: Evaluation,
        most: float,
        judge: Callable[[Ensemble], Evaluation | None],
        on_progress: Progress,
    ) -> tuple[Compressed, Evaluation]:
        """The narrowest that loses no more, with its figures."""
        steps, done = math.ceil(math.log2(STEP * (MODEST_BITS - MIN_BITS) + 1)) + 1, 0
        best: tuple[Compressed, Evaluation] | None = None
        lost = math.inf

        def passes(eighths: int) -> bool:
            nonlocal best, lost, done
            on_progress("search", done, steps)
            candidate = self.at(eighths / STEP)
            figures = judge(candidate.ensemble)
            assert figures is not None
            lost, done = accuracy_loss(before, figures), done + 1
            if lost <= most + 1e-9 and (best is None or candidate.nbytes < best[0].nbytes):
                best = candidate, figures
            return lost <= most + 1e-9

        low, high = STEP * MIN_BITS - 1, STEP * MODEST_BITS  # low fails, high passes
        if not passes(high):
            low, high = high, high + 1
            if not passes(STEP * MAX_BITS):
                raise PreconditionError(
                    f"even {MAX_BITS} bits lose {lost:.6f} on {before.num_rows} rows, and at most {most:g} "
                    "is allowed: allow more, or give more rows."
                )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        assert best is not None
        return best


def share_bits(
    tensors: Mapping[str, Tensor], average_bits: float, costs: Mapping[str, float]
) -> dict[str, float]:
    """The average width of each tensor when blocks of all of them compete for the bits.

    Args:
        tensors: by name.
        average_bits: over all blocks, 2 to 16.
        costs: by name, what a squared error in the tensor is weighed by.

    Returns:
        by name; over all blocks, they average to the budget (to half a bit in total).

    >>> tensors = {"a": torch.ones(10, 128), "b": torch.ones(10, 128)}
    >>> share_bits(tensors, 3, {"a": 16.0, "b": 1.0})
    {'a': 4.0, 'b': 2.0}
    """
    if not tensors:
        return {}
    spreads = []
    for name, tensor in tensors.items():
        flat = tensor.cpu().reshape(-1)
        unit = float(flat.abs().max()) ** 2  # which block_spread leaves out
        spreads.append(block_spread("variance", flat).double() * (unit * costs[name]))
    spread = torch.cat(spreads)
    spread /= spread.max().clamp_min(1e-300)
    widths = allocate_bits(spread, average_bits, MIN_BITS, MAX_BITS)
    parts = widths.split([-(-tensor.numel() // BLOCK) for tensor in tensors.values()])
    return {name: float(part.double().mean()) for name, part in zip(tensors, parts, strict=True)}


def accuracy_loss(before: Evaluation, after: Evaluation) -> float:
    """How much accuracy was lost, as a fraction; for regression, the relative increase of the RMSE."""
    if before.accuracy is not None and after.accuracy is not None:
        return before.accuracy - after.accuracy
    assert before.rmse is not None
    assert after.rmse is not None
    return (after.rmse - before.rmse) / max(before.rmse, 1e-30)


def _measure(
    ensemble: Ensemble, tensors: list[dict[str, Tensor]], inputs: Inputs, on_progress: Progress
) -> list[dict[str, float]]:
    """The sensitivity of every tensor of every member."""
    total, done = len(WIDTHS) * sum(map(len, tensors)), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        on_progress("sensitivity", done, total)

    return [
        measure_sensitivity(ensemble, member, named, inputs, on_step=on_step)
        for member, named in zip(ensemble.members, tensors, strict=True)
    ]


def _check_modes(
    ensemble: Ensemble,
    bits: float | None,
    budget_bytes: int | None,
    max_accuracy_loss: float | None,
    data: Any,
) -> None:
    modes = {"bits": bits, "budget_bytes": budget_bytes, "max_accuracy_loss": max_accuracy_loss}
    given = [name for name, value in modes.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")
    if bits is not None and not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits per weight lie in {MIN_BITS} to {MAX_BITS} on average, got {bits:g}")
    if max_accuracy_loss is not None and not 0.0 <= max_accuracy_loss < 1.0:
        raise ConfigError(
            f"the accuracy that may be lost is a fraction, at least 0 and below 1, got "
            f"{max_accuracy_loss:g}; half a point is 0.005"
        )
    if max_accuracy_loss is not None and data is None:
        raise PreconditionError("a largest loss of accuracy needs labelled rows to measure: give data=….")
    for member in ensemble.members:
        if member.packed is not None:
            raise PreconditionError(
                f"member {member.member_id} is compressed already: compress the ensemble it was made from."
            )
        refuse_nonfinite(member.model, member_id=member.member_id)
