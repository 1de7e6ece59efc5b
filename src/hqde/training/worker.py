"""One worker's life: load the committed weights, train a round, hand in an update."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from hqde.aggregation import Update, count_nonfinite, pulled
from hqde.compression import Packet, encode_step
from hqde.data import (
    Examples,
    Inputs,
    move_inputs,
    reads_side_by_side,
)
from hqde.errors import PreconditionError
from hqde.models import call_model, draw_dropout_from
from hqde.seeding import generator, seeded
from hqde.training.efficiency import INITIAL_EFFICIENCY, update_efficiency
from hqde.training.held import Held, copied_state, moments_of
from hqde.training.norm_pool import fuse_norm_pools, norm_pools
from hqde.training.objective import check_outputs, example_losses
from hqde.training.optimizers import load_optimizer_tensors, make_optimizer, optimizer_tensors
from hqde.training.order import Order, epoch_batches, progress_at
from hqde.training.perturbing import heat, perturbed
from hqde.training.recipe import Recipe
from hqde.training.spec import WorkerSpec, WorkerState
from hqde.training.tally import Tally
from hqde.training.turns import Recomputation, Stream, Turns, own_stream
from hqde.weights import Layout, Weights


class Worker:
    """A training replica. Bits depend on the spec and the orders alone, never on where or when it runs."""

    def __init__(self, spec: WorkerSpec, examples: Examples) -> None:
        self.spec = spec
        self.examples = examples
        self.device = torch.device(spec.device)
        with seeded(spec.seed, "worker", spec.worker_id, "build"):
            model = spec.model.build(dropout_rate=spec.dropout_rate)
            self._to_fuse = norm_pools(model) if spec.device == "cpu" else []
        self.layout = Layout.of(model)
        self._model = model.to(self.device)
        if spec.recipe.channels_last:
            self._model = self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = spec.recipe.loss_for(spec.schema.task)
        self._optimizer = make_optimizer(self._model, spec.recipe)
        self._held: Held | None = None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=spec.recipe.precision == "fp16-mixed")
        self._efficiency = INITIAL_EFFICIENCY
        self._owed: Tensor | None = None  # of error feedback
        self._replica: Tensor | None = None  # the weights that its last round ended with, where they count
        self.mark: Callable[[str], AbstractContextManager[object]] = _unmarked  # for who watches the steps
        self._data_s = 0.0  # of the round that goes on

    @property
    def model(self) -> nn.Module:
        """The replica, as the worker's last round left it."""
        self._settle()
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What trains it."""
        self._settle()
        return self._optimizer

    def train_round(
        self,
        order: Order,
        *,
        on_step: Callable[[int, int], None] | None = None,
        turns: Turns | None = None,
    ) -> Update:
        """Train one round and hand in the update.

        Args:
            order: what to do; ``order.worker_id`` must be this worker's.
            on_step: called with (batches done, batches in the round) after every step.
            turns: of the workers that train beside this one, in threads of the same process; the bits are
                those of a worker that is alone.
        """
        processor = _processor_clock(alone=turns is None)
        began, began_cpu = time.perf_counter(), None if processor is None else processor()
        spec = self.spec
        self._data_s = 0.0
        fuse_norm_pools(self.model, self._to_fuse)  # not before: stacked workers need the layers as they were
        self._to_fuse = []
        self.begin(order)
        batches, tally = self.batches(order), Tally(self._rate(order.progress[0]))
        draw_dropout_from(self.dropping(order), self.model)
        path = ("worker", spec.worker_id, "round", order.round_index)
        with own_stream(turns, spec.seed, *path, device=self.device) as stream:
            draws = generator(spec.seed, "worker", spec.worker_id, "augment", order.round_index)
            warm = self._warming(order) if spec.recipe.temperature else None
            for step, index in enumerate(batches):
                progress = progress_at(order, step, len(batches))
                rate = self._rate(progress)
                at = None if warm is None else partial(warm, rate=rate, progress=progress)
                losses, outputs, targets = self._step(index, rate, draws, stream, first=step == 0, warm=at)
                right = (outputs.argmax(dim=1) == targets).sum() if self.loss == "cross_entropy" else None
                tally.add(losses, right, rate)
                if on_step is not None:
                    on_step(step + 1, len(batches))
        cpu_s = None if processor is None or began_cpu is None else processor() - began_cpu
        return self.finish(order, tally, began=began, data_s=self._data_s, cpu_s=cpu_s)

    def begin(self, order: Order) -> None:
        """Load the order's start."""
        own_buffers = order.keep_buffers and not order.fresh_optimizer
        self.layout.write(self._beginning(order), self.model, with_buffers=not own_buffers)
        if order.fresh_optimizer:
            self._optimizer = make_optimizer(self.model, self.spec.recipe)
        if not all(module.training for module in self.model.modules()):  # to set it takes far longer
            self.model.train()

    def batches(self, order: Order) -> list[Tensor]:
        """The indices of the round's batches."""
        return list(epoch_batches(order, seed=self.spec.seed, batch_size=self.spec.recipe.batch_size))

    def begin_held(self, order: Order) -> Held:
        """What ``begin`` loads, flat: for those who train without the worker's own model and optimizer."""
        begin, before = self._beginning(order), self.held()
        if order.keep_buffers and not order.fresh_optimizer:
            cut = self.layout.num_parameters
            vector = torch.cat([begin.vector[:cut], before.weights.vector[cut:]])
            begin = Weights(vector, before.weights.integers)
        if order.fresh_optimizer:
            return Held(begin, {name: torch.zeros_like(value) for name, value in before.moments.items()})
        return Held(begin, before.moments)

    def held(self) -> Held:
        """Where the worker stands; a view where that is known flat already."""
        if self._held is not None:
            return self._held
        parameters = list(self._model.parameters())
        moments = moments_of(self._optimizer, parameters, self.spec.recipe)
        return Held(self.layout.read(self._model), moments)

    def hold(self, held: Held) -> None:
        """Stand there; model and optimizer are told when somebody asks for them."""
        self._held = held

    def dropping(self, order: Order) -> torch.Generator:
        """What the round's dropout draws from."""
        path = ("worker", self.spec.worker_id, "round", order.round_index, "dropout")
        return generator(self.spec.seed, *path, device=self.device)

    def rate_at(self, order: Order, step: int, num_steps: int) -> float:
        """Learning rate of the round's step, 0, 1, …"""
        return self._rate(progress_at(order, step, num_steps))

    def finish(
        self,
        order: Order,
        tally: Tally,
        *,
        began: float,
        data_s: float,
        cpu_s: float | None,
    ) -> Update:
        """The update of a round whose steps are done.

        Args:
            order: the round's.
            tally: of its steps.
            began: when, by ``time.perf_counter``.
            data_s, cpu_s: as in ``Update``.
        """
        for loss in tally.losses_by_step():
            self._efficiency = update_efficiency(self._efficiency, loss)
        held = self._held
        local = self.layout.read(self.model) if held is None else held.weights.clone()
        encoding = time.perf_counter()
        delta, packet = self._encode(local.vector.sub_(order.start.vector), order)
        encode_s = time.perf_counter() - encoding
        # As whoever decodes the delta sees it: so nothing that error feedback owes is counted twice.
        self._replica = None if order.pull is None else order.start.vector + delta
        down = order.start.vector if order.downlink is None else order.downlink
        return Update(
            worker_id=self.spec.worker_id,
            round_index=order.round_index,
            attempt=order.attempt,
            delta=delta,
            integers=local.integers,
            num_samples=tally.num_samples,
            loss=tally.mean_loss,
            accuracy=tally.accuracy,
            learning_rate=tally.rate,
            efficiency=self._efficiency,
            seconds=time.perf_counter() - began,
            packet=packet,
            sent_bytes=local.integers.nbytes + (delta.nbytes if packet is None else packet.nbytes),
            received_bytes=order.start.integers.nbytes + down.nbytes,
            data_s=data_s,
            encode_s=encode_s,
            cpu_s=cpu_s,
        )

    def check(self, index: Tensor) -> None:
        """Run a few examples through the model without training.

        Raises:
            PreconditionError: the model cannot take the inputs, or its output does not fit the task.
        """
        self.model.eval()
        with seeded(self.spec.seed, "worker", self.spec.worker_id, "check", device=self.device):
            inputs, _ = self.batch(index, None)
            try:
                with torch.inference_mode(), self.autocast():
                    outputs = call_model(self.model, inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                shape = f" of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else ""
                raise PreconditionError(
                    f"model '{self.spec.model.name}' cannot take inputs{shape}: {str(error).splitlines()[0]}"
                ) from error
        check_outputs(
            outputs, num_examples=len(index), loss=self.loss, num_classes=self.spec.schema.num_classes
        )

    def state(self) -> WorkerState:
        """Copies of what must survive a restart."""
        tensors = {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        own = self.layout.read(self.model)
        tensors["buffers"] = own.vector[self.layout.num_parameters :].clone()
        tensors["integers"] = own.integers
        if self._owed is not None:
            tensors["owed"] = self._owed.clone()
        if self._replica is not None:
            tensors["replica"] = self._replica.clone()
        if self._scaler.is_enabled():
            scale = self._scaler.state_dict()
            tensors["scaler"] = torch.tensor([scale["scale"], scale["_growth_tracker"]], dtype=torch.float64)
        return WorkerState(tensors, self._efficiency)

    def load_state(self, state: WorkerState, committed: Weights) -> None:
        """Put back what ``state`` gave, on top of the weights committed at that time."""
        buffers, integers = state.tensors["buffers"], state.tensors["integers"]
        vector = torch.cat([committed.vector[: self.layout.num_parameters], buffers])
        self.layout.write(Weights(vector, integers), self.model)
        prefix = "optimizer."
        load_optimizer_tensors(
            self.optimizer,
            {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)},
        )
        if self._scaler.is_enabled() and "scaler" in state.tensors:
            scale, tracker = state.tensors["scaler"].tolist()
            self._scaler.load_state_dict(
                self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)}
            )
        self._efficiency = state.efficiency
        self._owed = state.tensors.get("owed")
        self._replica = state.tensors.get("replica")

    def _settle(self) -> None:
        if self._held is None:
            return
        state = copied_state(self._held.moments, list(self._model.parameters()), self.spec.recipe)
        self.layout.write(self._held.weights, self._model)
        self._optimizer.state.update(state)
        self._held = None  # not before: memory may end

    def _beginning(self, order: Order) -> Weights:
        """Where the round begins: at its start, or between that and the worker's own weights; perturbed."""
        begin, centre = order.start, order.start.vector
        if order.pull is not None and self._replica is not None and not order.fresh_optimizer:
            begin = Weights(pulled(self._replica, centre, order.pull), order.start.integers)
        if order.perturbation is not None:
            begin = perturbed(begin, self.layout, order.perturbation, centre=centre, seed=self.spec.seed)
        return begin

    def _encode(self, delta: Tensor, order: Order) -> tuple[Tensor, Packet | None]:
        """The delta as whoever decodes it sees it, and the packet that travels."""
        uplink = order.uplink
        if uplink is None or uplink.fresh or order.fresh_optimizer:
            self._owed = None
        if uplink is None or count_nonfinite(delta):  # such a delta is refused, for what it is
            return delta, None
        packet, decoded, self._owed = encode_step(
            uplink.codec,
            delta,
            self._owed,
            layout=self.layout,
            smallest=uplink.smallest,
            feedback=uplink.feedback,
            generator=generator(self.spec.seed, "worker", self.spec.worker_id, "encode", order.round_index),
        )
        return decoded, packet

    def _warming(self, order: Order) -> Callable[..., None]:
        """What adds the noise of the recipe's temperature to the gradients of a step."""
        path = ("worker", self.spec.worker_id, "heat", order.round_index)
        draws = generator(self.spec.seed, *path, device=self.device)
        parameters = list(self.model.parameters())
        return partial(heat, parameters, self.spec.recipe, num_rows=len(order.shard), draws=draws)

    def _rate(self, progress: float) -> float:
        return self.spec.recipe.learning_rate * self.spec.schedule.factor(progress)

    def _step(
        self,
        index: Tensor,
        rate: float,
        draws: torch.Generator,
        stream: Stream,
        *,
        first: bool,
        warm: Callable[[], None] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        waiting = time.perf_counter()
        with self.mark("data"), stream.use("data", exclusive=not reads_side_by_side(self.examples)):
            inputs, targets = self.batch(index, draws)
        self._data_s += time.perf_counter() - waiting
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.mark("forward"), stream.use("forward"), self.autocast():
            outputs = call_model(self.model, inputs)
        recipe = self.spec.recipe
        losses = example_losses(outputs, targets, self.loss, label_smoothing=recipe.label_smoothing)
        with self.mark("backward"), stream.use("backward"):
            self._backward(losses.mean(), stream, first=first)
        with self.mark("optimizer"):
            self._update(recipe, warm)
        return losses.detach(), outputs.detach(), targets

    def _update(self, recipe: Recipe, warm: Callable[[], None] | None) -> None:
        if recipe.clip_norm or warm is not None:
            self._scaler.unscale_(self.optimizer)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm, foreach=True)
        if warm is not None:
            warm()
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _backward(self, loss: Tensor, stream: Stream, *, first: bool) -> None:
        scaled = self._scaler.scale(loss)
        if stream.alone or not first:
            scaled.backward()
            return
        with Recomputation(self.model) as seen:
            scaled.backward()
        if seen.called:
            stream.needs("backward")

    def batch(self, index: Tensor, draws: torch.Generator | None) -> tuple[Inputs, Tensor]:
        spec = self.spec
        inputs, targets = self.examples.fetch(index)
        if draws is not None and spec.augmentation.enabled and isinstance(inputs, Tensor):
            inputs = spec.augmentation(inputs, draws)
        inputs = move_inputs(spec.normalization.apply(inputs), self.device)
        if spec.recipe.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, spec.target_scale.apply(targets).to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        precision = self.spec.recipe.precision
        dtype = torch.float16 if precision == "fp16-mixed" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=precision != "fp32")


def _processor_clock(*, alone: bool) -> Callable[[], float] | None:
    """A clock of the processor time of a worker that is alone in its process, or beside others in threads.

    ``None`` where it cannot be told: PyTorch's own threads do not say whom they work for.
    """
    if alone:
        return time.process_time
    return time.thread_time if torch.get_num_threads() == 1 else None


def _unmarked(part: str) -> AbstractContextManager[object]:  # noqa: ARG001 - nobody watches
    return nullcontext()
