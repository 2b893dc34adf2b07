"""The vectors of one backend: with its prefixes, in batches, every answer checked, and what is too long explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from llm_hub.call import Call
from llm_hub.config import BatchLimits
from llm_hub.embedding_prefixes import prefix_for
from llm_hub.errors import BackendError, ContextOverflow, ProtocolError, UnsupportedFeature
from llm_hub.messages import EmbedRequest, EmbedResponse, Timings, Usage
from llm_hub.runtime import Destination, Runtime
from llm_hub.vectors import check_vectors
from llm_hub.worlds import World

__all__ = ["batches", "embed_all"]

_BYTES_A_TOKEN = 4  # of English prose in UTF-8; for an estimate that is called one


async def embed_all(
    world: World,
    runtime: Runtime,
    destination: Destination,
    request: EmbedRequest,
    call: Call,
    *,
    done: list[EmbedResponse] | None = None,
) -> EmbedResponse:
    """All vectors from this destination. Every batch is checked, and all of them together are one answer.

    `done` keeps the answers to the first batches: after a failure it goes on behind them.

    Raises ProtocolError for vectors that cannot be right, ContextOverflow with both numbers.
    """
    prefix = prefix_for(request.kind, destination.model, destination.prefixes)
    texts = request.texts if not prefix else tuple([prefix + text for text in request.texts])
    answers = done if done is not None else []
    first = 0
    for number, batch in enumerate(batches(texts, destination.batch)):
        if number < len(answers):
            first += len(batch)
            continue
        call.check(destination.name)
        part = msgspec.structs.replace(request, texts=batch)
        try:
            answer = await world.embed(destination.backend, part, call)
        except ContextOverflow as error:
            await _explain(world, runtime, destination, error, batch, first, len(texts), call)
            raise
        dimension = answers[0].dimension if answers else None
        try:
            check_vectors(answer, len(batch), first=first, dimension=dimension, asked=request.dimensions)
        except (ProtocolError, UnsupportedFeature) as error:
            error.backend = destination.name
            raise
        answers.append(answer)
        first += len(batch)
    return answers[0] if len(answers) == 1 else _together(answers)


def batches(texts: Sequence[str], limits: BatchLimits) -> Iterator[tuple[str, ...]]:
    """The texts in order, in as few pieces as the limits allow. A text over the limit of characters goes alone."""
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and (index - start >= limits.texts or size + len(text) > limits.characters):
            yield tuple(texts[start:index])
            start, size = index, 0
        size += len(text)
    if start < len(texts):
        yield tuple(texts[start:])


def _together(answers: Sequence[EmbedResponse]) -> EmbedResponse:
    counts = [answer.usage.prompt_tokens for answer in answers]
    known = [count for count in counts if count is not None]
    loads = [answer.timings.load for answer in answers if answer.timings.load is not None]
    prompts = [answer.timings.prompt for answer in answers if answer.timings.prompt is not None]
    return EmbedResponse(
        vectors=tuple([vector for answer in answers for vector in answer.vectors]),
        model=answers[0].model,
        usage=Usage(prompt_tokens=sum(known) if len(known) == len(counts) else None),
        timings=Timings(load=sum(loads) if loads else None, prompt=sum(prompts) if prompts else None),
    )


async def _explain(
    world: World,
    runtime: Runtime,
    destination: Destination,
    error: ContextOverflow,
    batch: Sequence[str],
    first: int,
    count: int,
    call: Call,
) -> None:
    """Say which text is too long, and put in the numbers that the server left out."""
    limit = error.limit or await _limit(world, runtime, destination, call)
    sizes = [len(text.encode()) for text in batch]
    longest = max(range(len(batch)), key=sizes.__getitem__)
    tokens, said = error.tokens, ""
    least = limit + 1 if limit else 1
    if tokens is None or tokens == least:  # vLLM stops counting there
        tokens, said = max(-(-sizes[longest] // _BYTES_A_TOKEN), least), "about "
    which = f"text {first + longest}" + ("" if len(batch) == 1 else ", the longest of its batch,")
    error.message = f"{which} is too long: {said}{tokens} tokens, where the model takes {limit or 'fewer'}. It says: {error.message}"
    error.tokens, error.limit = tokens, limit
    error.hint = "Split the text, or pass truncate=True to have it cut."


async def _limit(world: World, runtime: Runtime, destination: Destination, call: Call) -> int | None:
    key = (destination.name, destination.model or "")
    if key not in runtime.known:
        try:
            await runtime.models(world, destination.name, destination.backend, call)
        except BackendError:
            return None  # the error stands without the number
    known = runtime.known.get(key)
    lengths = [] if known is None else [one for one in (known.max_input, known.context_length) if one]
    return min(lengths, default=None)
