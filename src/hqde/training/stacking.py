"""Workers of one architecture trained in one pass: models, optimizers and batches behind each other."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map

from hqde.aggregation import Update
from hqde.data import reads_side_by_side
from hqde.errors import OutOfMemoryError
from hqde.models import Dropout, set_mask_source
from hqde.seeding import generator, seeded
from hqde.training.alike import check_alike
from hqde.training.masks import MaskPlan, plan_masks
from hqde.training.memory import is_out_of_memory
from hqde.training.objective import example_losses
from hqde.training.order import Order
from hqde.training.perceptrons import perceptron_of
from hqde.training.stacked import Calling, Stacked
from hqde.training.stacked_optimizers import (
    decay_of,
    parameters_of,
    read_moments,
    step_rows,
    write_moments,
)
from hqde.training.tally import Tally
from hqde.training.worker import Worker


class Stack:
    """Some workers, trained together.

    Args:
        workers: of one architecture and one recipe but for their learning and dropout rates.

    Raises:
        PreconditionError: they differ in more, or train in a way that cannot be stacked.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        check_alike(self.workers)
        first = self.workers[0]
        with seeded(first.spec.seed, "stack"):
            rates = [w.spec.dropout_rate for w in self.workers if w.spec.dropout_rate is not None]
            model = first.spec.model.build(dropout_rate=max(rates, default=None))
        self._calling = Calling(model.to(first.device)).train()
        self._names = {id(p): name for name, p in first.model.named_parameters()}
        self._dropout = [[m.p for m in w.model.modules() if isinstance(m, Dropout)] for w in self.workers]
        self._masks: MaskPlan | None = None
        self._perceptron = perceptron_of(first)

    def train_round(
        self, orders: Sequence[Order], *, on_step: Callable[[int, int, int], None] | None = None
    ) -> list[Update | tuple[Order, Exception]]:
        """Train the workers that have orders.

        Args:
            orders: for some of the stack's workers.
            on_step: called with (worker id, batches done, batches in the round).

        Returns:
            For each order an update, or the order and what went wrong with it.

        Raises:
            OutOfMemoryError: a step of so many workers needs more memory than there is. They are as they
                were, so that fewer of them at a time may be given these orders again.
        """
        began, began_cpu = time.perf_counter(), time.thread_time()
        by_id = {worker.spec.worker_id: place for place, worker in enumerate(self.workers)}
        orders = sorted(orders, key=lambda order: order.worker_id)
        places = [by_id[order.worker_id] for order in orders]
        workers = [self.workers[place] for place in places]
        batches = [worker.begin(order) for worker, order in zip(workers, orders, strict=True)]
        tallies = [Tally(w.rate_at(o, 0, 1)) for w, o in zip(workers, orders, strict=True)]
        run = _Round(self, orders, places, batches, tallies)
        try:
            failed = self._carry_out(run, workers, orders, batches, on_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"a step of {len(workers)} worker(s), {workers[0].spec.recipe.batch_size} rows and "
                f"{workers[0].layout.size:,} weights each, ran out of memory ({str(error).splitlines()[0]})"
            ) from error
        share = (time.perf_counter() - began) / len(orders)
        cpu_s = (time.thread_time() - began_cpu) / len(orders) if torch.get_num_threads() == 1 else None
        data_s = run.data_s / len(orders)
        outcomes: list[Update | tuple[Order, Exception]] = []
        for place, (worker, order, tally) in enumerate(zip(workers, orders, tallies, strict=True)):
            if place in failed:
                outcomes.append((order, failed[place]))
                continue
            started = time.perf_counter() - share
            outcomes.append(worker.finish(order, tally, began=started, data_s=data_s, cpu_s=cpu_s))
        return outcomes

    def _carry_out(
        self,
        run: _Round,
        workers: Sequence[Worker],
        orders: Sequence[Order],
        batches: Sequence[Sequence[Tensor]],
        on_step: Callable[[int, int, int], None] | None,
    ) -> dict[int, Exception]:
        """All steps, on copies of what the workers hold, who get it last of all; which failed, and why."""
        failed: dict[int, Exception] = {}
        state = self._read(workers)
        for step in range(max(map(len, batches), default=0)):
            for group in run.groups(step, failed):
                run.step(step, group, state, failed)
            if on_step is not None:
                for order, own in zip(orders, batches, strict=True):
                    on_step(order.worker_id, min(step + 1, len(own)), len(own))
        self._write(state, workers)
        return failed

    def try_out(self, index: Tensor) -> None:
        """A forward and a backward pass of these rows, without a step; what is wrong is raised.

        A model that its graph makes a perceptron of is none if it does something else than that says.
        """
        worker = self.workers[0]
        state, again = self._read(self.workers[:2]), self._read(self.workers[:2])
        count = len(state.rows)
        inputs, _ = worker.batch(index, None)
        plan = self.masks(inputs, len(index))
        rates = self._dropout[:count]
        draws = [generator(worker.spec.seed, "stack", place, device=worker.device) for place in range(count)]
        leaves = self.leaves(state)
        both, masks = (
            tree_map(lambda value: torch.stack([value] * count), inputs),
            plan.draw(len(index), draws, rates),
        )
        with worker.autocast():
            outputs = self.forward(state, leaves, both, masks)
        pull = torch.linspace(-1.0, 1.0, outputs.numel(), device=outputs.device).view_as(outputs)
        gradients = torch.autograd.grad((outputs.float() * pull).sum(), leaves, allow_unused=True)
        names = [self._names[id(p)] for p in parameters_of(worker.optimizer)]
        unused = [name for name, found in zip(names, gradients, strict=True) if found is None]
        if unused:
            raise RuntimeError(f"its outputs do not depend on {', '.join(unused)}")
        if self._perceptron is not None and self._perceptron.takes(both):
            found, kept = self._perceptron.forward(*self._flat(again), both, self._by_place(plan, masks))
            joined = torch.cat([gradient.reshape(count, -1) for gradient in gradients], dim=1)
            alike = _are_alike(found, outputs) and _are_alike(
                self._perceptron.backward(again.rows, kept, pull), joined
            )
            if not alike or not all(_are_alike(again.buffers[n], b) for n, b in state.buffers.items()):
                self._perceptron = None

    def forward(
        self, state: Stacked, leaves: Sequence[Tensor], inputs: object, masks: tuple[Tensor, ...]
    ) -> Tensor:
        """Outputs ``(w, n, …)`` of the workers for their own rows."""
        names = [f"model.{self._names[id(p)]}" for p in parameters_of(self.workers[0].optimizer)]
        parameters = dict(zip(names, leaves, strict=True))

        def one(
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
            inputs: object,
            masks: tuple[Tensor, ...],
        ) -> Tensor:
            supply = iter(masks)
            set_mask_source(lambda layer, x: next(supply), self._calling)  # noqa: ARG005
            out: Tensor = functional_call(self._calling, (parameters, buffers), (inputs,))
            return out

        outputs: Tensor = torch.vmap(one)(parameters, state.buffers, inputs, masks)
        return outputs

    def gradients(
        self,
        state: Stacked,
        inputs: object,
        masks: tuple[Tensor, ...],
        losses_of: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs ``(w, n, …)``, losses ``(w, n)``, and gradients ``(w, d)`` of the means of these.

        Args:
            state: of the workers; its buffers move on.
            inputs, masks: of their rows.
            losses_of: of outputs.
        """
        model = self._perceptron
        if model is not None and isinstance(inputs, Tensor) and model.takes(inputs):
            by_place = self._by_place(self.masks(inputs[0], inputs.shape[1]), masks)
            outputs, kept = model.forward(*self._flat(state), inputs, by_place)
            losses = losses_of(outputs.requires_grad_())
            [gradient] = torch.autograd.grad(losses.mean(1).sum(), [outputs])
            return outputs.detach(), losses.detach(), model.backward(state.rows, kept, gradient)
        leaves = self.leaves(state)
        with self.workers[0].autocast():
            outputs = self.forward(state, leaves, inputs, masks)
        losses = losses_of(outputs)
        found = torch.autograd.grad(losses.mean(1).sum(), leaves)
        joined = torch.cat([gradient.reshape(len(losses), -1) for gradient in found], dim=1)
        return outputs.detach(), losses.detach(), joined

    def leaves(self, state: Stacked) -> list[Tensor]:
        """The parameters as ``(w, …)`` views that gradients are taken of."""
        shapes = [p.shape for p in parameters_of(self.workers[0].optimizer)]
        parts = state.rows.split([shape.numel() for shape in shapes], dim=1)
        count = len(state.rows)
        return [
            part.view(count, *shape).detach().requires_grad_()
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def masks(self, inputs: object, rows: int) -> MaskPlan:
        """Which masks a batch of one worker asks for, found out once."""
        if self._masks is None:
            self._masks = plan_masks(self._calling, inputs, rows, autocast=self.workers[0].autocast())
        return self._masks

    @property
    def is_perceptron(self) -> bool:
        """Whether it is trained without ``torch.vmap``."""
        return self._perceptron is not None

    def use_vmap(self) -> None:
        """Do not train it as a perceptron."""
        self._perceptron = None

    @staticmethod
    def _flat(state: Stacked) -> tuple[Tensor, dict[str, Tensor]]:
        return state.rows, {name.removeprefix("model."): value for name, value in state.buffers.items()}

    @staticmethod
    def _by_place(plan: MaskPlan, masks: tuple[Tensor, ...]) -> dict[int, Tensor]:
        return {call.layer: mask for call, mask in zip(plan.calls, masks, strict=True)}

    def _read(self, workers: Sequence[Worker]) -> Stacked:
        rows = torch.stack(
            [torch.cat([p.detach().reshape(-1) for p in parameters_of(w.optimizer)]) for w in workers]
        )
        trained = {id(p) for p in parameters_of(self.workers[0].optimizer)}
        kept = [name for name, p in self.workers[0].model.named_parameters() if id(p) not in trained]
        kept += [name for name, _ in self.workers[0].model.named_buffers()]
        states = [dict(w.model.named_parameters()) | dict(w.model.named_buffers()) for w in workers]
        buffers = {f"model.{name}": torch.stack([s[name].detach() for s in states]) for name in kept}
        return Stacked(rows, buffers, read_moments([w.optimizer for w in workers], workers[0].spec.recipe))

    def _write(self, state: Stacked, workers: Sequence[Worker]) -> None:
        write_moments(state.moments, [w.optimizer for w in workers], workers[0].spec.recipe)
        for row, worker in enumerate(workers):
            start = 0
            with torch.no_grad():
                for parameter in parameters_of(worker.optimizer):
                    end = start + parameter.numel()
                    parameter.copy_(state.rows[row, start:end].view_as(parameter))
                    start = end
                for name, buffer in worker.model.named_buffers():
                    buffer.copy_(state.buffers[f"model.{name}"][row])


class _Round:
    """The steps of a round of a stack."""

    def __init__(
        self,
        stack: Stack,
        orders: Sequence[Order],
        places: Sequence[int],
        batches: Sequence[Sequence[Tensor]],
        tallies: Sequence[Tally],
    ) -> None:
        self._stack, self._orders, self._batches, self._tallies = stack, orders, batches, tallies
        self._workers = [stack.workers[place] for place in places]
        self._rates = [stack._dropout[place] for place in places]
        self._decay = decay_of(self._workers[0].optimizer)
        pairs = list(zip(self._workers, orders, strict=True))
        self._dropping = [worker.dropping(order) for worker, order in pairs]
        self._augmenting = [
            generator(w.spec.seed, "worker", w.spec.worker_id, "augment", o.round_index) for w, o in pairs
        ]
        self.data_s = 0.0

    def groups(self, step: int, failed: dict[int, Exception]) -> list[list[int]]:
        """Workers with a batch in this step, those of one size together."""
        sizes: dict[int, list[int]] = defaultdict(list)
        for place, own in enumerate(self._batches):
            if step < len(own) and place not in failed:
                sizes[len(own[step])].append(place)
        return list(sizes.values())

    def step(self, step: int, group: list[int], state: Stacked, failed: dict[int, Exception]) -> None:
        """One step of these workers."""
        waiting = time.perf_counter()
        inputs, targets, group = self._rows(step, group, failed)
        self.data_s += time.perf_counter() - waiting
        if not group:
            return
        every = len(group) == len(state.rows)
        index = torch.tensor(group)
        own = state if every else state.take(index)
        try:
            self._update(step, group, own, inputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            failed.update(dict.fromkeys(group, error))
            return
        if not every:
            state.put(index, own)

    def _rows(
        self, step: int, group: list[int], failed: dict[int, Exception]
    ) -> tuple[object, Tensor, list[int]]:
        """Inputs ``(w, n, …)`` and targets ``(w, n)`` of those whose rows can be read."""
        first = self._workers[0]
        if reads_side_by_side(first.examples) and not first.spec.augmentation.enabled:
            index = torch.cat([self._batches[place][step] for place in group])
            try:
                inputs, targets = first.batch(index, None)
                count = len(group)
                return (
                    tree_map(lambda v: v.view(count, -1, *v.shape[1:]), inputs),
                    targets.view(count, -1),
                    group,
                )
            except Exception:  # noqa: BLE001 - one by one it shows whose rows they are
                pass
        found = []
        for place in group:
            worker, index = self._workers[place], self._batches[place][step]
            try:
                found.append((place, worker.batch(index, self._augmenting[place])))
            except Exception as error:  # data may raise anything; the engine decides
                if is_out_of_memory(error):
                    raise
                failed[place] = error
        if not found:
            return None, torch.empty(0), []
        inputs = tree_map(lambda *rows: torch.stack(rows), *[batch[0] for _, batch in found])
        return inputs, torch.stack([batch[1] for _, batch in found]), [place for place, _ in found]

    def _update(self, step: int, group: list[int], state: Stacked, inputs: object, targets: Tensor) -> None:
        stack, recipe = self._stack, self._workers[0].spec.recipe
        count, rows = targets.shape
        first = tree_map(lambda value: value[0], inputs)
        plan = stack.masks(first, rows)
        masks = plan.draw(rows, [self._dropping[p] for p in group], [self._rates[p] for p in group])
        kind = self._workers[0].loss

        def losses_of(outputs: Tensor) -> Tensor:
            flat = outputs.reshape(count * rows, *outputs.shape[2:])
            smoothing = recipe.label_smoothing
            return example_losses(flat, targets.reshape(-1), kind, label_smoothing=smoothing).view(
                count, rows
            )

        outputs, losses, joined = stack.gradients(state, inputs, masks, losses_of)
        rates = [self._workers[p].rate_at(self._orders[p], step, len(self._batches[p])) for p in group]
        with torch.no_grad():
            of_rows = torch.tensor(rates, dtype=torch.float32, device=joined.device).unsqueeze(1)
            step_rows(state.rows, joined, state.moments, of_rows, self._decay, recipe)
            right = None
            if kind == "cross_entropy":
                right = (outputs.argmax(dim=2) == targets).sum(1)
        for row, place in enumerate(group):
            self._tallies[place].add(losses[row], None if right is None else right[row], rates[row])


def _are_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether values differ by no more than rounding, for the largest of them."""
    expected = expected.float()
    return bool((found.float() - expected).abs().max() <= 1e-3 * expected.abs().max().clamp_min(1.0))
