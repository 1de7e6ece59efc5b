"""The scikit-learn face: a classifier and a regressor that are ensembles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any, Self, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from hqde.backends import make_backend
from hqde.data import (
    Examples,
    Schema,
    Splits,
    SubsetExamples,
    Task,
    TensorExamples,
    as_inputs,
    hold_out,
    infer_schema,
)
from hqde.ensemble import Combiner, Ensemble, FittableCombiner, make_combiner
from hqde.errors import ConfigError, DataError
from hqde.models import ModelSpec, model_spec
from hqde.rounds import Engine, Experiment, RoundLog
from hqde.topology import Topology
from hqde.training import Recipe, resolve_device

_FLOATS = (np.float64, np.float32)
_HIDDEN = (64,)


class _EnsembleEstimator(BaseEstimator, ABC):
    """What the classifier and the regressor share: from checked rows to a trained ensemble."""

    ensemble_: Ensemble
    history_: list[dict[str, Any]]
    n_features_in_: int

    # Set by the constructors, which scikit-learn wants spelled out in each class.
    hidden: tuple[int, ...]
    num_workers: int
    groups: int | None
    epochs: int
    batch_size: int | str
    learning_rate: float
    weight_decay: float
    dropout_rate: float
    combiner: str | Combiner
    early_stopping: int
    validation_fraction: float
    model: str | Callable[..., nn.Module]
    model_options: Mapping[str, Any] | None
    device: str
    random_state: int | np.random.RandomState | None

    @abstractmethod
    def fit(self, X: Any, y: Any) -> Self:
        """Train the ensemble."""

    def _fit(self, examples: TensorExamples, schema: Schema, *, recipe: Recipe, calibrate: bool) -> None:
        """Train ``ensemble_`` on ``examples``."""
        seed = self._seed()
        combiner = make_combiner(self.combiner) if isinstance(self.combiner, str) else self.combiner
        learns = calibrate or isinstance(combiner, FittableCombiner)
        splits = self._split(examples, schema, seed=seed, learns=learns)
        recipe = self._with_batch_size(recipe, len(splits.train))
        log = RoundLog()
        experiment = Experiment(
            splits=splits,
            model=self._spec(schema, recipe),
            num_workers=self.num_workers,
            epochs=self.epochs,
            recipe=recipe,
            topology=Topology(groups=self.groups),
            dropout_rate=self.dropout_rate,
            early_stopping=self.early_stopping,
            evaluate_every=1 if self.early_stopping else max(1, self.epochs),
            combiner=combiner,
            calibrate=calibrate,
            seed=seed,
            device=resolve_device(self.device),
        )
        provenance: dict[str, object] = {
            "estimator": type(self).__name__,
            "seed": seed,
            "rows": len(splits.train),
            "workers": self.num_workers,
            "epochs": self.epochs,
        }
        engine = Engine(experiment, make_backend("local"), listener=log, provenance=provenance)
        self.ensemble_ = engine.run().ensemble
        self.history_ = [record.to_dict() for record in log.records]

    def _recipe(self, **options: Any) -> Recipe:
        return Recipe(learning_rate=self.learning_rate, weight_decay=self.weight_decay, **options)

    def _with_batch_size(self, recipe: Recipe, num_rows: int) -> Recipe:
        """``"auto"`` is a quarter of the rows, so that few rows still make steps, but 8 to 128."""
        size = self.batch_size
        if isinstance(size, str):
            if size != "auto":
                raise ConfigError(f"batch_size must be 'auto' or a number of rows, got {size!r}")
            size = min(128, max(8, -(-num_rows // 4)))
        return replace(recipe, batch_size=int(size))

    def _split(self, examples: Examples, schema: Schema, *, seed: int, learns: bool) -> Splits:
        """Rows are held out only if something asks for them."""
        empty = SubsetExamples(examples, torch.zeros(0, dtype=torch.int64))
        name = type(self).__name__
        if not (learns or self.early_stopping):
            return Splits(name, schema, examples, empty, empty)
        kept, held = hold_out(
            examples.targets,
            self.validation_fraction,
            seed=seed,
            purpose="validation",
            stratify=schema.task == "classification",
        )
        train, validation = SubsetExamples(examples, kept), SubsetExamples(examples, held)
        return Splits(name, schema, train, validation, empty)

    def _spec(self, schema: Schema, recipe: Recipe) -> ModelSpec:
        options = dict(self.model_options or {})
        if self.model == "mlp":
            options.setdefault("hidden", list(self.hidden))
        loss = recipe.loss_for(schema.task)
        outputs = {"cross_entropy": schema.num_classes, "mse": 1, "gaussian_nll": 2}[loss]
        spec = model_spec(self.model, input_shape=schema.input_shape, num_outputs=outputs, options=options)
        if self.model != "mlp" and tuple(self.hidden) != _HIDDEN:
            raise ConfigError("hidden is for model 'mlp'; give other models their widths in model_options")
        return spec

    def _seed(self) -> int:
        """An integer is the seed itself, as on the command line; anything else is drawn from."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "ensemble_")
        return cast(Tensor, as_inputs(validate_data(self, X, dtype=_FLOATS, reset=False)))


