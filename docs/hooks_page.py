"""The reference of hooks, Protocols and values that a plugin's author meets, made from their docstrings and signatures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from llm_hub import call, capabilities, config, dialect, engine, hookspecs, launch, manifest, messages, observers
from llm_hub.capabilities import Capability
from llm_hub.langchain import as_plugin
from llm_hub.plugin_checks import HOOKS, MANIFEST_HOOK

__all__ = ["hooks_page"]

_PROTOCOLS = (
    (capabilities.Backend, ""),
    (capabilities.TextBackend, ""),
    (capabilities.EmbeddingBackend, ""),
    (capabilities.ReadingBackend, ""),
    (dialect.Dialect, "for `HttpBackend`, over HTTP"),
    (dialect.EmbeddingDialect, ""),
    (dialect.StreamDecoder, ""),
    (engine.Engine, "for `EngineBackend`, in the process"),
    (engine.CallbackEngine, ""),
    (engine.EmbeddingEngine, ""),
    (engine.ReadingEngine, ""),
    (observers.Observer, ""),
)
_VALUES = (
    manifest.PluginManifest,
    manifest.KnownBad,
    config.BackendConfig,
    config.BuildContext,
    capabilities.ModelInfo,
    capabilities.Probe,
    dialect.HttpRequest,
    dialect.HttpReply,
    messages.ChatRequest,
    messages.ChatResponse,
    messages.ChatChunk,
    messages.Message,
    messages.EmbedRequest,
    messages.EmbedResponse,
    messages.ReadRequest,
    messages.ReadResponse,
    messages.Usage,
    launch.LaunchSpec,
)


_BEGIN = (
    "What a plugin is made of, for api version {api_version}. A plugin is an object, a module will do, with some of these hooks, "
    "each marked with `@llm_hub.hookimpl`; entry points in the groups {groups} and `llm_hub.observer` name it. A hook "
    "without its entry point, an entry point without its hook, and a hook that is misspelt are errors. How to write one: "
    "[Write a backend](../write_a_backend.md). What it must keep: [Conformance](conformance.md).\n\n## Hooks\n\n"
)


def _said(thing: Any) -> str:
    return inspect.cleandoc(inspect.getdoc(thing) or "")


def _signature(function: Any) -> str:
    text = str(inspect.signature(function)).replace("'", "")
    return re.sub(r"\bself, |\(self\)", lambda match: "()" if match[0] == "(self)" else "", text)


def _hooks() -> Iterator[str]:
    for name in sorted(HOOKS, key=lambda one: (one != MANIFEST_HOOK, one)):
        function = getattr(hookspecs, name)
        yield f"### {name}\n\n```text\n{name}{_signature(function)}\n```\n\n{_said(function)}\n"


def _protocol(kind: Any, note: str) -> Iterator[str]:
    yield f"### {kind.__name__}\n\n`{kind.__module__}`{', ' + note if note else ''}. {_said(kind)}\n\n"
    members = {}
    for base in reversed(kind.__mro__):
        if base is not capabilities.Backend or kind is capabilities.Backend:
            members.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    bases = [base.__name__ for base in kind.__mro__[1:] if base.__name__ not in ("Protocol", "Generic", "object")]
    if bases:
        yield f"It is a {' and a '.join(bases[:1])} too.\n\n" if not bases[0].startswith("_") else ""
    yield "| | |\n| --- | --- |\n"
    for name, value in members.items():
        function = value.fget if isinstance(value, property) else value
        if not callable(function):
            continue
        shown = name if isinstance(value, property) else f"{name}{_signature(function)}"
        shown = shown.replace("|", "\\|")
        yield f"| `{'async ' if inspect.iscoroutinefunction(function) else ''}{shown}` | {' '.join(_said(function).split())} |\n"


def _value(kind: Any) -> Iterator[str]:
    yield f"### {kind.__name__}\n\n`{kind.__module__}`. {_said(kind)}\n\n| field | type | default |\n| --- | --- | --- |\n"
    written = {
        name: text for base in reversed(kind.__mro__) for name, text in vars(base).get("__annotations__", {}).items()
    }
    names, defaults = kind.__struct_fields__, kind.__struct_defaults__
    without = len(names) - len(defaults)
    for at, name in enumerate(names):
        text = str(written[name]).replace("|", "\\|")
        yield f"| `{name}` | `{text}` | {'required' if at < without else _default(defaults[at - without])} |\n"


def _default(value: Any) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    factory = getattr(value, "factory", None)  # of what may change: a new one for each
    if factory is not None:
        value = factory()
    return f"`{value!r}`" if not inspect.isfunction(value) else f"`{value.__name__}`"


def _features() -> Iterator[str]:
    source = inspect.getsource(capabilities.Feature)
    for name, value, said in re.findall(r'^    (\w+) = "(\w+)"\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL):
        yield f"| `Feature.{name}` | `{value}` | {' '.join(said.split())} |\n"


def hooks_page() -> str:
    """The page."""
    groups = ", ".join(f"`{one.group}`" for one in Capability)
    parts = [
        "# Hooks and Protocols\n\n",
        _BEGIN.format(api_version=manifest.API_VERSION, groups=groups),
        "\n".join(_hooks()),
        "\n## from_langchain\n\n```text\nfrom_langchain"
        + str(inspect.signature(as_plugin.from_langchain)).replace("'", "").replace(", ", ",\n    ")
        + f"\n```\n\n{_said(as_plugin.from_langchain)}\n",
        "\n## Features\n\n| | | |\n| --- | --- | --- |\n",
        *_features(),
        "\n## Protocols\n\nA class fulfils one by having its members; none is inherited from.\n\n",
        "\n".join("".join(_protocol(kind, note)) for kind, note in _PROTOCOLS),
        f"\n## A call\n\n`llm_hub.call.Call`: {_said(call.Call)}\n\n## Values\n\n",
        "\n".join("".join(_value(kind)) for kind in _VALUES),
    ]
    return "".join(parts)
