"""A study: trials asked for and judged one batch after the other, in a directory, from which it goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hqde.config import Config, build_config, dump_config, merge_trees, without_place
from hqde.data import Splits
from hqde.errors import ConfigError, MissingExtraError, RunError, WorkerError, did_you_mean
from hqde.rounds.run_directory import write_text
from hqde.tuning.space import Dimension, tree_of
from hqde.tuning.trials import runs_together, tree_of_config, trial_values

SAMPLERS = ("tpe", "random", "tunnelling")


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        index: counted from 0.
        values: settings by their full names.
        loss: on the validation split; ``None`` where training failed.
        reason: why it did.
    """

    index: int
    values: dict[str, Any]
    loss: float | None
    reason: str = ""


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        trials: all, in order.
        best: of least loss.
        config_file: the configuration with the best settings.
        together: whether trials were groups of one run.
    """

    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    config_file: Path
    together: bool


class Study:
    """A search for settings that leave the least loss on the validation split.

    Args:
        directory: of the study: ``study.json``, ``journal.log`` (Optuna's), ``best.toml``.
        config: what all trials share, resolved.
        space: what is searched.
        num_trials: in all, those before an interruption included.
        parallel: trials at a time, where they can be groups of one run.
        sampler: ``tpe`` (Optuna's), ``random``, or ``tunnelling`` (`hqde.quantum.Tunnelling`).
        seed: of the proposals.

    Raises:
        ConfigError: an unknown sampler, or a number below 1.
        MissingExtraError: Optuna is not installed.
    """

    def __init__(
        self,
        directory: Path | str,
        config: Config,
        space: Sequence[Dimension],
        *,
        num_trials: int = 20,
        parallel: int = 4,
        sampler: str = "tpe",
        seed: int = 0,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ConfigError(f"unknown sampler '{sampler}'; {did_you_mean(sampler, SAMPLERS)}")
        for name, value in (("trials", num_trials), ("parallel", parallel)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        _optuna()
        self.path = Path(directory)
        self.together = runs_together(space, config)
        self._config, self._space, self._seed = config, tuple(space), seed
        self._num_trials, self._parallel, self._sampler = num_trials, parallel, sampler

    def refuse_if_taken(self) -> None:
        """Make sure that nothing would be overwritten.

        Raises:
            RunError: the directory is a file, or not empty.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            held = "a study; go on with it by --resume" if self._file.exists() else "other files"
            raise RunError(f"{self.path} already holds {held}, or choose an empty directory with --out")

    def run(
        self, splits: Splits, *, resume: bool = False, tell: Callable[[TrialRecord], None] | None = None
    ) -> StudyResult:
        """Make the trials that are missing.

        Args:
            splits: the data.
            resume: go on with the study in the directory.
            tell: is told of each trial.

        Raises:
            RunError: the directory is taken, or holds no study, or one with other settings.
            WorkerError: training failed in every trial.
        """
        optuna = _optuna()
        from hqde.tuning.samplers import INDEX, distribution_of, make_sampler, told

        if resume:
            self._require_same()
        else:
            self.refuse_if_taken()
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(self._identity(), indent=1) + "\n")
        with _quiet(optuna):
            study = self._open(optuna)
            self._abandon(optuna, study)
            distributions = {d.name: distribution_of(d) for d in self._space}
            while (done := len(self._finished(study))) < self._num_trials:
                batch = min(self._parallel if self.together else 1, self._num_trials - done)
                asked = []
                for index in range(done, done + batch):
                    study.sampler = make_sampler(
                        self._sampler, self._space, index=index, budget=self._num_trials, seed=self._seed
                    )
                    trial = study.ask(distributions)
                    trial.set_user_attr(INDEX, index)
                    asked.append(trial)
                proposals = [{d.name: told(d, trial.params[d.name]) for d in self._space} for trial in asked]
                worth = trial_values(
                    self._config, splits, proposals, together=self.together, parallel=self._parallel
                )
                for trial, found in zip(asked, worth, strict=True):
                    reason = found if isinstance(found, str) else ""
                    trial.set_user_attr("reason", reason)
                    study.tell(trial, math.inf if isinstance(found, str) else found)
                for record in self._records(study)[done:]:
                    if tell is not None:
                        tell(record)
            return self._result(study)

    @property
    def _file(self) -> Path:
        return self.path / "study.json"

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "hqde-study",
            "space": [asdict(dimension) for dimension in self._space],
            "sampler": self._sampler,
            "parallel": self._parallel,
            "budget": self._num_trials
            if self._sampler == "tunnelling"
            else None,  # its field follows from it
            "seed": self._seed,
            "config": without_place(tree_of_config(self._config)),
        }

    def _require_same(self) -> None:
        if not self._file.is_file():
            raise RunError(f"{self.path} holds no study to go on with (there is no study.json in it)")
        old, new = json.loads(self._file.read_text()), json.loads(json.dumps(self._identity()))
        changed = [name for name in new if old.get(name) != new[name]]
        if changed:
            raise RunError(
                f"{self.path} is a study with another {', '.join(changed)}; go on with the same, or start "
                "one in another directory"
            )

    def _open(self, optuna: Any) -> Any:
        backend = optuna.storages.journal.JournalFileBackend(str(self.path / "journal.log"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            study_name="hqde", storage=storage, direction="minimize", load_if_exists=True
        )

    def _abandon(self, optuna: Any, study: Any) -> None:
        """Trials that an interruption left open are asked for again."""
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _finished(self, study: Any) -> list[Any]:
        return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _records(self, study: Any) -> list[TrialRecord]:
        from hqde.tuning.samplers import INDEX, told

        found = [
            TrialRecord(
                index=trial.user_attrs[INDEX],
                values={d.name: told(d, trial.params[d.name]) for d in self._space},
                loss=float(trial.value) if math.isfinite(trial.value) else None,
                reason=trial.user_attrs["reason"],
            )
            for trial in self._finished(study)
        ]
        return sorted(found, key=lambda record: record.index)

    def _result(self, study: Any) -> StudyResult:
        records = self._records(study)
        sound = [record for record in records if record.loss is not None]
        if not sound:
            raise WorkerError(f"training failed in all {len(records)} trials, the last: {records[-1].reason}")
        best = min(sound, key=lambda record: record.loss or 0.0)
        config = build_config(merge_trees(tree_of_config(self._config), tree_of(best.values)))
        write_text(self.path / "best.toml", dump_config(config))
        return StudyResult(tuple(records), best, self.path / "best.toml", self.together)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("searching for settings", extra="tune") from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's lines on the terminal; how loud it was before is put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
