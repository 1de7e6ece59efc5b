"""Steps of stacked models of any kind: ``torch.vmap`` makes one operation of all workers'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hqde.models import call_model, set_mask_source
from hqde.training.objective import example_losses
from hqde.training.order import Order
from hqde.training.stacked import Stacked
from hqde.training.stacked_optimizers import decay_of, parameters_of, read_moments, step_rows, write_moments
from hqde.training.worker import Worker


class Calling(nn.Module):
    """A model that is called with one argument, whatever its inputs are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: object) -> Tensor:
        """As ``call_model``."""
        return call_model(self.model, inputs)  # type: ignore[arg-type]


class Vmapped:
    """How workers like this one begin, make steps and end.

    Args:
        worker: any of them.
        model: of their architecture, in training mode.
    """

    def __init__(self, worker: Worker, model: Calling) -> None:
        self._worker, self._model = worker, model
        names = {id(p): name for name, p in worker.model.named_parameters()}
        self.names = [names[id(p)] for p in parameters_of(worker.optimizer)]
        self._shapes = [p.shape for p in parameters_of(worker.optimizer)]
        self._decay = decay_of(worker.optimizer, parameters_of(worker.optimizer))

    def begin(self, workers: Sequence[Worker], orders: Sequence[Order]) -> Stacked:
        """Where the rounds of these orders begin: copies of what the workers load."""
        for worker, order in zip(workers, orders, strict=True):
            worker.begin(order)
        return self.read(workers)

    def read(self, workers: Sequence[Worker]) -> Stacked:
        """Copies of what workers hold, parameters in the order of their optimizers."""
        rows = torch.stack(
            [torch.cat([p.detach().reshape(-1) for p in parameters_of(w.optimizer)]) for w in workers]
        )
        model, trained = workers[0].model, set(self.names)
        kept = [name for name, _ in model.named_parameters() if name not in trained]
        kept += [name for name, _ in model.named_buffers()]
        states = [dict(w.model.named_parameters()) | dict(w.model.named_buffers()) for w in workers]
        buffers = {name: torch.stack([s[name].detach() for s in states]) for name in kept}
        return Stacked(rows, buffers, read_moments([w.optimizer for w in workers], workers[0].spec.recipe))

    def end(self, workers: Sequence[Worker], state: Stacked) -> None:
        """Give the workers what their rounds came to."""
        write_moments(state.moments, [worker.optimizer for worker in workers], workers[0].spec.recipe)
        for row, worker in enumerate(workers):
            start = 0
            with torch.no_grad():
                for parameter in parameters_of(worker.optimizer):
                    end = start + parameter.numel()
                    parameter.copy_(state.rows[row, start:end].view_as(parameter))
                    start = end
                for name, buffer in worker.model.named_buffers():
                    buffer.copy_(state.buffers[name][row])

    def step(
        self,
        state: Stacked,
        inputs: object,
        targets: Tensor,
        masks: tuple[Tensor, ...],
        rates: Sequence[float],
    ) -> tuple[Tensor, Tensor | None]:
        """One step; sums of the losses ``(w,)``, and where there are classes, rows that are right ``(w,)``.

        Args:
            state: moves on.
            inputs, targets: ``(w, n, …)`` and ``(w, n)``.
            masks: of the dropouts.
            rates: of each worker.
        """
        outputs, losses, gradients = self.gradients(state, inputs, targets, masks)
        joined = torch.cat([gradient.reshape(len(losses), -1) for gradient in gradients], dim=1)
        with torch.no_grad():
            of_rows = torch.tensor(rates, dtype=torch.float32, device=joined.device).unsqueeze(1)
            step_rows(state.rows, joined, state.moments, of_rows, self._decay, self._worker.spec.recipe)
            classes = self._worker.loss == "cross_entropy"
            right = (outputs.argmax(dim=2) == targets).sum(1) if classes else None
            return losses.sum(1), right

    def gradients(
        self, state: Stacked, inputs: object, targets: Tensor, masks: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Outputs ``(w, n, …)``, losses ``(w, n)``, and gradients ``(w, …)`` of the means of these.

        Raises:
            RuntimeError: the outputs do not depend on a parameter.
        """
        leaves, first = self.leaves(state), self._worker
        with first.autocast():
            outputs = self._forward(state, leaves, inputs, masks)
        smoothing = first.spec.recipe.label_smoothing
        flat = example_losses(
            outputs.flatten(0, 1), targets.reshape(-1), first.loss, label_smoothing=smoothing
        )
        losses = flat.view_as(targets)
        found = torch.autograd.grad(losses.mean(1).sum(), leaves, allow_unused=True)
        unused = [name for name, gradient in zip(self.names, found, strict=True) if gradient is None]
        if unused:
            raise RuntimeError(f"its outputs do not depend on {', '.join(unused)}")
        return outputs.detach(), losses.detach(), found

    def leaves(self, state: Stacked) -> list[Tensor]:
        """The parameters as ``(w, …)`` views that gradients are taken of."""
        parts = state.rows.split([shape.numel() for shape in self._shapes], dim=1)
        return [
            part.view(len(part), *shape).detach().requires_grad_()
            for part, shape in zip(parts, self._shapes, strict=True)
        ]

    def _forward(
        self, state: Stacked, leaves: Sequence[Tensor], inputs: object, masks: tuple[Tensor, ...]
    ) -> Tensor:
        def named(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {f"model.{name}": value for name, value in values.items()}

        def one(
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
            inputs: object,
            masks: tuple[Tensor, ...],
        ) -> Tensor:
            supply = iter(masks)
            set_mask_source(lambda layer, x: next(supply), self._model)  # noqa: ARG005
            out: Tensor = functional_call(self._model, (named(parameters), named(buffers)), (inputs,))
            return out

        parameters = dict(zip(self.names, leaves, strict=True))
        outputs: Tensor = torch.vmap(one)(parameters, state.buffers, inputs, masks)
        return outputs
