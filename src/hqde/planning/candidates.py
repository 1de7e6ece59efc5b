"""What a run could be done with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from hqde.backends import Backend, make_backend, seat_workers, usable_cores
from hqde.rounds import Experiment
from hqde.training import Precision


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        backend: its name.
        lanes, threads: as in ``[run]``.
        precision: as in ``[training]``.
        stacked: as in ``[run]``.
    """

    backend: str
    lanes: int
    threads: int
    precision: Precision
    stacked: int = 0

    @property
    def name(self) -> str:
        """For people.

        >>> Candidate("local", 2, 1, "fp32").name
        'local, 2 lanes of 1 thread, fp32'
        """
        lanes = "1 lane" if self.lanes == 1 else f"{self.lanes} lanes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        stacks = f"stacks of {self.stacked}, " if self.stacked else ""
        return f"{self.backend}, {lanes} of {threads}, {stacks}{self.precision}"

    def settings(self) -> dict[str, str | int]:
        """The settings that choose it, by their full names."""
        stacked: dict[str, str | int] = {"run.stacked": self.stacked} if self.stacked else {}
        return {
            "run.backend": self.backend,
            "run.lanes": self.lanes,
            "run.threads": self.threads,
            **stacked,
            "training.precision": self.precision,
        }

    def make_backend(self) -> Backend:
        """A backend that is like this, not started."""
        return make_backend(self.backend, lanes=self.lanes, threads=self.threads, stacked=self.stacked)

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment in this precision."""
        return replace(experiment, recipe=replace(experiment.recipe, precision=self.precision))


def candidates_for(
    experiment: Experiment, *, precisions: tuple[Precision, ...] = (), cores: int | None = None
) -> tuple[Candidate, ...]:
    """Every way that this machine offers, the plainest first: one worker after the other with all threads.

    Ray is none of them: on one machine its workers are processes on the same cores, and Ray takes seconds to
    start. Compiling is none either: on the networks it was tried on it gained less than it cost.

    Args:
        experiment: what is to be trained.
        precisions: to try beside that of the recipe.
        cores: usable ones; by default those of this process.
    """
    cores = usable_cores() if cores is None else cores
    wanted = (experiment.recipe.precision, *precisions)
    precise = tuple(dict.fromkeys(wanted))
    on_cpu = torch.device(experiment.device).type == "cpu"
    seats = [(1, min(cores, torch.get_num_threads()) if on_cpu else 0)]
    if on_cpu and experiment.num_workers > 1 and cores > 1:
        seating = seat_workers(experiment.num_workers, cores=cores)
        seats += [(1, 1), (seating.lanes, seating.threads)]
    found = []
    for precision in precise:
        found += [Candidate("local", lanes, threads, precision) for lanes, threads in dict.fromkeys(seats)]
        if experiment.num_workers > 1 and precision != "fp16-mixed":
            found.append(Candidate("vectorised", *seats[-1], precision))
    return tuple(found)
