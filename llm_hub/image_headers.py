"""What the bytes of an image file say of it, read without decoding a pixel, or the reason why it is none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal, NoReturn

import msgspec

from llm_hub.errors import InvalidRequest

__all__ = ["ImageInfo", "image_media_type", "inspect_image"]

Colour = Literal["gray", "rgb", "palette", "cmyk", "other"]

_MAX_PARTS = 100_000  # chunks, segments or blocks of one file: more than any real file has, few enough to walk at once


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an image file is. Sizes in pixels as stored; `bits` for each channel.

    `orientation` is that of EXIF, 1 to 8 (5 to 8 swap width and height); 1 is upright.
    """

    media_type: str
    width: int
    height: int
    frames: int = 1
    bits: int = 8
    colour: Colour = "rgb"
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as a person sees them."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


class _CutOff(Exception):
    """The file ends before it is complete."""


class _Damaged(Exception):
    """The file says something that cannot be."""


def inspect_image(data: bytes, *, where: str = "the image") -> ImageInfo:
    """What these bytes are. Raises InvalidRequest if they are no image, cut off, or of a kind that cannot be sent."""
    media_type = image_media_type(data)
    if media_type is None:
        _refuse_other(data, where)
    try:
        info = _READERS[media_type](data)
    except (_CutOff, struct.error, IndexError) as error:
        raise InvalidRequest(
            f"{where} is cut off: a {_name(media_type)} file that ends after {len(data)} bytes, before it is complete",
            hint="Was it uploaded or written as a whole? Save or send it again.",
        ) from error
    except _Damaged as error:
        raise InvalidRequest(
            f"{where} is a damaged {_name(media_type)} file: {error}", hint="Save it again as PNG or JPEG."
        ) from error
    if info.width < 1 or info.height < 1:
        raise InvalidRequest(
            f"{where} is a damaged {_name(media_type)} file: it is {info.width} x {info.height} pixels large",
            hint="Save it again as PNG or JPEG.",
        )
    return info


def image_media_type(data: bytes) -> str | None:
    """The media type of an encoded image by its first bytes (PNG, JPEG, GIF, WebP, BMP, TIFF), None if it is none."""
    for magic, media_type in _MAGIC:
        if data.startswith(magic):
            return media_type
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


def _name(media_type: str) -> str:
    return {"image/webp": "WebP"}.get(media_type, media_type.removeprefix("image/").upper())


# -- what is no image -------------------------------------------------------------------------------------------------

_KNOWN = "PNG, JPEG, GIF, WebP, BMP or TIFF"


def _refuse_other(data: bytes, where: str) -> NoReturn:
    """Say what it is instead, and what to do."""
    if not data:
        raise InvalidRequest(f"{where} is empty: 0 bytes", hint=f"An image is the bytes of a {_KNOWN} file.")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in head):
        raise InvalidRequest(
            f"{where} is a drawing (SVG), which no model of images reads",
            hint="Render it first, and pass the PNG: rsvg-convert -w 1024 a.svg -o a.png",
        )
    for magic, offset, what, hint in _OTHERS:
        if data[offset : offset + len(magic)] == magic:
            raise InvalidRequest(f"{where} is {what}, not an image of a known kind", hint=hint)
    if head.startswith((b"<!doctype html", b"<html")):
        raise InvalidRequest(
            f"{where} is a web page (HTML), not an image",
            hint="Was it downloaded from the page about the image, or is it the message of an error? Look into it.",
        )
    if data.startswith((b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"data:image/")):
        raise InvalidRequest(
            f"{where} is base64 text, not the bytes of an image",
            hint="Decode it first (base64.b64decode), or pass a data: URI as text.",
        )
    raise InvalidRequest(
        f"{where} is not an image: {len(data)} bytes that begin {data[:12]!r}",
        hint=f"Pass a {_KNOWN} file.",
    )


_SAVE = "Save it as PNG or JPEG."
_OTHERS: tuple[tuple[bytes, int, str, str], ...] = (
    (b"%PDF", 0, "a PDF document", "Render its pages and pass each: pdftoppm -r 200 -png a.pdf page"),
    (b"ftypheic", 4, "a HEIC photo", _SAVE),
    (b"ftypheix", 4, "a HEIC photo", _SAVE),
    (b"ftypmif1", 4, "a HEIF photo", _SAVE),
    (b"ftypavif", 4, "an AVIF file", _SAVE),
    (b"ftypavis", 4, "an AVIF file", _SAVE),
    (b"ftyp", 4, "a video", "Extract the frames that matter, and pass them as images."),
    (b"8BPS", 0, "a Photoshop file", _SAVE),
    (b"\0\0\0\x0cjP  ", 0, "a JPEG 2000 file", _SAVE),
    (b"\0\0\0\x0cJXL ", 0, "a JPEG XL file", _SAVE),
    (b"\xff\x0a", 0, "a JPEG XL file", _SAVE),
    (b"\0\0\x01\0", 0, "an icon (ICO)", _SAVE),
    (b"II+\0", 0, "a BigTIFF file", _SAVE),
    (b"MM\0+", 0, "a BigTIFF file", _SAVE),
    (b"\x1f\x8b", 0, "compressed (gzip)", "Unpack it first."),
    (b"PK\x03\x04", 0, "an archive (ZIP) or an Office document", "Unpack it, or render its pages."),
)


