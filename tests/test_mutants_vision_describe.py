"""For each rule of describing a plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import contextlib
import re
import urllib.request
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature
from llm_hub.dialect import HttpReply
from llm_hub.errors import BackendFailed, HubError
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import (
    ChatRequest,
    ChatResponse,
    ImagePart,
    Message,
    Part,
    ReadRequest,
    ReadResponse,
    TextPart,
    Usage,
)
from llm_hub.openai_dialect import server_root
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import Outcome, run_suite, vision_describe
from llm_hub.testing.conformance.mutants import Mutants, Parts, caught
from llm_hub.testing.vision import VisionRequirements
from llm_hub_vllm.dialect import FEATURES, VLLMDialect

DESCRIBES = PluginManifest(
    api_version="1.0", summary="describes, for tests", features=FEATURES | {Feature.IMAGES, Feature.READ}
)
"""That it reads is what one of the mutants makes the hub believe."""


class Describes(VisionRequirements):
    """The right plugin that describes."""

    images = True
    read = False

    def server(self) -> FakeVLLM:
        return FakeVLLM()


def described(part: type[Any], manifest: PluginManifest = DESCRIBES) -> object:
    """A plugin that describes, from a dialect or a backend."""

    def build(config: Any, context: Any) -> HttpBackend:
        backend, dialect = (part, VLLMDialect) if issubclass(part, HttpBackend) else (HttpBackend, part)
        return backend(
            dialect(capability=Capability.VISION),
            config=server_root(config),
            context=context,
            capability=Capability.VISION,
        )

    return Parts(Capability.VISION, manifest, build)


MUTANTS = Mutants(Describes, described)
breaks = MUTANTS.breaks


class Sees(VLLMDialect):
    """Sends other parts than those of the request."""

    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        return parts

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        messages = tuple(
            message
            if isinstance(message.content, str)
            else msgspec.structs.replace(message, content=self.parts(message.content, message, request))
            for message in request.messages
        )
        return super().encode_body(msgspec.structs.replace(request, messages=messages), stream=stream)


@breaks("describe", "describe.sees", "describe.sources", "describe.usage")
class DropsImages(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        return tuple(part for part in parts if not isinstance(part, ImagePart))


@breaks("describe.sees")
class KeepsTheFirstImage(Sees):
    kept: list[Part]

    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        self.kept = getattr(self, "kept", None) or [part for part in parts if isinstance(part, ImagePart)]
        return tuple(self.kept[0] if isinstance(part, ImagePart) else part for part in parts)


@breaks("describe.several")
class DropsTheSecondImage(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        images = [part for part in parts if isinstance(part, ImagePart)]
        return tuple(part for part in parts if part not in images[1:])


@breaks("describe.several")
class ReversesImages(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        return tuple(sorted(parts, key=lambda part: not isinstance(part, ImagePart)))[-2::-1] + parts[-1:]


@breaks("describe.formats")
class CallsEverythingPng(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        return tuple(ImagePart(part.data, "image/png") if isinstance(part, ImagePart) else part for part in parts)


@breaks("describe.formats", "describe.large")
class SendsTheBeginning(Sees):
    """Of large images; and it drops the last bytes of small ones."""

    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        def cut(part: Part) -> Part:
            return ImagePart(part.data[:100_000][:-1], part.media_type) if isinstance(part, ImagePart) else part

        return tuple(map(cut, parts))


@breaks("describe.history")
class ForgetsImagesOfEarlierMessages(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        last = message is request.messages[-1]
        return tuple(part for part in parts if last or not isinstance(part, ImagePart))


@breaks("describe.broken")
class BlamesItself(VLLMDialect):
    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        return BackendFailed("something went wrong")


@breaks("describe.broken")
class DropsWhatIsNoImage(Sees):
    def parts(self, parts: tuple[Part, ...], message: Message, request: ChatRequest) -> tuple[Part, ...]:
        return tuple(part for part in parts if not isinstance(part, ImagePart) or part.data[:1] in (b"\x89", b"\xff"))


@breaks("describe.no-fetch")
class FollowsUrls(Sees):
    """As clients do that make images of the links in a prompt."""

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        for message in request.messages:
            for url in re.findall(r"http://[^\s)]+", message.text):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url, timeout=1).close()
        return super().encode_body(request, stream=stream)


@breaks("describe.usage")
class CountsWords(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        response = super().decode_chat(request, reply)
        counted = sum(len(message.text.split()) for message in request.messages)
        return msgspec.structs.replace(
            response, usage=Usage(prompt_tokens=counted, completion_tokens=response.usage.completion_tokens)
        )


class Denying(frozenset[Feature]):
    """Features that deny one that they hold."""

    def __contains__(self, feature: object) -> bool:
        return feature is not Feature.READ and super().__contains__(feature)


@breaks("apart")
class ReadsByPrompt(HttpBackend):
    """Lets the hub believe that it reads, and asks a model to, whose words have no boxes."""

    @property
    def features(self) -> frozenset[Feature]:
        return Denying({*super().features, Feature.READ})

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        question = Message(role="user", content=(request.image, TextPart("Read it.")))
        text = self.chat(ChatRequest(messages=(question,), model=request.model), call).text
        return ReadResponse(text=text, words=(), width=1, height=1)

    async def aread(self, request: ReadRequest, call: Call) -> ReadResponse:
        return self.read(request, call)


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: VisionRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_has_a_mutant() -> None:
    assert MUTANTS.without([vision_describe.RULES]) == set()


def test_the_right_plugin_that_describes_keeps_the_rules() -> None:
    class Mine(Describes):
        plugin = described(VLLMDialect)

    # All the others are held by plugins/vllm.
    report = run_suite(Mine, only=[f"vision.{rule.id}" for rule in vision_describe.RULES])
    assert {one.outcome for one in report.findings} == {Outcome.PASSED}, str(report)


def test_what_is_claimed_and_not_so_is_caught() -> None:
    for claims in ({"read": True}, {"images": False}):
        wrong = Describes()
        wrong.plugin = described(VLLMDialect)
        for name, value in claims.items():
            setattr(wrong, name, value)
        caught(wrong, "vision.features.agree")
