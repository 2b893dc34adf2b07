"""Images as callers have them -> the bytes that a backend is sent: within limits, upright, in plain colours. No URL is fetched.

What happens to an image:

* PNG and JPEG in plain colours go as they are.
* A photo that EXIF turns, CMYK colours and more than 8 bits a channel are seen differently by different servers (many
  ignore them), so that they are converted to what a person sees, by Pillow (the extra `images`); without Pillow they are
  InvalidRequest.
* GIF, WebP, BMP and TIFF become PNG where Pillow is installed; without it they go as they are, and the backend decides.
* Several frames or pages are InvalidRequest: a backend would see the first alone.
* What is no image, cut off, too large or too small is InvalidRequest.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from llm_hub.errors import InvalidRequest
from llm_hub.image_headers import ImageInfo, image_media_type, inspect_image
from llm_hub.messages import ChatRequest, ImagePart, Message, Part

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "ImageSource", "data_uri", "load_image", "load_images", "prepare"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | ImagePart | Image"
"""A path, the bytes of a file, a `data:` URI, an image of Pillow, or a part that was made before."""


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large images may be, in bytes and pixels, and how many of them one request may have.

    Beyond `max_pixels` (an A3 page at 600 dpi has 70 million) decoding takes more memory than a server should be asked
    for; below `min_side` there is nothing to see.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 80_000_000
    max_side: int = 32_000
    min_side: int = 8
    max_images: int = 16


DEFAULT_LIMITS = ImageLimits()

_PORTABLE = frozenset({"image/png", "image/jpeg"})
"""What every server reads."""

_FETCHES_NOTHING = (
    "the hub fetches no URLs (a server that does can be made to read its own network)",
    "Read the image yourself and pass its bytes, its path, or a data: URI.",
)


# -- from what callers have -------------------------------------------------------------------------------------------


def load_images(
    sources: ImageSource | Iterable[ImageSource], *, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[ImagePart, ...]:
    """One image or several, ready to be sent; see `load_image`."""
    if isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview | ImagePart) or _is_pillow(sources):
        return (load_image(sources, limits=limits),)
    if not isinstance(sources, Iterable) or hasattr(sources, "__array_interface__"):
        return (load_image(sources, limits=limits),)  # raises, and says what an image may be
    many = list(sources)
    if not many:
        raise InvalidRequest("no image is given", hint="Give at least one: its path, its bytes, or an image of Pillow.")
    _count(len(many), limits)
    return tuple(load_image(source, where=f"image {at + 1}", limits=limits) for at, source in enumerate(many))


def load_image(source: Any, *, where: str = "the image", limits: ImageLimits = DEFAULT_LIMITS) -> ImagePart:
    """One image, ready to be sent. `source` is any `ImageSource`; `where` names it in errors.

    Raises InvalidRequest, which says what is wrong with it and what to do.
    """
    if isinstance(source, ImagePart):
        return _checked(source, where, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _checked(ImagePart(bytes(source)), where, limits)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _checked(data_uri(source, where), where, limits)
    if isinstance(source, str) and (url := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source)):
        why, hint = _FETCHES_NOTHING
        if url[1].lower() == "file":
            why, hint = "a path is given as it is, not as a file:// URL", f"Pass {source[7:]!r}."
        raise InvalidRequest(f"{where} is a URL, and {why}", hint=hint)
    if isinstance(source, str | os.PathLike):
        return _checked(ImagePart(_file(os.fspath(source), where, limits)), where, limits)
    if _is_pillow(source):
        return _checked(ImagePart(_encoded(_plain(source), "PNG", where)), where, limits)
    hint = "An image is a path, bytes, a data: URI, an ImagePart or an image of Pillow."
    if hasattr(source, "__array_interface__"):
        hint = "Make it an image first: PIL.Image.fromarray(array)."
    raise InvalidRequest(f"{where} is a {type(source).__name__}", hint=hint)


def data_uri(url: Any, where: str) -> ImagePart:
    """The image in a `data:` URI of base64. Raises InvalidRequest for any other URL: none is fetched."""
    if not isinstance(url, str) or url[:5].lower() != "data:":
        why, hint = _FETCHES_NOTHING
        raise InvalidRequest(f"{where} is an image by URL, and {why}", hint=hint)
    head, _, payload = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise InvalidRequest(f"{where} is a data: URI that is not base64", hint="Write data:image/png;base64,...")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(
            f"{where} is not valid base64 ({error})", hint="Encode it with base64.b64encode(data).decode()."
        ) from error
    return ImagePart(data, image_media_type(data) or head[5:].partition(";")[0] or "image/png")


def _file(path: str, where: str, limits: ImageLimits) -> bytes:
    try:
        # Not blocking: a named pipe that nobody writes to would hold the call up.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
                raise InvalidRequest(f"{where} is {kind}: {_short(path)}", hint="Name the file of an image.")
            if found.st_size > limits.max_bytes:
                raise _too_many_bytes(found.st_size, where, limits)
            pieces = []
            while piece := os.read(file, 1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        hint = "Check the path."
        if len(path) > 400 or path.startswith(("iVBORw0KGgo", "/9j/")):
            hint = "If this is base64, pass it as data:image/png;base64,... or decode it."
        raise InvalidRequest(f"{where} cannot be read: {_short(path)}: {reason}", hint=hint) from error


def _short(path: str) -> str:
    return repr(path if len(path) <= 120 else path[:117] + "...")


def _is_pillow(source: object) -> bool:
    """Is it an image of Pillow? If Pillow was never imported, it is not."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


