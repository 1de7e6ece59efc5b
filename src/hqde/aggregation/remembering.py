"""A rule that looks at what its rows agree on, and at what is remembered of those who sent them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hqde.aggregation.outliers import agreement, outlier_scores
from hqde.aggregation.reliability import Reliability
from hqde.aggregation.rule import Basis, Decision, Rule, spread_decision
from hqde.aggregation.weighing import needed

Use = Literal["record", "weigh", "exclude"]


@dataclass(frozen=True)
class Remembering(Rule):
    """Another rule, whose decision also says how far each row agrees with the majority.

    Args:
        rule: the rule.
        scores: reliability of each row's sender, in the order of the rows.
        reliability: what the scores mean.
        use: ``"record"`` changes nothing; ``"weigh"`` multiplies shares by the scores; ``"exclude"`` hands
            the rule only the rows that ``Reliability.excluded`` leaves: all, where all agree.

    Example:
        >>> from hqde.aggregation import Mean
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [102.0]])
        >>> rule = Remembering(Mean(), (0.9, 0.9, 0.9, 0.2), Reliability(), "exclude")
        >>> found = rule(rows, torch.full((4,), 1 / 4))
        >>> found.value, found.decision.rejected
        (tensor([2.]), {3: 'its reliability is 0.20, below 0.5'})
    """

    basis: ClassVar[Basis] = "gram"
    rule: Rule
    scores: tuple[float, ...]
    reliability: Reliability
    use: Use = "record"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The rule's."""
        return self.rule.name

    def least_rows(self) -> int:
        """As the rule."""
        return self.rule.least_rows()

    def decide(self, gram: Tensor | None, shares: Tensor) -> Decision:
        """The rule's decision, and ``agreement`` and ``outliers`` of every row."""
        gram = needed(gram, self.name)
        scores = torch.tensor(self.scores, dtype=torch.float64)
        agreed, outliers = agreement(gram, shares), outlier_scores(gram)
        left_out: dict[int, str] = {}
        if self.use == "weigh":
            shares = self.reliability.shares(shares, scores)
        elif self.use == "exclude":
            left_out = self.reliability.excluded(dict(enumerate(agreed.tolist())), scores)
        kept = [row for row in range(len(shares)) if row not in left_out]
        points = torch.tensor([*kept, len(shares)])
        inner = self.rule.decide(gram[points][:, points], shares[kept] / shares[kept].sum())
        if inner.weights is None and inner.mixing is None and left_out:
            inner = replace(inner, mixing=torch.eye(len(kept), dtype=torch.float64))
        decision = spread_decision(inner, kept, left_out, len(shares))
        scored = {"mad": outliers.mad, "cosine": outliers.cosine, "euclidean": outliers.euclidean}
        return replace(decision, agreement=agreed, outliers=scored)

    def combine(self, rows: Sequence[Tensor] | Tensor, decision: Decision) -> Tensor:
        """As the rule combines."""
        return self.rule.combine(rows, decision)
