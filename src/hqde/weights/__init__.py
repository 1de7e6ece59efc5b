"""A model's state as one flat vector: which tensors travel between workers, and in which order."""

from hqde.weights.layout import Layout, Slot, Weights

__all__ = ["Layout", "Slot", "Weights"]
