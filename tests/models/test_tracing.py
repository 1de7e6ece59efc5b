"""Tracing touches neither the model nor what other threads do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from hqde.models import called_once


def test_threads_trace_and_call_side_by_side():
    call, many = nn.Module.__call__, nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(40)])
    other, row = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)

    def trace():
        return all(called_once(many)[0] is not None for _ in range(20))

    def predict():
        return all(other(row).shape == (1, 2) for _ in range(3000))

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(work) for work in (trace, predict, trace, predict)]
        assert all(task.result() for task in tasks)
    assert nn.Module.__call__ is call


def test_the_model_itself_is_not_called():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = nn.Linear(2, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    model = Counting().train()
    graph, layers = called_once(model)
    assert graph is not None
    assert list(layers.values()) == [model.inner]
    assert (model.calls, model.training) == (0, True)
