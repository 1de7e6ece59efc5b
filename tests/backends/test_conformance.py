"""Every backend keeps the protocol."""

from __future__ import annotations

import pytest

from hqde.backends import BACKENDS, make_backend
from hqde.errors import ConfigError
from hqde.testing import BACKEND_CHECKS


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_backend_conforms(name, check):
    check(lambda: make_backend(name))


def test_unknown_backend_is_named():
    with pytest.raises(ConfigError, match="unknown backend 'locl'; did you mean 'local'"):
        make_backend("locl")