# -- before it is sent --------------------------------------------------------------------------------------------------


def prepare(request: ChatRequest, *, limits: ImageLimits = DEFAULT_LIMITS) -> ChatRequest:
    """The request with every image checked and made ready. Raises InvalidRequest, naming the message and the image."""
    total = sum(len(message.images) for message in request.messages)
    _count(total, limits)
    messages: list[Message] = []
    number = 0
    for message in request.messages:
        parts: list[Part] = []
        for part in () if isinstance(message.content, str) else message.content:
            if isinstance(part, ImagePart):
                number += 1
                part = _checked(part, "the image" if total == 1 else f"image {number} of {total}", limits)
            parts.append(part)
        messages.append(msgspec.structs.replace(message, content=tuple(parts)) if message.images else message)
    return msgspec.structs.replace(request, messages=tuple(messages))


def _count(number: int, limits: ImageLimits) -> None:
    if number > limits.max_images:
        raise InvalidRequest(
            f"there are {number} images, and one request may have {limits.max_images}",
            hint="Send fewer, in several calls.",
        )


def _too_many_bytes(size: int, where: str, limits: ImageLimits) -> InvalidRequest:
    return InvalidRequest(
        f"{where} has {size / 2**20:.1f} MiB, and at most {limits.max_bytes / 2**20:g} MiB are sent",
        hint="Make it smaller: most models see no more than 2,000 pixels a side.",
    )


