"""Whether the parts of an ensemble belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hqde.ensemble.calibration import check_temperature
from hqde.ensemble.pooling import check_num_members
from hqde.errors import ConfigError, PreconditionError

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble


def check_parts(ensemble: Ensemble) -> None:
    """Refuse an ensemble without members, or with a combiner or a calibration that is not for it.

    Raises:
        ConfigError: something is for another task.
        PreconditionError: something is for other members or classes.
    """
    ids, schema, scaling = ensemble.member_ids, ensemble.schema, ensemble.matrix_scaling
    if not ids or len(set(ids)) < len(ids):
        raise PreconditionError(f"an ensemble needs at least one member and unique ids, got {list(ids)}.")
    check_temperature(ensemble.temperature)
    check_num_members(ensemble.combiner, len(ids))
    if schema.task == "regression":
        if not ensemble.combiner.pools_normals:
            raise ConfigError(
                f"combiner {ensemble.combiner.name!r} is for classes: "
                "use 'mean', 'efficiency' or 'entanglement'."
            )
        if ensemble.temperature != 1.0:
            raise ConfigError(f"a temperature ({ensemble.temperature}) is for classification: leave it at 1.")
        if scaling is not None:
            raise ConfigError("a matrix scaling is for classification: leave it out.")
    elif scaling is not None and scaling.num_classes != schema.num_classes:
        raise PreconditionError(
            f"a matrix scaling of {scaling.num_classes} classes does not fit an ensemble of "
            f"{schema.num_classes}: fit it anew."
        )
