"""The hub's routes as LangChain objects: `HubChatModel`, `HubLLM`, `HubEmbeddings`. Needs `llm-hub-core[langchain]`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from llm_hub.langchain.chat import HubChatModel as HubChatModel
    from llm_hub.langchain.embeddings import HubEmbeddings as HubEmbeddings
    from llm_hub.langchain.llm import HubLLM as HubLLM

_HOME = {"HubChatModel": "chat", "HubEmbeddings": "embeddings", "HubLLM": "llm"}

__all__ = ["HubChatModel", "HubEmbeddings", "HubLLM"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: each brings only the part of langchain-core that it needs."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'llm_hub.langchain' has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f"llm_hub.langchain.{home}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "langchain_core":
            raise
        raise ModuleNotFoundError(
            f"llm_hub.langchain.{name} needs langchain-core. Install it: pip install 'llm-hub-core[langchain]'",
            name=error.name,
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