def _checked(part: ImagePart, where: str, limits: ImageLimits) -> ImagePart:
    """The image within the limits, converted if it must be."""
    if len(part.data) > limits.max_bytes:
        raise _too_many_bytes(len(part.data), where, limits)
    info = inspect_image(part.data, where=where)
    if info.width * info.height > limits.max_pixels or max(info.width, info.height) > limits.max_side:
        raise InvalidRequest(
            f"{where} is {info.width:,} x {info.height:,} pixels large; at most {limits.max_pixels:,} pixels and "
            f"{limits.max_side:,} a side are sent",
            hint="Make it smaller, or cut it into pieces: most models see no more than 2,000 pixels a side.",
        )
    if min(info.width, info.height) < limits.min_side:
        raise InvalidRequest(
            f"{where} is {info.width} x {info.height} pixels large: there is nothing to see on it",
            hint=f"Pass an image of at least {limits.min_side} pixels a side.",
        )
    if info.frames > 1:
        what = "pages" if info.media_type == "image/tiff" else "frames: it is animated"
        raise InvalidRequest(
            f"{where} has {info.frames} {what}, and a backend sees the first alone",
            hint="Pass those that matter as images of their own: for frame in PIL.ImageSequence.Iterator(image): ...",
        )
    why = _why_convert(info)
    if why is None and (info.media_type in _PORTABLE or not _has_pillow()):
        return part if part.media_type == info.media_type else ImagePart(part.data, info.media_type)
    converted = _convert(part.data, info, where, why)
    # One that was turned or unpacked may be larger than it was.
    if len(converted.data) > 4 * limits.max_bytes:
        raise _too_many_bytes(len(converted.data), f"{where}, converted to {converted.media_type},", limits)
    return converted


# -- converting -------------------------------------------------------------------------------------------------------


def _why_convert(info: ImageInfo) -> str | None:
    """Why servers would see it differently from a person."""
    if info.orientation != 1:
        return f"is stored turned or mirrored (EXIF orientation {info.orientation}), which some servers ignore"
    if info.colour == "cmyk":
        return "is in CMYK, the colours of printing, which some servers refuse or show inverted"
    if info.bits > 8:
        return f"has {info.bits} bits a channel, which some servers refuse or show black"
    return None


def _has_pillow() -> bool:
    from importlib.util import find_spec

    return find_spec("PIL") is not None


def _convert(data: bytes, info: ImageInfo, where: str, why: str | None) -> ImagePart:
    """What a person sees, as PNG, or as JPEG if it came as that. Raises InvalidRequest without Pillow."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise InvalidRequest(
            f"{where} {why}",
            hint="Install Pillow, which converts it (pip install 'llm-hub-core[images]'), or save it as an upright PNG or "
            "JPEG in RGB with 8 bits a channel.",
        ) from error
    kind = "JPEG" if info.media_type == "image/jpeg" else "PNG"
    name = info.media_type.removeprefix("image/").upper()
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as opened:
            image = _plain(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, ArithmeticError) as error:
        raise InvalidRequest(
            f"{where} cannot be decoded: {error}", hint="Save it as an upright PNG or JPEG in RGB, 8 bits a channel."
        ) from error
    return ImagePart(_encoded(image, kind, where), f"image/{kind.lower()}")


_KEPT = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
"""The modes of Pillow that are written as they are."""


def _plain(image: Image) -> Image:
    """Upright, 8 bits a channel, gray or RGB, with or without transparency."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in _KEPT:
        return image
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode == "I":  # 16 bits in 32, or 32
        low, high = image.getextrema()
        return image.point(lambda value: value / 257).convert("L") if _between(low, high, 65_535) else _stretched(image)
    if image.mode == "F":
        return _stretched(image)
    return image.convert("RGBA" if image.mode in ("La", "PA", "RGBa") else "RGB")


def _between(low: Any, high: Any, most: int) -> bool:
    return bool(low >= 0 and 255 < high <= most)


def _stretched(image: Image) -> Image:
    """Numbers without a scale of their own, from the darkest to the lightest."""
    low, high = (float(value) for value in image.getextrema())  # type: ignore[arg-type]  # one channel
    scale = 255 / (high - low) if high > low else 1.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")


def _encoded(image: Image, kind: str, where: str) -> bytes:
    """The file, without what was noted in the original (where a photo was taken, for one)."""
    out = io.BytesIO()
    if kind == "JPEG":
        image.convert("L" if image.mode in ("1", "L") else "RGB").save(out, kind, quality=95, subsampling=0, exif=b"")
    else:
        try:
            image.save(out, kind, compress_level=3, exif=b"", icc_profile=None)
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"{where} cannot be written as PNG: {error}", hint="Convert it to RGB first."
            ) from error
    return out.getvalue()
