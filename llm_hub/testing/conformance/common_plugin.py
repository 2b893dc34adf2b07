"""The rules of every capability about the plugin itself: it loads, declares plain data, and builds without I/O."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm_hub.capabilities import Feature
from llm_hub.errors import HubError, PluginError, SettingsError
from llm_hub.manifest import check_api_version
from llm_hub.plugin_checks import Fault, check_backend
from llm_hub.registry import PluginStatus
from llm_hub.testing.conformance.bench import BACKEND, Bench
from llm_hub.testing.conformance.rules import Broken, Needs, RuleBook, expect
from llm_hub.testing.secret_settings import plain_secrets

__all__ = ["RULES"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()


@RULES.rule(
    "plugin.loads",
    "The plugin is found under its name, loads, has sound hooks, and offers this capability.",
    remedy="`llm-hub plugins NAME` shows what is wrong; entry points and hooks must agree.",
    needs=Needs.NOTHING,
    loads=True,
)
def loads(bench: AnyBench) -> None:
    """As the hub's registry sees it."""
    report = bench.registry.report(bench.plugin_name, load=True)
    told = ". ".join(part for part in (report.reason, report.hint) if part)
    expect(report.status is PluginStatus.AVAILABLE, f"it is {report.status}: {told}")
    expect(
        bench.capability in report.capabilities,
        f"it offers {', '.join(sorted(report.capabilities)) or 'nothing'}, not {bench.capability}",
    )


@RULES.rule(
    "plugin.manifest",
    "The manifest is plain data, the same each time, and asking for it neither reads files nor opens connections.",
    remedy="Return a PluginManifest that is made of constants.",
    needs=Needs.NOTHING,
    loads=True,
)
def manifest(bench: AnyBench) -> None:
    """Asked twice, while everything that would be I/O is noticed."""
    ask = bench.registry.get(bench.plugin_name).declared
    ask()  # what it imports is loaded now
    with _io() as seen:
        first, second = ask(), ask()
    expect(first == second, f"it was {first!r} and then {second!r}")
    expect(not seen, f"asking for it did I/O: {', '.join(seen[:3])}")
    try:
        check_api_version(bench.plugin_name, first.api_version)
    except PluginError as error:
        raise Broken(str(error)) from error
    expect(first.summary.strip(), "it has no summary, which is what `llm-hub plugins` tells of it")


@RULES.rule(
    "plugin.secrets",
    "Options that hold a secret have the type llm_hub.config.Secret, so that they do not show themselves.",
    remedy="Use the common `api_key` of the backend's configuration, which is a Secret already; or declare the option as "
    "`llm_hub.config.Secret | None = None`.",
    needs=Needs.NOTHING,
    loads=True,
)
def secrets(bench: AnyBench) -> None:
    """Of the declared options, and of those inside them, those whose name says so."""
    plain = plain_secrets(bench.manifest.settings)
    expect(not plain, f"plain text, which shows itself in every repr: {', '.join(plain)}")


@RULES.rule(
    "plugin.options",
    "An option that the plugin does not have is refused by its name, before anything is called.",
    remedy="Declare `settings` in the manifest: a msgspec.Struct with forbid_unknown_fields=True.",
    needs=Needs.NOTHING,
    loads=True,
)
def options(bench: AnyBench) -> None:
    """A misspelt option."""
    name = "conformance_no_such_option"
    hub = bench.open_hub(**{name: 1})
    try:
        built = hub.runtime.backend(BACKEND, bench.capability)
    except SettingsError as error:
        expect(name in str(error), f"the error does not name the option: {error}")
    except HubError as error:
        raise Broken(f"it raised {type(error).__name__}: {error}; it should have raised SettingsError") from error
    else:
        raise Broken(f"{name} was taken in silence, and {built!r} built")
    finally:
        hub.close()


@RULES.rule(
    "build.no-io",
    "Building a backend connects to nothing, loads no model and starts no thread: that is for the first call or probe.",
    remedy="Open clients and load models when they are first needed; the constructor only remembers.",
    needs=Needs.NOTHING,
    loads=True,
)
def no_io(bench: AnyBench) -> None:
    """Watched by an audit hook, with a server that is there, so that a connection would succeed."""
    hub = bench.open_hub()
    try:
        accepted = bench.server.accepted if bench.server is not None else 0
        hub.runtime.config(BACKEND)  # imports the plugin
        threads = set(threading.enumerate())
        began = time.monotonic()
        with _io(files=False) as seen:
            built = hub.runtime.backend(BACKEND, bench.capability)
        took = time.monotonic() - began
        new = [one.name for one in threading.enumerate() if one not in threads and one.name != "conformance"]
        expect(not seen, f"building it did I/O: {', '.join(seen[:3])}")
        expect(not new, f"building it started threads: {', '.join(new)}")
        expect(took < 2.0, f"building it took {took:.1f} s")
        if bench.server is not None:
            expect(bench.server.accepted == accepted, "the server got a connection while the backend was built")
        expect(repr(built), "its repr is empty")
    finally:
        hub.close()


@RULES.rule(
    "build.contract",
    "The backend has every method of its Protocol, each async one a twin of the blocking one.",
    remedy="Build on HttpBackend or EngineBackend; or see the Protocols in llm_hub.capabilities.",
    needs=Needs.NOTHING,
    loads=True,
)
def contract(bench: AnyBench) -> None:
    """As the hub checks it, and that the async methods are async."""
    try:
        check_backend(bench.backend, bench.capability)
    except Fault as fault:
        raise Broken(f"{fault.message}. {fault.hint}") from fault
    for name in ("amodels", "aprobe"):
        method = getattr(bench.backend, name)
        expect(inspect.iscoroutinefunction(method) or not inspect.isgeneratorfunction(method), f"{name} is a generator")


@RULES.rule(
    "features.agree",
    "What the requirements claim, what the backend declares and what the manifest declares agree.",
    remedy="Declare a feature in the manifest and on the backend if it works, and nowhere if it does not.",
    needs=Needs.NOTHING,
    loads=True,
)
def agree(bench: AnyBench) -> None:
    """All three."""
    declared = frozenset(bench.backend.features)
    strange = [one for one in declared if not isinstance(one, Feature)]
    expect(not strange, f"its features hold {strange!r}, which are no Feature")
    missing = declared - bench.manifest.features
    expect(not missing, f"the backend declares {_said(missing)}, and the manifest does not")
    for feature in Feature:
        said = bench.requirements.claims(feature)
        if said is True:
            expect(feature in declared, f"the requirements claim {feature}, and the backend does not declare it")
        if said is False:
            expect(feature not in declared, f"the backend declares {feature}, and the requirements say it cannot")


def _said(features: frozenset[Feature]) -> str:
    return ", ".join(sorted(features))


# -- noticing I/O -----------------------------------------------------------------------------------------------------

_WATCHED: dict[int, tuple[list[str], bool]] = {}
_hooked = False
_SOCKETS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")
_PROCESSES = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    watched = _WATCHED.get(threading.get_ident())
    if watched is None:
        return
    seen, files = watched
    if event in _SOCKETS or event in _PROCESSES:
        seen.append(event)
    elif files and event == "open":
        seen.append(f"open {arguments[0]!r:.100}")


@contextmanager
def _io(*, files: bool = True) -> Iterator[list[str]]:
    """Notices connections, name look-ups, processes and opened files of this thread. An audit hook cannot be taken away
    again, so there is one, which looks whether anybody watches.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    seen: list[str] = []
    _WATCHED[threading.get_ident()] = (seen, files)
    try:
        yield seen
    finally:
        del _WATCHED[threading.get_ident()]
