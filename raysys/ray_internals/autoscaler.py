"""Ray's own check of a cluster launcher's configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from raysys.imports import lazy_import

util = lazy_import("ray.autoscaler._private.util")


def config_error(config: Mapping[str, Any]) -> str | None:
    """Error of a configuration once Ray has filled in its defaults; None if it is valid."""
    try:
        util.validate_config(util.prepare_config(copy.deepcopy(dict(config))))
    except Exception as error:  # Ray raises many kinds, from KeyError to click's
        return str(error) or repr(error)
    return None
