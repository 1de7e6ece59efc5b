"""TOML to strict objects and back: nothing is lost, nothing unknown is let through."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqde.config import (
    Config,
    GroupConfig,
    build_config,
    changed_settings,
    dump_config,
    load_tree,
    merge_trees,
    parse_assignment,
)
from hqde.errors import ConfigError

words = st.text("abz-_:/. \"'\\é\n", max_size=8)
unit = st.floats(0, 1, exclude_max=True)
inner = st.floats(0, 1, exclude_min=True, exclude_max=True)
positive = st.floats(1e-9, 1e9)
options = st.dictionaries(
    st.text("abc é.", min_size=1, max_size=4),
    st.booleans() | st.integers(-9, 9) | st.floats(-1e3, 1e3) | words | st.lists(st.integers(), max_size=3),
    max_size=3,
)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table that sets any of these."""
    return st.fixed_dictionaries({}, optional=values)


training = some(
    batch_size=st.integers(1, 999),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    learning_rate=positive | st.integers(1, 3),
    weight_decay=st.floats(0, 9),
    warmup=unit,
    restart_level=inner,
    precision=st.sampled_from(["fp32", "bf16-mixed", "fp16-mixed"]),
    channels_last=st.booleans(),
    loss=st.sampled_from(["cross_entropy", "mse", "gaussian_nll"]),
)
trees = some(
    data=some(
        source=words,
        task=st.sampled_from(["classification", "regression"]),
        max_train=st.integers(2, 10**6),
        alpha=positive,
        augmentation=some(flip=st.booleans(), cutout=st.integers(0, 9)),
    ),
    model=some(name=words, norm=st.sampled_from(["batch", "group"]), dropout_rate=unit, options=options),
    training=training,
    diversity=some(learning_rate_spread=unit, bootstrap=st.booleans()),
    topology=some(
        groups=st.integers(2, 9),
        branch_at=inner,
        global_until=inner,
        every=st.just("epoch") | st.integers(1, 99),
    ),
    server=some(optimizer=words, learning_rate=positive, buffers=st.sampled_from(["average", "local"])),
    ensemble=some(combiner=words, calibrate=st.booleans()),
    run=some(workers=st.integers(1, 64), seed=st.integers(0, 2**40), device=words),
    group=st.dictionaries(
        st.integers(0, 20).map(str),
        some(model=words, options=options, dropout_rate=unit, bootstrap=st.booleans(), training=training),
        max_size=3,
    ),
)


# -- round trip --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(tree=trees)
def test_what_is_dumped_builds_the_same_configuration_exactly(tree):
    config = build_config(tree)
    text = dump_config(config)
    assert build_config(tomllib.loads(text)) == config
    assert dump_config(build_config(tomllib.loads(text))) == text
    assert changed_settings(config, build_config(tomllib.loads(text))) == []


@settings(deadline=None)
@given(tree=trees)
def test_what_is_set_is_what_is_built_and_the_rest_is_default(tree):
    config, default = build_config(tree), Config()
    for section, values in tree.items():
        if section == "group":
            assert set(config.group) == set(values)
            for name, own in values.items():
                assert all(getattr(config.group[name], key) == value for key, value in own.items())
            continue
        built = getattr(config, section)
        for field in fields(built):
            if field.name == "augmentation":
                continue
            expected = values.get(field.name, getattr(getattr(default, section), field.name))
            assert getattr(built, field.name) == expected


def test_the_dump_is_complete_but_for_what_is_not_set(tmp_path):
    tree = tomllib.loads(dump_config(Config()))
    for section in fields(Config):
        value = getattr(Config(), section.name)
        if is_dataclass(value):
            unset = {f.name for f in fields(value) if getattr(value, f.name) is None}
            assert set(tree[section.name]) == {f.name for f in fields(value)} - unset
    file = tmp_path / "config.toml"
    file.write_text(dump_config(Config()), encoding="utf-8")
    assert build_config(load_tree(file)) == Config()


def test_an_empty_tree_is_the_default():
    assert build_config({}) == Config()


# -- what is refused ---------------------------------------------------------------------------------------


def sections(kind: type, prefix: str = "") -> list[tuple[str, type]]:
    """Every table of settings with its dotted name."""
    found = [(prefix, kind)]
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            found += sections(hint, f"{prefix}{name}.")
    return found


