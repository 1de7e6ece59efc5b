"""Search spaces: what is written is what is tried, and the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqde.errors import ConfigError
from hqde.tuning import Dimension, parse_search, parse_space
from hqde.tuning.space import tree_of

DIMENSIONS = [
    Dimension("training.learning_rate", 1e-4, 1e-1, log=True),
    Dimension("model.dropout_rate", 0.0, 0.5),
    Dimension("training.batch_size", 8, 64),
    Dimension("training.batch_size", 1, 512, log=True),
    Dimension("training.optimizer", choices=("adamw", "sgd")),
    Dimension("model.options.hidden", choices=([16], [64, 64], [])),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda d: f"{d.name} {d.log}")
@given(place=st.floats(0.0, 1.0))
def test_every_place_is_a_value_and_every_value_has_a_place(dimension, place):
    value = dimension.at(place)
    if dimension.choices:
        assert value in dimension.choices
        assert dimension.at(dimension.place(value)) == value
    else:
        assert dimension.low <= value <= dimension.high
        assert isinstance(value, int) == dimension.whole
        back = dimension.at(dimension.place(value))
        assert back == (value if dimension.whole else pytest.approx(value, rel=1e-9, abs=1e-12))


def test_whole_numbers_are_tried_equally_often():
    dimension = Dimension("training.batch_size", 1, 4)
    found = [dimension.at((i + 0.5) / 400) for i in range(400)]
    assert [found.count(value) for value in (1, 2, 3, 4)] == [100] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.learning_rate=log:1e-4:0.1", Dimension("training.learning_rate", 1e-4, 0.1, log=True)),
        ("model.dropout_rate=0.0:0.5", Dimension("model.dropout_rate", 0.0, 0.5)),
        ("training.batch_size=16:64", Dimension("training.batch_size", 16, 64)),
        ("training.batch_size=[16, 64]", Dimension("training.batch_size", choices=(16, 64))),
    ],
)
def test_what_is_written_is_what_is_searched(text, expected):
    assert parse_search(text) == expected
    name, _, value = text.partition("=")
    if "[" not in value:
        assert parse_space((), {name: value}) == (expected,)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there is nothing to search; name settings with --search"),
        (["training.learning_rate=fast"], "training.learning_rate=fast is no range; write LOW:HIGH"),
        (["training.learning_rate=1:2:3"], "is no range"),
        (["training.learning_rate"], "is not a setting; write it as section.name=value"),
        (
            ["training.learning_rate=0.1:0.01"],
            "must go up from one finite number to another, got 0.1 to 0.01",
        ),
        (["training.learning_rate=log:0.0:1.0"], "begins above 0, got 0.0; begin higher, or leave log: out"),
        (["training.optimizer=['sgd']"], "must be at least two different ones"),
        (["training.optimizer=['sgd', 'sgd']"], "must be at least two different ones"),
        (["training.larning_rate=0.1:0.2"], "unknown setting 'training.larning_rate'; did you mean"),
        (["training.momentum=0.5:2.0"], r"momentum must lie in \[0, 1\), got 2.0"),
        (["training.batch_size=1.5:8.5"], "training.batch_size' must be"),
        (["model.dropout_rate=0.0:0.5", "model.dropout_rate=0.1:0.2"], "is searched twice"),
    ],
)
def test_what_cannot_be_searched_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_space(given)


@pytest.mark.parametrize(
    ("search", "base"),
    [
        ("training.temperature=0.1:1.0", {"training": {"optimizer": "sgd", "nesterov": False}}),
        ("topology.trunk_workers=1:2", {"topology": {"branch_at": 0.5}}),
    ],
)
def test_a_range_must_fit_what_the_trials_share_and_not_the_defaults(search, base):
    assert parse_space([search], base=base) == (parse_search(search),)
    with pytest.raises(ConfigError, match=r"not of adamw|goes with branch_at"):
        parse_space([search])


def test_names_become_a_tree():
    assert tree_of({"a.b.c": 1, "a.d": 2}) == {"a": {"b": {"c": 1}, "d": 2}}
