"""Images in every form that callers have them in, and in every state that they should not be in."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from llm_hub.errors import InvalidRequest
from llm_hub.image_headers import inspect_image
from llm_hub.images import ImageLimits, load_image, load_images, prepare
from llm_hub.messages import ChatRequest, ImagePart, Message, TextPart
from llm_hub.testing import draw


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(part: ImagePart) -> Image.Image:
    image = Image.open(io.BytesIO(part.data))
    image.load()
    return image


def corner(size: tuple[int, int] = (40, 24), mode: str = "RGB") -> Image.Image:
    """White, with a red upper left quarter: it shows how an image was turned."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1] // 2 - 1), fill=(255, 0, 0))
    return image.convert(mode)


def png_header(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """A whole PNG file of this size whose pixels are missing: what its header says is what counts."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Pillow were not installed."""
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr("llm_hub.images._has_pillow", lambda: False)


# -- what callers have ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [str, Path, os.fsencode])
def test_a_file_is_read(how: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(draw())
    if how is os.fsencode:
        with pytest.raises(InvalidRequest):
            load_image(how(str(file)))  # bytes are the image, not its name
    else:
        assert load_image(how(str(file))) == ImagePart(draw(), "image/png")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, ImagePart])
def test_bytes_are_the_file(kind: Callable[[bytes], Any]) -> None:
    assert load_image(kind(draw())) == ImagePart(draw(), "image/png")


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/png;Base64,", "data:;base64,"])
def test_a_data_uri_is_decoded(head: str) -> None:
    assert load_image(head + base64.b64encode(draw()).decode()) == ImagePart(draw(), "image/png")


def test_what_an_image_says_it_is_counts_for_nothing_against_its_bytes() -> None:
    jpeg = encode(corner(), "JPEG")
    assert load_image(ImagePart(jpeg, "image/png")).media_type == "image/jpeg"
    assert load_image("data:image/png;base64," + base64.b64encode(jpeg).decode()).media_type == "image/jpeg"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_an_image_of_pillow_of_any_mode_becomes_a_plain_png(mode: str) -> None:
    image = Image.new("I;16", (40, 24), 40_000) if mode == "I;16" else corner(mode="RGB").convert(mode)
    made = load_image(image)
    assert made.media_type == "image/png"
    seen = decode(made)
    assert (seen.size, inspect_image(made.data).bits <= 8) == ((40, 24), True)
    assert seen.mode in {"1", "L", "LA", "P", "RGB", "RGBA"}


def test_an_image_of_pillow_keeps_its_pixels() -> None:
    assert decode(load_image(corner())).tobytes() == corner().tobytes()


