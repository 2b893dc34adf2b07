"""`HubChatModel`: the hub's text route, or its vision route, as a LangChain chat model.

What only a call needs is imported by the first one, so that importing this costs no more than importing LangChain's own base.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models.chat_models import BaseChatModel

from llm_hub.errors import InvalidRequest
from llm_hub.langchain.common import HubTextObject

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from llm_hub.hub import Hub
    from llm_hub.messages import Message
    from llm_hub.text import TextHandle

__all__ = ["HubChatModel"]

_CHAT = frozenset({"tools", "tool_choice"})


class HubChatModel(HubTextObject, BaseChatModel):
    """A chat model behind which the hub chooses: `HubChatModel(hub)`, or `HubChatModel()` for that of the environment.

    Each call resolves the route anew, so it follows every switch. Options (`temperature`, `max_tokens`, `timeout`, ...)
    are defaults that a call, or `bind`, may set anew; `model` and `backend` likewise. Errors are those of
    `llm_hub.errors`. Messages carry `usage_metadata`, and in `response_metadata` `served_by`, `model_name`,
    `finish_reason` and `timings`; reasoning text is `additional_kwargs["reasoning_content"]` and a content block.
    """

    if TYPE_CHECKING:  # what a class inherits is not looked at for models of Pydantic

        def __init__(self, hub: Hub | None = None, **defaults: Any) -> None: ...

    @property
    def _llm_type(self) -> str:
        return "llm-hub"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self._parameters()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "llm_hub"
        if not params.get("ls_model_name"):
            params["ls_model_name"] = kwargs.get("backend") or self.backend or f"{self.capability} route"
        if "ls_stop" not in params and self.stop:
            params["ls_stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        return params

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return f"{super()._get_llm_string(stop=stop, **kwargs)}---{self._route(kwargs)}"

    # -- answering ----------------------------------------------------------------------------------------------------

    def _ask(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any], *, stream: bool
    ) -> tuple[TextHandle, tuple[Message, ...], dict[str, Any]]:
        from llm_hub.langchain.messages import to_messages

        handle, options = self._prepare(stop, given, _CHAT)
        if (tools := options.get("tools")) is not None:
            from llm_hub.langchain.tools import to_tool_choice

            if not tools:
                del options["tools"]  # none are offered
            choice = to_tool_choice(options.pop("tool_choice", None), tools)
            if choice is not None and tools:
                options["tool_choice"] = choice
        if stream and options.get("n", 1) != 1:
            raise InvalidRequest(
                f"{options['n']} answers cannot be streamed as one message", hint="Use invoke or generate, or n=1."
            )
        return handle, to_messages(messages), options

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        from llm_hub.langchain.answers import from_response

        handle, conversation, options = self._ask(messages, stop, kwargs, stream=False)
        return from_response(handle.chat(conversation, **options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        from llm_hub.langchain.answers import from_response

        handle, conversation, options = self._ask(messages, stop, kwargs, stream=False)
        return from_response(await handle.achat(conversation, **options))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        from llm_hub.langchain.answers import from_chunk, last_chunk

        handle, conversation, options = self._ask(messages, stop, kwargs, stream=True)
        with handle.stream(conversation, **options) as stream:
            for chunk in stream:
                if chunk.has_content or chunk.logprobs is not None:
                    yield from_chunk(chunk)
            yield last_chunk(stream.response)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        from llm_hub.langchain.answers import from_chunk, last_chunk

        handle, conversation, options = self._ask(messages, stop, kwargs, stream=True)
        async with handle.astream(conversation, **options) as stream:
            async for chunk in stream:
                if chunk.has_content or chunk.logprobs is not None:
                    yield from_chunk(chunk)
            yield last_chunk(stream.response)

    # -- counting -----------------------------------------------------------------------------------------------------

    def get_num_tokens(self, text: str) -> int:
        """How many tokens the text is as a prompt of its own, as the backend counts (an estimate where it cannot)."""
        return self._prepare(None, {})[0].count_tokens(text).tokens

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """How many tokens the conversation is, with the chat template and the tools, as the backend counts."""
        from llm_hub.langchain.tools import to_tools

        given = {} if not tools else {"tools": to_tools(tools)}
        handle, conversation, options = self._ask(messages, None, given, stream=False)
        return handle.count_tokens(conversation, **options).tokens

    # -- tools and schemas --------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call these tools.

        `tool_choice` is `"auto"`, `"any"` (or `"required"`, or True), `"none"` (or False), a tool's name, or a dict as
        OpenAI or Anthropic write it. What a backend cannot enforce is UnsupportedFeature when it is called.
        Raises InvalidRequest for what is no tool.
        """
        from llm_hub.langchain.tools import to_tool_choice, to_tools

        made = to_tools(tools, strict=strict)
        if (choice := to_tool_choice(tool_choice, made)) is not None:
            kwargs["tool_choice"] = choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=made, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with an instance of `schema`: a Pydantic class, a TypedDict, or a schema as a dict.

        `method`: `"json_schema"` has the backend force the answer to follow the schema; `"function_calling"` has the
        schema called as a tool; `"json_mode"` has it force any JSON object, and the prompt must say which.
        `include_raw` gives `{"raw": message, "parsed": value or None, "parsing_error": error or None}`. An answer that
        was cut, is no JSON or lacks what the schema requires is an OutputParserException. Further options are bound.
        """
        from llm_hub.langchain.structured import structured

        return structured(self, schema, method=method, include_raw=include_raw, strict=strict, options=kwargs)
