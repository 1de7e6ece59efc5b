"""Every backend keeps the protocol."""

from __future__ import annotations

import pytest

from hqde.backends import BACKENDS, RaySettings, make_backend
from hqde.errors import ConfigError
from hqde.testing import BACKEND_CHECKS


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_the_local_backend_conforms(check):
    check(lambda: make_backend("local"))


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("stacked", [0, 1, 2])
def test_the_vectorised_backend_conforms(check, stacked):
    check(lambda: make_backend("vectorised", stacked=stacked))


def on_actors(check):
    """A check on Ray, where each actor takes seconds to start: the longest are run by hand."""
    slow = check.__name__ in ("check_order_of_orders_does_not_matter", "check_replicas_are_kept")
    return pytest.param(check, marks=pytest.mark.long if slow else (), id=check.__name__)


@pytest.mark.ray
@pytest.mark.parametrize("check", [on_actors(check) for check in BACKEND_CHECKS])
def test_the_ray_backend_conforms(check, on_ray):
    check(lambda: make_backend("ray"))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("plan", ["tree", "sharded"])
def test_updates_are_the_same_under_every_plan(plan, on_ray):
    BACKEND_CHECKS[0](lambda: make_backend("ray", ray=RaySettings(plan=plan)))


def test_every_backend_is_tested_here():
    assert BACKENDS == ("local", "vectorised", "ray")


def test_unknown_backend_is_named():
    with pytest.raises(ConfigError, match="unknown backend 'locl'; did you mean 'local'"):
        make_backend("locl")
