"""``digits``: 1797 grey 8×8 images of handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from hqde.data.examples import TensorExamples
from hqde.data.source import Source


def read_digits() -> Source:
    """The digits as (1797, 1, 8, 8) uint8 images of values 0..16, classes ``"0"`` to ``"9"``.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """
    # Deferred: scikit-learn takes seconds to import, and nobody who reads other data should wait for it.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 8, 8)
    return Source(
        name="digits",
        task="classification",
        train=TensorExamples(inputs, torch.from_numpy(labels)),
        classes=tuple(str(digit) for digit in range(10)),
    )
