"""The trained thing: members, how inputs are prepared, and how predictions become one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from hqde.data import Normalization, Schema, TargetScale, as_examples
from hqde.ensemble.artefact import artefact_content, read_artefact, write_artefact
from hqde.ensemble.calibration import apply_temperature
from hqde.ensemble.checking import check_parts
from hqde.ensemble.combiners import Combiner, MeanCombiner
from hqde.ensemble.compressing import compress_ensemble
from hqde.ensemble.evaluation import Evaluation, evaluate_classification, evaluate_regression
from hqde.ensemble.fitting import calibrate_to_predictions, fit_to_predictions
from hqde.ensemble.inference import InferencePrecision, ready_for_inference
from hqde.ensemble.inputs import check_targets, input_batches, labelled_batches
from hqde.ensemble.matrix_scaling import MatrixScaling
from hqde.ensemble.members import Member
from hqde.ensemble.module import EnsembleModule
from hqde.ensemble.pooling import FittableCombiner
from hqde.ensemble.prediction import Loss, choose_loss, predict_members
from hqde.ensemble.regression import pool_normals, split_variance
from hqde.errors import ArtefactError, ConfigError, PreconditionError
from hqde.metrics import Uncertainty, auroc, uncertainty
from hqde.quantum import measure
from hqde.seeding import generator

BATCH_SIZE = 128


class Ensemble:
    """Several trained models that predict together.

    Data are given raw, in the units they had in training; normalisation happens inside. Every method takes a
    tensor, array, list of rows, or a tuple or dict of them, ``Examples``, a ``Dataset`` or a ``DataLoader``
    (its rows in dataset order, its targets ignored); a tuple given to a ``predict`` method holds several
    inputs, one given to ``evaluate`` or ``calibrate`` is ``(X, y)``. Results are on the CPU and outside of
    autograd, and agree to about 1e-6 for any ``batch_size``.

    Args:
        members: at least one; ids are unique.
        schema: task, classes and input shape.
        normalization: of the raw inputs.
        target_scale: of regression targets; identity if None.
        combiner: how member predictions become one; for regression its weights mix normal distributions.
        temperature: divides the logarithm of the combined probabilities; 1 leaves them alone.
        matrix_scaling: what follows the temperature; ``None`` for nothing.
        loss: what the models' outputs mean: ``cross_entropy`` (logits), ``mse`` (mean) or ``gaussian_nll``
            (mean and log-variance of the standardised target). By default the first that fits the task.
        metrics: figures to keep in the artefact; plain JSON without times, so that equal training gives equal
            artefacts.
        provenance: how the ensemble was trained; plain JSON without times or paths.

    >>> from hqde.models import ModelSpec
    >>> spec = ModelSpec("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    >>> schema = Schema("classification", "tabular", ("a", "b", "c"), (2,))
    >>> members = [Member(index, spec, spec.build()) for index in range(4)]
    >>> ensemble = Ensemble(members, schema=schema, normalization=Normalization.identity())
    >>> ensemble
    Ensemble(4 members, classification of 3 classes, combiner 'mean', temperature 1)
    >>> ensemble.predict_proba([[0.0, 1.0], [2.0, 3.0]]).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        schema: Schema,
        normalization: Normalization,
        target_scale: TargetScale | None = None,
        combiner: Combiner | None = None,
        temperature: float = 1.0,
        matrix_scaling: MatrixScaling | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.members = tuple(members)
        self.schema = schema
        self.normalization = normalization
        self.target_scale = TargetScale() if target_scale is None else target_scale
        self.combiner: Combiner = MeanCombiner() if combiner is None else combiner
        self.temperature = float(temperature)
        self.matrix_scaling = matrix_scaling
        self.loss: Loss = choose_loss(loss, schema)
        self.metrics: dict[str, Any] = dict(metrics or {})
        self.provenance: dict[str, Any] = dict(provenance or {})
        check_parts(self)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        classes = f" of {self.schema.num_classes} classes" if self.schema.task == "classification" else ""
        return (
            f"Ensemble({len(self)} member{'s' if len(self) > 1 else ''}, {self.schema.task}{classes}, "
            f"combiner {self.combiner.name!r}, temperature {self.temperature:.4g}"
            f"{', matrix scaling' if self.matrix_scaling is not None else ''})"
        )

    @property
    def member_ids(self) -> tuple[int, ...]:
        """The members' ids, in the order of their predictions."""
        return tuple(member.member_id for member in self.members)

    @property
    def scores(self) -> Tensor:
        """The members' efficiency scores, (m,) float64."""
        return torch.tensor([member.score for member in self.members], dtype=torch.float64)

    @property
    def device(self) -> torch.device:
        """Where the members' weights are."""
        for member in self.members:
            for tensor in chain(member.model.buffers(), member.model.parameters()):
                return tensor.device
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> Ensemble:
        """Move the members' models to ``device``, in place; ensembles that share them move along."""
        for member in self.members:
            member.to(device)
        return self

    def predict_members(self, data: Any, *, batch_size: int = BATCH_SIZE) -> Tensor:
        """What each member predicts by itself, without combiner and calibration.

        Returns:
            (m, n, c) probabilities; for regression (m, n, 2) mean and variance in target units (variance 0
            for models trained on MSE).

        Raises:
            PreconditionError: the rows have another shape than in training.
            NonFiniteError: an input or a member's output is NaN or infinite.
            DataError: the data cannot be read as rows of numbers.
        """
        return self._predict(input_batches(data, batch_size=batch_size))

    def predict_labelled(self, data: Any, *, batch_size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
        """``predict_members`` and the targets (n,), from one reading of labelled data.

        Raises:
            DataError: a label is not one of the classes, or as in ``predict_members``.
        """
        examples = as_examples(data, task=self.schema.task)
        targets: list[Tensor] = []

        def inputs_of_batches() -> Any:
            for batch in labelled_batches(examples, batch_size=batch_size):
                targets.append(batch.targets)
                yield batch.inputs

        predictions = self._predict(inputs_of_batches())
        found = torch.cat(targets) if targets else examples.targets
        check_targets(found, self.schema)
        return predictions, found

    def combine(self, member_predictions: Tensor) -> Tensor:
        """The ensemble's prediction from those of its members, calibration included.

        Args:
            member_predictions: as ``predict_members`` returns them, (m, n, c) or (m, n, 2).

        Returns:
            (n, c) probabilities, or (n, 2) mean and variance: the mean of the means, and by the law of total
            variance the mean of the variances plus the variance of the means.
        """
        if self.schema.task == "regression":
            return pool_normals(member_predictions, self.combiner.weights(self.scores))
        return self.calibrated(self.combiner.combine(member_predictions, self.scores))

    def calibrated(self, probs: Tensor) -> Tensor:
        """Combined probabilities (n, c) after the temperature and the matrix scaling, if there is one."""
        tempered = apply_temperature(probs, self.temperature)
        return tempered if self.matrix_scaling is None else self.matrix_scaling.apply(tempered)

    def predict_proba(self, data: Any, *, batch_size: int = BATCH_SIZE) -> Tensor:
        """Class probabilities (n, c) of the whole ensemble, calibrated as it was fitted.

        Raises:
            PreconditionError: the ensemble is for regression, or as in ``predict_members``.
        """
        if self.schema.task == "regression":
            raise PreconditionError("a regression ensemble has no class probabilities: use predict.")
        return self.combine(self.predict_members(data, batch_size=batch_size))

    def predict(self, data: Any, *, batch_size: int = BATCH_SIZE) -> Tensor:
        """The most probable class (n,) int64, or for regression the mean (n,) in target units."""
        combined = self.combine(self.predict_members(data, batch_size=batch_size))
        return combined[:, 0] if self.schema.task == "regression" else combined.argmax(dim=1)

    def predict_uncertainty(self, data: Any, *, batch_size: int = BATCH_SIZE) -> Uncertainty:
        """How unsure the ensemble is about each row, and why: total = aleatoric + epistemic, each (n,).

        Classification, in nats, from the members' raw probabilities with equal weights: total is the entropy
        of the mean, aleatoric the mean entropy, epistemic their difference, the mutual information between
        prediction and member. Regression, in squared target units: total variance = mean variance of the
        members (aleatoric) + variance of their means (epistemic), by the combiner's weights.
        """
        return self.split_uncertainty(self.predict_members(data, batch_size=batch_size))

    def split_uncertainty(self, member_predictions: Tensor) -> Uncertainty:
        """``predict_uncertainty`` from predictions at hand, as ``predict_members`` returns them."""
        if self.schema.task == "regression":
            return split_variance(member_predictions, self.combiner.weights(self.scores))
        if member_predictions.shape[1] == 0:
            return Uncertainty(*torch.zeros(3, 0, dtype=torch.float64))
        return uncertainty(member_predictions)

    def ood_auroc(self, data: Any, outside: Any, *, batch_size: int = BATCH_SIZE) -> dict[str, float]:
        """How well uncertainty tells rows like those of training from rows of another kind.

        The area under the ROC curve when rows with more uncertainty are called foreign: the chance that a
        row of ``outside`` is given more of it than a row of ``data``. 1 is perfect, 0.5 is guessing.
        Returns ``{"total": …, "epistemic": …}``, by kind of uncertainty.

        Source: Hendrycks, Gimpel, "A baseline for detecting misclassified and OOD examples" (2017).
        """
        kinds_of_rows = (self.predict_members(rows, batch_size=batch_size) for rows in (data, outside))
        return self.ood_auroc_of(*kinds_of_rows)

    def ood_auroc_of(self, inside_predictions: Tensor, outside_predictions: Tensor) -> dict[str, float]:
        """``ood_auroc`` from predictions at hand, as ``predict_members`` returns them."""
        inside, foreign = map(self.split_uncertainty, (inside_predictions, outside_predictions))
        kinds = ("total", "epistemic")
        return {kind: float(auroc(getattr(foreign, kind), getattr(inside, kind))) for kind in kinds}

    def evaluate(self, data: Any, *, batch_size: int = BATCH_SIZE) -> Evaluation:
        """Figures on labelled data: the ensemble's, each member's, and their diversity.

        Raises:
            DataError: there are no labels, or one is not one of the classes.
        """
        return self.evaluate_predictions(*self.predict_labelled(data, batch_size=batch_size))

    def evaluate_predictions(self, member_predictions: Tensor, targets: Tensor) -> Evaluation:
        """``evaluate`` from predictions at hand, as ``predict_labelled`` returns them."""
        if len(targets) == 0:
            raise PreconditionError("there are 0 rows to evaluate on: give at least one.")
        given, ids = (member_predictions, self.combine(member_predictions), targets), self.member_ids
        if self.schema.task == "regression":
            return evaluate_regression(*given, member_ids=ids, loss=self.loss)
        return evaluate_classification(*given, member_ids=ids)

    def calibrate(
        self, validation: Any, *, matrix_scaling: bool = False, batch_size: int = BATCH_SIZE
    ) -> Ensemble:
        """A new ensemble of the same members, calibrated on held-out rows.

        The temperature minimises the NLL of the combined probabilities, and never raises it on these rows.
        With ``matrix_scaling`` one follows, where the rows speak for it: which class comes first may change.

        Raises:
            PreconditionError: the ensemble is for regression, or there are no rows, or too many classes.
        """
        if self.schema.task == "regression":
            raise PreconditionError("calibration is for classification: skip it for regression.")
        members, targets = self.predict_labelled(validation, batch_size=batch_size)
        return calibrate_to_predictions(self, members, targets, matrix_scaling=matrix_scaling)

    def with_temperature(self, temperature: float, matrix_scaling: MatrixScaling | None = None) -> Ensemble:
        """A new ensemble of the same members calibrated otherwise; at 1 alone not at all."""
        return self._with(temperature=temperature, matrix_scaling=matrix_scaling)

    def fit_combiner(
        self,
        combiner: str | Combiner,
        data: Any,
        *,
        calibrate: bool = True,
        matrix_scaling: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Ensemble:
        """A new ensemble: the combiner (name or object) fitted on held-out rows, then ``calibrate``."""
        members, targets = self.predict_labelled(data, batch_size=batch_size)
        return fit_to_predictions(
            self, combiner, members, targets, calibrate=calibrate, matrix_scaling=matrix_scaling
        )

    def with_combiner(self, combiner: Combiner, temperature: float = 1.0) -> Ensemble:
        """A new ensemble of the same members with another combiner, as it is; matrix scaling goes."""
        return self._with(combiner=combiner, temperature=temperature, matrix_scaling=None)

    def sample(
        self, data: Any, num_samples: int = 1, *, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Classes (n, num_samples) int64 drawn from ``predict_proba``; the same seed gives the same draws."""
        probs = self.predict_proba(data, batch_size=batch_size)
        return measure(probs, num_samples, generator=generator(seed, "measurement"))

    def select(self, positions: Sequence[int]) -> Ensemble:
        """A new ensemble of the members at these positions; ids, combiner and calibration stay."""
        members, combiner = [self.members[position] for position in positions], self.combiner
        if isinstance(combiner, FittableCombiner):
            combiner = combiner.of_members(positions)
        return self._with(members=members, combiner=combiner)

    def for_inference(self, precision: InferencePrecision = "fp32", data: Any = None) -> Ensemble:
        """A new ensemble that predicts the same but for rounding, and faster; it cannot be saved.

        ``ready_for_inference`` says how; for ``"int8"`` ``data`` are rows like those to come.
        """

        def ready(member: Member) -> Member:
            def run(model: nn.Module) -> None:
                for rows in [] if data is None else islice(input_batches(data, batch_size=512), 1):
                    self.with_members([member.with_model(model)]).predict_members(rows)

            return member.with_model(ready_for_inference(member.model, precision, run))

        return self.with_members([ready(member) for member in self.members])

    def with_members(self, members: Sequence[Member]) -> Ensemble:
        """A new ensemble of other members, all else as it is here."""
        return self._with(members=members)

    def compress(
        self,
        bits: float | None = None,
        *,
        budget_bytes: int | None = None,
        max_accuracy_loss: float | None = None,
        data: Any = None,
        batch_size: int = BATCH_SIZE,
    ) -> Ensemble:
        """A new ensemble of quantised weights, saved as packed codes; see ``compress_ensemble`` for all."""
        goal: Any = {"bits": bits, "budget_bytes": budget_bytes, "max_accuracy_loss": max_accuracy_loss}
        return compress_ensemble(self, **goal, data=data, batch_size=batch_size).ensemble

    def to_torch_module(self) -> EnsembleModule:
        """A module whose ``forward`` takes raw inputs and returns what ``combine`` would, for export.

        It shares the members' models. Its state's names are stable: ``members.0.…``, ``input_mean``, ….
        """
        return EnsembleModule.of(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artefact: a directory of ``manifest.json`` and ``member-000.safetensors``, … .

        Atomic; an older artefact at ``path`` is replaced. Equal ensembles give equal bytes.

        Raises:
            PreconditionError: ``path`` holds other files, a member could not be built again from its spec, or
                a compressed one was changed.
            ArtefactError: the disk refuses.
        """
        write_artefact(path, **artefact_content(self))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        model_class: Callable[..., nn.Module] | Mapping[str, Callable[..., nn.Module]] | None = None,
        low_memory: bool = False,
    ) -> Ensemble:
        """The ensemble that ``save`` wrote, on the CPU; predictions are the same bit for bit.

        Model classes of your own are imported by the name the artefact holds, which runs their module's code:
        load artefacts of people you trust.

        Args:
            path: the artefact's directory.
            model_class: your model's class where it cannot be imported (because it was defined in a script or
                notebook), or a dict of classes by saved name where there are several.
            low_memory: keep a compressed artefact's weights packed, and decode each layer's when it
                computes: the same bits, more slowly. Models of your own are built whole first, in turn.

        Raises:
            ArtefactError: a file is missing, altered or cut short, of a newer format, or does not fit its
                architecture; a class cannot be imported; or ``low_memory`` and nothing is compressed.
        """
        content = read_artefact(path, model_class=model_class, low_memory=low_memory)
        try:
            return cls(**content)
        except (ConfigError, PreconditionError) as problem:
            raise ArtefactError(
                f"{path}: manifest.json describes no ensemble ({problem}): copy it again or retrain."
            ) from problem

    def _with(self, **changes: Any) -> Ensemble:
        return Ensemble(**{**artefact_content(self), **changes})

    def _predict(self, batches: Any) -> Tensor:
        return predict_members(
            self.members,
            batches,
            schema=self.schema,
            normalization=self.normalization,
            target_scale=self.target_scale,
            loss=self.loss,
            device=self.device,
        )