# -- PNG: the specification, third edition ----------------------------------------------------------------------------


def _png(data: bytes) -> ImageInfo:
    length, kind, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise _Damaged("it does not begin with its header")
    frames = orientation = 1
    at = 8
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise _CutOff
        if kind == b"acTL":
            (frames,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            kinds: dict[int, Colour] = {0: "gray", 2: "rgb", 3: "palette", 4: "gray", 6: "rgb"}
            if colour not in kinds:
                raise _Damaged(f"its colour type is {colour}")
            return ImageInfo(
                media_type="image/png",
                width=width,
                height=height,
                frames=max(frames, 1),
                bits=bits,
                colour=kinds[colour],
                orientation=orientation,
            )
        at += 12 + length
    raise _Damaged(f"it has more than {_MAX_PARTS} chunks")


# -- JPEG: ITU-T T.81, annex B ----------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> ImageInfo:
    at = 2
    size: tuple[int, int, int, int] | None = None
    orientation = 1
    for _ in range(_MAX_PARTS):
        if data[at] != 0xFF:
            raise _Damaged("a marker is missing among its headers")
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no content
            at += 2
            continue
        if marker == 0xD9:
            raise _Damaged("it ends before any pixels")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise _Damaged("the length of a header is wrong")
        if at + 2 + length > len(data):
            raise _CutOff
        body = at + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in (0xC0, 0xC1, 0xC2):
                raise _Damaged("it is of a kind that hardly any program reads (lossless, hierarchical or arithmetic)")
            bits, height, width, channels = struct.unpack_from(">BHHB", data, body)
            size = (bits, height, width, channels)
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6 : at + 2 + length])
        elif marker == 0xDA:
            if size is None:
                raise _Damaged("it has no size")
            if data.rfind(b"\xff\xd9", at) < 0:
                raise _CutOff
            bits, height, width, channels = size
            colours: dict[int, Colour] = {1: "gray", 3: "rgb", 4: "cmyk"}
            return ImageInfo(
                media_type="image/jpeg",
                width=width,
                height=height,
                bits=bits,
                colour=colours.get(channels, "other"),
                orientation=orientation,
            )
        at += 2 + length
    raise _Damaged(f"it has more than {_MAX_PARTS} headers")


# -- GIF: version 89a -------------------------------------------------------------------------------------------------


def _gif(data: bytes) -> ImageInfo:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _colour_table(flags)
    frames = 0
    for _ in range(_MAX_PARTS):
        if at >= len(data) and frames:  # the trailer is missing, and nothing else
            break
        block = data[at]
        if block == 0x3B:
            break
        if block == 0x2C:
            frames += 1
            at += 11 + _colour_table(data[at + 9])
        elif block == 0x21:
            at += 2
        else:
            raise _Damaged(f"a block of an unknown kind ({block:#x})")
        for _ in range(_MAX_PARTS * 10):  # sub-blocks of at most 255 bytes
            length = data[at]
            at += 1 + length
            if not length:
                break
            if at >= len(data):
                raise _CutOff
        else:
            raise _Damaged("a block of it does not end")
    else:
        raise _Damaged(f"it has more than {_MAX_PARTS} blocks")
    if not frames:
        raise _Damaged("it holds no image")
    return ImageInfo(media_type="image/gif", width=width, height=height, frames=frames, colour="palette")


