"""The rules of reading: the words that are on an image, where they are, how sure it is, and nothing where nothing is."""

from __future__ import annotations

import base64
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

from llm_hub.capabilities import Feature
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ImagePart, ReadResponse, Word
from llm_hub.testing.conformance.bench import Ended
from llm_hub.testing.conformance.rules import RuleBook, expect, not_here
from llm_hub.testing.conformance.vision_bench import VisionBench
from llm_hub.testing.pictures import draw
from llm_hub.testing.server import FakeServer
from llm_hub.testing.sights import BLANK, PAGE, PAGE_SIZE, PAGE_WORDS

__all__ = ["RULES"]

RULES: RuleBook[VisionBench] = RuleBook()
_WAYS = ("read", "aread")


def _reading(bench: VisionBench) -> None:
    if not bench.reads:
        not_here("it does not read (Feature.READ is not declared)")


def _of_page(bench: VisionBench, way: str) -> ReadResponse:
    response = bench.read_bare(way, PAGE)
    expect(isinstance(response, ReadResponse), f"{way} gave {response!r:.100}, which is no ReadResponse")
    return response


@RULES.rule(
    "read",
    "The words of a clean page are read, sync and async alike.",
    remedy="Return a ReadResponse with a Word for each word; set `page_words` for an engine that reads worse.",
    feature=Feature.READ,
)
def read(bench: VisionBench) -> None:
    """Three lines of English."""
    wanted = [text for text, *_ in PAGE_WORDS]
    said = []
    for way in _WAYS:
        found = [word.text for word in _of_page(bench, way).words]
        right = sum(found.count(text) >= 1 for text in wanted) / len(wanted)
        least = bench.requirements.page_words
        expect(right >= least, f"{way} read {' '.join(found)!r}, where {' '.join(wanted)!r} is written")
        said.append(found)
    expect(said[0] == said[1], f"read gave {' '.join(said[0])!r}, aread {' '.join(said[1])!r}")


@RULES.rule(
    "read.boxes",
    "Each word has a box around it: in pixels, from the upper left corner, inside the image, not empty.",
    remedy="(left, top, right, bottom), right and bottom exclusive; scale back what you have enlarged, and turn an image upright "
    "before you measure.",
)
def boxes(bench: VisionBench) -> None:
    """Inside the image all of them; those of known words where these were drawn."""
    _reading(bench)
    width, height = PAGE_SIZE
    drawn = {text: box for text, box, _ in PAGE_WORDS}
    slack = bench.requirements.box_slack
    for way in _WAYS:
        response = _of_page(bench, way)
        expect(
            (response.width, response.height) == PAGE_SIZE,
            f"{way} says that the image has {response.width} x {response.height} pixels; it has {width} x {height}",
        )
        for word in response.words:
            left, top, right, bottom = word.box
            expect(
                0 <= left < right <= width and 0 <= top < bottom <= height,
                f"{way} gave {word.text!r} the box {word.box}, which is not inside an image of {width} x {height} pixels",
            )
            expect(
                all(type(one) is int for one in word.box),
                f"{way} gave {word.text!r} a box that is not of int: {word.box}",
            )
            if word.text in drawn:
                off = max(abs(one - other) for one, other in zip(word.box, drawn[word.text], strict=True))
                expect(
                    off <= slack,
                    f"{way} gave {word.text!r} the box {word.box}, {off} pixels off {drawn[word.text]} (box_slack: {slack})",
                )


@RULES.rule(
    "read.confidence",
    "How sure it is of a word is a number from 0 to 1.",
    remedy="Scale percents down, and logarithms up.",
)
def confidence(bench: VisionBench) -> None:
    """Of each word, and high on a clean page."""
    _reading(bench)
    for way in _WAYS:
        response = _of_page(bench, way)
        for word in response.words:
            expect(
                type(word.confidence) in (float, int) and 0 <= word.confidence <= 1,
                f"{way} is sure of {word.text!r} by {word.confidence!r}",
            )
        mean = response.confidence or 0.0
        expect(mean >= 0.3, f"{way} is sure of the words of a clean page by {mean:.3f} only")


@RULES.rule(
    "read.lines",
    "The text has the words in their order, with a newline between lines; lines and paragraphs are counted from 0.",
    remedy="Build `text` from the words, or the words from the text; number lines and paragraphs over the whole image.",
)
def lines(bench: VisionBench) -> None:
    """The text and the words are the same, and words of one line are of one line."""
    _reading(bench)
    for way in _WAYS:
        response = _of_page(bench, way)
        words = list(response.words)
        expect(words, f"{way} read nothing")
        texts = [word.text for word in words]
        expect(
            " ".join(texts).split() == response.text.split(),
            f"{way}: the text is {response.text!r}, and the words are {texts}",
        )
        expect(all(word.text.strip() for word in words), f"{way} gave a word without text: {texts}")
        for name in ("line", "paragraph"):
            numbers: list[int] = [getattr(word, name) for word in words]
            expect(numbers == sorted(numbers), f"{way}: the numbers of the {name}s go back: {numbers}")
            expect(numbers[0] == 0, f"{way}: the {name}s are counted from {numbers[0]}")
            gaps = [after - one for one, after in pairwise(numbers) if after - one > 1]
            expect(not gaps, f"{way}: the numbers of the {name}s have gaps: {numbers}")
        if texts == [text for text, *_ in PAGE_WORDS]:
            found = [word.line for word in words]
            expect(found == [line for *_, line in PAGE_WORDS], f"{way} gave the words the lines {found}")
            rows = [line for line in response.text.split("\n") if line.strip()]
            expect(len(rows) == 3, f"{way} gave the text {response.text!r}, which has {len(rows)} lines and not 3")


