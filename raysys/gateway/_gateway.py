"""The gateway: the one actor that decides which replicas HAProxy sends requests to.

Requests go from HAProxy to a replica's own HTTP server; Ray Serve starts, watches and replaces
the replicas. Replicas announce themselves, so a gateway that restarts learns of them again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raysys.cluster import NAMESPACE, raise_priority
from raysys.errors import RaysysError
from raysys.gateway._api_keys import read_keys
from raysys.gateway._haproxy_config import SLOTS, ApiKey, Backend, HAProxySettings
from raysys.gateway._haproxy_process import HAProxy, new_token
from raysys.gateway._holding_proxy import HoldingProxy
from raysys.gateway._metrics import GatewayMetrics
from raysys.gateway._wire import GATEWAY_NAME
from raysys.ray_internals import key_value

if TYPE_CHECKING:
    from raysys.storage import Storage

ANNOUNCE_S = 1.0
_FORGET_S = 6.0
_HEAD_AWAY_S = 60.0
_STATE_KEY = b"gateway"
_log = logging.getLogger("raysys.gateway")


@dataclass(frozen=True)
class Announcement:
    """A replica that takes requests."""

    application: str
    version: int
    replica: str
    host: str
    port: int


@dataclass
class _Server:
    """A replica, as the gateway knows it; `slot` is its place in HAProxy, if it has one."""

    announcement: Announcement
    heard: float
    slot: int | None = None


@dataclass
class _State:
    """What outlives the gateway's process."""

    host: str
    port: int
    grpc_port: int | None
    token: str
    folder: str = ""
    backends: dict[str, Backend] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)


