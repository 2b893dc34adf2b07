"""What Ollama says about its models -> ModelInfo, and the names that mean the same model."""

from __future__ import annotations

from typing import Any, TypeVar

from llm_hub.capabilities import Capability, Feature, ModelInfo
from llm_hub_ollama.settings import OllamaSettings, canonical_name, short_name
from llm_hub_ollama.wire import ModelDetails, RunningModel, Shown, StoredModel

__all__ = ["EMBEDDING_FEATURES", "FEATURES", "find", "info", "needs_show", "spill"]

_ALWAYS = frozenset(
    {
        Feature.SYSTEM,
        Feature.JSON_OBJECT,
        Feature.JSON_SCHEMA,
        Feature.LOGPROBS,
        Feature.SEED,
        Feature.PENALTIES,
    }
)
# Ollama does not say which thinking models know efforts; for the others "high" means the same as true.
_BY_CAPABILITY = {
    # A choice of tools, which the API does not have, is made with a schema.
    "tools": frozenset({Feature.TOOLS, Feature.TOOL_CHOICE}),
    "vision": frozenset({Feature.IMAGES}),
    "thinking": frozenset({Feature.REASONING, Feature.REASONING_EFFORT}),
}

FEATURES = _ALWAYS.union(*_BY_CAPABILITY.values())
"""What Ollama's API can express of a chat, with a model that can."""

EMBEDDING_FEATURES = frozenset({Feature.DIMENSIONS})
"""What it can express of embeddings: any model's vectors are cut and brought back to length 1."""


Listed = TypeVar("Listed", StoredModel, RunningModel)


def find(name: str, models: list[Listed] | None) -> Listed | None:
    """The entry of this model, however its name is written; None if there is none."""
    wanted = canonical_name(name)
    return next((model for model in models or () if canonical_name(model.name) == wanted), None)


def needs_show(stored: StoredModel) -> bool:
    """Must `/api/show` be asked, because the list leaves something out or may be wrong?

    Before 0.30 the list has no capabilities. Since then it is made from the beginning of the model's file
    (readModelListGGUF in server/model_list_cache.go), so for some files it lacks the lengths, and calls a model that
    embeds one of completion, which is what it assumes unless told otherwise.
    """
    return stored.remote_host is None and (
        stored.capabilities is None
        or set(stored.capabilities) <= {"completion"}
        or stored.details is None
        or stored.details.context_length is None
    )


def spill(running: RunningModel) -> str | None:
    """What to say of a loaded model that is not in the memory of a GPU as a whole; None if it is."""
    size, in_gpu = running.size, running.size_vram
    if not size or in_gpu is None or in_gpu >= size:
        return None
    if in_gpu <= 0:
        return "the model runs on the CPU"
    return f"{100 * (size - in_gpu) / size:.0f} % of the model runs on the CPU"


def info(
    stored: StoredModel, shown: Shown | None, running: RunningModel | None, settings: OllamaSettings, *, asked: bool
) -> ModelInfo:
    """All that is known of a model. `asked`: the server told which models are loaded, so one not among them is not.

    The context is the one that requests get: `num_ctx` of the model's profile within what the model can, else that
    of the loaded model, else what the model can (of which Ollama gives as much as its memory allows).
    """
    details = stored.details or ModelDetails()
    longest = details.context_length or (shown.length("context_length") if shown else None)
    context = longest
    if num_ctx := settings.profile(stored.name).num_ctx:
        context = min(num_ctx, longest) if longest else num_ctx
    elif running is not None and running.context_length:
        context = running.context_length
    # Where the two differ, /api/show is right (see needs_show).
    names = (shown.capabilities if shown else None) or stored.capabilities
    capabilities = _capabilities(names)
    embeds = capabilities is not None and Capability.EMBEDDING in capabilities
    degraded = spill(running) if running is not None else None
    if stored.remote_host:
        degraded = f"another server runs it: {stored.remote_host}"
    return ModelInfo(
        name=stored.name,
        capabilities=capabilities,
        features=_features(names),
        context_length=context,
        max_input=longest if embeds else None,
        embedding_dimension=(details.embedding_length or (shown.length("embedding_length") if shown else None))
        if embeds
        else None,
        digest=stored.digest,
        loaded=running is not None if asked and not stored.remote_host else None,
        size=stored.size,
        aliases=(short_name(stored.name),) if stored.name.endswith(":latest") else (),
        degraded=degraded,
        header=_header(shown),
    )


def _header(shown: Shown | None) -> dict[str, Any]:
    """What tells of the model's size, without its tokenizer."""
    told = (shown.model_info if shown is not None else None) or {}
    return {key: value for key, value in told.items() if not key.startswith("tokenizer.") and value is not None}


def _capabilities(names: list[str] | None) -> frozenset[Capability] | None:
    if names is None:
        return None
    found: set[Capability] = set()
    if "completion" in names:
        found.add(Capability.TEXT)
        if "vision" in names:
            found.add(Capability.VISION)
    if "embedding" in names:
        found.add(Capability.EMBEDDING)
    return frozenset(found)


def _features(names: list[str] | None) -> frozenset[Feature] | None:
    if names is None:
        return None
    found = _ALWAYS if "completion" in names else frozenset()
    found = found.union(*(_BY_CAPABILITY.get(name, frozenset()) for name in names))
    return found | {Feature.DIMENSIONS} if "embedding" in names else found
