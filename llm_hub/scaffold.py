"""A new plugin: a complete distribution made from the templates of the package, ready to be tested."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import llm_hub
from llm_hub.capabilities import Capability
from llm_hub.errors import ConfigurationError
from llm_hub.manifest import API_VERSION
from llm_hub.settings_table import OWN_PLUGINS

__all__ = ["KINDS", "check_name", "render", "with_core_from", "write"]

KINDS: Mapping[str, tuple[Capability, ...]] = {
    "http": (Capability.TEXT, Capability.EMBEDDING),
    "openai": (Capability.TEXT, Capability.EMBEDDING, Capability.VISION),
    "engine": (Capability.TEXT, Capability.EMBEDDING),
    "langchain": (Capability.TEXT, Capability.EMBEDDING, Capability.VISION),
}
"""The kinds of plugins that there are templates of, and what each can be made to offer."""

_WITH_TEXT: Mapping[str, tuple[Capability, ...]] = {
    "http": (Capability.EMBEDDING,),  # a dialect is one of chats; embeddings come beside them
    "langchain": (Capability.VISION,),  # a chat model that sees is one that talks
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40  # characters of a name
_SUFFIX = ".tmpl"

_NEXT = {
    "http": "The protocol in `dialect.py` is an invented one: change it into your server's, and the little server in "
    "`conformance.py`\nwith it, or record your real one (`python -m llm_hub.testing.record --help`).",
    "openai": "`plugin.py` says what your server can do, and how it differs from the OpenAI API; `conformance.py` which "
    "server it is tested on.",
    "engine": "`engine.py` repeats what it is told: put your library where it says so.",
    "langchain": "`plugin.py` names `ChatOllama`: put your class there, and the server that it speaks to into `conformance.py`.",
}


def check_name(name: str) -> None:
    """Raise ConfigurationError unless a plugin may be called so."""
    hint = (
        f"Write lower-case letters, digits and single hyphens, a letter first and {_LONGEST} at most, such as acme or acme-cloud: it "
        "becomes llm-hub-acme."
    )
    if name.startswith(("llm-hub-", "llm_hub_")):
        raise ConfigurationError(
            f"{name!r} begins with llm-hub already", hint=f"Write {name[8:]!r}: the rest is added."
        )
    if keyword.iskeyword(name):
        raise ConfigurationError(f"{name!r} is no name for a plugin, but a word of Python", hint="Choose another name.")
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST:
        raise ConfigurationError(f"{name!r:.60} is no name for a plugin", hint=hint)
    if name in OWN_PLUGINS or name == "core":
        raise ConfigurationError(f"{name!r} is the name of a part of llm-hub", hint="Choose another name.")


def render(name: str, kind: str, capabilities: Collection[Capability] = ()) -> dict[str, str]:
    """The files of a distribution, by their paths within it. `capabilities` empty: text.

    Raises ConfigurationError for a name that may not be, and for what this kind cannot be made to offer.
    """
    check_name(name)
    wanted = tuple(one for one in Capability if one in (capabilities or (Capability.TEXT,)))
    lacking = [one for one in wanted if one not in KINDS[kind]]
    if lacking:
        raise ConfigurationError(
            f"there is no {kind} template for {', '.join(lacking)}",
            hint=f"It can offer: {', '.join(KINDS[kind])}. Of other kinds: "
            + "; ".join(f"{one}: {', '.join(offers)}" for one, offers in KINDS.items() if one != kind),
        )
    beside = [one for one in wanted if one in _WITH_TEXT.get(kind, ())]
    if beside and Capability.TEXT not in wanted:
        raise ConfigurationError(
            f"the {kind} template offers {', '.join(beside)} beside text, not alone", hint="Add --capability text."
        )
    values = _values(name, kind, wanted)
    flags = {kind, *wanted}
    found: dict[str, str] = {}
    root = files("llm_hub") / "templates"
    for folder in ("common", kind):
        for path, source in _walk(root / folder, PurePosixPath()):
            target = _target(path, flags, values)
            if target is not None:
                found[target] = _filled(source.read_text(encoding="utf-8"), flags, values, path)
    return dict(sorted(found.items()))


def with_core_from(rendered: Mapping[str, str], path: str, editable: bool) -> dict[str, str]:  # noqa: FBT001 (as it is recorded)
    """The same files, with uv told to take the core from this path of the machine, where it was not installed from an index."""
    entry = f"path = {json.dumps(path)}" + (", editable = true" if editable else "")
    source = (
        "\n# The core that made this plugin was not installed from an index. Remove this once you use a released one.\n"
        f"[tool.uv.sources]\nllm-hub-core = {{ {entry} }}\n"
    )
    return {**rendered, "pyproject.toml": rendered["pyproject.toml"].rstrip("\n") + "\n" + source}


def write(rendered: Mapping[str, str], folder: Path) -> None:
    """Write the files below a folder that is not there yet, or empty. Raises ConfigurationError: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(
            f"{folder} is there already", hint="Nothing is overwritten: choose another name or --dir, or remove it."
        )
    for name, text in rendered.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error


