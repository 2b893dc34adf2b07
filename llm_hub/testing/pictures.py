"""Seeing for fakes: recognises image files, and on small PNG files one filled shape of one colour."""

from __future__ import annotations

import functools
import itertools
import struct
import zlib
from collections import Counter
from collections.abc import Iterator

__all__ = ["CutOff", "NotAnImage", "draw", "look"]

_COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 40),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PIXELS = 4096 * 4096


class NotAnImage(ValueError):
    """The bytes are no image."""


class CutOff(NotAnImage):
    """The bytes are only the beginning of an image."""


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if len(body) < length:
            break
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length
    raise CutOff("the PNG file is cut off")


def _unfilter(raw: bytes, width: int, height: int, channels: int) -> list[bytes]:
    """The rows of an image of 8 bits a channel (the PNG specification, section 9)."""
    stride = width * channels
    if len(raw) < height * (stride + 1):
        raise NotAnImage("the PNG file has too few pixels")
    rows: list[bytes] = []
    before = bytes(stride)
    for y in range(height):
        begin = y * (stride + 1)
        kind = raw[begin]
        row = bytearray(raw[begin + 1 : begin + 1 + stride])
        for x in range(stride) if kind else ():
            left = row[x - channels] if x >= channels else 0
            up = before[x]
            corner = before[x - channels] if x >= channels else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            else:
                guess = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            row[x] = (row[x] + guess) & 0xFF
        before = bytes(row)
        rows.append(before)
    return rows


@functools.lru_cache(4096)  # most pixels have a colour that many others have
def _name(pixel: tuple[int, int, int]) -> str:
    return min(_COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(_COLOURS[name], pixel, strict=True)))


def _png(data: bytes) -> list[list[tuple[int, int, int]]] | None:
    """The pixels; None for kinds of PNG that are not read (interlaced, 1 to 4 or 16 bits)."""
    body, palette, header = b"", b"", b""
    for kind, part in _chunks(data):
        if kind == b"IHDR":
            header = part
        elif kind == b"PLTE":
            palette = part
        elif kind == b"IDAT":
            body += part
    if len(header) != 13:
        raise NotAnImage("the PNG file has no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or interlaced or colour not in _CHANNELS or not 0 < width * height <= _PIXELS:
        return None
    channels = _CHANNELS[colour]
    try:
        raw = zlib.decompressobj().decompress(body, height * (width * channels + 1))
    except zlib.error as error:
        raise NotAnImage("the PNG file is damaged") from error
    pixels = []
    for row in _unfilter(raw, width, height, channels):
        if colour == 3:
            line = [tuple(palette[3 * value : 3 * value + 3]) for value in row]
        elif channels <= 2:
            line = [(value, value, value) for value in row[::channels]]
        else:
            line = [tuple(row[x : x + 3]) for x in range(0, len(row), channels)]
        pixels.append([(r, g, b) for r, g, b in line])
    return pixels


def look(data: bytes) -> dict[str, str]:
    """What is on an image: color, shape and background; only the color of a plain one, nothing of other formats.

    Raises NotAnImage for bytes that are none, CutOff for the beginning of one.
    """
    if not data.startswith(_SIGNATURE):
        if data.startswith((b"\xff\xd8\xff", b"GIF8", b"BM")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
            return {}
        raise NotAnImage("the bytes are no image")
    pixels = _png(data)
    if pixels is None:
        return {}
    names = [[_name(pixel) for pixel in row] for row in pixels]
    edge = names[0] + names[-1] + [row[0] for row in names] + [row[-1] for row in names]
    background = Counter(edge).most_common(1)[0][0]
    inside = [(x, y) for y, row in enumerate(names) for x, name in enumerate(row) if name != background]
    if len(inside) < len(names) * len(names[0]) / 100:
        return {"color": background}
    xs, ys = [x for x, _ in inside], [y for _, y in inside]
    box = (max(xs) - min(xs) + 1) * (max(ys) - min(ys) + 1)
    filled = len(inside) / box  # a square fills its box, a circle pi/4 of it, a triangle half
    shape = "square" if filled > 0.9 else "circle" if filled > 0.65 else "triangle"
    colour = Counter(names[y][x] for x, y in inside).most_common(1)[0][0]
    return {"color": colour, "shape": shape, "background": background}


def draw(color: str = "red", shape: str = "circle", background: str = "white", *, size: int = 64) -> bytes:
    """A PNG file with one filled shape, as hub-test-vlm and the fakes know them.

    color: red, green, blue, yellow or black. shape: circle, square or triangle. background: white or gray.
    size: pixels a side.
    """
    ink, paper = bytes(_COLOURS[color]), bytes(_COLOURS[background])
    middle, radius = (size - 1) / 2, size * 0.3

    def inside(x: int, y: int) -> bool:
        dx, dy = x - middle, y - middle
        if shape == "circle":
            return dx * dx + dy * dy <= radius * radius
        if shape == "square":
            return max(abs(dx), abs(dy)) <= radius
        if shape == "triangle":
            return abs(dy) <= radius and abs(dx) <= (dy + radius) / 2
        raise ValueError(f"unknown shape {shape!r}: circle, square or triangle")

    rows = (b"\0" + b"".join(ink if inside(x, y) else paper for x in range(size)) for y in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"".join(itertools.chain([_SIGNATURE], packed))
