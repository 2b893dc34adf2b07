"""The rules of embedding about what may be asked for: dimensions, long texts and short ones, prefixes, and what it took."""

from __future__ import annotations

from functools import partial

from llm_hub.capabilities import Feature
from llm_hub.errors import ContextOverflow, InvalidRequest, UnsupportedFeature
from llm_hub.testing.conformance.bench import BACKEND, Ended
from llm_hub.testing.conformance.embedding_bench import TEXTS, EmbeddingBench, likeness
from llm_hub.testing.conformance.rules import RuleBook, expect, not_here

__all__ = ["RULES"]

RULES: RuleBook[EmbeddingBench] = RuleBook()

_EXACT = 0.999999
"""The least cosine of two vectors that are to be the same."""


@RULES.rule(
    "dimensions",
    "With `dimensions` vectors have that many numbers: the first of the whole vector, scaled.",
    remedy="Send `dimensions` to the server, or cut and scale the vectors yourself; if the model cannot, do not declare "
    "Feature.DIMENSIONS.",
    feature=Feature.DIMENSIONS,
)
def dimensions(bench: EmbeddingBench) -> None:
    """Through the hub, which refuses vectors of another dimension."""
    wanted = bench.requirements.cut_to
    for way in bench.ways:
        whole = bench.hub_embed(way, TEXTS[:2])
        found = bench.embed(way, *TEXTS[:2], dimensions=wanted)
        got = found.dimension
        expect(got == wanted, f"{way} with dimensions={wanted} gave {got} dimensions")
        expect(
            (whole.dimension or 0) > wanted,
            f"the model has {whole.dimension} dimensions, so cut_to={wanted} cuts nothing",
        )
        for cut, full in zip(found.vectors, whole.vectors, strict=True):
            cosine = likeness(cut, full[:wanted])
            expect(
                cosine >= bench.requirements.likeness or not bench.requirements.prefix_of_whole,
                f"{way} with dimensions={wanted}: not the first {wanted} numbers of the whole vector (cosine {cosine:.4f})",
            )
        if bench.requirements.normalized:
            expect(found.normalized, f"{way} with dimensions={wanted} gave the lengths {found.norms}, not 1")
        if Feature.DIMENSIONS in bench.features:  # else the hub lets nobody ask
            bench.hub_embed(way, TEXTS[:2], dimensions=wanted)


@RULES.rule(
    "dimensions.refused",
    "More dimensions than the model has are refused (UnsupportedFeature, InvalidRequest), never padded and never ignored.",
    remedy="Leave it to the server, and let its error through; do not change vectors so that they fit.",
)
def too_many_dimensions(bench: EmbeddingBench) -> None:
    """One more than there are."""
    if Feature.DIMENSIONS not in bench.features:
        not_here("dimensions is not declared")
    for way in bench.ways:
        whole = bench.embed(way, TEXTS[0]).dimension or 0
        ended = Ended(partial(bench.hub_embed, way, TEXTS[:1], dimensions=whole + 1), way)
        ended.what = f"{way} with dimensions={whole + 1}, of a model that has {whole}"
        ended.raised(UnsupportedFeature, InvalidRequest)


def _long(limit: int, tail: str) -> str:
    """A text that is surely over the limit, and differs from the next one only beyond it."""
    return "word " * (limit + 8) + f"{tail} " * (limit + 8)