class Gateway:
    """The actor; all of its methods are asynchronous and short, except `publish`."""

    def __init__(self, host: str, port: int, grpc_port: int | None, storage: Storage) -> None:
        before = self._restored()
        self._is_restart = before is not None
        self._state = before or _State(host, port, grpc_port, new_token())
        raise_priority()
        self._storage = storage
        self._keys: list[ApiKey] = []
        self._servers: dict[str, dict[str, _Server]] = {}
        self._haproxy: HAProxy | None = None
        self._failure: str | None = None
        self._ready = asyncio.Event()
        self._changing = asyncio.Lock()
        self._metrics = GatewayMetrics()
        self._main = asyncio.get_event_loop().create_task(self._run())

    async def address(self) -> dict[str, Any]:
        """Where clients and replicas find what they need.

        Raises:
            RaysysError: The port is taken.
        """
        await self._ready.wait()
        if self._failure:
            raise RaysysError(self._failure)
        state = self._state
        return {"host": state.host, "port": state.port, "grpc_port": state.grpc_port,
                "token": state.token}  # fmt: skip

    async def next_version(self, name: str) -> int:
        """A number for the next version of an application."""
        self._state.versions[name] = self._state.versions.get(name, 0) + 1
        self._save()
        return self._state.versions[name]

    async def current_version(self, name: str) -> int | None:
        """The version that gets the requests."""
        backend = self._state.backends.get(name)
        return backend.version if backend else None

    async def replica_host(self, node_ip: str) -> str:
        """The interface that a replica on some node must bind: loopback if it can."""
        return "127.0.0.1" if node_ip == ray.util.get_node_ip_address() else node_ip

    async def announce(self, announcement: Announcement, capacity: int) -> None:
        """A replica is there, or still there, and can have so many requests at a time."""
        servers = self._servers.setdefault(announcement.application, {})
        server = servers.setdefault(announcement.replica, _Server(announcement, 0.0))
        server.heard = time.monotonic()
        self._admit(server)
        if server.slot is not None and self._haproxy:
            self._haproxy.limit_server(announcement.application, server.slot, capacity)

    async def leave(self, application: str, replica: str) -> None:
        """A replica takes no more requests; it answers those under way."""
        server = self._servers.get(application, {}).get(replica)
        if server and server.slot is not None and self._haproxy:
            self._haproxy.drain_server(application, server.slot)
            await self._drained(application, [server.slot])
            self._haproxy.free_server(application, server.slot)
        self._servers.get(application, {}).pop(replica, None)  # now its slot is free for another

    async def replicas(self, name: str, version: int) -> int:
        """How many replicas of a version have announced themselves."""
        servers = self._servers.get(name, {}).values()
        return sum(server.announcement.version == version for server in servers)

    async def publish(self, backend: Backend) -> None:
        """Send an application's requests to a version whose replicas are there already.

        Returns when the replicas of the version before have answered all they had.

        Raises:
            RaysysError: Another application has the route.
        """
        await self._ready.wait()
        async with self._changing:
            for other in self._state.backends.values():
                if other.name != backend.name and other.route == backend.route:
                    raise RaysysError(
                        f"the route {backend.route} belongs to {other.name!r}: deploy "
                        f"{backend.name!r} with another, or undeploy that one"
                    )
            before = self._state.backends.get(backend.name)
            self._state.backends[backend.name] = backend
            servers = self._servers.setdefault(backend.name, {}).values()
            old = [server for server in servers if server.announcement.version != backend.version]
            if before and dataclasses.replace(before, version=backend.version) == backend:
                for server in servers:
                    self._admit(server)
            else:
                self._place(backend)
                try:
                    self._apply()
                except BaseException:
                    self._take_back(backend.name, before)
                    raise
            slots = [server.slot for server in old if server.slot is not None]
            assert self._haproxy
            for slot in slots:
                self._haproxy.drain_server(backend.name, slot)
            self._save()
        await self._drained(backend.name, slots)
        for server in old:
            if server.slot is not None:
                self._haproxy.free_server(backend.name, server.slot)
                server.slot = None

    async def withdraw(self, name: str) -> None:
        """Forget an application."""
        async with self._changing:
            self._state.backends.pop(name, None)
            self._servers.pop(name, None)
            self._apply()
            self._save()

    async def stop(self) -> None:
        """End HAProxy and forget everything, before the actor is killed."""
        self._main.cancel()
        if self._haproxy:
            self._haproxy.stop()
        key_value.delete(_STATE_KEY)

    def _admit(self, server: _Server) -> None:
        """Give a replica of the current version a slot."""
        name = server.announcement.application
        backend = self._state.backends.get(name)
        if (
            backend is None
            or server.slot is not None
            or server.announcement.version != backend.version
            or self._haproxy is None
        ):
            return
        server.slot = self._free_slot(name)
        if server.slot is not None:
            self._haproxy.set_server(name, server.slot, _address(server))

    def _take_back(self, name: str, before: Backend | None) -> None:
        """Leave an application as it was before a publication that failed."""
        if before:
            self._state.backends[name] = before
        else:
            del self._state.backends[name]
        for server in self._servers.get(name, {}).values():
            if before is None or server.announcement.version != before.version:
                server.slot = None

    def _place(self, backend: Backend) -> None:
        """Slots for all replicas of a version, before HAProxy is told."""
        for server in self._servers.get(backend.name, {}).values():
            if server.slot is None and server.announcement.version == backend.version:
                server.slot = self._free_slot(backend.name)

    def _free_slot(self, name: str) -> int | None:
        taken = {server.slot for server in self._servers.get(name, {}).values()}
        return next((slot for slot in range(SLOTS) if slot not in taken), None)

    async def _drained(self, name: str, slots: list[int]) -> None:
        backend = self._state.backends.get(name)
        deadline = time.monotonic() + (backend.deadline_s if backend else 0) + 1
        while slots and self._haproxy and time.monotonic() < deadline:
            if not self._haproxy.requests_at(name, slots):
                return
            await asyncio.sleep(0.05)

    def _addresses(self) -> dict[str, dict[int, tuple[str, int]]]:
        """Of replicas, by application and slot."""
        return {
            name: {
                server.slot: _address(server)
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
        """Start what clients see, then keep house."""
        while not self._ready.is_set():
            try:
                await self._start()
            except Exception as error:
                if not self._is_restart:
                    self._failure = str(error)
                    self._ready.set()
                    return
                _log.warning("the gateway cannot start again yet: %s", error)
                await asyncio.sleep(ANNOUNCE_S)
            else:
                self._save()
                self._ready.set()
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            async with self._changing:
                try:
                    self._forget_silent()
                    await self._keep_current()
                    self._report()
                except (RaysysError, OSError) as error:
                    _log.warning("the gateway's HAProxy: %s", error)

    async def _start(self) -> None:
        """The waiting room, HAProxy, gRPC."""
        state = self._state
        if self._haproxy is None:
            holding_port = await HoldingProxy(self._live, self._deadline_s, self._is_ready).start()
            self._haproxy = await self._take_over(holding_port) or self._make(holding_port)
        self._keys = await asyncio.to_thread(read_keys, self._storage)
        for backend in state.backends.values():
            self._place(backend)
        self._apply()
        if state.grpc_port is not None:
            from raysys.gateway._grpc_proxy import serve_grpc

            url = f"http://{state.host}:{state.port}"
            self._grpc, state.grpc_port = await serve_grpc(state.host, state.grpc_port, url)

    async def _take_over(self, holding_port: int) -> HAProxy | None:
        """The HAProxy that a gateway before this one left running, once replicas are known."""
        if not self._state.folder or not Path(self._state.folder).exists():
            return None
        found = self._haproxy_in(Path(self._state.folder), holding_port)
        if not found.is_supervised:
            return None
        await asyncio.sleep(2 * ANNOUNCE_S)
        return found

    def _make(self, holding_port: int) -> HAProxy:
        self._state.folder = tempfile.mkdtemp(prefix="raysys-gateway-")
        return self._haproxy_in(Path(self._state.folder), holding_port)

    def _haproxy_in(self, folder: Path, holding_port: int) -> HAProxy:
        state = self._state
        front = HAProxySettings(folder, state.host, state.port, holding_port, state.token)
        # A head that can come back, since Ray keeps its state elsewhere, finds it running.
        comes_back = "RAY_REDIS_ADDRESS" in os.environ
        raylet = int(os.environ.get("RAY_RAYLET_PID", os.getppid()))
        return HAProxy(front, raylet, _HEAD_AWAY_S if comes_back else 0.0)

    async def _keep_current(self) -> None:
        """Go on after HAProxy was started again; let new keys in and revoked ones out."""
        keys = await asyncio.to_thread(read_keys, self._storage)
        assert self._haproxy
        if keys != self._keys or not self._haproxy.is_as_applied:
            self._keys = keys
            self._apply()
        else:
            self._haproxy.write(list(self._state.backends.values()), self._addresses())

    def _report(self) -> None:
        """Metrics of what clients were answered, and of who answers."""
        assert self._haproxy
        self._metrics.requests(self._haproxy.answered())
        self._metrics.shed(self._haproxy.shed())
        for name in self._state.backends:
            self._metrics.replicas(name, len(self._live(name)))

    def _forget_silent(self) -> None:
        silent_since = time.monotonic() - _FORGET_S
        for name, servers in self._servers.items():
            for replica in [r for r, server in servers.items() if server.heard < silent_since]:
                server = servers.pop(replica)
                if server.slot is not None and self._haproxy and name in self._state.backends:
                    self._haproxy.free_server(name, server.slot)

    def _deadline_s(self, application: str) -> float:
        backend = self._state.backends.get(application)
        return backend.deadline_s if backend else 0.0

    def _live(self, application: str) -> list[tuple[str, int]]:
        """Addresses of the current version's replicas, the last heard first."""
        backend = self._state.backends.get(application)
        servers = sorted(
            (
                server
                for server in self._servers.get(application, {}).values()
                if backend and server.announcement.version == backend.version
            ),
            key=lambda server: -server.heard,
        )
        return [_address(server) for server in servers]

    def _is_ready(self) -> bool:
        return all(self._live(name) for name in self._state.backends)

    def _save(self) -> None:
        key_value.put(_STATE_KEY, json.dumps(dataclasses.asdict(self._state)).encode())

    def _restored(self) -> _State | None:
        saved = key_value.get(_STATE_KEY)
        if not saved:
            return None
        state = json.loads(saved)
        state["backends"] = {
            name: Backend(**backend) for name, backend in state["backends"].items()
        }
        return _State(**state)


def _address(server: _Server) -> tuple[str, int]:
    return server.announcement.host, server.announcement.port


def start_gateway(host: str, port: int, grpc_port: int | None, storage: Storage) -> Any:
    """The cluster's gateway, started if there is none; it keeps the address it started with."""
    actor = ray.remote(Gateway).options(
        name=GATEWAY_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        resources={"node:__internal_head__": 0.001},
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=1000,
    )
    return actor.remote(host, port, grpc_port, storage)


def find_gateway() -> Any:
    """The cluster's gateway.

    Raises:
        RaysysError: Nothing has been deployed.
    """
    try:
        return ray.get_actor(GATEWAY_NAME, NAMESPACE)
    except ValueError as error:
        raise RaysysError("no gateway runs on this cluster: deploy an application") from error