def nest(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
    for part in reversed(prefix.rstrip(".").split(".") if prefix else []):
        tree = {part: tree}
    return tree


EVERY_TABLE = [*sections(Config), ("group.0.", GroupConfig), ("group.0.training.", type(Config().training))]


@pytest.mark.parametrize(("prefix", "kind"), EVERY_TABLE, ids=[prefix or "top" for prefix, _ in EVERY_TABLE])
def test_an_unknown_name_is_refused_in_every_table_with_the_nearest_known_one(prefix, kind):
    known = fields(kind)[0].name
    typo = known + "x"
    with pytest.raises(ConfigError) as refusal:
        build_config(nest(prefix, {typo: 1}))
    assert str(refusal.value) == f"unknown setting '{prefix}{typo}'; did you mean '{known}'?"


def test_a_name_that_is_near_nothing_is_answered_with_what_there_is():
    with pytest.raises(ConfigError, match=r"unknown setting 'ensemble\.zzz'; known: calibrate, combiner"):
        build_config({"ensemble": {"zzz": 1}})


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"run": {"epochs": True}}, "setting 'run.epochs' must be a valid integer, got True"),
        ({"run": {"epochs": "3"}}, "setting 'run.epochs' must be a valid integer, got '3'"),
        ({"run": {"epochs": 3.0}}, "setting 'run.epochs' must be a valid integer, got 3.0"),
        (
            {"training": {"learning_rate": "fast"}},
            "'training.learning_rate' must be a valid number, got 'fast'",
        ),
        ({"training": {"learning_rate": True}}, "'training.learning_rate' must be a valid number, got True"),
        ({"data": {"max_train": False}}, "'data.max_train' must be a valid integer, got False"),
        ({"data": {"source": 5}}, "'data.source' must be a valid string, got 5"),
        ({"data": {"augmentation": {"flip": 1}}}, "'data.augmentation.flip' must be a valid boolean, got 1"),
        ({"ensemble": {"calibrate": "yes"}}, "'ensemble.calibrate' must be a valid boolean, got 'yes'"),
        ({"training": {"optimizer": "adam"}}, "'training.optimizer' must be 'adamw' or 'sgd', got 'adam'"),
        ({"topology": {"every": "step"}}, "'topology.every' must be 'epoch' or a valid integer, got 'step'"),
        ({"topology": {"every": True}}, "'topology.every' must be 'epoch' or a valid integer, got True"),
        ({"model": {"options": [1]}}, r"'model.options' must be a valid dictionary, got \[1\]"),
        ({"group": {"1": {"bootstrap": 1}}}, "'group.1.bootstrap' must be a valid boolean, got 1"),
        (
            {"group": {"1": {"training": {"momentum": "x"}}}},
            "'group.1.training.momentum' must be a valid number",
        ),
        ({"run": 3}, r"\[run\] must be a table of settings, got 3"),
        ({"data": {"augmentation": True}}, r"\[data.augmentation\] must be a table of settings, got True"),
        ({"group": []}, r"\[group\] must hold tables like \[group.0\], got \[\]"),
        ({"group": {"0": 1}}, r"\[group.0\] must be a table of settings, got 1"),
        ({"group": {"first": {}}}, r"\[group.first\] must be named by its number, e.g. \[group.0\]"),
        ({"group": {"00": {}}}, r"\[group.00\] must be named by its number"),
        ({"group": {"²": {}}}, r"\[group.²\] must be named by its number"),
        ({"group": {"-1": {}}}, r"\[group.-1\] must be named by its number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_name_and_what_is_wanted(tree, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_config(tree)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"run": {"epochs": 0}}, "epochs must be at least 1, got 0"),
        ({"run": {"workers": 0}}, "workers must be at least 1, got 0"),
        ({"run": {"evaluate_every": 0}}, "evaluate_every must be at least 1"),
        ({"run": {"checkpoint_every": 0}}, "checkpoint_every must be at least 1"),
        ({"run": {"threads": -1}}, "threads must not be negative, got -1"),
        ({"run": {"early_stopping": -1}}, "early_stopping must not be negative, got -1"),
        ({"training": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"group": {"0": {"training": {"batch_size": 0}}}}, "batch_size must be at least 1, got 0"),
        ({"topology": {"branch_at": 1.5}}, "branch_at is a fraction"),
        ({"diversity": {"dropout_spread": 1.0}}, "dropout_spread must lie"),
        ({"data": {"augmentation": {"cutout": -1}}}, "cutout must be 0 or more pixels"),
    ],
)
def test_a_value_out_of_range_is_refused(tree, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_config(tree)


# -- files, assignments, merging ---------------------------------------------------------------------------


def test_a_file_that_is_missing_or_no_toml_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config file .*gone\.toml"):
        load_tree(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="there is no config file"):
        load_tree(tmp_path)
    for content in (b"[run\nepochs = 3", b"epochs = three", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
            load_tree(tmp_path / "bad.toml")


def test_a_file_is_read_as_utf8(tmp_path):
    (tmp_path / "c.toml").write_bytes('[data]\ntarget = "größe"\n'.encode())
    assert load_tree(str(tmp_path / "c.toml")) == {"data": {"target": "größe"}}


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("run.epochs=3", {"run": {"epochs": 3}}),
        (" run.epochs = 3 ", {"run": {"epochs": 3}}),
        ("training.learning_rate=1e-3", {"training": {"learning_rate": 1e-3}}),
        ("ensemble.calibrate=false", {"ensemble": {"calibrate": False}}),
        ("model.name=cnn", {"model": {"name": "cnn"}}),
        ('model.name="cnn"', {"model": {"name": "cnn"}}),
        ("data.source=fashion-mnist:/some dir/x", {"data": {"source": "fashion-mnist:/some dir/x"}}),
        ("data.source=a=b", {"data": {"source": "a=b"}}),
        ("data.target=", {"data": {"target": ""}}),
        ("model.options.hidden=[8, 8]", {"model": {"options": {"hidden": [8, 8]}}}),
        ("group.1.training.momentum=0.5", {"group": {"1": {"training": {"momentum": 0.5}}}}),
        ("model.options={hidden = [4]}", {"model": {"options": {"hidden": [4]}}}),
    ],
)
def test_assignments(text, tree):
    assert parse_assignment(text) == tree