@RULES.rule(
    "overflow",
    "A text over the model's limit is ContextOverflow with both numbers, and never cut in silence.",
    remedy="Ask the server not to cut (Ollama: `truncate: false`), map its error to ContextOverflow, and tell `max_input` in "
    "models(); an engine counts the tokens.",
)
def overflow(bench: EmbeddingBench) -> None:
    """Where there is no limit, the end of a long text counts."""
    if not bench.requirements.limited:
        for way in bench.ways:
            one, other = bench.embed(way, _long(4000, "lighthouse"), _long(4000, "bread")).vectors
            cosine = likeness(one, other)
            expect(cosine < 0.9999, f"{way}: what comes late in a long text does not count (cosine {cosine:.6f})")
        return
    limit = bench.limit()
    text = _long(limit, "end")
    for way in bench.ways:
        ended = Ended(partial(bench.embed, way, TEXTS[0], text), way)
        ended.what = f"{way} of a text of more than {limit} tokens"
        ended.raised(ContextOverflow)
        through = Ended(partial(bench.hub_embed, way, [TEXTS[0], text]), way)
        through.what = f"{way} through the hub, of a text of more than {limit} tokens"
        error = through.raised(ContextOverflow)
        expect(
            error.tokens and error.limit and error.tokens > error.limit,
            f"{through}: of the numbers it has tokens={error.tokens} and limit={error.limit}",
        )
        expect(error.backend == BACKEND, f"{through}: it names the backend {error.backend!r}")
        expect(
            abs((error.limit or 0) - limit) <= max(4, limit // 20),
            f"{through}: the limit is {error.limit} tokens by the error, and {limit} by models() or the requirements",
        )


@RULES.rule(
    "truncate",
    "With `truncate=True` a text over the limit is cut at the limit, and embedded.",
    remedy="Ask the server to cut (Ollama: `truncate: true`, vLLM: `truncate_prompt_tokens: -1`), or cut the tokens yourself; "
    "else set `truncates = False` and raise UnsupportedFeature.",
)
def truncate(bench: EmbeddingBench) -> None:
    """Two texts that differ only beyond the limit are the same when cut; what comes before it counts."""
    limit = bench.limit()
    texts = (_long(limit, "lighthouse"), _long(limit, "bread"), "bread " * (2 * limit + 16))
    for way in bench.ways:
        ended = Ended(partial(bench.embed, way, *texts, truncate=True), way)
        ended.what = f"{way} with truncate=True, of texts of more than {limit} tokens"
        if not bench.requirements.truncates:
            ended.raised(UnsupportedFeature, ContextOverflow)
            continue
        found = ended.given().vectors
        expect(len(found) == 3, f"{ended.what} gave {len(found)} vectors")
        beyond, before = likeness(found[0], found[1]), likeness(found[0], found[2])
        expect(
            beyond >= bench.requirements.likeness,
            f"{ended.what}: what is beyond the limit changed the vector ({beyond:.5f})",
        )
        expect(before < 0.9999, f"{ended.what}: what is before the limit does not count (cosine {before:.6f})")


@RULES.rule(
    "kinds",
    "A plugin puts no prefix before texts: that is done by the hub, once, as it is configured.",
    remedy="Pass the texts on as they are. If the server itself wants to know queries from documents, send `kind` in its own "
    "parameter and set `kinds = True`.",
)
def kinds(bench: EmbeddingBench) -> None:
    """The kind alone changes nothing; a configured prefix is as if it had been written into the text."""
    text = TEXTS[3]
    for way in bench.ways:
        (plain,) = bench.embed(way, text).vectors
        if bench.requirements.kinds:
            as_query, as_document = (bench.embed(way, text, kind=kind)[0] for kind in ("query", "document"))
            expect(
                likeness(as_query, as_document) < 0.9999, f"{way}: a query and a document have the same vector (kinds)"
            )
            continue
        for kind in ("query", "document"):
            (told,) = bench.embed(way, text, kind=kind).vectors
            cosine = likeness(plain, told)
            expect(cosine >= _EXACT, f"{way} with kind={kind!r} gave another vector (cosine {cosine:.5f})")


@RULES.rule(
    "prefixes",
    "Prefixes that are configured for queries and for documents are before the right texts.",
    remedy="Pass the texts on as they are: the hub has put the prefixes there.",
)
def prefixes(bench: EmbeddingBench) -> None:
    """Through a hub that is configured so."""
    if bench.requirements.kinds:
        not_here("the server itself tells queries from documents (kinds)")
    marks = {"query": "Find this for me: ", "document": "A page of a book: "}
    with bench.another(prefixes=marks) as fresh:
        for way in fresh.ways:
            for kind, mark in marks.items():
                found = fresh.hub_embed(way, TEXTS[:2], kind=kind).vectors
                written = fresh.alone(way, *[mark + text for text in TEXTS[:2]])
                for one, other in zip(found, written, strict=True):
                    cosine = likeness(one, other)
                    expect(
                        cosine >= fresh.requirements.likeness,
                        f"{way} with kind={kind!r} is not {mark!r} and the text (cosine {cosine:.5f})",
                    )


@RULES.rule(
    "empty",
    "No texts give no vectors (or InvalidRequest), and an empty text is InvalidRequest before anything is sent.",
    remedy="Return EmbedResponse(vectors=()) for a request without texts.",
)
def empty(bench: EmbeddingBench) -> None:
    """The bare backend without texts; the hub with an empty one."""
    for way in bench.ways:
        ended = Ended(partial(bench.embed, way), f"{way} of no texts")
        if ended.error is not None:
            ended.raised(InvalidRequest)
        else:
            expect(ended.given().vectors == (), f"{ended}")
        before = len(bench.server.requests) if bench.server is not None else 0
        expect(bench.hub_embed(way, []).vectors == (), f"{way} of no texts gave vectors through the hub")
        refused = Ended(partial(bench.hub_embed, way, ["a", ""]), f"{way} of an empty text, through the hub")
        refused.raised(InvalidRequest)
        sent = len(bench.server.requests) - before if bench.server is not None else 0
        expect(sent == 0, f"{sent} requests were sent for no text and for an empty one")


@RULES.rule(
    "usage",
    "The answer tells how many tokens the texts took, together.",
    remedy="Fill `usage.prompt_tokens`, or set `usage = False` and leave it None: never 0, never a guess.",
)
def usage(bench: EmbeddingBench) -> None:
    """Of two texts together as many as of each alone."""
    for way in bench.ways:
        one, other, both = (
            bench.embed(way, *texts).usage.prompt_tokens for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[:2])
        )
        if not bench.requirements.usage:
            expect(both is None, f"{way} tells {both} tokens, and the requirements say that it does not (usage)")
            continue
        expect(one and other and both, f"{way} tells {one}, {other} and {both} tokens")
        expect(both == (one or 0) + (other or 0), f"{way} tells {one} and {other} tokens, and {both} for both texts")