# -- filling in -------------------------------------------------------------------------------------------------------


def _values(name: str, kind: str, capabilities: tuple[Capability, ...]) -> dict[str, str]:
    from llm_hub.testing.conformance.rules import SUITE_VERSION

    package = f"llm_hub_{name.replace('-', '_')}"
    major, minor = llm_hub.__version__.split(".")[:2]
    variable = name.upper().replace("-", "_")
    server = kind != "engine"
    url = {"http": "http://127.0.0.1:9000", "openai": "http://127.0.0.1:8000", "langchain": "http://127.0.0.1:11434"}
    run = {
        Capability.TEXT: 'llm-hub ask "Hello"',
        Capability.EMBEDDING: 'llm-hub embed "Hello"',
        Capability.VISION: "llm-hub see page.png",
    }[capabilities[0]]
    model = f"{variable}_{'' if capabilities[0] is Capability.TEXT else capabilities[0].upper() + '_'}MODEL=NAME "
    settings = f"{variable}_BASE_URL={url[kind]} {model}" if server else ""
    return {
        "name": name,
        "distribution": f"llm-hub-{name}",
        "package": package,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "attribute": ":plugin" if kind == "langchain" else "",
        "api_version": API_VERSION,
        "suite_version": SUITE_VERSION,
        "core": f">={major}.{minor},<{major}.{int(minor) + 1}"
        if major == "0"
        else f">={major}.{minor},<{int(major) + 1}",
        "capability": str(capabilities[0]),
        "offers": " and ".join(capabilities),
        "run": f"{settings}LLM_PROVIDER={name} {run}",
        "live": f"uv run llm-hub check {name} --live {url[kind]} --model NAME   # and on a real server"
        if server
        else "",
        "next": _NEXT[kind],
    }


def _walk(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for one in sorted(folder.iterdir(), key=lambda each: each.name):
        if one.is_dir():
            yield from _walk(one, path / one.name)
        elif one.name.endswith(_SUFFIX):
            yield path / one.name, one


def _target(path: PurePosixPath, flags: set[str], values: Mapping[str, str]) -> str | None:
    """Where a template's file goes; None if it is only for a capability that is not offered."""
    name = path.name.removesuffix(_SUFFIX)
    stem, _, last = name.rpartition(".")
    if last in tuple(Capability):
        if last not in flags:
            return None
        name = stem
    target = str(path.with_name(name))
    return target.replace("PACKAGE", values["package"]).replace("DOT_", ".")


def _filled(text: str, flags: set[str], values: Mapping[str, str], path: PurePosixPath) -> str:
    """A template with its values in it. Lines `%% if FLAG`, `%% else` and `%% end` hold what is for some only."""
    shown = [True]
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("%% if "):
            shown.append(shown[-1] and line[6:].strip() in flags)
        elif line == "%% else":
            hidden = shown.pop()
            shown.append(shown[-1] and not hidden)
        elif line == "%% end":
            shown.pop()
        elif shown[-1]:
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], line))
    if len(shown) != 1:
        raise ValueError(f"the conditions of the template {path} do not end")
    text = "\n".join(lines).strip("\n")
    return f"{text}\n" if text else ""