def _colour_table(flags: int) -> int:
    """Its size in bytes."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# -- WebP: RFC 9649 ---------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> ImageInfo:
    (riff,) = struct.unpack_from("<I", data, 4)
    if riff + 8 > len(data) + (riff & 1):
        raise _CutOff
    size: tuple[int, int] | None = None
    frames, orientation = 0, 1
    at, end = 12, min(riff + 8, len(data))
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if body + length > len(data):
            raise _CutOff
        if kind == b"VP8X":
            wide, high = data[body + 4 : body + 7], data[body + 7 : body + 10]
            size = (int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1)
        elif kind == b"VP8 ":
            if data[body + 3 : body + 6] != b"\x9d\x01\x2a":
                raise _Damaged("its frame does not begin as it should")
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = size or (width & 0x3FFF, height & 0x3FFF)
            frames += 1
        elif kind == b"VP8L":
            if data[body] != 0x2F:
                raise _Damaged("its frame does not begin as it should")
            (packed,) = struct.unpack_from("<I", data, body + 1)
            size = size or ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
            frames += 1
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            exif = data[body : body + length]
            orientation = _orientation(exif.removeprefix(b"Exif\0\0"))
        at = body + length + (length & 1)
    else:
        raise _Damaged(f"it has more than {_MAX_PARTS} chunks")
    if size is None or not frames:
        raise _Damaged("it holds no image")
    return ImageInfo(media_type="image/webp", width=size[0], height=size[1], frames=frames, orientation=orientation)


# -- BMP: BITMAPFILEHEADER and BITMAPINFOHEADER, as documented for Windows ----------------------------------------------


def _bmp(data: bytes) -> ImageInfo:
    offset, header = struct.unpack_from("<II", data, 10)
    compression = stored = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif header in (16, 40, 52, 56, 64, 108, 124):
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        if header >= 40:
            compression, stored = struct.unpack_from("<II", data, 30)
    else:
        raise _Damaged(f"its header has {header} bytes")
    height = abs(height)  # negative: the rows are stored from the top
    if compression in (0, 3, 6):
        stored = (width * bits + 31) // 32 * 4 * height
    if offset + stored > len(data):
        raise _CutOff
    return ImageInfo(
        media_type="image/bmp", width=width, height=height, colour="palette" if bits <= 8 else "rgb", bits=8
    )


# -- TIFF 6.0, and the part of it that EXIF is made of ------------------------------------------------------------------

_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


class _Directory:
    """One image file directory: tags of whole numbers."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        (count,) = struct.unpack_from(self._order + "H", data, at)
        if at + 2 + 12 * count > len(data):
            raise _CutOff
        self._entries = {
            tag: (kind, number, at + 10 + 12 * index)
            for index in range(count)
            for tag, kind, number in [struct.unpack_from(self._order + "HHI", data, at + 2 + 12 * index)]
        }
        end = at + 2 + 12 * count
        self.next: int = struct.unpack_from(self._order + "I", data, end)[0] if end + 4 <= len(data) else 0

    def values(self, tag: int) -> tuple[int, ...]:
        """All values of a tag of type BYTE, SHORT or LONG; empty without it."""
        kind, number, at = self._entries.get(tag, (0, 0, 0))
        letter = {1: "B", 3: "H", 4: "I"}.get(kind)
        if letter is None:
            return ()
        if _SIZES[kind] * number > 4:
            (at,) = struct.unpack_from(self._order + "I", self._data, at)
        if at + _SIZES[kind] * number > len(self._data):
            raise _CutOff
        return struct.unpack_from(f"{self._order}{number}{letter}", self._data, at)

    def check(self) -> None:
        """Raise _CutOff if any value lies beyond the end."""
        for kind, number, at in self._entries.values():
            size = _SIZES.get(kind, 1) * number
            if size > 4 and struct.unpack_from(self._order + "I", self._data, at)[0] + size > len(self._data):
                raise _CutOff

    def value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return next(iter(self.values(tag)), default)


def _first_directory(data: bytes) -> int:
    at: int = struct.unpack_from("<I" if data[:2] == b"II" else ">I", data, 4)[0]
    return at


def _orientation(exif: bytes) -> int:
    """The orientation that EXIF data give, 1 if they give none that makes sense: they are a note, not the image."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    try:
        found = _Directory(exif, _first_directory(exif)).value(_ORIENTATION, 1)
    except (_CutOff, struct.error):
        return 1
    return found if 1 <= found <= 8 else 1


def _tiff(data: bytes) -> ImageInfo:
    first: _Directory | None = None
    frames = 0
    at, seen = _first_directory(data), set[int]()
    while at and at not in seen:
        seen.add(at)
        if len(seen) > _MAX_PARTS:
            raise _Damaged(f"it has more than {_MAX_PARTS} pages")
        page = _Directory(data, at)
        page.check()
        if not page.value(254) & 1:  # not the small copy of another page
            frames += 1
            first = first or page
        ends = [
            start + count
            for starts, counts in ((273, 279), (324, 325))
            for start, count in zip(page.values(starts), page.values(counts), strict=False)
        ]
        if ends and max(ends) > len(data):
            raise _CutOff
        at = page.next
    if first is None:
        raise _Damaged("it holds no image")
    photometric = first.value(262, 1)
    colours: dict[int, Colour] = {0: "gray", 1: "gray", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb"}
    orientation = first.value(_ORIENTATION, 1)
    return ImageInfo(
        media_type="image/tiff",
        width=first.value(256),
        height=first.value(257),
        frames=frames,
        bits=max(first.values(258) or (1,)),
        colour=colours.get(photometric, "other"),
        orientation=orientation if 1 <= orientation <= 8 else 1,
    )


_READERS: dict[str, Callable[[bytes], ImageInfo]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "image/bmp": _bmp,
    "image/tiff": _tiff,
}