def test_an_opened_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encode(corner().rotate(90, expand=True), "PNG", exif=exif))) as opened:
        assert decode(load_image(opened)).tobytes() == corner().tobytes()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.org/a.png", "fetches no URLs.*pass its bytes, its path"),
        ("HTTP://example.org/a.png", "fetches no URLs"),
        ("s3://bucket/a.png", "fetches no URLs"),
        ("file:///tmp/a.png", "given as it is.*Pass '/tmp/a.png'"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,%", "not valid base64"),
        ("nowhere.png", "'nowhere.png': No such file.*Check the path"),
        (".", "a folder"),
        (os.devnull, "no regular file"),
        ("a\0b", "cannot be read"),
        ("iVBORw0KGgo" + "A" * 5000, "If this is base64, pass it as data:"),
        (b"", "is empty: 0 bytes"),
        (7, "is a int.*a path, bytes, a data: URI"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_image_or_not_here_is_refused_with_what_to_do(source: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        load_image(source)


def test_a_named_pipe_holds_nobody_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidRequest, match="no regular file"):
        load_image(pipe)


def test_an_array_is_told_how_to_become_an_image() -> None:
    class Array:
        def __init__(self) -> None:
            self.__array_interface__ = {"shape": (1,)}

    with pytest.raises(InvalidRequest, match="fromarray"):
        load_images(Array())  # type: ignore[arg-type]


def test_several_images_come_in_their_order_and_an_error_names_the_one() -> None:
    red, blue = draw("red"), draw("blue")
    assert [part.data for part in load_images([red, blue])] == [red, blue]
    assert [part.data for part in load_images(one for one in (red, blue))] == [red, blue]
    assert len(load_images(red)) == 1
    with pytest.raises(InvalidRequest, match="image 2 is not an image"):
        load_images([red, b"nothing of the kind"])
    with pytest.raises(InvalidRequest, match="no image is given"):
        load_images([])
    with pytest.raises(InvalidRequest, match="there are 17 images, and one request may have 16"):
        load_images([red] * 17)


# -- what is no image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, this is text", "not an image: 19 bytes that begin b'hello, this '.*PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"a drawing \(SVG\).*Render it first"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", r"a drawing \(SVG\)"),
        (b"%PDF-1.7\n", "a PDF document.*Render its pages"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo.*Save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF file"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video.*Extract the frames"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\0\0\1\0\1\0", "an icon"),
        (b"PK\x03\x04", "an archive"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (base64.b64encode(draw()), "base64 text.*Decode it first"),
    ],
)
def test_what_it_is_instead_of_an_image_is_said(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        load_image(data)


KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


def files(kind: str) -> list[bytes]:
    """Files of a kind, in its variants."""
    photo = Image.effect_noise((60, 40), 90).convert("RGB")
    options: dict[str, list[dict[str, Any]]] = {
        "JPEG": [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"x" * 300}],
        "WEBP": [{"lossless": True}, {"quality": 50}, {"exif": Image.Exif().tobytes()}],
        "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate", "tiffinfo": {270: "words"}}],
        "PNG": [{}, {"bits": 8}],
    }
    made = [encode(photo, kind, **chosen) for chosen in options.get(kind, [{}])]
    return [*made, encode(photo.convert("L"), kind), encode(photo.quantize(16), "PNG" if kind != "GIF" else kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_of_every_kind_is_read_as_pillow_reads_it(kind: str) -> None:
    for data in files(kind):
        info = inspect_image(data)
        with Image.open(io.BytesIO(data)) as seen:
            assert (info.width, info.height) == seen.size
            assert info.media_type == Image.MIME[str(seen.format)]
        assert (info.frames, info.bits <= 8, info.orientation) == (1, True, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_anywhere_is_refused(kind: str) -> None:
    for data in files(kind):
        if kind != "PNG" and data.startswith(b"\x89PNG"):
            continue
        # Of a GIF the trailer alone may be missing; of a JPEG nothing; TIFF and BMP may end with padding.
        last = len(data) - (2 if kind in ("GIF", "WEBP", "TIFF", "BMP") else 1)
        for end in {1, 3, 7, 9, 12, 15, 20, 30, len(data) // 3, len(data) // 2, len(data) - 40, last}:
            with pytest.raises(InvalidRequest, match=r"cut off|damaged|not an image|to see"):
                load_image(data[:end])
    with pytest.raises(InvalidRequest, match="the image is cut off: a PNG file that ends after 100 bytes.*again"):
        load_image(files("PNG")[0][:100])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_are_nothing_but_invalid_request_is_raised(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(_CORPUS)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(whole) - 1, 200)))
        whole[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    try:
        info = inspect_image(bytes(whole[:end]))
    except InvalidRequest:
        return
    assert info.width > 0
    assert info.height > 0


_CORPUS = [data for kind in KINDS for data in files(kind)] + [animated("GIF"), animated("PNG"), animated("WEBP")]


def test_a_hostile_file_of_many_small_parts_takes_no_time() -> None:
    chunks = struct.pack(">I4sI", 0, b"tEXt", 0) * 1_500_000
    with pytest.raises(InvalidRequest, match="more than 100000 chunks"):
        load_image(png_header(20, 20)[:33] + chunks)


# -- limits -------------------------------------------------------------------------------------------------------------


def test_one_pixel_is_nothing_to_see() -> None:
    with pytest.raises(InvalidRequest, match="1 x 1 pixels large: there is nothing to see.*at least 8 pixels a side"):
        load_image(encode(Image.new("RGB", (1, 1)), "PNG"))
    with pytest.raises(InvalidRequest, match="300 x 2 pixels"):
        load_image(encode(Image.new("RGB", (300, 2)), "PNG"))


def test_thirty_thousand_pixels_a_side_are_refused_by_the_header_alone() -> None:
    bomb = png_header(30_000, 30_000)
    assert len(bomb) < 100
    with pytest.raises(InvalidRequest, match="30,000 x 30,000 pixels large; at most 80,000,000 .*Make it smaller"):
        load_image(bomb)
    with pytest.raises(InvalidRequest, match="40,000 x 100"):
        load_image(png_header(40_000, 100))
    with pytest.raises(InvalidRequest, match="is 0 x 9 pixels"):
        load_image(png_header(0, 9))


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.png"
    with file.open("wb") as out:
        out.truncate(21 * 2**20)  # a hole: nothing is written
    with pytest.raises(InvalidRequest, match="has 21.0 MiB, and at most 20 MiB are sent"):
        load_image(file)
    with pytest.raises(InvalidRequest, match=r"has 0\.0 MiB"):
        load_image(draw(), limits=ImageLimits(max_bytes=100))


# -- what servers would see differently ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused_with_how_to_choose_a_frame(kind: str) -> None:
    with pytest.raises(
        InvalidRequest, match="has 3 frames: it is animated, and a backend sees the first alone.*Iterator"
    ):
        load_image(animated(kind))


def test_a_document_of_several_pages_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has 3 pages"):
        load_image(animated("TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_that_exif_turns_is_turned(kind: str, orientation: int) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif}
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    data = encode(corner().transpose(turn), kind, **options)
    assert inspect_image(data).orientation == orientation
    assert inspect_image(data).upright_size == (40, 24)
    made = load_image(data)
    seen = decode(made).convert("RGB")
    assert seen.size == (40, 24)
    assert inspect_image(made.data).orientation == 1
    for at, wanted in (((4, 4), (255, 0, 0)), ((35, 20), (255, 255, 255)), ((35, 4), (255, 255, 255))):
        found: Any = seen.getpixel(at)
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 60


def test_converting_drops_what_was_noted_in_the_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where this was taken"
    made = load_image(encode(corner(), "JPEG", exif=exif))
    assert b"where this was taken" not in made.data


def test_cmyk_becomes_rgb() -> None:
    data = encode(corner(mode="CMYK"), "JPEG", quality=95, subsampling=0)
    assert inspect_image(data).colour == "cmyk"
    seen = decode(load_image(data))
    red, white = seen.getpixel((4, 4)), seen.getpixel((35, 20))
    assert seen.mode == "RGB"
    assert isinstance(red, tuple)
    assert isinstance(white, tuple)
    assert red[0] > 200 > 60 > max(red[1:])
    assert min(white) > 240
    assert decode(load_image(encode(corner(mode="CMYK"), "TIFF"))).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_and_not_black_or_white(kind: str) -> None:
    image = Image.new("I;16", (40, 24), 65_535)
    image.paste(32_896, (0, 0, 20, 24))
    data = encode(image, kind)
    assert inspect_image(data).bits == 16
    made = load_image(data)
    seen = decode(made)
    assert (seen.mode, seen.getpixel((4, 4)), seen.getpixel((35, 20))) == ("L", 128, 255)


def test_sixteen_bits_of_colour_become_eight() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65_535, 0, 32_896) * 16 for _ in range(16))
    whole = png_header(16, 16, bits=16)
    data = whole.replace(_chunk(b"IDAT", zlib.compress(b"")), _chunk(b"IDAT", zlib.compress(rows)))
    assert decode(load_image(data)).getpixel((3, 3)) == (255, 0, 128)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF"])
def test_what_not_every_server_reads_becomes_png(kind: str) -> None:
    image = corner()
    data = encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    made = load_image(data)
    assert made.media_type == "image/png"
    assert decode(made).convert("RGB").tobytes() == image.tobytes()


def test_png_and_jpeg_in_plain_colours_go_as_they_are() -> None:
    for data in (*files("PNG"), *files("JPEG")):
        assert load_image(data).data == data


def test_a_file_whose_header_alone_is_sound_is_refused_where_it_must_be_decoded() -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded"):
        load_image(png_header(20, 20, bits=16))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode(corner(mode="CMYK"), "JPEG"), "is in CMYK"),
        (encode(Image.new("I;16", (20, 20)), "PNG"), "has 16 bits a channel"),
        (encode(corner(), "TIFF", tiffinfo={274: 6}), "is stored turned or mirrored"),
    ],
)
def test_without_pillow_what_must_be_converted_is_refused_with_both_ways_out(
    data: bytes, words: str, no_pillow: None
) -> None:
    with pytest.raises(InvalidRequest, match=rf"{words}.*pip install 'llm-hub-core\[images\]'.*save it as"):
        load_image(data)


