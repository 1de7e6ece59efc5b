"""What ``hqde doctor`` looks at: one finding each, with a cure where something is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

import hqde
from hqde.backends import usable_cores
from hqde.monitoring import GpuProbe, container_memory

GIB = 2**30
# What an extra brings, and what it is for.
EXTRAS = {
    "data": (("pyarrow", "pillow"), "parquet files and images"),
    "ray": (("ray", "cloudpickle"), "workers in processes of their own"),
    "ans": (("constriction",), "entropy coding with the stage 'ans'"),
    "gpu": (("nvidia-ml-py",), "figures of GPUs"),
    "metrics": (("prometheus-client",), "--metrics-port"),
    "top": (("textual",), "the live screen of hqde top"),
    "tracking": (("tensorboard",), "the exporter tensorboard"),
    "mlflow": (("mlflow-skinny",), "the exporter mlflow"),
    "privacy": (("opacus",), "the account of [privacy]"),
    "tune": (("optuna",), "hqde tune"),
}
SHARED_MEMORY = Path("/dev/shm")
LEAST_OPEN_FILES = 4096
MOST_FOLDERS = 200
TABLES = (".csv", ".npz", ".parquet")


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: was looked at.
        found: there.
        cure: what to do; empty where nothing has to be done.
        level: ``ok``; ``note``, where something could be added; ``problem``, where something is wrong.
    """

    what: str
    found: str
    cure: str = ""
    level: str = "ok"


def problem(what: str, found: str, cure: str) -> Finding:
    """A finding; a problem if there is a cure."""
    return Finding(what, found, cure, "problem" if cure else "ok")


def examine_machine() -> Iterator[Finding]:
    """Everything but the self-tests; quick."""
    yield Finding("hqde", hqde.__version__)
    old = "HQDE needs Python 3.11 or newer" if sys.version_info < (3, 11) else ""
    yield problem("Python", platform.python_version(), old)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("PyTorch", f"{torch.__version__}, built {built}")
    yield _threads()
    yield from _devices()
    yield from _memory()
    yield from _disks()
    yield _open_files()
    for extra, (packages, purpose) in EXTRAS.items():
        yield _extra(extra, packages, purpose)
    yield _ray()
    yield Finding("data sets", ", ".join(["digits (built in)", *find_data_sets(Path.cwd())]))


def _threads() -> Finding:
    cores = usable_cores()
    threads = torch.get_num_threads()
    cure = "" if threads <= cores else f"more threads than cores slow each other down: run.threads = {cores}"
    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"{threads} of {cores} usable cores" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    return problem("threads", found, cure)


def _devices() -> Iterator[Finding]:
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = [f"{card.name} with {card.total_memory / GIB:.0f} GiB" for card in cards]
    probe = GpuProbe()
    there = probe.read()
    probe.close()
    cure = ""
    if there and not found:
        cure = f"PyTorch sees none of {len(there)} GPU(s): install a build of it with CUDA"
    yield problem("CUDA devices", ", ".join(found) or "none", cure)


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    cure = "" if memory.available > GIB else "less than 1 GiB is free: close something"
    yield problem("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free", cure)
    container = container_memory()
    if container is not None:
        limit, used = container
        cure = "" if limit - used > GIB else "less than 1 GiB is left to this container: raise its limit"
        yield problem(
            "container", f"{(limit - used) / GIB:.1f} of {limit / GIB:.1f} GiB left to this container", cure
        )


def _disks() -> Iterator[Finding]:
    if SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(SHARED_MEMORY)
        cure = "" if shared.total > GIB else "Ray keeps its objects there: docker run --shm-size=4g"
        yield problem("shared memory", f"{shared.free / GIB:.1f} of {shared.total / GIB:.1f} GiB free", cure)
    free = shutil.disk_usage(Path.cwd()).free
    cure = "" if free > GIB else "less than 1 GiB is free here: checkpoints may not fit"
    yield problem("disk", f"{free / GIB:.1f} GiB free in the working directory", cure)
    if not os.access(Path.cwd(), os.W_OK):
        cure = "runs are written below it: go where you may write, or use --out"
        yield problem("working directory", f"{Path.cwd()} cannot be written", cure)


def _open_files() -> Finding:
    try:
        import resource
    except ImportError:  # not a Unix
        return Finding("open files", "no limit known")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    low = soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES
    cure = "Ray with many workers needs more: ulimit -n 65536" if low else ""
    return Finding("open files", limit, cure, "note" if low else "ok")


def _extra(extra: str, packages: Sequence[str], purpose: str) -> Finding:
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    cure = f"for {purpose}: pip install 'hqde[{extra}]'" if missing else ""
    words = ", ".join(found + [f"{name} missing" for name in missing])
    return Finding(f"extra {extra}", words, cure, "note" if missing else "ok")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    try:
        installed = version("ray")
    except PackageNotFoundError:
        cure = "RAY_ADDRESS is set, but Ray is not installed: pip install 'hqde[ray]'" if address else ""
        return problem("Ray", "not installed", cure)
    parts = tuple(int(part) for part in installed.split(".")[:2] if part.isdecimal())
    cure = (
        "" if parts >= (2, 52) else "versions before 2.52 let anybody run code: pip install -U 'ray[default]'"
    )
    where = f"RAY_ADDRESS={address}" if address else "started on this machine when a run asks for it"
    return problem("Ray", f"{installed}, {where}", cure)


def find_data_sets(folder: Path) -> list[str]:
    """What could be given to ``--data`` in a folder and up to two below it.

    Args:
        folder: where to look; hidden folders are passed over.
    """
    found: list[str] = []
    folders = [(folder, 0)]
    for looked, (here, depth) in enumerate(folders):
        if looked >= MOST_FOLDERS:
            break
        try:
            entries = sorted(here.iterdir())
        except OSError:
            continue
        name = here.relative_to(folder).as_posix()
        names = {entry.name for entry in entries}
        if names & {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"}:
            found.append(f"fashion-mnist:{name}")
        elif "data_batch_1" in names:
            found.append(f"cifar10:{name}")
        elif (here / "config.toml").exists() and (here / "history.jsonl").exists():
            continue  # a run
        else:
            found += [entry.relative_to(folder).as_posix() for entry in entries if entry.suffix in TABLES][:5]
            if depth < 2:
                below = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
                folders += [(entry, depth + 1) for entry in below]
    return [*found[:10], f"and {len(found) - 10} more"] if len(found) > 10 else found
