"""hub.vision() on a real model in the process: hub-test-vlm, which sees, and whose greedy answers are known."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_hub import Hub, ImagePart, Message, ResponseFormat, Settings, TextPart
from llm_hub.errors import InvalidRequest, SettingsError, UnsupportedFeature
from llm_hub.messages import ChatResponse
from llm_hub.testing import draw

MODELS = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm"
MODEL, PROJECTOR = str(MODELS / "hub-test-vlm-f16.gguf"), str(MODELS / "mmproj-hub-test-vlm-f16.gguf")
CIRCLE = "A red circle on a white background."


def settings(**options: Any) -> Settings:
    own = {"models": {"vision": MODEL}, "mmproj": PROJECTOR, "n_ctx": 2048, "temperature": 0.0, **options}
    kept = {name: value for name, value in own.items() if value is not None}
    return Settings.of(backends={"llamacpp": kept}, providers={"vision": "llamacpp"})


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(settings()) as made:
        yield made


@pytest.fixture(params=["describe", "adescribe", "stream", "astream"])
def ask(request: pytest.FixtureRequest) -> Callable[..., ChatResponse]:
    def go(hub: Hub, images: Any, prompt: str, **options: Any) -> ChatResponse:
        vision = hub.vision()
        if request.param == "describe":
            return vision.describe(images, prompt, **options)
        if request.param == "stream":
            with vision.stream(images, prompt, **options) as stream:
                for _ in stream:
                    pass
                return stream.response

        async def later() -> ChatResponse:
            if request.param == "adescribe":
                return await vision.adescribe(images, prompt, **options)
            async with vision.astream(images, prompt, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return asyncio.run(later())

    return go


def test_it_sees_what_is_on_an_image(hub: Hub, ask: Callable[..., ChatResponse]) -> None:
    answer = ask(hub, draw(), "What is in this picture?")
    assert (answer.text, answer.finish_reason) == (CIRCLE, "stop")
    assert answer.served_by is not None
    assert answer.served_by.backend == "llamacpp"
    assert ask(hub, draw("blue", "square", "gray"), "What colour is it?").text == "Blue."


def test_it_sees_two_images_in_their_order(hub: Hub, ask: Callable[..., ChatResponse]) -> None:
    answer = ask(hub, [draw(), draw("blue", "square")], "Describe the images.")
    assert answer.text == f"First: {CIRCLE} Second: A blue square on a white background."


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_it_sees_every_kind_of_file(hub: Hub, kind: str) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(draw("green", "square", size=112))).save(out, kind)
    assert hub.vision().describe(out.getvalue(), "What is in this picture?").text == (
        "A green square on a white background."
    )


def test_it_follows_a_schema_about_an_image(hub: Hub) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("color", "shape", "background")},
        "required": ["color", "shape", "background"],
    }
    answer = hub.vision().describe(
        draw(), "Describe the image as JSON.", response_format=ResponseFormat.json_schema(schema)
    )
    assert answer.text.replace(" ", "") == '{"color":"red","shape":"circle","background":"white"}'


def test_a_conversation_may_hold_images(hub: Hub) -> None:
    message = Message(role="user", content=(ImagePart(draw()), TextPart("What shape is it?")))
    assert hub.conversation("vision").chat([message]).text == "A circle."


def test_it_does_not_read(hub: Hub) -> None:
    with pytest.raises(UnsupportedFeature, match="'llamacpp' cannot read the text on images"):
        hub.vision().read(draw())


def test_a_bad_image_never_reaches_the_engine(hub: Hub) -> None:
    with pytest.raises(InvalidRequest, match="is cut off"):
        hub.vision().describe(draw()[:70], "What is in this picture?")


def test_without_a_projector_the_error_says_what_is_missing() -> None:
    with Hub(settings(mmproj=None)) as blind:
        with pytest.raises(SettingsError, match="'llamacpp' has no projector.*Set mmproj"):
            blind.vision().describe(draw(), "What is in this picture?")


def test_the_model_of_text_sees_where_none_is_named_for_vision() -> None:
    with Hub(settings(models={"text": MODEL})) as made:
        assert made.vision().describe(draw(), "What is in this picture?").text == CIRCLE
