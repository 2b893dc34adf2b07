"""What LangChain takes for tools, tool choices and schemas, as plain values that the hub takes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from llm_hub.errors import InvalidRequest

__all__ = ["to_response_format", "to_tool_choice", "to_tools"]

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_WORDS = {"any": "required", "auto": "auto", "none": "none", "required": "required"}


def to_tools(tools: Sequence[AnyTool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """The tools as OpenAI writes them (plain dicts: a bound model can be stored as JSON).

    Raises InvalidRequest for what is no tool, saying which.
    """
    made: list[dict[str, Any]] = []
    for at, tool in enumerate(tools):
        if isinstance(tool, Mapping) and tool.get("type", "function") != "function" and "function" not in tool:
            kind = tool["type"]
            if "properties" not in tool:
                raise InvalidRequest(
                    f"tools[{at}] is a tool of type {kind!r}, which only its own provider can run",
                    hint="Bind functions: a BaseTool, a callable, a Pydantic class, a TypedDict or a function schema.",
                )
        try:
            made.append(convert_to_openai_tool(tool, strict=strict))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest(
                f"tools[{at}] is no tool: {error}",
                hint="Bind a BaseTool, a callable with types, a Pydantic class, a TypedDict or a function schema.",
            ) from error
    return made


def to_tool_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """`"auto"`, `"none"`, `"required"` or a tool's name, of all the forms in which LangChain's users write it.

    These are: the words (`"any"` is `"required"`), a name, True (`"required"`), False (`"none"`), and dicts as OpenAI
    and Anthropic write them. Raises InvalidRequest for a tool that is not offered.
    """
    if choice is None:
        return None
    if isinstance(choice, bool):
        return "required" if choice else "none"
    names = [tool["function"]["name"] for tool in tools]
    name: Any = choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if name is None:
            name = choice.get("type")
        elif name not in names:
            raise InvalidRequest(f"tool_choice names {name!r}, which is not among the tools {names}")
        else:
            return str(name)
    if not isinstance(name, str) or (name not in names and name not in _WORDS):
        raise InvalidRequest(
            f"tool_choice is {choice!r}, and the tools are {names}",
            hint='Use "auto", "any", "none", or the name of a tool.',
        )
    return name if name in names else _WORDS[name]


def to_response_format(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """The response format that asks for JSON of this schema, as OpenAI writes it.

    `schema` is a Pydantic class, a TypedDict, a JSON schema with a title, or a function as OpenAI or Anthropic write it.
    Raises InvalidRequest for anything else.
    """
    try:
        made = convert_to_json_schema(schema, strict=strict)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(
            f"{schema!r} is no schema: {error}",
            hint="Use a Pydantic class, a TypedDict, or a JSON schema that has a title.",
        ) from error
    wanted: dict[str, Any] = {"name": str(made.get("title") or "response"), "schema": made}
    if strict is not None:
        wanted["strict"] = strict
    return {"type": "json_schema", "json_schema": wanted}
