"""The cache that the clients of the Hugging Face hub share: where it is, and which version of a model is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cached", "hub_caches", "snapshot_of"]


def hub_caches() -> Iterator[Path]:
    """The cache of the Hugging Face clients (huggingface_hub, llama.cpp, vLLM), by the variables that they read."""
    environ = os.environ
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            yield Path(environ[variable]).expanduser()
            return
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    yield Path(home).expanduser() / "hub"


def snapshot_of(repo: Path) -> Path:
    """The version of a repository that `main` means, else the newest there is."""
    try:
        main = repo / "snapshots" / (repo / "refs" / "main").read_text("ascii").strip()
        if main.is_dir():
            return main
    except (OSError, UnicodeDecodeError):
        pass  # fetched by commit
    versions = sorted((repo / "snapshots").glob("*"), key=lambda version: version.stat().st_mtime)
    return versions[-1] if versions else repo / "snapshots"


def cached(name: str) -> Path | None:
    """The folder of `org/repo` in the cache; None if it is not there."""
    org, _, repo = name.partition("/")
    for cache in hub_caches():
        folder = cache / f"models--{org}--{repo}"
        if repo and folder.is_dir() and (snapshot := snapshot_of(folder)).is_dir():
            return snapshot
    return None
