"""llm-hub: services ask for text, embedding or vision; plugins serve it."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing typing would be half the time of this module
if TYPE_CHECKING:
    from typing import Any

    from llm_hub.call import CancelToken as CancelToken
    from llm_hub.call import Timeouts as Timeouts
    from llm_hub.capabilities import Capability as Capability
    from llm_hub.capabilities import Feature as Feature
    from llm_hub.errors import HubError as HubError
    from llm_hub.hookspecs import hookimpl as hookimpl
    from llm_hub.hub import Hub as Hub
    from llm_hub.langchain.as_plugin import from_langchain as from_langchain
    from llm_hub.messages import ChatChunk as ChatChunk
    from llm_hub.messages import ChatRequest as ChatRequest
    from llm_hub.messages import ChatResponse as ChatResponse
    from llm_hub.messages import ImagePart as ImagePart
    from llm_hub.messages import Message as Message
    from llm_hub.messages import ResponseFormat as ResponseFormat
    from llm_hub.messages import TextPart as TextPart
    from llm_hub.messages import Tool as Tool
    from llm_hub.messages import ToolCall as ToolCall
    from llm_hub.provider import get_provider as get_provider
    from llm_hub.settings import Settings as Settings

__version__ = "0.1.0"

_HOME = {
    "CancelToken": "llm_hub.call",
    "Capability": "llm_hub.capabilities",
    "ChatChunk": "llm_hub.messages",
    "ChatRequest": "llm_hub.messages",
    "ChatResponse": "llm_hub.messages",
    "Feature": "llm_hub.capabilities",
    "Hub": "llm_hub.hub",
    "HubError": "llm_hub.errors",
    "ImagePart": "llm_hub.messages",
    "Message": "llm_hub.messages",
    "ResponseFormat": "llm_hub.messages",
    "Settings": "llm_hub.settings",
    "TextPart": "llm_hub.messages",
    "Timeouts": "llm_hub.call",
    "Tool": "llm_hub.messages",
    "ToolCall": "llm_hub.messages",
    "from_langchain": "llm_hub.langchain.as_plugin",
    "get_provider": "llm_hub.provider",
    "hookimpl": "llm_hub.hookspecs",
}

__all__ = [
    "CancelToken",
    "Capability",
    "ChatChunk",
    "ChatRequest",
    "ChatResponse",
    "Feature",
    "Hub",
    "HubError",
    "ImagePart",
    "Message",
    "ResponseFormat",
    "Settings",
    "TextPart",
    "Timeouts",
    "Tool",
    "ToolCall",
    "__version__",
    "from_langchain",
    "get_provider",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import llm_hub` itself imports nothing."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'llm_hub' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
