"""Rules and pre-aggregators by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from hqde.aggregation.centered_clipping import CenteredClipping
from hqde.aggregation.clipping import AdaptiveRobustClipping, Clipping
from hqde.aggregation.coordinate import CoordinateMedian, MeanAroundMedian, TrimmedMean
from hqde.aggregation.geometric_median import GeometricMedian
from hqde.aggregation.krum import Bulyan, Krum, MultiKrum
from hqde.aggregation.mixing import Bucketing, Mixing, NearestNeighbourMixing
from hqde.aggregation.rule import Mean, Rule, num_byzantine_of
from hqde.aggregation.selection import Caf, MinimumDiameterAveraging, Monna
from hqde.errors import ConfigError, did_you_mean

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Mean,
        CoordinateMedian,
        TrimmedMean,
        MeanAroundMedian,
        GeometricMedian,
        Krum,
        MultiKrum,
        Bulyan,
        MinimumDiameterAveraging,
        CenteredClipping,
        Monna,
        Caf,
    )
}
MIXINGS: dict[str, type[Mixing]] = {
    mixing.name: mixing for mixing in (NearestNeighbourMixing, Bucketing, Clipping, AdaptiveRobustClipping)
}


def make_rule(
    name: str, *, num_byzantine: int = 0, mixing: Sequence[str | Mixing] = (), **options: Any
) -> Rule:
    """A rule by name, after pre-aggregators by name.

    Args:
        name: one of ``RULES``.
        num_byzantine: f, given to the rule and to each pre-aggregator named here that takes it; it must be 0
            for the mean.
        mixing: pre-aggregators in the order in which they are applied, by name (``MIXINGS``) or, to set more
            than f, as objects.
        options: further settings of the rule.

    Raises:
        ConfigError: an unknown name or setting, a value out of range.

    Example:
        >>> make_rule("geometric_median", num_byzantine=2, mixing=["nnm"]).mixing
        NearestNeighbourMixing(num_byzantine=2)
        >>> make_rule("multi_krum", num_byzantine=2, num_selected=3)
        MultiKrum(num_byzantine=2, num_selected=3)
    """
    rule: Rule = _made("rule", RULES, name, num_byzantine, options)
    if num_byzantine and rule.counts == "nothing" and not mixing:
        raise ConfigError(
            f"'{name}' bears no bad worker, but num_byzantine is {num_byzantine}. "
            "Use geometric_median, or put a pre-aggregator before it."
        )
    for step in reversed(mixing):
        before = _made("pre-aggregator", MIXINGS, step, num_byzantine, {}) if isinstance(step, str) else step
        rule = before >> rule
    return rule


@dataclass(frozen=True)
class FractionalRule:
    """A rule whose f is a fraction of whoever takes part in a round.

    Args:
        name, mixing, options: as ``make_rule`` takes them.
        fraction: in [0, 1/2]; f = ⌊fraction · n⌋, and below n/2.

    Raises:
        ConfigError: as ``make_rule``, or a fraction out of range.

    Example:
        >>> rule = FractionalRule("trimmed_mean", 1 / 3)
        >>> [rule.of(n).num_byzantine for n in (9, 7, 1)]
        [3, 2, 0]
    """

    name: str
    fraction: float
    mixing: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 0.5:
            raise ConfigError(f"a fraction of bad workers lies in [0, 0.5], got {self.fraction}")
        self.of(3)

    def of(self, num_rows: int) -> Rule:
        """The rule for so many rows."""
        faults = num_byzantine_of(num_rows, self.fraction)
        return make_rule(self.name, num_byzantine=faults, mixing=self.mixing, **self.options)


def rule_of(rule: Rule | FractionalRule, num_rows: int) -> Rule:
    """The rule for so many rows: itself, unless its f is a fraction of them."""
    return rule.of(num_rows) if isinstance(rule, FractionalRule) else rule


def _made(what: str, known: dict[str, Any], name: str, num_byzantine: int, options: dict[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(f"unknown {what} '{name}'; {did_you_mean(name, known)}")
    settings = {field.name: field for field in fields(known[name])}
    for option in options:
        if option not in settings:
            cure = did_you_mean(option, settings) if settings else "it takes none"
            raise ConfigError(f"{what} '{name}' has no setting '{option}'; {cure}")
    given = options | ({"num_byzantine": num_byzantine} if "num_byzantine" in settings else {})
    missing = [key for key, field in settings.items() if field.default is MISSING and key not in given]
    if missing:
        raise ConfigError(f"{what} '{name}' needs {', '.join(missing)}: give it as an object")
    return known[name](**given)
