"""From samples and rounds to the readings that alerts look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from hqde.monitoring.alerts import Signal, names_of
from hqde.monitoring.system_metrics import SystemMetrics, mean_of

# A straggler is one who stays behind, and by enough to matter to somebody who waits.
STRAGGLER_ROUNDS = 3
STRAGGLER_LEAST_S = 0.25
REJECTION_ROUNDS = 5
# Members that never differed more than this have no peak to fall from.
LEAST_PEAK = 1e-3


def sample_signals(sample: SystemMetrics, *, training_on_gpu: bool = False) -> dict[str, Signal]:
    """Readings of one sample.

    Args:
        sample: of the machine.
        training_on_gpu: whether a run trains on GPUs just now; else an idle one is nothing to tell of.

    >>> sample_signals(SystemMetrics(timestamp=0.0, memory_percent=50.0))["memory_percent"].value
    50.0
    """
    full = [
        100.0 * gpu.memory_used_bytes / gpu.memory_total_bytes
        for gpu in sample.gpus
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes
    ]
    busy = [gpu.utilization_percent for gpu in sample.gpus if gpu.utilization_percent is not None]
    return {
        "cpu_percent": Signal(sample.cpu_percent),
        "memory_percent": Signal(sample.memory_percent),
        "process_rss_bytes": Signal(sample.process_rss_bytes),
        "disk_free_bytes": Signal(sample.disk_free_bytes),
        "load_average": Signal(sample.load_average),
        "gpu_memory_percent": Signal(max(full, default=None)),
        "gpu_busy_percent": Signal(max(busy, default=None) if training_on_gpu else None),
    }


class RoundSignals:
    """Readings of rounds; remembers a few of them.

    Example:
        >>> worker = {"worker": 0, "loss": None, "samples": 64, "seconds": 0.1, "status": "rejected"}
        >>> signals = RoundSignals().read({"workers": [worker], "groups": [[0]], "validation": None})
        >>> signals["losses_not_finite"]
        Signal(value=1, worker=0, detail='worker 0')
    """

    def __init__(self) -> None:
        self._ratios: deque[dict[int, float]] = deque(maxlen=STRAGGLER_ROUNDS)
        self._rejections: deque[tuple[int, int]] = deque(maxlen=REJECTION_ROUNDS)
        self._peak = 1.0

    def read(self, record: Mapping[str, Any]) -> dict[str, Signal]:
        """Readings after a round.

        Args:
            record: one line of ``history.jsonl``.
        """
        workers: Sequence[Mapping[str, Any]] = record["workers"]
        validation = record.get("validation") or {}
        return {
            "straggler_ratio": self._straggler(workers),
            "losses_not_finite": _not_finite(workers),
            "rejection_rate": self._rejection(workers),
            "member_difference": self._difference(record, validation),
            "train_loss": Signal(mean_of([worker["loss"] for worker in workers])),
            "validation_loss": Signal(validation.get("loss")),
        }

    def _straggler(self, workers: Sequence[Mapping[str, Any]]) -> Signal:
        seconds = {w["worker"]: w["seconds"] for w in workers if w["seconds"]}
        if len(seconds) < 2:
            return Signal(None)
        usual = median(seconds.values())
        self._ratios.append(
            {worker: s / usual if s - usual >= STRAGGLER_LEAST_S else 1.0 for worker, s in seconds.items()}
        )
        if len(self._ratios) < STRAGGLER_ROUNDS:
            return Signal(None)
        lasting = {w: min(past.get(w, 1.0) for past in self._ratios) for w in self._ratios[-1]}
        slowest = max(lasting, key=lambda worker: lasting[worker])
        return Signal(lasting[slowest], slowest, f"worker {slowest}")

    def _rejection(self, workers: Sequence[Mapping[str, Any]]) -> Signal:
        lost = sum(worker["status"] in ("rejected", "failed") for worker in workers)
        self._rejections.append((lost, len(workers)))
        if len(self._rejections) < min(REJECTION_ROUNDS, STRAGGLER_ROUNDS):
            return Signal(None)
        lost, orders = (sum(column) for column in zip(*self._rejections, strict=True))
        return Signal(lost / orders if orders else None)

    def _difference(self, record: Mapping[str, Any], validation: Mapping[str, Any]) -> Signal:
        """How different the members are, as a share of what they could be.

        Two members that are wrong on a share e of the rows disagree on at most 2e of them; and the effective
        number of members falls by itself while they learn, but not to nothing of what it was. Members that
        have just been averaged with each other are one model on purpose.
        """
        scores, effective = validation.get("members") or (), validation.get("effective_members")
        if len(scores) < 2 or effective is None or record.get("scope") == "global":
            return Signal(None)
        self._peak = max(self._peak, effective)
        shares = []
        error = mean_of([1.0 - score["accuracy"] for score in scores if score.get("accuracy") is not None])
        disagreement = validation.get("disagreement")
        if error == 0:  # they agree because they are right
            return Signal(None)
        if error and disagreement is not None:
            shares.append(min(1.0, disagreement / (2.0 * error)))
        if self._peak - 1.0 > LEAST_PEAK:
            shares.append((effective - 1.0) / (self._peak - 1.0))
        return Signal(max(shares, default=None), None, f"{effective:.3f} effective of {len(scores)}")


def _not_finite(workers: Sequence[Mapping[str, Any]]) -> Signal:
    bad = [w["worker"] for w in workers if w["loss"] is None and w["samples"] and w["status"] != "failed"]
    return Signal(len(bad), bad[0] if len(bad) == 1 else None, names_of(bad) if bad else "")
