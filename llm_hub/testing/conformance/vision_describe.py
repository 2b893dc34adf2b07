"""The rules of describing images: the model sees each image that was given, in order and whole, and nobody fetches any."""

from __future__ import annotations

import base64
import struct
import tempfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_hub.capabilities import Feature
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatResponse, ImagePart, Message, TextPart
from llm_hub.testing.conformance import text_giving_up, text_streams
from llm_hub.testing.conformance.bench import Ended
from llm_hub.testing.conformance.rules import Needs, Rule, RuleBook, expect, not_here
from llm_hub.testing.conformance.vision_bench import CIRCLE, QUESTION, VisionBench
from llm_hub.testing.pictures import draw
from llm_hub.testing.server import FakeServer
from llm_hub.testing.sights import CIRCLE_JPEG

__all__ = ["RULES", "STREAMS"]

RULES: RuleBook[VisionBench] = RuleBook()
STREAMS: RuleBook[VisionBench] = RuleBook()
"""The rules of text about streams, for backends that describe."""


def _describing(bench: VisionBench) -> None:
    if not bench.describes:
        not_here("it does not describe images (Feature.IMAGES is not declared)")


def _adopt(rule: Rule[Any]) -> Rule[VisionBench]:
    """A rule of text, left unchecked where the backend describes nothing."""

    def check(bench: VisionBench) -> None:
        _describing(bench)
        rule.check(bench)

    return replace(rule, check=check)


STREAMS.rules.extend(_adopt(rule) for book in (text_streams.RULES, text_giving_up.RULES) for rule in book)


@RULES.rule(
    "describe",
    "A question about a picture is answered in each of the four ways (chat, achat, stream, astream), and alike.",
    remedy="Send each ImagePart with its message, under the name that the server has for it (image_url with a data: URI, "
    "images, ...).",
    feature=Feature.IMAGES,
)
def describe(bench: VisionBench) -> None:
    """All four ways."""
    said = {}
    for way in bench.describing_ways:
        response = bench.see(way, [draw()], bench.requirements.short)
        expect(isinstance(response, ChatResponse), f"{way} gave {response!r:.100}, which is no ChatResponse")
        expect(response.text, f"{way} gave an empty answer")
        expect(response.finish_reason == "stop", f"{way} ended with the finish reason {response.finish_reason!r}")
        said[way] = response.text
    expect(len(set(said.values())) == 1, f"the four ways gave different answers: {said}")
    if bench.exact and bench.requirements.short == QUESTION:
        expect(said["chat"] == CIRCLE, f"the answer was {said['chat']!r}, where the model says {CIRCLE!r}")


@RULES.rule(
    "describe.sees",
    "The answer is about the picture that was sent: another picture, another answer.",
    remedy="Send the bytes of the image of this request, whole, as base64; keep none from an earlier one.",
)
def sees(bench: VisionBench) -> None:
    """Pictures one after the other, and none in the end."""
    _describing(bench)
    if not bench.exact:
        not_here("the answers of this model are not known (exact)")
    wanted = {
        "A blue square on a gray background.": draw("blue", "square", "gray"),
        CIRCLE: draw(),
        "A green triangle on a white background.": draw("green", "triangle"),
    }
    for way in bench.describing_ways:
        for text, image in wanted.items():
            said = bench.see(way, [image], QUESTION).text
            expect(said == text, f"{way} answered {said!r}, where the picture is: {text}")
        said = bench.ask(way, bench.request(QUESTION)).text
        expect(said == "I see no image.", f"{way} answered {said!r} to a question without a picture")


@RULES.rule(
    "describe.several",
    "Several images arrive all, in their order.",
    remedy="Encode every ImagePart of a message, and keep the order of the parts; where the server takes one only, raise "
    "UnsupportedFeature and set `several_images = False`.",
)
def several(bench: VisionBench) -> None:
    """Two, one way round and the other."""
    _describing(bench)
    first, second = draw(), draw("blue", "square")
    for way in bench.describing_ways:
        if not bench.requirements.several_images:
            ended = Ended(partial(bench.see, way, [first, second], "Describe the images."), way)
            ended.what = f"{way} of two images"
            ended.raised(UnsupportedFeature, InvalidRequest)
            continue
        for images in ([first, second], [second, first]):
            before = len(bench.server.requests) if bench.server is not None else 0
            said = bench.see(way, images, "Describe the images.").text
            if bench.server is not None:
                _sent(bench, before, images, way)
            if bench.exact:
                names = {first: CIRCLE, second: "A blue square on a white background."}
                wanted = f"First: {names[images[0]]} Second: {names[images[1]]}"
                expect(said == wanted, f"{way} of two images answered {said!r}, where they are: {wanted}")


