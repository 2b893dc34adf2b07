"""Pages to read, drawn from a text of our own."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from llm_hub import Hub

STORY = """
The lighthouse at the end of the northern pier had been dark for eleven years when Marta decided to repair it. Nobody in
the harbour believed that the old lamp could burn again, because the lens had cracked in a winter storm and the clockwork
beneath it was full of sand. She began on a quiet Monday in March with a bucket of warm water, two brushes and a lantern.

First she cleaned the windows, all forty of them, until the grey light of the morning fell upon the stairs. Then she
carried the broken glass down in small baskets, counting 128 steps each time, and wrapped every piece in paper with a
number on it. By the middle of April the room below the gallery was empty, and the gulls had found another place to
quarrel about fish.

Her neighbour, a retired engineer named Tobias Hale, came up one evening to look at the machine. He listened for a long
while, turned a wheel with one finger, and said that it only wanted patience. Together they took it apart on a blue
blanket, washed the brass in vinegar, and filed new teeth for the smallest gear. It cost them 36 evenings, three quarrels
and most of the coffee in the village shop.

In September the new lens arrived from the city, packed in straw like an egg. Six men hauled it up with ropes while
children cheered from the wall. When the sun went down, Marta opened the valve, struck a match, and waited. The flame
rose, the clockwork began to tick, and a white beam walked slowly across the water. Far out, a fishing boat answered with
its horn. Since that night the captains say that the pier is no longer the end of the town, but the place where it
begins. Visitors may climb up on Sundays between two and five, provided that they wipe their shoes and greet the gulls.
"""


@pytest.fixture(scope="session")
def story() -> list[str]:
    """300 words in four paragraphs."""
    words = STORY.split()
    assert len(words) >= 300
    return [" ".join(paragraph.split()) for paragraph in STORY.strip().split("\n\n")]


Draw = Callable[..., Image.Image]


@pytest.fixture(scope="session")
def draw_page() -> Draw:
    """Draws paragraphs as a page: dark letters of `size` pixels on light paper."""

    def draw(
        paragraphs: Sequence[str], *, size: int = 28, columns: int = 72, ink: int = 0, paper: int = 255
    ) -> Image.Image:
        lines: list[str] = []
        for paragraph in paragraphs:
            lines += [*textwrap.wrap(paragraph, columns), ""]
        font = ImageFont.load_default(size)
        step = round(size * 1.5)
        image = Image.new("L", (round(size * 0.62 * columns) + 4 * size, step * len(lines) + 4 * size), paper)
        pen = ImageDraw.Draw(image)
        for at, line in enumerate(lines):
            pen.text((2 * size, 2 * size + at * step), line, font=font, fill=ink)
        return image

    return draw


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """An image as a file."""

    def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def word_f1() -> Callable[[str, str], float]:
    """How well the words of a text were found, as they are written: the harmonic mean of precision and recall."""

    def f1(truth: str, found: str) -> float:
        one, other = Counter(truth.split()), Counter(found.split())
        return 2 * sum((one & other).values()) / (sum(one.values()) + sum(other.values()))

    return f1


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with nothing configured."""
    with Hub.from_env({}) as made:
        yield made
