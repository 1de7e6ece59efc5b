"""What each fault costs on a real Ray: time against a failure-free run, and whether the weights differ.

    python benchmarks/ray_faults.py [--rounds 5] [--images 4000] [--kinds hangs slow] [--json out.json]

Two workers of one thread train the `cnn` on random images in one group; in the second round one of them is
killed, hangs, is slow, raises, or hands in something damaged. Each run starts new actors on one Ray that
stays up; seconds run from before they are hired until the last round is committed. Weights are compared with
those of the failure-free run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from hqde.backends import RaySettings
from hqde.data import TensorExamples, make_splits
from hqde.models import model_spec
from hqde.rounds import Engine, Event, Experiment, RoundRecord
from hqde.testing.ray_faults import ActorFault, faulty_actor, injected
from hqde.topology import Topology
from hqde.training import Recipe

KINDS = ("killed_before", "killed_during", "killed_after", "raises", "corrupted", "hangs", "slow")


class Told:
    """Keeps the events of a run."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_start(self, plans: Any, first_round: int) -> None:
        """Nothing."""

    def on_step(self, worker_id: int, done: int, total: int) -> None:
        """Nothing."""

    def on_round(self, record: RoundRecord) -> None:
        """Nothing."""

    def on_event(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


def experiment(rounds: int, images: int) -> Experiment:
    """Two workers, one group."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), generator=draws, dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=draws)
    splits = make_splits("images", TensorExamples(pixels, labels), task="classification")
    return Experiment(
        splits=splits,
        model=model_spec("cnn", input_shape=(3, 32, 32), num_outputs=10),
        num_workers=2,
        epochs=rounds,
        recipe=Recipe(batch_size=128),
        topology=Topology(groups=1),
        evaluate_every=rounds,
        calibrate=False,
    )


def run(given: Experiment, kind: str | None) -> dict[str, Any]:
    """One run; ``kind`` is the fault of worker 1 in round 2."""
    from hqde.backends.on_ray import RayBackend

    told = Told()
    with tempfile.TemporaryDirectory() as marks:
        faults = [] if kind is None else [ActorFault(1, 2, kind)]
        backend = RayBackend(RaySettings(), threads=1, actor_class=faulty_actor(faults, Path(marks)))
        began = time.perf_counter()
        result = Engine(given, backend, listener=told).run()
        seconds = time.perf_counter() - began
        happened = injected(Path(marks))
    assert happened == Counter([] if kind is None else [kind]), f"{kind} did not happen: {happened}"
    return {
        "seconds": seconds,
        "vector": result.state.committed[0].vector,
        "events": [f"{event.kind}: {event.reason}" for event in told.events],
    }


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4000, help="of each worker and round")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    import hqde.backends.on_ray  # noqa: F401, I001 - sets what Ray reads at import
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    torch.set_num_threads(1)
    small = experiment(1, 200)
    run(small, None)  # warms Ray's pool of processes
    plain = [run(experiment(given.rounds, given.images), None)]
    faulty = {kind: run(experiment(given.rounds, given.images), kind) for kind in given.kinds}
    plain.append(run(experiment(given.rounds, given.images), None))
    usual = sum(found["seconds"] for found in plain) / len(plain)
    assert torch.equal(plain[0]["vector"], plain[1]["vector"])
    print(
        f"\n{given.rounds} rounds; failure-free {plain[0]['seconds']:.1f} s and {plain[1]['seconds']:.1f} s\n"
    )
    print("| fault in round 2 | s | / failure-free | same bits | told |\n|---|---|---|---|---|")
    rows = []
    for kind, found in faulty.items():
        same = torch.equal(found["vector"], plain[0]["vector"])
        said = "; ".join(found["events"]) or "–"
        print(f"| {kind} | {found['seconds']:.1f} | {found['seconds'] / usual:.2f} | {same} | {said} |")
        rows.append(
            {"kind": kind, "seconds": found["seconds"], "ratio": found["seconds"] / usual, "same": same}
        )
    if given.json:
        given.json.write_text(
            json.dumps({"failure_free": [p["seconds"] for p in plain], "faults": rows}, indent=1)
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
