"""hub.vision() on a real model in the process: hub-test-vlm, which sees, and whose greedy answers are known."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_hub import Hub, ResponseFormat, Settings
from llm_hub.errors import SettingsError
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


def test_without_a_projector_the_error_says_what_is_missing() -> None:
    with Hub(settings(mmproj=None)) as blind:
        with pytest.raises(SettingsError, match="'llamacpp' has no projector.*Set mmproj"):
            blind.vision().describe(draw(), "What is in this picture?")


def test_the_model_of_text_sees_where_none_is_named_for_vision() -> None:
    with Hub(settings(models={"text": MODEL})) as made:
        assert made.vision().describe(draw(), "What is in this picture?").text == CIRCLE
