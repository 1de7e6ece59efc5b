"""Rows of a Ray dataset as examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqde.backends import LocalBackend
from hqde.data import TensorExamples, make_splits
from hqde.errors import DataError

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}

# Ray Data warns of its own deprecated settings.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def data(ray_module):
    """``ray.data``, silent. Its own actors stay until Ray ends, so this is no place to look for left ones."""
    found = pytest.importorskip("ray.data")
    if not ray_module.is_initialized():
        ray_module.init(address="local", num_cpus=2, include_dashboard=False, **QUIET)
    found.DataContext.get_current().enable_progress_bars = False
    yield found
    ray_module.shutdown()


def columns(count=50):
    draws = np.random.default_rng(0)
    return {
        "image": draws.integers(0, 255, (count, 1, 4, 4)).astype(np.uint8),
        "a": draws.normal(size=count),
        "b": draws.integers(0, 9, count),
        "label": (np.arange(count) % 3),
    }


def dataset(data, names, count=50):
    """Seven blocks, one of them with a single row."""
    whole = columns(count)
    cuts = np.split(np.arange(count), [1, 9, 20, 22, 31, 44])
    parts = [{name: whole[name][rows] for name in names} for rows in cuts if len(rows)]
    return data.from_blocks([_table(part) for part in parts])


def _table(part):
    import pyarrow as pa
    from ray.data.extensions import ArrowTensorArray

    return pa.table(
        {k: ArrowTensorArray.from_numpy(v) if v.ndim > 1 else pa.array(v) for k, v in part.items()}
    )


def test_rows_come_in_the_order_asked_for_from_whatever_block_holds_them(data):
    from hqde.backends.on_ray import RayDataset

    rows = RayDataset(dataset(data, ["image", "label"]), target="label")
    whole = columns()
    assert len(rows) == 50
    assert torch.equal(rows.targets, torch.from_numpy(whole["label"]))
    index = torch.tensor([49, 0, 22, 21, 0, 9, 8, 1])
    inputs, targets = rows.fetch(index)
    assert inputs.dtype == torch.uint8
    assert torch.equal(inputs, torch.from_numpy(whole["image"][index.numpy()]))
    assert torch.equal(targets, torch.from_numpy(whole["label"][index.numpy()]))


def test_single_numbers_make_a_table_and_named_inputs_a_dict(data):
    from hqde.backends.on_ray import RayDataset

    whole, index = columns(), torch.tensor([3, 30])
    found = RayDataset(dataset(data, ["a", "b", "label"]), target="label").fetch(index).inputs
    expected = np.stack([whole["a"], whole["b"]], axis=1)[index.numpy()].astype(np.float32)
    assert torch.equal(found, torch.from_numpy(expected))
    named = RayDataset(dataset(data, ["image", "a", "label"]), target="label", inputs=["image", "a"])
    assert set(named.fetch(index).inputs) == {"image", "a"}
    alone = RayDataset(dataset(data, ["image", "a", "b"]), target="a", inputs="image", task="regression")
    assert alone.fetch(index).targets.dtype == torch.float32


def test_training_on_it_gives_the_bits_of_training_on_tensors(data, runs):
    from hqde.backends.on_ray import RayBackend, RayDataset

    def experiment(examples):
        splits = make_splits("rows", examples, task="classification")
        from hqde.models import model_spec

        model = model_spec("mlp", input_shape=(1, 4, 4), num_outputs=3, options={"hidden": [6]})
        return runs.experiment(splits=splits, model=model)

    whole = columns()
    streamed = RayDataset(dataset(data, ["image", "label"]), target="label")
    tensors = TensorExamples(torch.from_numpy(whole["image"]), torch.from_numpy(whole["label"]))
    one, _ = runs.run(RayBackend(threads=1), experiment(streamed))
    other, _ = runs.run(LocalBackend(), experiment(tensors))
    runs.assert_same_weights(one, other)


@pytest.mark.parametrize(
    ("names", "options", "sentence"),
    [
        (["image", "label"], {"target": "y"}, "no column 'y'; it has image, label"),
        (["image", "label"], {"target": "label", "inputs": "x"}, "no column 'x'"),
        (["label"], {"target": "label"}, "no column beside the target"),
    ],
)
def test_columns_that_are_not_there_are_named(data, names, options, sentence):
    from hqde.backends.on_ray import RayDataset

    with pytest.raises(DataError, match=sentence):
        RayDataset(dataset(data, names), **options)


def test_words_and_no_rows_are_refused(data):
    from ray.data.expressions import col

    from hqde.backends.on_ray import RayDataset

    with pytest.raises(DataError, match=r"column 'x' of the dataset holds .*, not numbers"):
        RayDataset(data.from_items([{"x": "a", "y": 1}, {"x": "b", "y": 0}]), target="y")
    with pytest.raises(DataError, match="no rows"):
        RayDataset(data.from_items([{"x": 1.0, "y": 1}]).filter(expr=col("y") > 1), target="y")
