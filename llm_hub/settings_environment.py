"""The environment as settings: which variables are read, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llm_hub.addresses import ollama_host
from llm_hub.config import Secret
from llm_hub.errors import SettingsError
from llm_hub.settings_file import Found
from llm_hub.settings_kinds import KINDS, suggestion
from llm_hub.settings_table import VARIABLES, Variable, variable_prefix
from llm_hub.toml_lines import Path

__all__ = ["clean", "ollama_variables", "read_backends", "read_hub", "secret", "warn_of_misspelt"]

_OF_HUB = tuple(row for row in VARIABLES if not row.of_backend and row.name != "OLLAMA_HOST")
_OF_BACKEND = tuple((row.name.removeprefix("{PREFIX}"), row) for row in VARIABLES if row.of_backend)
_OURS = frozenset(row.name for row in _OF_HUB)
_MISTAKEN = {"_TEXT_MODEL": "_MODEL", "_URL": "_BASE_URL", "_BASEURL": "_BASE_URL"}
"""What people write in place of a variable of a backend."""


def clean(environ: Mapping[str, str], variable: str) -> str | None:
    """The text of a variable; None if it is unset or empty.

    Space around it does not count, nor does one pair of quotes: files read by `docker run --env-file` or by systemd
    keep what a shell would have taken away. Raises SettingsError for text that is not UTF-8.
    """
    text = environ.get(variable)
    if not text:
        return None
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingsError("its value is not UTF-8", where=variable) from None  # the error holds the value
    return text or None


def read_hub(environ: Mapping[str, str]) -> dict[Path, Found]:
    """What the variables of the hub itself say."""
    return {
        row.setting: Found(_parsed(row, text, row.name), row.name)
        for row in _OF_HUB
        if (text := clean(environ, row.name)) is not None
    }


def read_backends(environ: Mapping[str, str], names: Iterable[str]) -> tuple[dict[Path, Found], list[str]]:
    """What the variables of these backends say, and warnings.

    Raises SettingsError for a variable that could be meant for two of them.
    """
    found: dict[Path, Found] = {}
    claimed: dict[str, tuple[str, Variable]] = {}
    warnings: list[str] = []
    for name in dict.fromkeys(names):
        prefix = variable_prefix(name)
        for suffix, row in _OF_BACKEND:
            variable = prefix + suffix
            if (text := clean(environ, variable)) is None:
                continue
            if (other := claimed.setdefault(variable, (name, row)))[0] != name:
                raise _ambiguous(variable, other, (name, row))
            setting = tuple(name if part == "{NAME}" else part for part in row.setting)
            found[setting] = Found(_parsed(row, text, variable), variable)
        for wrong, right in _MISTAKEN.items():
            if (
                environ.get(prefix + wrong, "").strip()
                and prefix + wrong not in claimed
                and prefix + right not in environ
            ):
                warnings.append(f"{prefix + wrong} is set, but never read. Did you mean {prefix + right}?")
        host: Path = ("backends", "ollama", "base_url")
        if name == "ollama" and host not in found and (text := clean(environ, "OLLAMA_HOST")) is not None:
            url, warning = ollama_host(text, "OLLAMA_HOST")
            found[host] = Found(url, "OLLAMA_HOST")
            if warning:
                warnings.append(warning)
    return found, [text for text in warnings if text.split(" ", 1)[0] not in claimed]


def secret(environ: Mapping[str, str], variable: str, where: str) -> Secret:
    """The key that `api_key_env` at `where` speaks of."""
    text = clean(environ, variable)
    if text is None:
        raise SettingsError(
            f"api_key_env names the variable {variable}, which is not set",
            where=where,
            hint=f"export {variable}=… or leave api_key_env out, if the server wants no key.",
        )
    value = KINDS["secret"].value
    assert value is not None
    key: Secret = value(text, variable)
    return key


def ollama_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Every variable that says that Ollama is used here: ours, and those of Ollama itself."""
    return tuple(sorted(name for name in environ if name.startswith("OLLAMA_") and environ[name].strip()))


def warn_of_misspelt(environ: Mapping[str, str]) -> list[str]:
    """Warnings for variables that look like ours and are not. Other programs have LLM_* names too, so no errors."""
    warnings = []
    for name in sorted(environ):
        if not name.startswith("LLM_") or name in _OURS or not environ[name].strip():
            continue
        if name.startswith("LLM_HUB_"):
            if not name.startswith("LLM_HUB_TEST_"):
                near = suggestion(name, _OURS, cutoff=0.8) or "See docs/reference/settings.md."
                warnings.append(f"{name} is no setting of llm-hub. {near}")
        elif near := suggestion(name, _OURS, cutoff=0.88):
            warnings.append(f"{name} is set, but never read. {near}")
    return [warning.strip() for warning in warnings]


def _parsed(row: Variable, text: str, variable: str) -> object:
    parse = KINDS[row.kind].text
    assert parse is not None
    return parse(text, variable)


def _ambiguous(variable: str, one: tuple[str, Variable], other: tuple[str, Variable]) -> SettingsError:
    meanings = " or ".join(f"{'.'.join(row.setting[2:])} of {name!r}" for name, row in (one, other))
    return SettingsError(
        f"it could mean {meanings}",
        where=variable,
        hint="Rename one of these backends, or unset the variable and write the value in llm-hub.toml.",
    )
