"""`HubLLM`: the hub's text route as a LangChain model of strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from llm_hub.errors import InvalidRequest
from llm_hub.langchain.answers import from_usage, metadata_of
from llm_hub.langchain.common import HubTextObject

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun

    from llm_hub.hub import Hub
    from llm_hub.messages import ChatResponse
    from llm_hub.text import TextHandle

__all__ = ["HubLLM"]


class HubLLM(HubTextObject, BaseLLM):
    """A model that takes a string and gives a string, as `langchain_community.llms.Ollama` did: `HubLLM(hub)`.

    The string is what a user says to a chat model; `system` goes before it. Otherwise as `HubChatModel`; what that has
    in the metadata of a message stands here in `generation_info`.
    """

    system: str | None = None

    if TYPE_CHECKING:  # what a class inherits is not looked at for models of Pydantic

        def __init__(self, hub: Hub | None = None, **defaults: Any) -> None: ...

    @property
    def _llm_type(self) -> str:
        return "llm-hub"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        parameters = self._parameters()
        return parameters if self.system is None else {**parameters, "system": self.system}

    def _ask(
        self, stop: list[str] | None, given: Mapping[str, Any], *, stream: bool
    ) -> tuple[TextHandle, dict[str, Any]]:
        handle, options = self._prepare(stop, given)
        if self.system is not None:
            options.setdefault("system", self.system)
        if stream and options.get("n", 1) != 1:
            raise InvalidRequest(f"{options['n']} answers cannot be streamed as one text", hint="Use invoke, or n=1.")
        return handle, options

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        handle, options = self._ask(stop, kwargs, stream=False)
        return LLMResult(generations=[_generations(handle.chat(prompt, **options)) for prompt in prompts])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        handle, options = self._ask(stop, kwargs, stream=False)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(handle.achat(prompt, **options)) for prompt in prompts]
        except ExceptionGroup as failed:  # the others were cancelled; callers know single errors
            raise failed.exceptions[0] from None
        return LLMResult(generations=[_generations(task.result()) for task in tasks])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        handle, options = self._ask(stop, kwargs, stream=True)
        with handle.stream(prompt, **options) as stream:
            for chunk in stream:
                if chunk.text:
                    piece = GenerationChunk(text=chunk.text)
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=piece)
                    yield piece
            yield GenerationChunk(text="", generation_info=_info(stream.response, 0))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        handle, options = self._ask(stop, kwargs, stream=True)
        async with handle.astream(prompt, **options) as stream:
            async for chunk in stream:
                if chunk.text:
                    piece = GenerationChunk(text=chunk.text)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=piece)
                    yield piece
            yield GenerationChunk(text="", generation_info=_info(stream.response, 0))

    def get_num_tokens(self, text: str) -> int:
        """How many tokens the text is as a prompt, as the backend counts (an estimate where it cannot)."""
        return self._prepare(None, {})[0].count_tokens(text).tokens


def _generations(response: ChatResponse) -> list[Generation]:
    return [
        Generation(text=choice.message.text, generation_info=_info(response, at))
        for at, choice in enumerate(response.choices)
    ]


def _info(response: ChatResponse, at: int) -> dict[str, Any]:
    choice = response.choices[at]
    info = {**metadata_of(response), "finish_reason": choice.finish_reason}
    if choice.message.reasoning:
        info["reasoning_content"] = choice.message.reasoning
    if at == 0 and (usage := from_usage(response.usage)) is not None:
        info["usage_metadata"] = usage
    return info
