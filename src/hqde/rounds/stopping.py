"""When to stop early, and what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hqde.rounds.events import Validation
from hqde.rounds.state import Best, RunState
from hqde.topology import RoundPlan


def keep_best(state: RunState, plan: RoundPlan, validation: Validation) -> RunState:
    """The state, with the round's weights as the best ones if they are."""
    if state.best is None or validation.loss < state.best.loss:
        return replace(state, best=Best(validation.loss, plan.epoch, state.committed))
    return state


def reason_to_stop(plans: Sequence[RoundPlan], state: RunState, patience: int) -> str | None:
    """Why training ends here, if it does: the ensemble has not improved for ``patience`` epochs.

    Args:
        plans: of the whole run.
        state: after a round.
        patience: in epochs; 0 never stops.
    """
    if not patience or state.best is None:
        return None
    last = plans[state.round_index - 1]
    if not last.ends_epoch or last.epoch - state.best.epoch < patience:
        return None
    return (
        f"the ensemble's validation loss has not improved on {state.best.loss:.4f} of epoch "
        f"{state.best.epoch} for {patience} epochs"
    )
