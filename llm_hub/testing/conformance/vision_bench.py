"""`VisionBench` and `VisionRequirements`: a backend that describes images, or reads them, at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature
from llm_hub.messages import ChatRequest, ChatResponse, ImagePart, Message, Part, ReadRequest, ReadResponse, TextPart
from llm_hub.testing.conformance.text_bench import Prompt, TextBench, TextRequirements
from llm_hub.testing.pictures import draw
from llm_hub.testing.sights import PAGE
from llm_hub.text import TextHandle

__all__ = ["CIRCLE", "QUESTION", "VisionBench", "VisionRequirements"]

QUESTION = "What is in this picture?"
CIRCLE = "A red circle on a white background."
"""What hub-test-vlm says to QUESTION and `draw()`."""


class VisionRequirements(TextRequirements):
    """What the vision suite needs to know of a plugin. Describing and reading are apart: a backend does one, or both."""

    images: bool | None = None
    """Does it describe images (a model answers a prompt about them)?"""
    read: bool | None = None
    """Does it read the text on images, each word with its box?"""

    short: str = QUESTION
    """A question about the picture, which goes along with it, with a short answer."""
    several_images: bool = True
    """Can a prompt be about several images? False: that is refused."""
    languages: bool = True
    """Is a language that it cannot read refused? (UnsupportedFeature, InvalidRequest)"""
    page_words: float = 0.9
    """The least share of the words of a clean page that is read."""
    box_slack: int = 12
    """How many pixels a word's box may be off."""


class VisionBench(TextBench):
    """A backend of vision at work. Its ways are those of describing, of reading, or both, as its features say."""

    capability = Capability.VISION
    requirements: VisionRequirements

    def _ways(self) -> Sequence[str]:
        describing = ("chat", "achat", "stream", "astream") if self.describes else ()
        return (*describing, *self.reading_ways)

    def _streams(self) -> Sequence[str]:
        return ("stream", "astream") if self.describes else ()

    ways: ClassVar[Any] = property(_ways)
    streams: ClassVar[Any] = property(_streams)

    @property
    def describes(self) -> bool:
        """Does the backend say that it describes?"""
        return Feature.IMAGES in self.backend.features

    @property
    def reads(self) -> bool:
        """Does the backend say that it reads?"""
        return Feature.READ in self.backend.features

    @property
    def describing_ways(self) -> Sequence[str]:
        """The methods that describe, declared or not."""
        return ("chat", "achat", "stream", "astream")

    @property
    def reading_ways(self) -> Sequence[str]:
        """The methods that read, where the backend says that it does."""
        return ("read", "aread") if self.reads else ()

    @property
    def operation(self) -> str:
        """Reading, of a backend that only reads."""
        return "read" if self.reads and not self.describes else ""

    @property
    def handle(self) -> TextHandle:
        """Conversations by way of the hub."""
        return self.hub.conversation("vision")

    # -- describing ---------------------------------------------------------------------------------------------------

    def request(self, prompt: Prompt | None = None, **fields: Any) -> ChatRequest:
        """A request; without a prompt the question about the picture, and with one just that, without a picture."""
        if prompt is None:
            return self.about([draw()], self.requirements.short, **fields)
        return super().request(prompt, **fields)

    def about(self, images: Sequence[bytes | ImagePart], prompt: str, **fields: Any) -> ChatRequest:
        """A request about these images, which come before the prompt."""
        parts: tuple[Part, ...] = tuple(one if isinstance(one, ImagePart) else ImagePart(one) for one in images)
        return super().request([Message(role="user", content=(*parts, TextPart(prompt)))], **fields)

    def see(self, way: str, images: Sequence[bytes | ImagePart], prompt: str, **fields: Any) -> ChatResponse:
        """What the bare backend says about these images."""
        return self.ask(way, self.about(images, prompt, **fields))

    def describe(self, way: str, images: Any, prompt: str, **options: Any) -> ChatResponse:
        """What the hub says about images, asked as a service would ask. `way` is that of the bare backend."""
        vision = self.hub.vision()
        options = {"temperature": 0.0, "timeout": 30.0, **options}
        if way == "chat":
            return vision.describe(images, prompt, **options)
        if way == "stream":
            with vision.stream(images, prompt, **options) as stream:
                for _ in stream:
                    pass
                return stream.response

        async def later() -> ChatResponse:
            if way == "achat":
                return await vision.adescribe(images, prompt, **options)
            async with vision.astream(images, prompt, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return self.run(later())

    # -- reading ------------------------------------------------------------------------------------------------------

    def reading(self, image: bytes | ImagePart = PAGE, **fields: Any) -> ReadRequest:
        """A request to read an image."""
        part = image if isinstance(image, ImagePart) else ImagePart(image)
        return ReadRequest(image=part, **{"model": self.model, **fields})

    def read_bare(self, way: str, image: bytes | ImagePart = PAGE, **fields: Any) -> ReadResponse:
        """What the bare backend reads on an image."""
        call = fields.pop("call", None) or self.call()
        response: ReadResponse = self.do(way, self.reading(image, **fields), call)
        return response

    def read_by_hub(self, way: str, image: Any, **options: Any) -> ReadResponse:
        """What the hub reads, asked as a service would ask."""
        vision = self.hub.vision()
        options = {"timeout": 30.0, **options}
        return vision.read(image, **options) if way == "read" else self.run(vision.aread(image, **options))

    # -- either -------------------------------------------------------------------------------------------------------

    def perform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> Any:
        """Ask what is on a picture, or what `text` says about it; or read a page."""
        named: dict[str, Any] = {} if model is None else {"model": model}
        if way in ("read", "aread"):
            return self.read_bare(way, call=call, **named)
        return self.ask(way, self.about([draw()], text or self.requirements.short, **named), call)

    async def aperform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> Any:
        """`perform`, for achat, astream and aread."""
        named: dict[str, Any] = {} if model is None else {"model": model}
        if way == "aread":
            return await self.backend.aread(self.reading(**named), call)
        request = self.about([draw()], text or self.requirements.short, **named)
        if way == "achat":
            return await self.backend.achat(request, call)
        return [chunk async for chunk in self.backend.astream(request, call)]

    def perform_long(self, way: str, call: Call) -> Any:
        """A long answer; or a page."""
        if way in ("read", "aread"):
            return self.perform(way, call)
        return super().perform_long(way, call)