def test_without_pillow_the_rest_works_and_other_kinds_go_as_they_are(no_pillow: None) -> None:
    gif = encode_before_pillow_went
    assert load_image(gif) == ImagePart(gif, "image/gif")
    assert load_image(draw()) == ImagePart(draw(), "image/png")


encode_before_pillow_went = encode(corner(), "GIF")


# -- in a request ---------------------------------------------------------------------------------------------------------


def test_every_image_of_a_request_is_made_ready_and_an_error_names_it() -> None:
    bmp, png = encode(corner(), "BMP"), draw()
    request = ChatRequest(
        messages=(
            Message(role="user", content=(ImagePart(bmp), TextPart("a"), ImagePart(png, "image/gif"))),
            Message(role="assistant", content="b"),
        )
    )
    ready = prepare(request)
    assert [part.media_type for part in ready.messages[0].images] == ["image/png", "image/png"]
    assert ready.messages[0].images[1].data == png
    assert (ready.messages[0].text, ready.messages[1]) == ("a", request.messages[1])
    bad = Message(role="user", content=(ImagePart(png), ImagePart(b"nothing")))
    with pytest.raises(InvalidRequest, match="image 4 of 4 is not an image"):
        prepare(ChatRequest(messages=(*request.messages, bad)))


def test_images_are_converted_in_many_threads_at_once() -> None:
    data = encode(corner((400, 300)), "BMP")
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(load_image(data).data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
