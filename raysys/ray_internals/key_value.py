"""The cluster's key-value store, in the namespace of raysys; it lives as long as the head's GCS."""

from __future__ import annotations

import json

from raysys.imports import lazy_import

internal_kv = lazy_import("ray.experimental.internal_kv")
# Ray namespace of the keys and of all named actors of raysys, whatever job created them.
NAMESPACE = "raysys"
_BYTES = NAMESPACE.encode()


def put(key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
    """Write a value; whether the key is new. Without `overwrite` an existing value stays."""
    existed = internal_kv._internal_kv_put(key, value, overwrite, namespace=_BYTES)
    return not existed


def get(key: bytes) -> bytes | None:
    """The value of a key; None without one."""
    return internal_kv._internal_kv_get(key, namespace=_BYTES)


def delete(key: bytes, *, by_prefix: bool = False) -> None:
    """Remove a key, or all keys that begin so."""
    internal_kv._internal_kv_del(key, del_by_prefix=by_prefix, namespace=_BYTES)


def keys(prefix: bytes) -> list[bytes]:
    """Keys that begin so, in no order."""
    return internal_kv._internal_kv_list(prefix, namespace=_BYTES)


def dashboard_address() -> str | None:
    """Host and port of the cluster's dashboard now; it changes when the head restarts."""
    constants = lazy_import("ray._private.ray_constants")
    address = internal_kv._internal_kv_get(
        constants.DASHBOARD_ADDRESS, namespace=constants.KV_NAMESPACE_DASHBOARD
    )
    return address.decode() if address else None


def ends_with_its_driver() -> bool:
    """Whether `ray.init` started this process's cluster, which then ends with that process."""
    usage = lazy_import("ray._common.usage.usage_constants")
    constants = lazy_import("ray._private.ray_constants")
    metadata = internal_kv._internal_kv_get(
        usage.CLUSTER_METADATA_KEY, namespace=constants.KV_NAMESPACE_CLUSTER
    )
    return bool(json.loads(metadata or b"{}").get("ray_init_cluster"))
