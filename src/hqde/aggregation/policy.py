"""What is asked of updates besides being sound, and what follows when too few are left for a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hqde.aggregation.learnt_shares import LearntShares
from hqde.aggregation.reliability import Reliability
from hqde.aggregation.remembering import Use
from hqde.aggregation.screening import HeldOutImprovement, NormBound
from hqde.errors import ConfigError

Breach = Literal["raise", "skip_round", "keep_previous"]


@dataclass(frozen=True)
class AggregationPolicy:
    """What happens around a rule.

    Args:
        on_breach: when fewer updates are left than the rule needs for its f: ``"raise"`` ends the run,
            ``"skip_round"`` leaves the group's weights and server state as they are, ``"keep_previous"`` lets
            the server optimizer go on in the direction of earlier rounds, with a delta of zero (without a
            momentum that is a skipped round).
        norm_bound: refuses deltas that are much longer than is usual.
        held_out: refuses deltas that make the group's model worse on held-out rows of the server.
        learnt_shares: shares learnt on these rows, in place of those by samples.
        reliability: remembers who was admitted and agreed with; ``None`` remembers nothing.
        use: of what is remembered: ``"record"`` it, ``"weigh"`` shares by it, ``"exclude"`` those who are
            seldom agreed with from rounds in which not all agree.

    Raises:
        ConfigError: an unknown choice.
    """

    on_breach: Breach = "raise"
    norm_bound: NormBound | None = None
    held_out: HeldOutImprovement | None = None
    learnt_shares: LearntShares | None = None
    reliability: Reliability | None = None
    use: Use = "record"

    @property
    def uses_server_data(self) -> bool:
        """Whether updates are judged on rows of the server's own."""
        return self.held_out is not None or self.learnt_shares is not None

    def __post_init__(self) -> None:
        for name, known in (("on_breach", get_args(Breach)), ("use", get_args(Use))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
