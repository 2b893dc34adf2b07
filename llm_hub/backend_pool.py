"""The backends of a hub, shared between its epochs: one whose configuration did not change is the same object in the next."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

import msgspec

from llm_hub.capabilities import Backend, Capability
from llm_hub.config import BackendConfig

__all__ = ["BackendPool"]

Key = tuple[str, Capability]


class _Entry:
    """A backend, what it was built from, and who holds it."""

    __slots__ = ("backend", "config", "holders", "plugin")

    def __init__(self, plugin: object, config: BackendConfig, backend: Backend, holder: object) -> None:
        self.plugin = plugin
        self.config = config
        self.backend = backend
        self.holders = {id(holder)}


class BackendPool:
    """Builds backends and counts who holds them; one that nobody holds any more is closed. Safe to use from any thread."""

    def __init__(self) -> None:
        self._entries: dict[Key, list[_Entry]] = {}
        self._lock = threading.Lock()
        _POOLS.add(self)

    def take(
        self,
        holder: object,
        capability: Capability,
        plugin: object,
        config: BackendConfig,
        build: Callable[[], Backend | None],
    ) -> Backend | None:
        """The backend of this plugin and configuration, held by `holder` from now on; None if there is none to be built.

        `build` connects to nothing, so that it may run twice: of two who build at once, one throws its own away.
        """
        key = (config.name, capability)
        found = self._find(holder, key, plugin, config)
        if found is not None:
            return found
        built = build()
        if built is None:
            return None
        with self._lock:
            entries = self._entries.setdefault(key, [])
            entry = next((one for one in entries if _same(one, plugin, config)), None)
            if entry is None:
                entries.append(_Entry(plugin, config, built, holder))
                return built
            entry.holders.add(id(holder))
        built.close()
        return entry.backend

    def _find(self, holder: object, key: Key, plugin: object, config: BackendConfig) -> Backend | None:
        with self._lock:
            for entry in self._entries.get(key, ()):
                if _same(entry, plugin, config):
                    entry.holders.add(id(holder))
                    return entry.backend
        return None

    def release(self, holder: object) -> None:
        """`holder` is done with all that it took. The first failure to close is raised after all were tried."""
        left: list[Backend] = []
        with self._lock:
            for key, entries in list(self._entries.items()):
                for entry in list(entries):
                    entry.holders.discard(id(holder))
                    if not entry.holders:
                        entries.remove(entry)
                        left.append(entry.backend)
                if not entries:
                    del self._entries[key]
        failed: Exception | None = None
        for backend in left:
            try:
                backend.close()
            except Exception as error:  # noqa: BLE001 - the others must be closed too; raised below
                failed = failed or error
        if failed is not None:
            raise failed


def _same(entry: _Entry, plugin: object, config: BackendConfig) -> bool:
    """Where a backend is defined (the line of a file) does not make it another."""
    if entry.plugin is not plugin:
        return False
    theirs = (
        config if entry.config.source == config.source else msgspec.structs.replace(config, source=entry.config.source)
    )
    return entry.config == theirs


_POOLS: weakref.WeakSet[BackendPool] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child, a lock that another thread held would never be released."""
    for pool in list(_POOLS):
        pool._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
