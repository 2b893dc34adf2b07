"""`from_langchain`: any chat model or embeddings class of LangChain as a plugin of the hub.

Nothing of LangChain is imported here, nor when the plugin is loaded: that happens when one of its backends is first asked.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from llm_hub.capabilities import Capability, EmbeddingBackend, Feature, ModelInfo, TextBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import ConfigurationError
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import KnownBad, PluginManifest

if TYPE_CHECKING:
    from llm_hub.engine import EngineBackend

__all__ = ["Arguments", "LangChainPlugin", "LangChainSettings", "Placed", "Source", "Terms", "from_langchain"]

Arguments: TypeAlias = Mapping[str, Any] | Callable[[BackendConfig], Mapping[str, Any]]
"""Arguments of a constructor, or how to make them from the configuration of a backend."""

Placed: TypeAlias = str | Callable[[Any], Mapping[str, Any]] | None
"""Where a class takes an option of a request: its own name for it, the arguments that a value comes to, None for nowhere."""

Source: TypeAlias = Any
"""A chat model or embeddings: the class, `"package.module:Class"`, an object, or a function of (config, model) that makes one."""

_CORE = "langchain_core"
_EMBEDS = frozenset({Feature.DIMENSIONS})


class LangChainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[backends.NAME]` may hold: `arguments` are handed to the constructor of the LangChain class as they are."""

    arguments: dict[str, Any] = {}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the author of a plugin said of its LangChain classes: the parameters of `from_langchain`."""

    chat: Source = None
    embeddings: Source = None
    features: frozenset[Feature] = frozenset()
    default_url: str | None = None
    arguments: Arguments = {}
    parameters: Mapping[str, Placed] = {}
    list_models: Callable[[BackendConfig], Iterable[str | ModelInfo]] | None = None
    says_why: bool = True
    workers: int = 32


def from_langchain(
    source: Source,
    *,
    embeddings: Source = None,
    features: Collection[Feature] | None = None,
    summary: str = "",
    default_url: str | None = None,
    default_models: Mapping[Capability, str] | None = None,
    settings: type[msgspec.Struct] = LangChainSettings,
    arguments: Arguments | None = None,
    parameters: Mapping[str, Placed] | None = None,
    list_models: Callable[[BackendConfig], Iterable[str | ModelInfo]] | None = None,
    says_why: bool = True,
    workers: int = 32,
    api_version: str = "1.0",
    gpu: Literal["none", "optional", "required"] = "none",
    install_model: str | None = None,
    known_bad: tuple[KnownBad, ...] = (),
) -> LangChainPlugin:
    """A plugin that serves a chat model or embeddings of LangChain: name the result in the plugin's entry points.

    `source` is the class, `"package.module:Class"` (which keeps the import of the plugin free), a configured object, or a
    function of (config, model) that makes one. `embeddings` is a second one, for a plugin that offers both. Of a string the
    name tells which it is: LangChain's embeddings are called `...Embeddings`.

    `features` are what its backends can do. None computes them: system messages always, and of a class that is at hand
    tools where it has a `bind_tools` of its own, JSON where its `with_structured_output` has the method for it. Declare what
    you know to hold; with `Feature.IMAGES` the plugin offers vision too, and needs that entry point.

    The address, the key and the model of a backend go to the constructor under whatever names the class has for them,
    without its retries: the hub's are enough. `arguments` are further ones (or a function of the `BackendConfig` that
    makes them) and win over these; the fields of `settings` win over those. `parameters` says where an option of a request
    goes that is not found by its usual names: `{"max_tokens": "num_predict"}`, a function of the value that gives arguments,
    or None, so that it is refused: `{"stop": None}` for a class that ignores it.

    `list_models` asks the server for its models, which LangChain cannot. `says_why` False: the class never gives a finish
    reason, so that a stream which broke off cannot be told from one that is complete. `workers` calls run at once.
    The rest is as in `PluginManifest`. Raises ConfigurationError for a source that is none.
    """
    found: dict[str, Source] = {_kind(source): source}
    if embeddings is not None:
        if _kind(embeddings) != "embeddings" or "embeddings" in found:
            raise ConfigurationError(
                "from_langchain(chat, embeddings=...) takes a chat model and embeddings, in this order"
            )
        found["embeddings"] = embeddings
    if features is None:
        features = {feature for one in found.values() for feature in _features(one)}
    terms = Terms(
        chat=found.get("chat"),
        embeddings=found.get("embeddings"),
        features=frozenset(features),
        default_url=default_url,
        arguments={} if arguments is None else arguments,
        parameters=parameters or {},
        list_models=list_models,
        says_why=says_why,
        workers=workers,
    )
    manifest = PluginManifest(
        api_version=api_version,
        summary=summary or f"{' and '.join(_name(one) for one in found.values())} of LangChain.",
        features=terms.features,
        settings=settings,
        default_url=default_url,
        default_models=default_models or {},
        gpu=gpu,
        install_model=install_model,
        known_bad=known_bad,
    )
    return LangChainPlugin(terms, manifest)


class LangChainPlugin:
    """A plugin with the hooks of what its LangChain classes can serve."""

    def __init__(self, terms: Terms, manifest: PluginManifest) -> None:
        self.terms = terms
        self.manifest = manifest
        # A hook without an entry point is an error, so there is one for each capability that is offered and no other.
        for capability in self.capabilities:
            setattr(self, f"llm_hub_{capability}", _hook(self, capability))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.manifest.summary!r}>"

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What it offers, and wants entry points for."""
        offered = []
        if self.terms.chat is not None:
            offered.append(Capability.TEXT)
        if self.terms.embeddings is not None:
            offered.append(Capability.EMBEDDING)
        if self.terms.chat is not None and Feature.IMAGES in self.terms.features:
            offered.append(Capability.VISION)
        return tuple(offered)

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        """What the plugin declares."""
        return self.manifest

    def backend(self, capability: Capability, config: BackendConfig, context: BuildContext) -> EngineBackend:
        """A backend of this plugin. Imports no LangChain, unless the plugin has."""
        from llm_hub.engine import EngineBackend
        from llm_hub.langchain.foreign_engine import ChatEngine, EmbeddingsEngine

        if self.terms.default_url is not None and config.base_url(capability) is None:
            config = msgspec.structs.replace(config, base_urls={**config.base_urls, None: self.terms.default_url})
        embeds = capability is Capability.EMBEDDING
        features = self.terms.features & _EMBEDS if embeds else self.terms.features - _EMBEDS
        make = EmbeddingsEngine if embeds else ChatEngine
        default = self.manifest.default_models.get(capability)
        engine = make(self.terms, config, context, capability, features=features, default_model=default)
        return EngineBackend(engine, name=config.name, workers=self.terms.workers, queue=16 * self.terms.workers)


