"""What is known of a backend before it runs: what its plugin says of its needs, and what is known of its models."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llm_hub.capabilities import Capability, ModelInfo
from llm_hub.errors import HubError
from llm_hub.gpu.facts import ModelFacts
from llm_hub.gpu.memory import Estimate, estimate
from llm_hub.gpu.models import Unknown, find_facts
from llm_hub.launch import Devices, GpuNeeds

if TYPE_CHECKING:
    from llm_hub.runtime import Runtime

__all__ = ["Known", "KnownModel", "elsewhere", "gather", "know"]


class KnownModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model of a backend; `facts` None: nothing is known of it, and `reason` and `hint` say why and what would help."""

    name: str
    facts: ModelFacts | None = None
    reason: str = ""
    hint: str = ""


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A backend, for the plan. `offers` is what its plugin offers, `has_models` for which capabilities it has one configured.

    `uses_gpu`: might it use a GPU at all? `local`: is it run on this machine, as far as its address tells? `problem`
    says why its plugin cannot tell how it is started, `fix` what to do.
    """

    backend: str
    plugin: str
    offers: frozenset[Capability] = frozenset()
    has_models: frozenset[Capability] = frozenset()
    uses_gpu: bool = True
    local: bool = True
    needs: GpuNeeds = GpuNeeds()
    models: tuple[KnownModel, ...] = ()
    problem: str = ""
    fix: str = ""

    def estimates(self, gpus: int) -> dict[str, Estimate | None]:
        """What each model needs on so many GPUs, by name; None where nothing is known of it."""
        needs = self.needs
        found: dict[str, Estimate | None] = {}
        for model in self.models:
            facts = model.facts
            if facts is None:
                found[model.name] = None
                continue
            context = needs.context
            if context is not None and facts.context_length is not None:
                context = min(context, facts.context_length)
            found[model.name] = estimate(
                facts,
                context=context,
                parallel=needs.parallel,
                kv_bytes=needs.kv_bytes,
                gpus=max(gpus, 1),
                split=needs.split,
            )
        return found

    def divides(self, gpus: int) -> str:
        """Why the heads of its models cannot be divided among so many GPUs; empty if they can, or nothing is known of them.

        As vLLM checks it: the heads of queries must divide evenly (verify_with_parallel_config in
        vllm/config/model.py), and of those of keys and values either several go to a GPU or several GPUs hold the
        same one (QKVParallelLinear).
        """
        for model in self.models:
            facts = model.facts
            if facts is None or facts.heads is None or not facts.layers:
                continue
            if facts.heads % gpus:
                return f"{model.name} has {facts.heads} heads, which {gpus} does not divide"
            if facts.kv_heads and facts.kv_heads % gpus and gpus % facts.kv_heads:
                return f"{model.name} has {facts.kv_heads} heads for keys and values, which {gpus} GPUs cannot share evenly"
        return ""


def gather(runtime: Runtime, name: str, devices: Devices, *, ask: bool = True) -> Known:
    """What is known of a backend on these devices. With `ask`, its server is asked for the sizes of models that are not here.

    Nothing is started or fetched; a plugin that fails is a `problem`.
    """
    plugin = runtime.plugin_name(name)
    try:
        loaded = runtime.registry.get(plugin)
        config = runtime.config(name)
    except HubError as error:
        return Known(backend=name, plugin=plugin, problem=error.message, fix=error.hint or "")
    manifest = loaded.manifest
    known = Known(
        backend=name,
        plugin=plugin,
        offers=frozenset(one for one in Capability if one in loaded.installed.capabilities),
        has_models=frozenset({**manifest.default_models, **config.models}),
        uses_gpu=manifest.gpu != "none",
        local=_is_local([url for url in config.base_urls.values() if url]),
    )
    models = tuple(dict.fromkeys((config.models or manifest.default_models).values()))
    needs = GpuNeeds(models=models)
    fetch: tuple[tuple[str, ...], ...] = ()
    if any(gpu.total is None for gpu in devices.gpus):
        # The cards are elsewhere, and an amount of their memory cannot be turned into a share here: that is not what is asked.
        devices = msgspec.structs.replace(devices, memory=devices.memory if isinstance(devices.memory, float) else None)
    try:
        spec = loaded.launch(config, devices)
        if spec is not None:
            needs, fetch = spec.needs, spec.fetch
    except HubError as error:
        known = msgspec.structs.replace(known, problem=error.message, fix=error.hint or "")
    return know(
        known, needs, served=_Served(runtime, name) if ask and manifest.default_url is not None else None, fetch=fetch
    )


def know(known: Known, needs: GpuNeeds, *, served: _Served | None = None, fetch: Sequence[Sequence[str]] = ()) -> Known:
    """The same with these needs, and what is known of the models in them. `fetch` are the commands that get them."""
    models = []
    for name in needs.models:
        facts = find_facts(name)
        if isinstance(facts, Unknown) and served is not None and (info := served.of(name)) is not None:
            facts = find_facts(name, served=info)
        if isinstance(facts, Unknown):
            command = next((shlex.join(words) for words in fetch if words and words[-1] == name), None)
            hint = f"Fetch it: {command}. Or set `memory` of the assignment." if command else facts.hint
            models.append(KnownModel(name=name, reason=facts.reason, hint=hint))
        else:
            models.append(KnownModel(name=name, facts=facts))
    return msgspec.structs.replace(known, needs=needs, models=tuple(models))


def elsewhere(runtime: Runtime, known: Known, devices: Devices) -> Known:
    """The same backend on other devices, on which it may ask for something else; what is known of its models stays."""
    try:
        spec = runtime.registry.get(known.plugin).launch(runtime.config(known.backend), devices)
    except HubError as error:
        return msgspec.structs.replace(known, problem=error.message, fix=error.hint or "")
    if spec is None or spec.needs.models != known.needs.models:
        return known
    return msgspec.structs.replace(known, needs=spec.needs)


class _Served:
    """What the server of a backend tells of its models; asked at most once, and only when something is not known otherwise."""

    def __init__(self, runtime: Runtime, backend: str, *, timeout: float = 3.0) -> None:
        self._runtime, self._backend, self._timeout = runtime, backend, timeout
        self._models: dict[str, ModelInfo] | None = None

    def of(self, name: str) -> ModelInfo | None:
        if self._models is None:
            self._models = {}
            try:
                for info in self._list():
                    for alias in (info.name, *info.aliases):
                        self._models[alias] = info
            except HubError:
                return None  # it does not run, or not yet: then it tells nothing
        return self._models.get(name)

    def _list(self) -> list[ModelInfo]:
        from llm_hub.call import Call
        from llm_hub.transport import drive
        from llm_hub.worlds import BLOCKING

        runtime = self._runtime
        found: list[ModelInfo] = []
        for capability in runtime.addressed(self._backend):
            built = runtime.backend(self._backend, capability)
            found += drive(runtime.models(BLOCKING, self._backend, built, Call(timeout=self._timeout)))
        return found


def _is_local(urls: list[str]) -> bool:
    from urllib.parse import urlsplit

    from llm_hub.starting import is_local

    return all(is_local(urlsplit(url).hostname or "") for url in urls)
