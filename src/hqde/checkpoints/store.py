"""The checkpoints of one run: a folder of bundles, one per saved round, the newest few kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hqde.checkpoints.bundle import Bundle, read_bundle
from hqde.checkpoints.writing import remove_tree, write_bundle
from hqde.errors import CheckpointError, ConfigError, PreconditionError

_ROUND = re.compile(r"round-(\d{6,})")
_REPLACED_ROUND = re.compile(r"\.round-(\d{6,})\.old")
_LEFTOVER = re.compile(r"\.round-\d{6,}\.(new|gone)")


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints in ``directory``, named ``round-000012``, of which the newest ``keep`` stay.

    Args:
        directory: made by the first ``save``.
        keep: how many bundles to keep, at least 1.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = CheckpointStore(folder)
    ...     store.save(1, {"lr": 0.1}, {"group-0": {"w": torch.zeros(2)}})
    ...     store.save(2, {"lr": 0.2}, {"group-0": {"w": torch.ones(2)}})
    ...     rounds = store.rounds()
    ...     round_index, bundle = store.latest()
    >>> rounds, round_index, bundle.manifest["lr"]
    ([2], 2, 0.2)
    """

    directory: Path | str
    keep: int = 1

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"a checkpoint store keeps at least 1 bundle, got keep={self.keep}.")
        object.__setattr__(self, "directory", Path(self.directory))

    def path(self, round_index: int) -> Path:
        """Where the bundle of a round is, or would be."""
        return Path(self.directory) / f"round-{round_index:06d}"

    def rounds(self) -> list[int]:
        """The rounds that have a bundle, oldest first; half-written ones do not count."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        found = (_ROUND.fullmatch(name) or _REPLACED_ROUND.fullmatch(name) for name in names)
        return sorted({int(match[1]) for match in found if match})

    def save(
        self, round_index: int, manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Write the bundle of a round, then remove all but the newest ``keep``.

        The older bundles go only after the new one is on the disk. The same round may be saved again.

        Args:
            round_index: at least 0 and not before the newest saved round.
            manifest: plain JSON; gains ``round_index`` and what ``write_bundle`` adds.
            tensors: file stem to tensors by name.

        Raises:
            PreconditionError: the round lies before the newest saved one.
            CheckpointError: the disk refuses.
        """
        if round_index < 0:
            raise PreconditionError(f"a round's index is at least 0, got {round_index}.")
        newest = max([0, *self.rounds()])
        if round_index < newest:
            raise PreconditionError(
                f"round {round_index} comes before round {newest}, the newest in {self.directory}: "
                "remove the later checkpoints to go back."
            )
        content = {**manifest, "round_index": round_index}
        write_bundle(self.path(round_index), manifest=content, tensors=tensors)
        self._prune()

    def latest(self) -> tuple[int, Bundle] | None:
        """The newest round and its bundle, or None if nothing was saved.

        Raises:
            CheckpointError: the newest bundle is damaged; the message says which older one could be used.
        """
        saved = self.rounds()
        if not saved:
            return None
        try:
            return saved[-1], self.read(saved[-1])
        except CheckpointError as problem:
            older = (
                f"Remove {self.path(saved[-1])} to go on from round {saved[-2]}."
                if len(saved) > 1
                else "There is no older checkpoint."
            )
            raise CheckpointError(f"{problem} {older}") from problem

    def read(self, round_index: int) -> Bundle:
        """The bundle of one round.

        Raises:
            CheckpointError: it is missing, damaged, or holds another round.
        """
        bundle = read_bundle(self.path(round_index))
        if bundle.manifest.get("round_index") != round_index:
            raise CheckpointError(
                f"{self.path(round_index)} holds round {bundle.manifest.get('round_index')}: it was renamed."
            )
        return bundle

    def _prune(self) -> None:
        folder = Path(self.directory)
        for entry in list(folder.iterdir()):
            replaced = _REPLACED_ROUND.fullmatch(entry.name)
            if _LEFTOVER.fullmatch(entry.name) or (replaced and self.path(int(replaced[1])).exists()):
                remove_tree(entry)
        for round_index in self.rounds()[: -self.keep]:
            # Renamed first: a crash half way through a removal leaves nothing named like a checkpoint.
            gone = folder / f".round-{round_index:06d}.gone"
            for name in (f"round-{round_index:06d}", f".round-{round_index:06d}.old"):
                if (folder / name).exists():
                    os.rename(folder / name, gone)
                    remove_tree(gone)
