"""Who gets how much work: prediction batches to workers, and shares of the next round's samples.

Pure policies. Timings and node loads come in through `Balancer.observe`; nothing here reads a clock.
"""

from hqde.balance.balancer import (
    BALANCERS,
    Adaptive,
    Balancer,
    LeastLoaded,
    RoundRobin,
    make_balancer,
)
from hqde.balance.splitting import split_by_shares
from hqde.balance.state import BalanceState, Timing

__all__ = [
    "BALANCERS",
    "Adaptive",
    "BalanceState",
    "Balancer",
    "LeastLoaded",
    "RoundRobin",
    "Timing",
    "make_balancer",
    "split_by_shares",
]
