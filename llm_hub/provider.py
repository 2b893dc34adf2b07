"""`get_provider`: the two lines by which code that has one backend written into it moves to the hub."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.capabilities import Capability, Rung
from llm_hub.errors import HubClosed
from llm_hub.hub import Hub, HubStatus

if TYPE_CHECKING:
    from llm_hub.langchain import HubChatModel, HubEmbeddings, HubLLM

__all__ = ["Provider", "get_provider"]

_lock = threading.Lock()
_latest: tuple[dict[str, str], Provider] | None = None


class Provider:
    """LangChain objects of one hub. All follow every later switch; none does I/O before it is asked something.

    They need langchain-core (`pip install 'llm-hub-core[langchain]'`); `hub`, `status` and `health_check` do not.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def __repr__(self) -> str:
        return "<Provider>"

    def initialize_llm(self, **defaults: Any) -> HubLLM:
        """A model of strings, as `langchain_ollama.OllamaLLM` is; `defaults` as `HubLLM` takes them."""
        from llm_hub.langchain import HubLLM

        return HubLLM(self.hub, **defaults)

    def initialize_chat_model(self, **defaults: Any) -> HubChatModel:
        """A chat model, as `langchain_ollama.ChatOllama` is; `defaults` as `HubChatModel` takes them."""
        from llm_hub.langchain import HubChatModel

        return HubChatModel(self.hub, **defaults)

    def initialize_embeddings(self, **defaults: Any) -> HubEmbeddings:
        """Embeddings, as `langchain_ollama.OllamaEmbeddings` are; `defaults` as `HubEmbeddings` takes them."""
        from llm_hub.langchain import HubEmbeddings

        return HubEmbeddings(self.hub, **defaults)

    def initialize_vision(self, **defaults: Any) -> HubChatModel:
        """A chat model on the route of vision, for messages with images. (Without LangChain: `provider.hub.vision()`.)"""
        from llm_hub.langchain import HubChatModel

        return HubChatModel(self.hub, capability="vision", **defaults)

    def health_check(
        self, capabilities: Iterable[Capability | str] = (Capability.TEXT,), *, timeout: float = 5.0
    ) -> bool:
        """Can these be served right now? `timeout` in seconds for each backend; `status` says why not."""
        return self.status(capabilities, timeout=timeout).ready

    def status(
        self,
        capabilities: Iterable[Capability | str] = (Capability.TEXT,),
        *,
        rung: Rung = Rung.MODEL_PRESENT,
        timeout: float = 5.0,
    ) -> HubStatus:
        """Which backends serve these, each probed up to `rung` of the health ladder."""
        return self.hub.status(capabilities, rung=rung, timeout=timeout)

    def close(self) -> None:
        """Close the hub."""
        self.hub.close()


def get_provider(environ: Mapping[str, str] | None = None) -> Provider:
    """The provider that the environment describes: what `LLM_PROVIDER` and the other settings say, else Ollama.

    Unlike a hub with nothing set, it never turns to the embedded models: code that was written against Ollama goes on
    speaking to Ollama, and fails if there is none. As long as the environment is the same, so is the provider.
    Raises SettingsError, which names the variable or the line.
    """
    global _latest
    now = dict(os.environ if environ is None else environ)
    with _lock:
        if _latest is None or _latest[0] != now or _closed(_latest[1].hub):
            provider = Provider(_hub(now))
            atexit.register(provider.close)
            _latest = now, provider
        return _latest[1]


def _hub(environ: Mapping[str, str]) -> Hub:
    from llm_hub.discovery import installed
    from llm_hub.settings import Settings

    names = {plugin.name for plugin in installed()}
    settings = Settings.from_env(environ, plugins=names)
    # As if OLLAMA_HOST were set, to what it is by default: then the last rule is Ollama, whether it answers or not.
    meant = msgspec.structs.replace(settings, ollama_variables=(*settings.ollama_variables, "get_provider()"))
    return Hub(meant, reread=lambda: Settings.from_env(environ, plugins=names))


def _closed(hub: Hub) -> bool:
    try:
        return hub.epoch < 0
    except HubClosed:
        return True
