"""One worker's life: recipe, schedule, objective, optimizer, the local loop."""

from hqde.training.device import resolve_device
from hqde.training.diversity import Diversity
from hqde.training.efficiency import INITIAL_EFFICIENCY, update_efficiency
from hqde.training.memory import is_out_of_memory, step_bytes
from hqde.training.norm_pool import NormPoolReLU, fuse_norm_pools, norm_pools
from hqde.training.objective import check_outputs, example_losses
from hqde.training.optimizers import make_optimizer
from hqde.training.order import Order, count_batches, count_samples, epoch_batches
from hqde.training.perceptrons import Perceptron, perceptron_of
from hqde.training.perturbing import Perturbation, heat, perturbed
from hqde.training.recipe import Loss, Precision, Recipe
from hqde.training.schedule import Schedule
from hqde.training.spec import WorkerSpec, WorkerState
from hqde.training.stacking import Stack
from hqde.training.turns import Turns
from hqde.training.worker import Worker

__all__ = [
    "INITIAL_EFFICIENCY",
    "Diversity",
    "Loss",
    "NormPoolReLU",
    "Order",
    "Perceptron",
    "Perturbation",
    "Precision",
    "Recipe",
    "Schedule",
    "Stack",
    "Turns",
    "Worker",
    "WorkerSpec",
    "WorkerState",
    "check_outputs",
    "count_batches",
    "count_samples",
    "epoch_batches",
    "example_losses",
    "fuse_norm_pools",
    "heat",
    "is_out_of_memory",
    "make_optimizer",
    "norm_pools",
    "perceptron_of",
    "perturbed",
    "resolve_device",
    "step_bytes",
    "update_efficiency",
]
