"""What was found out before, kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hqde.backends import usable_cores
from hqde.planning.probing import Probe
from hqde.rounds import Experiment

FORMAT = 1


class PlanCache:
    """Probes by what can be told of what they depend on.

    That is the model's name and options, shapes, recipe, number of workers, machine, and the versions of HQDE
    and PyTorch; not the code of a model or a data set of the user's.

    Args:
        path: a JSON file; by default ``~/.cache/hqde/plans.json``.

    Attributes:
        problem: why nothing could be read although the file is there; empty if it could.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path.home() / ".cache" / "hqde" / "plans.json" if path is None else path
        self.problem = ""

    def load(self, key: str) -> tuple[Probe, ...] | None:
        """What was kept under ``key``; ``None`` if nothing was, or the file cannot be read."""
        try:
            kept = self._read().get(key)
            return None if kept is None else tuple(Probe.from_dict(values) for values in kept)
        except (KeyError, TypeError, ValueError) as error:
            self.problem = f"{self.path} is broken ({type(error).__name__}: {error}); its plans are made anew"
            return None

    def store(self, key: str, probes: tuple[Probe, ...]) -> None:
        """Keep them, beside what is there. A broken file is replaced, one that cannot be written left."""
        try:
            known = self._read()
        except (KeyError, TypeError, ValueError):
            known = {}
        known[key] = [probe.to_dict() for probe in probes]
        text = json.dumps({"format": FORMAT, "plans": known}, indent=1, sort_keys=True) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            part.write_text(text)
            part.replace(self.path)
        except OSError as error:
            self.problem = f"{self.path} cannot be written ({error}); the next plan is made anew"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ValueError(str(error)) from error
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, this version reads {FORMAT}")
        plans: dict[str, Any] = dict(found["plans"])
        return plans


def plan_key(experiment: Experiment, extra: object = None) -> str:
    """A name for what a probe's result depends on, but for the code behind ``module:Class``."""
    rows = experiment.splits.train.fetch(torch.arange(1)).inputs
    tensors = (
        rows
        if isinstance(rows, dict)
        else {"": rows}
        if isinstance(rows, torch.Tensor)
        else dict(enumerate(rows))
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    parts = (
        experiment.model.name,
        sorted(experiment.model.options.items(), key=str),
        [(name, tuple(t.shape), str(t.dtype)) for name, t in tensors.items()],
        repr(experiment.recipe),
        repr(experiment.augmentation),
        repr(sorted(experiment.groups.items())),
        experiment.dropout_rate,
        experiment.num_workers,
        experiment.num_groups,
        len(experiment.splits.train),
        experiment.device,
        (platform.machine(), _processor(), gpu, usable_cores(), torch.get_num_threads()),
        (version("hqde"), torch.__version__),
        extra,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