@RULES.rule(
    "read.empty",
    "An image without text has none: no words, and the text is empty.",
    remedy="Leave out what is no word; an empty page is an answer, not an error.",
)
def empty(bench: VisionBench) -> None:
    """A white page."""
    _reading(bench)
    for way in _WAYS:
        response = bench.read_bare(way, BLANK)
        expect(
            not response.words and not response.text,
            f"{way} read {response.text!r} on a white page: {response.words!r:.200}",
        )
        expect(
            (response.width, response.height) == (300, 200),
            f"{way} says it has {response.width} x {response.height} pixels",
        )


@RULES.rule(
    "read.broken",
    "Bytes that are no image, or the beginning of one, are InvalidRequest.",
    remedy="Catch what your decoder raises, and raise InvalidRequest from it.",
)
def broken(bench: VisionBench) -> None:
    """On the bare backend, and by way of the hub."""
    _reading(bench)
    half = PAGE[: len(PAGE) // 2]
    for way in _WAYS:
        for what, data in (("bytes that are no image", b"this is no image at all"), ("half an image", half)):
            ended = Ended(partial(bench.read_bare, way, data), f"{way} of {what}")
            ended.raised(InvalidRequest)
            by_hub = Ended(partial(bench.read_by_hub, way, data), f"{way} of {what} by way of the hub")
            by_hub.raised(InvalidRequest)


@RULES.rule(
    "read.sources",
    "By way of the hub an image may be bytes, a path or a data: URI, the answer says who served it, and no URL is fetched.",
    remedy="Leave the image as the hub hands it over: it has made bytes of it.",
)
def sources(bench: VisionBench) -> None:
    """The same page each time."""
    _reading(bench)
    with tempfile.TemporaryDirectory() as folder, FakeServer() as bait:
        path = Path(folder) / "page.png"
        path.write_bytes(PAGE)
        uri = f"data:image/png;base64,{base64.b64encode(PAGE).decode()}"
        for way in _WAYS:
            texts = {}
            for what, source in {"bytes": PAGE, "a path": path, "a data: URI": uri}.items():
                response = bench.read_by_hub(way, source)
                expect(response.served_by is not None, f"{way} of {what} does not say who served it")
                texts[what] = response.text
            expect(len(set(texts.values())) == 1, f"{way} read one page in different ways: {texts}")
            Ended(partial(bench.read_by_hub, way, f"{bait.url}/page.png"), f"{way} of a URL").raised(InvalidRequest)
        expect(not bait.accepted, "somebody fetched the URL that was given as an image")


@RULES.rule(
    "read.languages",
    "A language that it cannot read is refused, with those that it can, before anything is read.",
    remedy="Raise UnsupportedFeature and name the languages; do not read in another one. If it knows no languages at all, refuse "
    "any that is asked for, or set `languages = False`.",
)
def languages(bench: VisionBench) -> None:
    """A code that no language has."""
    _reading(bench)
    if not bench.requirements.languages:
        not_here("the requirements say that languages do not matter to it (languages)")
    for way in _WAYS:
        ended = Ended(partial(bench.read_bare, way, PAGE, languages=("qzz",)), f"{way} in the language 'qzz'")
        ended.raised(UnsupportedFeature, InvalidRequest)


@RULES.rule(
    "read.at-once",
    "Several threads that read at once get what is on their own images.",
    remedy="Give each call an instance of the engine of its own, or guard the one that there is with a lock.",
)
def at_once(bench: VisionBench) -> None:
    """Six threads: every other page is white."""
    _reading(bench)
    wanted = bench.read_bare("read", PAGE).text

    def work(number: int) -> tuple[str, str]:
        return (wanted, bench.read_bare("read", PAGE).text) if number % 2 else ("", bench.read_bare("read", BLANK).text)

    with ThreadPoolExecutor(6) as pool:
        for right, found in pool.map(work, range(6)):
            expect(found == right, f"of six threads one read {found!r}, where {right!r} is written")


@RULES.rule(
    "read.shapes",
    "What is no text is not made up into words of which it is sure.",
    remedy="Drop what the engine itself is not sure of, or pass its low confidence on.",
)
def shapes(bench: VisionBench) -> None:
    """A picture of a circle."""
    _reading(bench)
    for way in _WAYS:
        response = bench.read_bare(way, ImagePart(draw(size=160)))
        sure: list[Word] = [word for word in response.words if word.confidence > 0.9 and len(word.text) > 2]
        expect(not sure, f"{way} read {[word.text for word in sure]} on a picture of a circle, and is sure of it")
