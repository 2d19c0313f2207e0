"""The gateway: the actor that decides which replicas receive HAProxy's requests.

Requests go from HAProxy to a replica's own HTTP server; Ray Serve starts, watches and replaces
the replicas. Replicas announce themselves, so a restarted gateway learns them again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raysys.cluster import NAMESPACE, raise_priority
from raysys.errors import RaysysError
from raysys.gateway._api_keys import read_keys
from raysys.gateway._gateway_state import (
    Announcement,
    GatewayMetrics,
    GatewayState,
    ReplicaState,
)
from raysys.gateway._haproxy_config import SLOTS, ApiKey, Backend, HAProxySettings
from raysys.gateway._haproxy_process import HAProxy
from raysys.gateway._holding_proxy import HoldingProxy
from raysys.gateway._model_directory import Counts, ModelDirectory
from raysys.gateway._wire import GATEWAY_NAME
from raysys.storage import read_record
from raysys.telemetry.metrics import SERVE_REPLICAS

if TYPE_CHECKING:
    from raysys.storage import Storage

ANNOUNCE_S = 1.0
_FORGET_S = 6.0
_HEAD_AWAY_S = 60.0
_log = logging.getLogger("raysys.gateway")


class Gateway:
    """The actor; all of its methods are asynchronous and short, except `publish`."""

    def __init__(
        self, host: str, port: int, grpc_port: int | None, storage: Storage, max_source_share: float
    ) -> None:
        before = GatewayState.restore()
        self._is_restart = before is not None
        self._state = before or GatewayState(
            host, port, grpc_port, secrets.token_hex(16), max_source_share
        )
        raise_priority()
        self._storage = storage
        self._keys: list[ApiKey] = []
        self._servers: dict[str, dict[str, ReplicaState]] = {}
        self._haproxy: HAProxy | None = None
        self._failure: str | None = None
        self._ready = asyncio.Event()
        self._changing = asyncio.Lock()
        self._releasing: set[asyncio.Task[None]] = set()
        self._metrics = GatewayMetrics()
        self._models = ModelDirectory(
            lambda: {name: backend.version for name, backend in self._state.backends.items()}
        )
        self._main = asyncio.get_event_loop().create_task(self._run())

    async def address(self) -> dict[str, Any]:
        """Addresses and the replicas' token.

        Raises:
            RaysysError: The port is in use.
        """
        await self._ready.wait()
        if self._failure:
            raise RaysysError(self._failure)
        state = self._state
        return {"host": state.host, "port": state.port, "grpc_port": state.grpc_port,
                "token": state.token}  # fmt: skip

    async def next_version(self, name: str) -> int:
        """Version number for the next version of an application; it goes on in a new cluster."""
        async with self._changing:
            path, known = f"serve/versions/{name}.json", self._state.versions.get(name, 0)
            read = functools.partial(read_record, make=lambda record: int(record["version"]))
            before = await asyncio.to_thread(read, self._storage, path)
            version = max(known, before or 0) + 1
            await asyncio.to_thread(self._storage.write_json, path, {"version": version})
            self._state.versions[name] = version
            self._state.save()
        return version

    async def current_version(self, name: str) -> int | None:
        """The version that receives the requests."""
        return self._version(name)

    async def replica_host(self, node_ip: str) -> str:
        """The interface that a replica on a node binds: loopback if possible."""
        return "127.0.0.1" if node_ip == ray.util.get_node_ip_address() else node_ip

    async def announce(
        self, announcement: Announcement, capacity: int, counts: Mapping[str, Counts]
    ) -> None:
        """Register a replica, its capacity in concurrent requests and its models' counts.

        Repeated as a heartbeat.
        """
        application, version = announcement.application, announcement.version
        self._models.update(application, version, announcement.replica, counts)
        servers = self._servers.setdefault(announcement.application, {})
        server = servers.setdefault(announcement.replica, ReplicaState(announcement, 0.0))
        server.heard = time.monotonic()
        self._admit(server)
        if server.slot is not None and self._haproxy:
            self._haproxy.limit_server(announcement.application, server.slot, capacity)

    async def leave(self, application: str, replica: str) -> None:
        """Drain and deregister a replica."""
        server = self._servers.get(application, {}).get(replica)
        if server and server.slot is not None and self._haproxy:
            self._haproxy.drain_server(application, server.slot)
            await self._release(application, [server])
        self._servers.get(application, {}).pop(replica, None)
        if server:
            self._models.leave(application, server.announcement.version, replica)

    async def replicas(self, name: str, version: int) -> int:
        """Number of announced replicas of a version."""
        servers = self._servers.get(name, {}).values()
        return sum(server.announcement.version == version for server in servers)

    async def publish(self, backend: Backend) -> None:
        """Switch an application's requests to a version whose replicas are ready.

        The old version's replicas finish the requests that they have.

        Raises:
            RaysysError: Another application has the route.
        """
        await self._ready.wait()
        async with self._changing:
            for name, deployed in self._state.backends.items():
                if name != backend.name and deployed.route == backend.route:
                    raise RaysysError(
                        f"the route {backend.route} belongs to {name!r}: deploy {backend.name!r} "
                        f"with another route, or undeploy {name!r}"
                    )
            before = self._state.backends.get(backend.name)
            self._state.backends[backend.name] = backend
            servers = self._servers.setdefault(backend.name, {}).values()
            old = [server for server in servers if server.announcement.version != backend.version]
            if before and dataclasses.replace(before, version=backend.version) == backend:
                for server in servers:
                    self._admit(server)
            else:
                self._place(backend.name)
                try:
                    self._apply()
                except BaseException:
                    self._roll_back(backend.name, before)
                    raise
            assert self._haproxy
            for server in old:
                if server.slot is not None:
                    self._haproxy.drain_server(backend.name, server.slot)
            self._state.save()
        releasing = asyncio.create_task(self._release(backend.name, old))
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)

    async def withdraw(self, name: str) -> None:
        """Remove an application."""
        async with self._changing:
            self._state.backends.pop(name, None)
            self._servers.pop(name, None)
            self._apply()
            self._state.save()

    async def stop(self) -> None:
        """Stop HAProxy and delete the saved state, before the actor is killed."""
        self._main.cancel()
        if self._haproxy:
            self._haproxy.stop()
        GatewayState.delete()

    def _version(self, name: str) -> int | None:
        backend = self._state.backends.get(name)
        return backend.version if backend else None

    def _deadline_s(self, name: str) -> float:
        backend = self._state.backends.get(name)
        return backend.deadline_s if backend else 0.0

    def _current(self, name: str) -> list[ReplicaState]:
        """The replicas of the current version."""
        servers, version = self._servers.get(name, {}).values(), self._version(name)
        return [server for server in servers if server.announcement.version == version]

    def _live(self, name: str) -> list[tuple[str, int]]:
        """Addresses of the current replicas, the most recently announced first."""
        servers = sorted(self._current(name), key=lambda server: -server.heard)
        return [server.address for server in servers]

    def _is_ready(self) -> bool:
        return all(self._current(name) for name in self._state.backends)

    def _admit(self, server: ReplicaState) -> None:
        """Assign a slot to a replica of the current version."""
        name, version = server.announcement.application, server.announcement.version
        if server.slot is None and self._haproxy and version == self._version(name):
            server.slot = self._free_slot(name)
            if server.slot is not None:
                self._haproxy.set_server(name, server.slot, server.address)

    def _roll_back(self, name: str, before: Backend | None) -> None:
        """Restore an application after a failed publication."""
        if before:
            self._state.backends[name] = before
        else:
            del self._state.backends[name]
        for server in self._servers.get(name, {}).values():
            if server.announcement.version != self._version(name):
                server.slot = None

    def _place(self, name: str) -> None:
        """Assign slots to the current replicas, before HAProxy is reconfigured."""
        for server in self._current(name):
            if server.slot is None:
                server.slot = self._free_slot(name)

    def _free_slot(self, name: str) -> int | None:
        used = {server.slot for server in self._servers.get(name, {}).values()}
        return next((slot for slot in range(SLOTS) if slot not in used), None)

    async def _release(self, name: str, servers: list[ReplicaState]) -> None:
        """Free drained slots when their requests have finished."""
        assert self._haproxy
        slots = [server.slot for server in servers if server.slot is not None]
        deadline = time.monotonic() + self._deadline_s(name) + 1
        while slots and time.monotonic() < deadline and self._haproxy.requests_at(name, slots):
            await asyncio.sleep(0.05)
        for server in servers:
            if server.slot is not None:
                self._haproxy.free_server(name, server.slot)
                server.slot = None

    def _addresses(self) -> dict[str, dict[int, tuple[str, int]]]:
        """Addresses of replicas, by application and slot."""
        return {
            name: {
                server.slot: server.address
                for server in self._servers.get(name, {}).values()
                if server.slot is not None
            }
            for name in self._state.backends
        }

    def _apply(self) -> None:
        assert self._haproxy
        backends = list(self._state.backends.values())
        self._haproxy.apply(backends, self._addresses(), self._keys)

    async def _run(self) -> None:
        """Start, then maintain replicas, keys and metrics every second."""
        while not self._ready.is_set():
            try:
                await self._start()
            except Exception as error:
                if not self._is_restart:
                    self._failure = str(error)
                    self._ready.set()
                    return
                _log.warning("the gateway cannot restart yet: %s", error)
                await asyncio.sleep(ANNOUNCE_S)
            else:
                self._state.save()
                self._ready.set()
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            async with self._changing:
                try:
                    self._forget_silent()
                    await self._keep_current()
                    self._report()
                except (RaysysError, OSError) as error:
                    _log.warning("HAProxy of the gateway: %s", error)

    async def _start(self) -> None:
        """Start the holding proxy, HAProxy and gRPC."""
        state = self._state
        if self._haproxy is None:
            holding = HoldingProxy(self._live, self._deadline_s, self._is_ready)
            holding_port = await holding.start(self._models.routes())
            self._haproxy = await self._attach(holding_port)
        self._keys = await asyncio.to_thread(read_keys, self._storage)
        for name in state.backends:
            self._place(name)
        self._apply()
        if state.grpc_port is not None:
            from raysys.gateway._grpc_proxy import serve_grpc

            url = f"http://{state.host}:{state.port}"
            self._grpc, state.grpc_port = await serve_grpc(state.host, state.grpc_port, url)

    async def _attach(self, holding_port: int) -> HAProxy:
        """A previous gateway's HAProxy, once replicas have announced themselves, or a new one."""
        if self._state.folder and Path(self._state.folder).exists():
            haproxy = self._haproxy_in_folder(holding_port)
            if haproxy.is_supervised:
                await asyncio.sleep(2 * ANNOUNCE_S)
                return haproxy
        self._state.folder = tempfile.mkdtemp(prefix="raysys-gateway-")
        return self._haproxy_in_folder(holding_port)

    def _haproxy_in_folder(self, holding_port: int) -> HAProxy:
        state = self._state
        settings = HAProxySettings(
            Path(state.folder), state.host, state.port, holding_port, state.token,
            state.max_source_share,
        )  # fmt: skip
        # With Ray's state in Redis the head can be restarted, and finds HAProxy running.
        is_recoverable = "RAY_REDIS_ADDRESS" in os.environ
        raylet = int(os.environ.get("RAY_RAYLET_PID", os.getppid()))
        return HAProxy(settings, raylet, _HEAD_AWAY_S if is_recoverable else 0.0)

    async def _keep_current(self) -> None:
        """Reconfigure HAProxy after its restart and after changes of the API keys."""
        keys = await asyncio.to_thread(read_keys, self._storage)
        assert self._haproxy
        if keys != self._keys or not self._haproxy.is_as_applied:
            self._keys = keys
            self._apply()
        else:
            self._haproxy.write(list(self._state.backends.values()), self._addresses())

    def _report(self) -> None:
        """Report the metrics of responses and replicas."""
        assert self._haproxy
        self._metrics.requests(self._haproxy.answered())
        self._metrics.shed(self._haproxy.shed())
        self._metrics.keys(self._haproxy.key_uses(), self._haproxy.key_addresses())
        for name in self._state.backends:
            SERVE_REPLICAS.set(len(self._current(name)), {"application": name})

    def _forget_silent(self) -> None:
        silent_since = time.monotonic() - _FORGET_S
        for name, servers in self._servers.items():
            for replica in [r for r, server in servers.items() if server.heard < silent_since]:
                server = servers.pop(replica)
                self._models.leave(name, server.announcement.version, replica)
                if server.slot is not None and self._haproxy and name in self._state.backends:
                    self._haproxy.free_server(name, server.slot)


def start_gateway(
    host: str, port: int, grpc_port: int | None, storage: Storage, max_source_share: float
) -> Any:
    """The cluster's gateway, started if necessary; a running one keeps its address."""
    actor = ray.remote(Gateway).options(
        name=GATEWAY_NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
        num_cpus=0, resources={"node:__internal_head__": 0.001},
        max_restarts=-1, max_task_retries=-1, max_concurrency=1000,
    )  # fmt: skip
    return actor.remote(host, port, grpc_port, storage, max_source_share)


def find_gateway() -> Any:
    """The cluster's gateway.

    Raises:
        RaysysError: Nothing has been deployed.
    """
    try:
        return ray.get_actor(GATEWAY_NAME, NAMESPACE)
    except ValueError as error:
        raise RaysysError("no gateway runs on this cluster: deploy an application") from error
