"""Small ensembles with trained-looking BatchNorm statistics, made from a seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hqde.data import Normalization, Schema, TargetScale
from hqde.ensemble import Ensemble, MeanCombiner, Member
from hqde.models import model_spec
from hqde.seeding import seeded

CLASSES = ("ant", "bee", "cat")


def build_ensemble(
    model: str = "mlp",
    *,
    num_members: int = 3,
    loss: str | None = None,
    seed: int = 0,
    combiner=None,
    temperature: float = 1.0,
    **changes,
) -> Ensemble:
    image = model != "mlp"
    shape = (1, 8, 8) if image else (5,)
    regression = loss in ("mse", "gaussian_nll")
    num_outputs = {"mse": 1, "gaussian_nll": 2}.get(loss, len(CLASSES))
    schema = Schema(
        "regression" if regression else "classification",
        "image" if image else "tabular",
        () if regression else CLASSES,
        shape,
    )
    channels = shape[0]
    normalization = Normalization(torch.linspace(0.5, 2.0, channels), torch.linspace(1.5, 3.0, channels))
    members = []
    for index in range(num_members):
        options = {"hidden": [16, 8 + index]} if model == "mlp" else {"channels": [4, 6 + index]}
        spec = model_spec(model, input_shape=shape, num_outputs=num_outputs, options=options)
        with seeded(seed, "member", index):
            built = spec.build(dropout_rate=0.3)
            built.train()
            for _ in range(3):  # running statistics and their integer counter move
                built(torch.randn(16, *shape) * 2 + 1)
        members.append(Member(index, spec, built, score=0.2 + 0.2 * index, dropout_rate=0.3))
    return Ensemble(
        members,
        schema=schema,
        normalization=normalization,
        target_scale=TargetScale(100.0, 20.0) if regression else None,
        combiner=combiner or MeanCombiner(),
        temperature=temperature,
        loss=loss,
        **changes,
    )


@pytest.fixture
def make_ensemble() -> Callable[..., Ensemble]:
    return build_ensemble


@pytest.fixture
def rows() -> torch.Tensor:
    """Raw tabular inputs, (37, 5)."""
    return torch.randn(37, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1


@pytest.fixture
def pictures() -> torch.Tensor:
    """Raw images, (21, 1, 8, 8) uint8 of values 0..16."""
    return torch.randint(0, 17, (21, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
