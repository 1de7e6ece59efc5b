"""Workers on Ray. The one room that imports it."""

import os

from hqde.errors import MissingExtraError

# Without this Ray warns at import that it will one day stop hiding GPUs from processes that asked for none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

try:
    import ray  # noqa: F401 - is it there?
except ImportError as error:  # pragma: no cover - the extra is installed where tests run
    raise MissingExtraError("the backend 'ray'", extra="ray") from error

from hqde.backends.on_ray.backend import RayBackend
from hqde.backends.on_ray.dataset import RayDataset
from hqde.backends.on_ray.predicting import predict_on_cluster
from hqde.backends.on_ray.worker_actor import WorkerActor

__all__ = ["RayBackend", "RayDataset", "WorkerActor", "predict_on_cluster"]