def _hook(plugin: LangChainPlugin, capability: Capability) -> Callable[..., Any]:
    def build(config: BackendConfig, context: BuildContext) -> TextBackend | EmbeddingBackend | None:
        return plugin.backend(capability, config, context)

    build.__name__ = f"llm_hub_{capability}"
    build.__doc__ = f"A backend for {capability}."
    return hookimpl(build)


# -- what a source is, without importing LangChain --------------------------------------------------------------------


def _kind(source: Source) -> str:
    """`"chat"` or `"embeddings"`."""
    if isinstance(source, str):
        module, colon, name = source.partition(":")
        if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ConfigurationError(
                f"{source!r} is no LangChain class", hint='Write "package.module:Class", or give the class.'
            )
        return "embeddings" if name.endswith(("Embeddings", "Embedding")) else "chat"
    kind = source if isinstance(source, type) else type(source)
    if _is_a(kind, "langchain_core.embeddings", "Embeddings"):
        return "embeddings"
    if _is_a(kind, "langchain_core.language_models.chat_models", "BaseChatModel"):
        return "chat"
    if inspect.isfunction(source):
        returned = str(source.__annotations__.get("return", ""))
        return "embeddings" if "Embedding" in returned else "chat"
    raise ConfigurationError(
        f"{source!r:.200} is no chat model and no embeddings of LangChain",
        hint="Give a subclass of BaseChatModel or Embeddings, an object of one, its name, or a function that makes one.",
    )


def _is_a(kind: type, module: str, name: str) -> bool:
    """Is this a subclass of one of LangChain's? (If it is, LangChain is imported already.)"""
    loaded = sys.modules.get(module)
    base = getattr(loaded, name, None) if loaded is not None else None
    return isinstance(base, type) and issubclass(kind, base)


def _name(source: Source) -> str:
    if isinstance(source, str):
        return source.partition(":")[2]
    return str(getattr(source, "__name__", type(source).__name__))


def _features(source: Source) -> set[Feature]:
    """What the class is sure to do, by what it has made anew. Only what no server could ignore in silence is looked at."""
    if _kind(source) != "chat":
        return set()
    found = {Feature.SYSTEM}
    if isinstance(source, str) or inspect.isfunction(source):
        return found
    kind: Any = source if isinstance(source, type) else type(source)
    base: Any = sys.modules[f"{_CORE}.language_models.chat_models"].BaseChatModel
    if kind.bind_tools is not base.bind_tools:
        found.add(Feature.TOOLS)
    if kind.with_structured_output is not base.with_structured_output:
        method = inspect.signature(kind.with_structured_output).parameters.get("method")
        methods = str(method.annotation) if method is not None else ""
        if "json_schema" in methods:
            found.add(Feature.JSON_SCHEMA)
        if "json_mode" in methods:
            found.add(Feature.JSON_OBJECT)
    return found