def _sent(bench: VisionBench, before: int, images: list[bytes], what: str) -> None:
    """Broken unless the requests since hold all of these images, whole, one after the other."""
    bodies = b"".join(request.body for request in bench.fake.requests[before:]).replace(b"\\/", b"/")
    at = 0
    for number, image in enumerate(images, start=1):
        found = max(bodies.find(base64.b64encode(image), at), bodies.find(image, at))
        there = bodies.find(base64.b64encode(image)) >= 0
        expect(
            found >= 0,
            f"{what}: image {number} of {len(images)} "
            + ("came out of its order" if there else "did not arrive at the server as it was given"),
        )
        at = found + 1


@RULES.rule(
    "describe.formats",
    "PNG and JPEG files reach the server as they are, byte for byte, and each under its own media type.",
    remedy="Send `data` and `media_type` of the ImagePart; do not call everything image/png, and do not compress anew.",
    needs=Needs.SERVER,
)
def formats(bench: VisionBench) -> None:
    """Both."""
    _describing(bench)
    for image, kind in ((draw(), "image/png"), (CIRCLE_JPEG, "image/jpeg")):
        for way in bench.describing_ways:
            before = len(bench.fake.requests)
            bench.see(way, [ImagePart(image, kind)], bench.requirements.short)
            _sent(bench, before, [image], f"{way} of an {kind}")
            bodies = b"".join(request.body for request in bench.fake.requests[before:])
            other = {"image/png", "image/jpeg"} - {kind}
            wrong = [one for one in other if one.encode() in bodies.replace(b"\\/", b"/")]
            expect(not wrong, f"{way} sent an {kind} as {', '.join(wrong)}")


@RULES.rule(
    "describe.sources",
    "By way of the hub an image may be bytes, a path or a data: URI, and the answer says who served it.",
    remedy="Leave the images as the hub hands them over: it has made bytes of them.",
)
def sources(bench: VisionBench) -> None:
    """The same picture each time."""
    _describing(bench)
    image = draw()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        path.write_bytes(image)
        uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        given = {"bytes": image, "a path": path, "a data: URI": uri}
        for way in bench.describing_ways:
            for what, source in given.items():
                response = bench.describe(way, source, bench.requirements.short)
                expect(response.text, f"{way} of {what} gave an empty answer")
                expect(response.served_by is not None, f"{way} of {what} does not say who served it")
                if bench.exact and bench.requirements.short == QUESTION:
                    expect(response.text == CIRCLE, f"{way} of {what} answered {response.text!r}")


@RULES.rule(
    "describe.history",
    "An image in an earlier message of a conversation is sent as well.",
    remedy="Encode the images of every message, not only of the last.",
)
def history(bench: VisionBench) -> None:
    """A picture, an answer, and a question about its colour."""
    _describing(bench)
    image = draw("green", "square")
    turns = [
        Message(role="user", content=(ImagePart(image), TextPart(QUESTION))),
        Message(role="assistant", content="A green square on a white background."),
        Message(role="user", content="What colour is it?"),
    ]
    for way in bench.describing_ways:
        before = len(bench.server.requests) if bench.server is not None else 0
        response = bench.ask(way, bench.request(turns))
        expect(response.text, f"{way} gave an empty answer")
        if bench.server is not None:
            _sent(bench, before, [image], f"{way} of a conversation")


