"""Images as Tesseract reads them best: gray, on white, evenly lit, with letters that are large enough."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_hub.errors import InvalidRequest
from llm_hub.messages import ImagePart

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LARGEST", "decoded", "enlarged", "evened", "ping"]

LARGEST = 32_767
"""Pixels a side that Tesseract takes (INT16_MAX in its baseapi.cpp)."""

_RESOLUTION = 150  # dots per inch where a file names none that makes sense; it matters little, and Tesseract wants one
_SMALL_LINE = 22  # pixels that a line of text is high, below which Tesseract misreads more (measured: 12 px letters)
_UNEVEN = 40  # levels of gray between the darkest and the lightest part of the paper


def decoded(part: ImagePart) -> tuple[Image, int]:
    """The image in gray, upright and on white where it is transparent, and its resolution in dots per inch.

    Raises InvalidRequest if it cannot be decoded, or is larger than Tesseract takes.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(part.data)) as opened:
            told = opened.info.get("dpi", (0, 0))
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"the image cannot be decoded: {error}", hint="Save it again as PNG or JPEG.") from error
    if max(image.size) > LARGEST:
        raise InvalidRequest(
            f"the image is {image.width:,} x {image.height:,} pixels large; Tesseract takes {LARGEST:,} a side",
            hint="Cut it into pieces.",
        )
    try:
        resolution = round(float(told[0]))
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError):
        resolution = 0
    return image, resolution if 70 <= resolution <= 2400 else _RESOLUTION


def evened(image: Image) -> Image | None:
    """The image with the shadows on its paper taken away; None where it has none, or is not dark on light.

    The lightest of each neighbourhood is taken for the paper, which is then subtracted.
    """
    from PIL import Image, ImageChops, ImageFilter

    if min(image.size) < 32:
        return None
    small = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
    counts, half = small.histogram(), small.width * small.height // 2
    median = next(level for level in range(256) if sum(counts[: level + 1]) > half)
    paper = small.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.GaussianBlur(max(small.size) / 24))
    levels = [level for level, count in enumerate(paper.histogram()) if count]
    if levels[-1] - levels[0] < _UNEVEN or median < 100:
        return None
    return ImageChops.subtract(image, paper.resize(image.size, Image.Resampling.BICUBIC), 1, 255)


def enlarged(image: Image, line_heights: Sequence[int]) -> Image | None:
    """The image twice as large if its letters are small; None if they are not, or it would be too large."""
    from PIL import Image

    if not line_heights or sorted(line_heights)[len(line_heights) // 2] >= _SMALL_LINE:
        return None
    if 2 * max(image.size) > LARGEST or image.width * image.height > 20_000_000:
        return None
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)


def ping() -> ImagePart:
    """An image with a word on it, to find out whether reading works."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (160, 80), 255)
    ImageDraw.Draw(image).text((32, 16), "ping", font=ImageFont.load_default(36), fill=0)
    out = io.BytesIO()
    image.save(out, "PNG")
    return ImagePart(out.getvalue())
