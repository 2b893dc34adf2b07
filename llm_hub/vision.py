"""A way to vision: describing images, and reading the text on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature
from llm_hub.chat_streams import AsyncChatStream, ChatStream
from llm_hub.epochs import EpochStore
from llm_hub.errors import InvalidRequest
from llm_hub.prompts import ChatOptions, build_request
from llm_hub.routing import route_chat, route_read
from llm_hub.runtime import Runtime
from llm_hub.selection import Ask
from llm_hub.text import CallLimits, CallOptions, take_limits
from llm_hub.transport import drive
from llm_hub.worlds import ASYNC, BLOCKING

if TYPE_CHECKING:
    from llm_hub.images import ImageSource
    from llm_hub.messages import ChatRequest, ChatResponse, Part, ReadRequest, ReadResponse

    Images = ImageSource | Iterable[ImageSource]
    """One image or several; each is a path, bytes, a `data:` URI, an image of Pillow or an ImagePart."""

__all__ = ["VisionHandle"]


class ReadLimits(CallLimits, total=False):
    """The options of a call that reads: those of the call, and `options` for the plugin."""

    options: dict[str, Any]


class VisionHandle:
    """A way to vision. It holds nothing and does no I/O: each call finds its route anew, so it follows every switch.

    Describing (a model answers a prompt about images) and reading (text with the box of each word) resolve apart, so
    that reading can stay with an OCR engine. A model is never asked to read by a prompt behind the caller's back.
    """

    __slots__ = ("_describe", "_epochs", "_read")

    def __init__(
        self,
        epochs: EpochStore[Runtime],
        *,
        backend: str | None = None,
        model: str | None = None,
        features: frozenset[Feature] = frozenset(),
    ) -> None:
        self._epochs = epochs
        self._describe = Ask(capability=Capability.VISION, backend=backend, model=model, features=features)
        self._read = Ask(
            capability=Capability.VISION, operation="read", backend=backend, model=model, features=features
        )

    def __repr__(self) -> str:
        return f"<VisionHandle {self._describe.backend or 'by the rules'}>"

    # -- describing ---------------------------------------------------------------------------------------------------

    def describe(self, images: Images, prompt: str, **options: Unpack[CallOptions]) -> ChatResponse:
        """What a vision model answers to this prompt about one image or several.

        Files are read, and images converted where they must be (see `llm_hub.images`); no URL is fetched. Raises the
        errors of `llm_hub.errors`.
        """
        ask, request, call = self._prepare(images, prompt, options)
        return drive(route_chat(BLOCKING, self._epochs, ask, request(), call))

    async def adescribe(self, images: Images, prompt: str, **options: Unpack[CallOptions]) -> ChatResponse:
        """`describe`, async; files are read and images converted in a thread."""
        ask, request, call = self._prepare(images, prompt, options)
        return await route_chat(ASYNC, self._epochs, ask, await ASYNC.apart(request), call)

    def stream(self, images: Images, prompt: str, **options: Unpack[CallOptions]) -> ChatStream:
        """`describe` in pieces; the images are read when the first is asked for."""
        return ChatStream(self._epochs, *self._prepare(images, prompt, options))

    def astream(self, images: Images, prompt: str, **options: Unpack[CallOptions]) -> AsyncChatStream:
        """`stream`, async: `async for chunk in hub.vision().astream(...)`."""
        return AsyncChatStream(self._epochs, *self._prepare(images, prompt, options))

    def _prepare(
        self, images: Images, prompt: str, options: CallOptions
    ) -> tuple[Ask, Callable[[], ChatRequest], Call]:
        call = take_limits(options)
        model: Any = options.pop("model", None)  # type: ignore[typeddict-item]
        if not isinstance(prompt, str):
            raise InvalidRequest(
                f"the prompt about the images must be text, not {type(prompt).__name__}",
                hint='For whole conversations: hub.conversation("vision").chat(messages).',
            )
        ask = self._describe if model is None else msgspec.structs.replace(self._describe, model=model)
        chat: ChatOptions = options  # those of the call are out of it
        build_request(prompt, chat)  # what is wrong with it is said before a file is read

        def make() -> ChatRequest:
            from llm_hub.images import load_images
            from llm_hub.messages import Message, TextPart

            content: tuple[Part, ...] = (*load_images(images), TextPart(prompt))
            return build_request([Message(role="user", content=content)], chat)

        return ask, make, call

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self,
        image: ImageSource,
        *,
        languages: str | Iterable[str] = (),
        model: str | None = None,
        **limits: Unpack[ReadLimits],
    ) -> ReadResponse:
        """The text on an image, each word with its box and a confidence.

        `languages` are ISO 639 codes ("eng" or "en"), the likeliest first; by default those that the backend is
        configured for. Raises the errors of `llm_hub.errors`.
        """
        ask, make, call = self._prepare_read(image, languages, model, limits)
        return drive(route_read(BLOCKING, self._epochs, ask, make(), call))

    async def aread(
        self,
        image: ImageSource,
        *,
        languages: str | Iterable[str] = (),
        model: str | None = None,
        **limits: Unpack[ReadLimits],
    ) -> ReadResponse:
        """`read`, async; the file is read and the image converted in a thread."""
        ask, make, call = self._prepare_read(image, languages, model, limits)
        return await route_read(ASYNC, self._epochs, ask, await ASYNC.apart(make), call)

    def _prepare_read(
        self, image: ImageSource, languages: str | Iterable[str], model: str | None, limits: ReadLimits
    ) -> tuple[Ask, Callable[[], ReadRequest], Call]:
        given = limits.pop("options", {})
        call = take_limits(limits)
        ask = self._read if model is None else msgspec.structs.replace(self._read, model=model)
        wanted = (languages,) if isinstance(languages, str) else tuple(languages)

        def make() -> ReadRequest:
            from llm_hub.images import load_image
            from llm_hub.messages import ReadRequest

            return ReadRequest(image=load_image(image), languages=wanted, options=given)

        return ask, make, call