@RULES.rule(
    "describe.broken",
    "Bytes that are no image, or the beginning of one, are InvalidRequest.",
    remedy="Map the server's refusal (400) to InvalidRequest; an engine checks what it decodes.",
)
def broken(bench: VisionBench) -> None:
    """On the bare backend what has the look of an image; by way of the hub also what has not."""
    _describing(bench)
    for way in bench.describing_ways:
        ended = Ended(partial(bench.see, way, [b"this is no image at all"], QUESTION), way)
        ended.what = f"{way} of bytes that are no image"
        ended.raised(InvalidRequest)
        for what, source in {"half an image": draw()[:70], "a text": b"no image", "nothing": b""}.items():
            before = len(bench.server.requests) if bench.server is not None else 0
            refused = Ended(partial(bench.describe, way, source, QUESTION), way)
            refused.what = f"{way} of {what}, by way of the hub"
            refused.raised(InvalidRequest)
            sent = len(bench.server.requests) - before if bench.server is not None else 0
            expect(sent == 0, f"{refused.what}: {sent} requests were sent")


@RULES.rule(
    "describe.no-fetch",
    "No URL is ever fetched: not one that is given as an image, and not one that stands in a prompt.",
    remedy="Send prompts as text and images as bytes. A plugin that follows URLs can be made to read its own network.",
)
def no_fetch(bench: VisionBench) -> None:
    """A server of its own tells whether anybody came."""
    _describing(bench)
    with FakeServer() as bait:
        url = f"{bait.url}/picture.png"
        for way in bench.describing_ways:
            before = len(bench.server.requests) if bench.server is not None else 0
            Ended(partial(bench.describe, way, url, QUESTION), f"{way} of a URL").raised(InvalidRequest)
            sent = len(bench.server.requests) - before if bench.server is not None else 0
            expect(sent == 0, f"{way} of a URL: {sent} requests were sent")
            Ended(partial(bench.see, way, [draw()], f"What is in this picture? See {url}"), way)
            Ended(partial(bench.ask, way, bench.request(f"![picture]({url}) What is this?")), way)
        expect(not bait.accepted, f"somebody fetched {url}, which stood in a prompt")


@RULES.rule(
    "describe.usage",
    "A picture counts: with it a prompt takes more tokens than without.",
    remedy="Pass on the server's own count; do not count the text yourself.",
)
def usage(bench: VisionBench) -> None:
    """The same question with and without."""
    _describing(bench)
    if not bench.requirements.usage:
        not_here("the requirements say that it does not count tokens (usage)")
    for way in bench.describing_ways:
        seen = bench.see(way, [draw()], QUESTION).usage.prompt_tokens
        blind = bench.ask(way, bench.request(QUESTION)).usage.prompt_tokens
        expect(seen and blind and seen > blind, f"{way} counted {seen} tokens with a picture and {blind} without")


@RULES.rule(
    "describe.large",
    "A large image arrives whole.",
    remedy="Do not cut bodies, and do not put images into URLs, headers or the command line.",
    needs=Needs.SERVER,
)
def large(bench: VisionBench) -> None:
    """Some 200 kB of noise behind the picture, in a chunk that PNG lets anybody add."""
    _describing(bench)
    image = _with_ballast(draw(), 200_000)
    for way in bench.describing_ways:
        before = len(bench.fake.requests)
        response = bench.see(way, [image], QUESTION)
        _sent(bench, before, [image], f"{way} of a large image")
        expect(not bench.exact or response.text == CIRCLE, f"{way} of a large image answered {response.text!r}")


def _with_ballast(png: bytes, size: int) -> bytes:
    """The PNG file with a private chunk of so many bytes before its end (the PNG specification, section 5.3)."""
    noise = bytes(number * 37 % 251 for number in range(size))
    body = b"hubT" + noise
    chunk = struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
    return png[:-12] + chunk + png[-12:]


@RULES.rule(
    "apart",
    "Describing and reading are apart: what a backend does not declare is refused by the hub, and never done by a prompt.",
    remedy="Declare Feature.IMAGES, Feature.READ or both, as it is.",
)
def apart(bench: VisionBench) -> None:
    """What is not declared."""
    if not bench.reads:
        Ended(lambda: bench.read_by_hub("read", draw()), "read, of a backend that does not,").raised(UnsupportedFeature)
    if not bench.describes:
        ended = Ended(lambda: bench.hub.vision().describe(draw(), QUESTION), "describe, of a backend that does not,")
        ended.raised(UnsupportedFeature)
    if bench.reads and bench.describes:
        not_here("it does both")
