"""Answers that follow a schema: what is asked for, and parsers that take no part for the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from llm_hub.errors import InvalidRequest
from llm_hub.langchain.tools import to_response_format, to_tools

if TYPE_CHECKING:
    from llm_hub.langchain.chat import HubChatModel

__all__ = ["structured"]


def structured(
    model: HubChatModel,
    schema: Any,
    *,
    method: str,
    include_raw: bool,
    strict: bool | None,
    options: dict[str, Any],
) -> Runnable[Any, Any]:
    """The chain of model and parser; see `HubChatModel.with_structured_output`."""
    if schema is None:
        raise InvalidRequest("there is no schema", hint="Give a Pydantic class, a TypedDict, or a JSON schema.")
    if isinstance(schema, Mapping) and not {"title", "name", "function"} & set(schema):
        schema = {"title": "response", **schema}  # LangChain knows schemas by their title
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    asked: dict[str, Any] = {"method": method} if strict is None else {"method": method, "strict": strict}
    told = {"kwargs": asked, "schema": schema}
    parser: Runnable[Any, Any]
    if method == "function_calling":
        (tool,) = to_tools([schema], strict=strict)
        name = tool["function"]["name"]
        bound: Runnable[Any, Any] = model.bind_tools(
            [schema], tool_choice=name, strict=strict, ls_structured_output_format=told, **options
        )
        parser = (
            _CalledObject(tools=[schema], first_tool_only=True)
            if is_class
            else _Called(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        if method == "json_mode" and strict is not None:
            raise InvalidRequest("strict means nothing in JSON mode", hint='Use method="json_schema".')
        wanted = {"type": "json_object"} if method == "json_mode" else to_response_format(schema, strict=strict)
        bound = model.bind(response_format=wanted, ls_structured_output_format=told, **options)
        parser = _WholeObject(pydantic_object=schema) if is_class else _Whole(required=_required(schema))
    else:
        raise InvalidRequest(
            f"the method {method!r} is not known", hint='Use "json_schema", "function_calling" or "json_mode".'
        )
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _required(schema: Any) -> tuple[str, ...]:
    return tuple(to_response_format(schema)["json_schema"]["schema"].get("required", ()))


def _check_whole(result: list[Generation]) -> None:
    """Raise OutputParserException for an answer that was cut: LangChain's own parsers complete it by guessing."""
    generation = result[0]
    if isinstance(generation, ChatGeneration):
        reason = generation.message.response_metadata.get("finish_reason")
        if reason in ("length", "content_filter"):
            why = "max_tokens, or the context," if reason == "length" else "a content filter"
            raise OutputParserException(
                f"the answer was cut by {why} before it was whole: {generation.text[:200]!r}. "
                "Allow more tokens, or ask for less.",
                llm_output=generation.text,
            )


class _Whole(JsonOutputParser):
    """JSON, as it stands: complete, and with all that the schema requires."""

    required: tuple[str, ...] = ()

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        value = _json(result)
        missing = [name for name in self.required if not isinstance(value, dict) or name not in value]
        if missing:
            raise OutputParserException(
                f"the answer does not follow the schema, it lacks {', '.join(missing)}: {result[0].text[:200]!r}. "
                'Say in the prompt what is wanted, or use method="json_schema", which backends enforce.',
                llm_output=result[0].text,
            )
        return value


class _WholeObject(PydanticOutputParser[Any]):
    """The same, as an instance of a Pydantic class, which checks it."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        return self._parse_obj(_json(result))


def _json(result: list[Generation]) -> Any:
    _check_whole(result)
    text = result[0].text.strip()
    if text.startswith("```") and text.endswith("```"):  # JSON mode of models that were taught Markdown
        text = text.strip("`").removeprefix("json").strip()
    try:
        return json.loads(text)
    except ValueError as error:
        raise OutputParserException(
            f"the answer is no JSON ({error}): {text[:200]!r}. The model, or its server, ignored what was asked for.",
            llm_output=text,
        ) from error


def _check_called(result: list[Generation], value: Any) -> Any:
    """Raise OutputParserException where LangChain's own parsers say None."""
    if value is None:
        generation = result[0]
        raise OutputParserException(
            f"the model did not call the tool, but said {generation.text[:200]!r}. "
            'Use method="json_schema", which backends enforce.',
            llm_output=generation.text,
        )
    return value


class _Called(JsonOutputKeyToolsParser):
    """The arguments of the call."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        _check_whole(result)
        return _check_called(result, super().parse_result(result))


class _CalledObject(PydanticToolsParser):
    """The arguments of the call, as an instance of a Pydantic class, which checks them."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        _check_whole(result)
        return _check_called(result, super().parse_result(result))