@pytest.mark.parametrize("text", ["run.epochs", "=3", "", ".epochs=3", "run.=3", "run..epochs=3"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match=r"is not a setting; write it as section\.name=value"):
        parse_assignment(text)


def test_later_trees_win_table_by_table():
    file = {"run": {"epochs": 5, "seed": 1}, "model": {"options": {"hidden": [8], "norm": "batch"}}}
    flags = {"run": {"epochs": 7}, "data": {"source": "x.csv"}}
    assignment = {"model": {"options": {"hidden": [4]}}, "run": {"workers": 2}}
    assert merge_trees(file, flags, assignment) == {
        "run": {"epochs": 7, "seed": 1, "workers": 2},
        "model": {"options": {"hidden": [4], "norm": "batch"}},
        "data": {"source": "x.csv"},
    }


simple_trees = st.recursive(
    st.integers(0, 3),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(one=simple_trees, two=simple_trees, three=simple_trees)
def test_merging_is_associative_and_changes_nothing_it_is_given(one, two, three):
    before = repr((one, two, three))
    assert merge_trees(one, merge_trees(two, three)) == merge_trees(one, two, three)
    assert merge_trees(one) == merge_trees({}, one) == one
    assert merge_trees(one, one) == one
    assert repr((one, two, three)) == before


@given(one=simple_trees, two=simple_trees)
def test_a_merged_tree_holds_the_later_value_wherever_the_later_tree_has_one(one, two):
    def check(merged: dict[str, Any], earlier: Any, later: dict[str, Any]) -> None:
        earlier = earlier if isinstance(earlier, dict) else {}
        assert merged.keys() == earlier.keys() | later.keys()
        for key, value in merged.items():
            if key not in later:
                assert value == earlier[key]
            elif isinstance(later[key], dict):
                check(value, earlier.get(key), later[key])
            else:
                assert value == later[key]

    check(merge_trees(one, two), one, two)


def test_changed_settings_are_named_with_their_tables():
    old = build_config({"run": {"seed": 1}, "model": {"options": {"hidden": [8]}}, "group": {"0": {}}})
    new = build_config(
        {
            "run": {"seed": 2},
            "model": {"options": {"hidden": [4], "norm": "x"}},
            "data": {"augmentation": {"flip": True}},
            "group": {"0": {"dropout_rate": 0.5}, "1": {}},
        }
    )
    expected = [
        "data.augmentation.flip",
        "group.0.dropout_rate",
        "group.1",
        "model.options.hidden",
        "model.options.norm",
        "run.seed",
    ]
    assert changed_settings(old, new) == expected
    assert changed_settings(new, old) == expected
    assert changed_settings(old, old) == []
