"""The memory that a container leaves a process: cgroup version 1 and 2."""

from __future__ import annotations

from pathlib import Path

# Version 1 says "no limit" with the largest number of pages that fits.
UNLIMITED = 2**60


def container_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Limit and use, in bytes, of the tightest memory cgroup around this process.

    Use leaves out file cache that the kernel would give back first.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        ``(limit, used)``, or ``None`` where no limit is set (or where there are no cgroups).
    """
    found = [
        read
        for directory, limit, used, stat, cache in _candidates(root)
        if (read := _read(directory, limit, used, stat, cache)) is not None
    ]
    return min(found) if found else None


def _candidates(root: Path) -> list[tuple[Path, str, str, str, str]]:
    """Directories to look into, with the names of the files there; from the process's own cgroup upwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "memory.stat", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [(base.joinpath(*parts[:depth]), *names) for depth in range(len(parts), -1, -1)]
    return found


def _read(directory: Path, limit: str, used: str, stat: str, cache: str) -> tuple[int, int] | None:
    try:
        words = (directory / limit).read_text().strip()
        if words == "max" or int(words) >= UNLIMITED:
            return None
        in_use = int((directory / used).read_text())
    except (OSError, ValueError):  # a cgroup that is not shown here: one above it may be
        return None
    return int(words), max(0, in_use - _cache(directory / stat, cache))


def _cache(file: Path, name: str) -> int:
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
