"""The rules of embedding: a vector for each text, in their order, always the same, and never of a part of a text in silence."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llm_hub.capabilities import Feature, Rung
from llm_hub.errors import ContextOverflow, HubError, InvalidRequest, ProtocolError, UnsupportedFeature
from llm_hub.messages import EmbedResponse
from llm_hub.testing.conformance.bench import BACKEND, Ended
from llm_hub.testing.conformance.embedding_bench import TEXTS, EmbeddingBench, Vector, likeness
from llm_hub.testing.conformance.rules import Broken, Needs, RuleBook, expect, not_here
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

RULES: RuleBook[EmbeddingBench] = RuleBook()

_EXACT = 0.999999
"""The least cosine of two vectors that are to be the same."""


# -- one vector for each text -----------------------------------------------------------------------------------------


@RULES.rule(
    "count",
    "As many vectors come as texts were given.",
    remedy="Return one vector for each text of the request, also for texts that occur twice; count what the server sends.",
)
def count(bench: EmbeddingBench) -> None:
    """One, two, and many, some of them equal."""
    for way in bench.ways:
        for texts in (TEXTS[:1], TEXTS[:2], (*TEXTS, *TEXTS, TEXTS[0])):
            response = bench.embed(way, *texts)
            expect(
                len(response.vectors) == len(texts), f"{way} of {len(texts)} texts gave {len(response.vectors)} vectors"
            )


@RULES.rule(
    "vectors",
    "The vectors of one model have one dimension, and numbers that are finite and not all zero; `models()` tells the dimension right.",
    remedy="Pass on what the model computes, as tuples of float; correct `embedding_dimension`, or leave it None.",
)
def vectors(bench: EmbeddingBench) -> None:
    """Of several texts at once and of one alone."""
    info = bench.info()
    for way in bench.ways:
        found = [*bench.embed(way, *TEXTS).vectors, *bench.embed(way, TEXTS[0]).vectors]
        for vector in found:
            expect(isinstance(vector, tuple), f"{way} gave a vector that is a {type(vector).__name__}, not a tuple")
            other = {type(one).__name__ for one in vector} - {"float"}
            expect(not other, f"{way} gave a vector that holds {', '.join(sorted(other))} and not only float")
            expect(math.isfinite(math.hypot(*vector)), f"{way} gave a vector with numbers that are not finite")
            expect(any(vector), f"{way} gave a vector that is all zero")
        dimensions = sorted({len(vector) for vector in found})
        expect(len(dimensions) == 1, f"{way} gave vectors of {' and '.join(map(str, dimensions))} dimensions")
        told = info.embedding_dimension if info is not None else None
        expect(told in (None, dimensions[0]), f"models() tells {told} dimensions, and {way} gave {dimensions[0]}")


@RULES.rule(
    "order",
    "The vectors come in the order of their texts: in a batch each text has the vector that it has alone.",
    remedy="Put the vectors into the order of the texts; where the server numbers them (`index`), go by the numbers. A text's "
    "vector must not depend on its neighbours: mask the padding.",
)
def order(bench: EmbeddingBench) -> None:
    """A batch of texts of different lengths, and each of them alone."""
    texts = [*TEXTS, TEXTS[0] * 8]
    for way in bench.ways:
        alone = bench.alone(way, *texts)
        together = bench.embed(way, *texts).vectors
        _same(bench, together, alone, way, texts)


def _same(
    bench: EmbeddingBench, found: Sequence[Vector], wanted: Sequence[Vector], what: str, texts: Sequence[str]
) -> None:
    expect(len(found) == len(wanted), f"{what} of {len(wanted)} texts gave {len(found)} vectors")
    least = bench.requirements.likeness
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        expect(len(one) == len(other), f"{what}: vector {index} has {len(one)} numbers, and {len(other)} alone")
        cosine = likeness(one, other)
        if cosine >= least:
            continue
        nearest = max(range(len(wanted)), key=lambda at: likeness(one, wanted[at]))
        expect(
            nearest == index,
            f"{what}: vector {index} is that of text {nearest} ({texts[nearest][:40]!r}), not of text {index} ({texts[index][:40]!r})",
        )
        raise Broken(
            f"{what}: the vector of text {index} has a cosine of {cosine:.5f} with that of the same text alone; "
            f"at least {least} are required (likeness)"
        )


@RULES.rule(
    "batches",
    "What the hub sends in several batches comes back as one answer, in order.",
    remedy="Keep no state between requests; answer each with the vectors of its own texts.",
)
def batches(bench: EmbeddingBench) -> None:
    """Three texts a request."""
    with bench.another(batch={"texts": 3}) as fresh:
        for way in fresh.ways:
            alone = fresh.alone(way, *TEXTS)
            before = len(fresh.server.requests) if fresh.server is not None else 0
            response = fresh.hub_embed(way, TEXTS)
            _same(fresh, response.vectors, alone, f"{way} in batches of 3", TEXTS)
            if fresh.server is not None:
                sent = len(fresh.server.requests) - before
                expect(sent >= 3, f"{way} of 7 texts in batches of 3 sent {sent} requests")


@RULES.rule(
    "repeatable",
    "A text has the same vector each time, in one request and in several, sync and async.",
    remedy="Take out what is random: dropout, sampling, a cache that is keyed wrongly.",
)
def repeatable(bench: EmbeddingBench) -> None:
    """Twice in one request, and again in another."""
    first: Vector | None = None
    for way in bench.ways:
        for _ in range(2):
            found = bench.embed(way, TEXTS[1], TEXTS[3], TEXTS[1]).vectors
            expect(len(found) == 3, f"{way} of 3 texts gave {len(found)} vectors")
            expect(likeness(found[0], found[2]) >= _EXACT, f"{way} gave one text two vectors in one request")
            first = first or found[0]
            expect(likeness(first, found[0]) >= _EXACT, f"{way} gave a text another vector than before")


@RULES.rule(
    "distinct",
    "Texts that have nothing to do with each other have different vectors.",
    remedy="Look at what is sent: the texts must arrive whole, and each be embedded by itself.",
)
def distinct(bench: EmbeddingBench) -> None:
    """Every pair of them, and two texts that differ only at their end."""
    texts = [*TEXTS, f"{TEXTS[0]} {TEXTS[3]}", f"{TEXTS[0]} {TEXTS[6]}"]
    found = bench.embed(bench.ways[0], *texts).vectors
    for at, one in enumerate(found):
        for other in range(at):
            cosine = likeness(one, found[other])
            expect(
                cosine < 0.9999,
                f"the vectors of {texts[other][:60]!r} and {texts[at][:60]!r} are the same (cosine {cosine:.6f})",
            )


@RULES.rule(
    "unit",
    "Vectors have the length 1 where the requirements say so (`normalized`), and otherwise not.",
    remedy="Scale them, or set `normalized` to what is true.",
)
def unit(bench: EmbeddingBench) -> None:
    """Of all texts."""
    for way in bench.ways:
        response = bench.embed(way, *TEXTS)
        lengths = ", ".join(f"{one:.3f}" for one in response.norms)
        if bench.requirements.normalized:
            expect(response.normalized, f"{way} gave vectors of the lengths {lengths}")
        else:
            expect(not response.normalized, f"all vectors have the length 1, and normalized is False: {lengths}")


@RULES.rule(
    "unicode",
    "Any text is embedded: of every script, with emoji, control characters, quotes and line breaks.",
    remedy="Send UTF-8, escaped as JSON asks for; do not strip or encode texts yourself.",
)
def unicode(bench: EmbeddingBench) -> None:
    """A text of each kind: alone and together the same, and as it is in what was sent."""
    words = ["Grüße aus Köln", "春になると桜が咲く", "Съешь ещё этих булок", "مرحبا بالعالم", 'a "quoted" \\ text']
    others = ["😀👩‍👩‍👧", "tab\tnewline\nreturn\r", "nul \x00 here", "e\u0301 is é", "\ufeffmarked"]
    for way in bench.ways:
        before = len(bench.server.requests) if bench.server is not None else 0
        found = bench.embed(way, *words, *others).vectors
        if bench.server is not None:
            sent = b"".join(request.body for request in bench.server.requests[before:])
            for text in (*words, *others):
                spelt = [json.dumps(text, ensure_ascii=ascii)[1:-1].encode() for ascii in (True, False)]  # noqa: A001
                expect(any(one in sent for one in spelt), f"{way}: {text!r} did not arrive at the server as it is")
        expect(len(found) == 10, f"{way} of 10 texts gave {len(found)} vectors")
        for text, vector in zip([*words, *others], found, strict=True):
            expect(math.isfinite(math.hypot(*vector)) and any(vector), f"{way} gave no sound vector for {text!r}")
        _same(bench, found[:5], bench.alone(way, *words), way, words)


# -- what may be asked for --------------------------------------------------------------------------------------------


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


# -- what a server may send -------------------------------------------------------------------------------------------


@RULES.rule(
    "answers.wrong",
    "A server's answer with too few vectors, another dimension, NaN or zeros is ProtocolError, and never mended.",
    remedy="Decode the vectors as they come: no padding, no default for what is missing, no replacing of NaN.",
    needs=Needs.SERVER,
)
def wrong_answers(bench: EmbeddingBench) -> None:
    """Through the hub, which checks every vector that it is given."""
    for fault in (Fault.EMBED_WRONG_COUNT, Fault.EMBED_WRONG_DIMENSION, Fault.EMBED_NAN, Fault.EMBED_ZERO):
        # A hub of its own: after some failures the breaker of the shared one would be open.
        with bench.another() as fresh, fresh.faulty(fault) as active:
            for way in fresh.ways:
                ended = Ended(partial(fresh.hub_embed, way, TEXTS[:3]), way)
                ended.what = f"{way}, while the server shows {fault.name}"
                if not active.hits:
                    not_here("the server has no route for embeddings that this fault knows (/embed or /embeddings)")
                error = ended.raised(ProtocolError)
                expect(error.backend == BACKEND, f"{ended}: it names the backend {error.backend!r}")


@RULES.rule(
    "probe",
    "The probe of a model that embeds has it embed, and does not hold where its vectors are wrong.",
    remedy="In the GENERATING rung embed a word, and check the vector (llm_hub.vectors.check_vectors); never ask it to chat.",
    needs=Needs.SERVER,
)
def probe(bench: EmbeddingBench) -> None:
    """While all is well, and while the vectors are wrong."""
    before = len(bench.fake.requests)
    sound = bench.backend.probe(Rung.GENERATING, bench.model, bench.call())
    expect(sound.ok, f"the probe of a sound server reached {sound.rung!r}: {sound.detail}")
    paths = {request.path for request in bench.fake.requests[before:]}
    chats = sorted(path for path in paths if path.endswith(("/chat", "/completions", "/generate")))
    expect(not chats, f"the probe asked an embedding model to chat: {', '.join(chats)}")
    for fault in (Fault.EMBED_ZERO, Fault.EMBED_NAN, Fault.EMBED_WRONG_COUNT):
        with bench.faulty(fault) as active:
            Ended(partial(bench.embed, bench.ways[0], TEXTS[0]), "embed")
            if not active.hits:
                not_here("the server has no route for embeddings that this fault knows (/embed or /embeddings)")
            hits = active.hits
            found = bench.backend.probe(Rung.GENERATING, bench.model, bench.call())
            expect(active.hits > hits, "the probe of the rung GENERATING embeds nothing")
            expect(not found.ok, f"the probe holds while the server shows {fault.name}")


# -- many callers -----------------------------------------------------------------------------------------------------


@RULES.rule(
    "threads",
    "Calls from several threads at once get the vectors of their own texts.",
    remedy="Share nothing that changes between calls, or guard it with a lock: no buffer on the backend, no current request.",
)
def threads(bench: EmbeddingBench) -> None:
    """Eight threads, each with a text of its own."""
    wanted = dict(zip(TEXTS, bench.embed("embed", *TEXTS).vectors, strict=True))

    def work(number: int) -> tuple[str, EmbedResponse]:
        text = TEXTS[number % len(TEXTS)]
        return text, bench.embed("embed", text)

    with ThreadPoolExecutor(8) as pool:
        for text, response in pool.map(work, range(24)):
            _same(bench, response.vectors, [wanted[text]], "embed in 8 threads", [text])


@RULES.rule(
    "tasks",
    "Calls from several tasks of one event loop run side by side, and get the vectors of their own texts.",
    remedy="Await within the call; no lock that is held while waiting, and no state on the backend.",
)
def tasks(bench: EmbeddingBench) -> None:
    """Fourteen tasks, in two event loops one after the other."""
    wanted = dict(zip(TEXTS, bench.embed("embed", *TEXTS).vectors, strict=True))

    async def one(text: str) -> tuple[str, EmbedResponse]:
        return text, await bench.backend.aembed(bench.request(text), bench.call())

    async def all_of_them() -> list[tuple[str, EmbedResponse]]:
        return await asyncio.gather(*[one(text) for text in (*TEXTS, *TEXTS)])

    for _ in range(2):
        for text, response in bench.run(all_of_them()):
            _same(bench, response.vectors, [wanted[text]], "aembed in 14 tasks", [text])


@RULES.rule(
    "model.unfit",
    "A model that does not embed is an error of the hub, and never gives vectors.",
    remedy="Let the server's refusal through as UnsupportedFeature or ModelNotFound.",
    needs=Needs.SERVER,
)
def unfit(bench: EmbeddingBench) -> None:
    """The server's own text model, where it has one."""
    if getattr(bench.fake, "models", None) is None:
        not_here("the server has one model only")
    texts = [one for one in bench.fake.models.values() if not one.can("embedding")]  # type: ignore[attr-defined]
    if not texts:
        not_here("all models of the server embed")
    for way in bench.ways:
        ended = Ended(partial(bench.embed, way, "hello", model=texts[0].name), way)
        ended.what = f"{way} by {texts[0].name}, which is no model for embedding"
        ended.raised(HubError)
