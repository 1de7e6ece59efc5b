"""Steps of stacked perceptrons: what they hold, laid out for compiled loops. Its import takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hqde.training import step_kernels as kernels
from hqde.training.held import Held
from hqde.training.masks import Draws
from hqde.training.objective import LOG_VARIANCE_BOUNDS
from hqde.training.order import Order
from hqde.training.perceptrons import Perceptron
from hqde.training.stacked import Stacked
from hqde.training.stacked_optimizers import BETAS, EPSILON, decay_of
from hqde.training.worker import Worker
from hqde.weights import Weights

LOSSES = {"cross_entropy": kernels.CROSS_ENTROPY, "mse": kernels.MSE, "gaussian_nll": kernels.GAUSSIAN_NLL}


class StackedPerceptrons:
    """How workers like this one begin, make steps and end: a step of all of them is one compiled loop.

    Bits depend on the worker alone, not on those that it is stacked with.

    Args:
        chain: what the model of each of them is.
        worker: any of them.
    """

    def __init__(self, chain: Perceptron, worker: Worker) -> None:
        recipe = worker.spec.recipe
        self._chain, self._recipe, self._loss = chain, recipe, worker.loss
        if recipe.optimizer == "adamw":
            self._optimizer, self._moments = kernels.ADAMW, ("exp_avg", "exp_avg_sq")
            settings = (*BETAS, EPSILON, recipe.clip_norm)
        else:
            self._optimizer, self._moments = kernels.SGD, ("momentum_buffer", "momentum_buffer")
            settings = (recipe.momentum, recipe.nesterov, 0.0, recipe.clip_norm)
        self._settings = tuple(map(float, settings))
        self._layout = worker.layout
        self._classes = chain.places[f"{chain.stages[-1].linear}.weight"][1][0]
        self._decay = decay_of(worker.optimizer, list(worker.model.parameters())).numpy()
        self._spaces: dict[int, tuple[Any, Any, Any]] = {}

    def begin(self, workers: Sequence[Worker], orders: Sequence[Order]) -> Stacked:
        """Where the rounds of these orders begin."""
        return self._joined([worker.begin_held(order) for worker, order in zip(workers, orders, strict=True)])

    def read(self, workers: Sequence[Worker]) -> Stacked:
        """Copies of what workers hold, parameters in the order of their weights."""
        return self._joined([worker.held() for worker in workers])

    def end(self, workers: Sequence[Worker], state: Stacked) -> None:
        """Let the workers hold what their rounds came to."""
        vectors, seen = torch.cat([state.rows, state.buffers["running"]], dim=1), state.buffers["seen"]
        for row, worker in enumerate(workers):
            moments = {name: values[row] for name, values in state.moments.items()}
            worker.hold(Held(Weights(vectors[row], seen[row]), moments))

    def named(self, gradients: Tensor, state: Stacked) -> dict[str, Tensor]:
        """Gradients ``(w, d)`` and statistics by the names of the models' parameters and buffers."""
        vectors = torch.cat([gradients, state.buffers["running"]], dim=1)
        pairs = zip(vectors, state.buffers["seen"], strict=True)
        each = [self._layout.tensors(Weights(vector, seen)) for vector, seen in pairs]
        return {name: torch.stack([own[name] for own in each]) for name in each[0]}

    def takes(self, inputs: object) -> bool:
        """Whether steps can be made with inputs ``(w, n, …)``."""
        return self._chain.takes(inputs)

    def step(
        self, state: Stacked, inputs: object, targets: Tensor, draws: Draws, rates: Sequence[float]
    ) -> tuple[Tensor, Tensor | None]:
        """One step; sums of the losses ``(w,)``, and where there are classes, rows that are right ``(w,)``.

        Args:
            state: moves on.
            inputs, targets: ``(w, n, …)`` and ``(w, n)``.
            draws: for the dropouts.
            rates: of each worker.

        Raises:
            ValueError: a single row, which has no variance.
        """
        if not self.takes(inputs):
            raise ValueError(
                f"{targets.shape[1]} row(s) are no batch for these models: they take float32, and two rows "
                "at least to normalise them"
            )
        state.moments["step"] += 1
        update = (self._optimizer, np.array(rates), self._decay, self._settings)
        gradients = np.empty((1, state.rows.shape[1]), np.float32)
        sums, hits = self._run(state, inputs, targets, draws, gradients, update)
        return sums, hits if self._loss == "cross_entropy" else None

    def gradients(
        self, state: Stacked, inputs: object, targets: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Sums of the losses ``(w,)``, and the gradients ``(w, d)`` of their means; statistics move on."""
        found = torch.empty_like(state.rows)
        update = (kernels.NO_UPDATE, np.zeros(len(found)), self._decay, (0.0,) * 4)
        return self._run(state, inputs, targets, draws, found.numpy(), update)[0], found

    def _run(
        self,
        state: Stacked,
        inputs: object,
        targets: Tensor,
        draws: Draws,
        gradients: Any,
        update: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(inputs, Tensor)
        if inputs.shape[:2] != targets.shape:
            raise ValueError(f"inputs {tuple(inputs.shape)} need as many targets, got {tuple(targets.shape)}")
        workers, rows = targets.shape
        losses, hits = torch.empty(workers, dtype=torch.float64), torch.zeros(workers, dtype=torch.int64)
        stages, constants, space = self._space(rows, draws)
        steps = state.moments["step"][:, 0].numpy()
        kernels.train(
            stages,
            constants,
            state.rows.numpy(),
            state.buffers["running"].numpy(),
            (inputs.flatten(2).numpy(), targets.numpy()),
            (LOSSES[self._loss], self._recipe.label_smoothing, *LOG_VARIANCE_BOUNDS),
            draws.arrays(),
            space,
            gradients,
            update,
            (steps, *(state.moments[name].numpy() for name in self._moments)),
            (losses.numpy(), hits.numpy()),
        )
        if int(hits.min()) < 0:
            bad = int(hits.argmin())
            raise IndexError(
                f"targets of worker {bad} of the stack reach from {int(targets[bad].min())} to "
                f"{int(targets[bad].max())}, and the model has outputs for {self._classes} classes"
            )
        state.buffers["seen"] += 1
        return losses, hits

    def _joined(self, held: Sequence[Held]) -> Stacked:
        """Behind each other; running statistics are named so, and counts of batches ``seen``."""
        vectors = torch.stack([each.weights.vector for each in held])
        cut = self._layout.num_parameters
        seen = torch.stack([each.weights.integers for each in held])
        buffers = {"running": vectors[:, cut:].contiguous(), "seen": seen}
        moments = {name: torch.stack([each.moments[name] for each in held]) for name in held[0].moments}
        return Stacked(vectors[:, :cut].contiguous(), buffers, moments)

    def _space(self, rows: int, draws: Draws) -> tuple[Any, Any, Any]:
        """The table of stages and the workspace for so many rows."""
        if rows not in self._spaces:
            chain, places = self._chain, self._chain.places
            table, end = [], 0
            first = {slot.name: slot.offset - self._layout.num_parameters for slot in self._layout.buffers}
            for stage in chain.stages:
                where, (features, width) = places[f"{stage.linear}.weight"]
                row = [width, features, where.start, *(-1,) * 9]
                if f"{stage.linear}.bias" in places:
                    row[kernels.BIAS] = places[f"{stage.linear}.bias"][0].start
                if stage.norm:
                    row[kernels.SCALE], row[kernels.SHIFT] = (
                        places[f"{stage.norm}.{w}"][0].start for w in ("weight", "bias")
                    )
                    row[kernels.RUNNING] = first[f"{stage.norm}.running_mean"]  # its variance is behind it
                row[kernels.RELU], row[kernels.DROPOUT] = int(stage.relu), draws.place_of(stage.dropout)
                row[kernels.Z], end = end, end + rows * features
                if not stage.bare:
                    row[kernels.NUMBERS], row[kernels.OUT] = end, end + 4 * features
                    end += (4 + rows) * features
                table.append(row)
            widest = max(row[kernels.OUTPUTS] for row in table)
            space = np.empty(end + 2 * rows * widest, np.float32)
            constants = np.array([(stage.eps, stage.momentum) for stage in chain.stages])
            self._spaces[rows] = np.array(table), constants, space
        return self._spaces[rows]
