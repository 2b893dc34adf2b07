"""The rules of embedding about vectors: one for each text, in their order, always the same, and none that cannot be right."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llm_hub.capabilities import Rung
from llm_hub.errors import HubError, ProtocolError
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