class HQDEClassifier(ClassifierMixin, _EnsembleEstimator):
    """A classifier whose prediction is that of an ensemble of neural networks.

    By default four networks of one hidden layer are trained on all rows, each from its own start and in its
    own order, and their probabilities are averaged (a deep ensemble). Inputs are standardised inside.

    Args:
        hidden: widths of the hidden layers of model ``"mlp"``.
        num_workers: networks that are trained.
        groups: groups of workers whose weights are averaged every epoch, which is the number of members;
            ``None`` makes every worker a member.
        epochs: passes over the rows.
        batch_size: rows per step; ``"auto"`` takes a quarter of the rows, but 8 to 128.
        learning_rate, weight_decay, dropout_rate: of the workers; learning rate and dropout are spread a
            little over them.
        combiner: ``"mean"`` of probabilities, ``"log_pool"``, ``"efficiency"``, or a combiner.
        calibrate: fit a temperature on held-out rows.
        early_stopping: stop when the loss on held-out rows has not improved for so many epochs, and
            keep the best; 0 trains to the end.
        validation_fraction: of the rows, held out class by class, if ``calibrate``,
            ``early_stopping`` or the combiner ask.
        model: ``"mlp"``, ``"module:Class"``, or a torch module class, which takes rows ``(n, features)``.
        model_options: further constructor arguments; all of them for a model of your own.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …, or ``"auto"``.
        random_state: an integer is the seed of everything; ``None`` and a ``RandomState`` are drawn from.

    Attributes:
        ensemble_: the trained ``Ensemble``: it predicts with uncertainty, is saved by ``save(path)``,
            and knows classes by their position in ``classes_``.
        history_: one dict per round.
        classes_, n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles" (2017).

    >>> X, y = [[0.0], [0.2], [0.8], [1.0]] * 5, ["low", "low", "high", "high"] * 5
    >>> HQDEClassifier(random_state=0).fit(X, y).predict([[0.1], [0.9]])
    array(['low', 'high'], dtype='<U4')
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = _HIDDEN,
        *,
        num_workers: int = 4,
        groups: int | None = None,
        epochs: int = 20,
        batch_size: int | str = "auto",
        learning_rate: float = 0.02,
        weight_decay: float = 0.01,
        dropout_rate: float = 0.1,
        combiner: str | Combiner = "mean",
        calibrate: bool = False,
        early_stopping: int = 0,
        validation_fraction: float = 0.1,
        model: str | Callable[..., nn.Module] = "mlp",
        model_options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden = hidden
        self.num_workers = num_workers
        self.groups = groups
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout_rate = dropout_rate
        self.combiner = combiner
        self.calibrate = calibrate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.model = model
        self.model_options = model_options
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train the ensemble.

        Args:
            X: (n, features) finite numbers.
            y: (n,) class labels of any kind, at least two different.

        Raises:
            ValueError: rows or labels that cannot be trained on, or a setting out of range.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, ids = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"only one class: all {len(y)} labels are {self.classes_.tolist()[0]!r}; give at least 2"
            )
        examples = TensorExamples(as_inputs(X), torch.from_numpy(ids.astype(np.int64)))
        task: Task = "classification"
        schema = infer_schema(examples, task=task, classes=[str(label) for label in self.classes_])
        self._fit(examples, schema, recipe=self._recipe(), calibrate=self.calibrate)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) in the order of ``classes_``, float32."""
        inputs = self._inputs(X)
        return self.ensemble_.predict_proba(inputs).numpy()


class HQDERegressor(RegressorMixin, _EnsembleEstimator):
    """A regressor whose prediction is that of an ensemble of neural networks.

    As ``HQDEClassifier``, for numbers: the prediction is the mean of the members' means. Inputs and targets
    are standardised inside.

    Args:
        loss: ``"mse"``, or ``"gaussian_nll"`` for networks that predict a mean and a variance; with the
            latter ``predict(X, return_std=True)`` covers noise as well as disagreement.
        combiner: ``"mean"`` or ``"efficiency"``.

    The other arguments and attributes are those of ``HQDEClassifier``.

    >>> X, y = [[i / 40] for i in range(40)], [3 * i / 40 for i in range(40)]
    >>> mean, std = HQDERegressor(random_state=0).fit(X, y).predict([[0.5]], return_std=True)
    >>> bool(abs(mean[0] - 1.5) < 0.2), std.shape
    (True, (1,))
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = _HIDDEN,
        *,
        num_workers: int = 4,
        groups: int | None = None,
        epochs: int = 20,
        batch_size: int | str = "auto",
        learning_rate: float = 0.02,
        weight_decay: float = 0.01,
        dropout_rate: float = 0.1,
        loss: str = "mse",
        combiner: str | Combiner = "mean",
        early_stopping: int = 0,
        validation_fraction: float = 0.1,
        model: str | Callable[..., nn.Module] = "mlp",
        model_options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden = hidden
        self.num_workers = num_workers
        self.groups = groups
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout_rate = dropout_rate
        self.loss = loss
        self.combiner = combiner
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.model = model
        self.model_options = model_options
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train the ensemble.

        Args:
            X: (n, features) finite numbers.
            y: (n,) finite numbers.

        Raises:
            ValueError: rows or targets that cannot be trained on, or a setting out of range.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2, y_numeric=True)
        targets = torch.from_numpy(np.array(y, dtype=np.float32))
        examples = TensorExamples(as_inputs(X), targets)
        schema = infer_schema(examples, task="regression")
        self._fit(examples, schema, recipe=self._recipe(loss=self.loss), calibrate=False)
        return self

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The mean of each row, (n,) float32, and with ``return_std`` its standard deviation, (n,).

        The variance is that between the members' means, plus, for ``loss="gaussian_nll"``, the mean of the
        variances they predict.
        """
        inputs = self._inputs(X)
        mean, variance = self.ensemble_.combine(self.ensemble_.predict_members(inputs)).unbind(dim=1)
        return (mean.numpy(), variance.sqrt().numpy()) if return_std else mean.numpy()
