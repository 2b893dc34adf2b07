"""The incremental decoders of server-sent events and lines of JSON."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.errors import ProtocolError
from llm_hub.streaming import Event, NDJSONDecoder, SSEDecoder

Decoder = SSEDecoder | NDJSONDecoder


def decode(decoder: Decoder, *pieces: bytes) -> list[bytes]:
    decoded = [each for piece in pieces for each in decoder.feed(piece)]
    return decoded + decoder.finish()


def every_split(data: bytes) -> list[tuple[bytes, ...]]:
    """The data in one piece, in two pieces cut anywhere, and byte by byte."""
    pieces: list[tuple[bytes, ...]] = [(data[:cut], data[cut:]) for cut in range(len(data))]
    return [(data,), *pieces, tuple(bytes([byte]) for byte in data)]


# -- server-sent events -----------------------------------------------------------------------------------------------

EVENTS = [
    pytest.param(b"data: a\n\n", [b"a"], id="one event"),
    pytest.param(b"data: a\n\ndata: b\n\ndata: c\n\n", [b"a", b"b", b"c"], id="several events"),
    pytest.param(b"data:a\n\ndata:  b\n\n", [b"a", b" b"], id="one space after the colon goes, no more"),
    pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"], id="lines that end with CRLF"),
    pytest.param(b"data: a\r\rdata: b\r\r", [b"a", b"b"], id="lines that end with CR"),
    pytest.param(b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"], id="lines that end in different ways"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [b"a"], id="a byte order mark"),
    pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="data of two lines"),
    pytest.param(b"data: {\ndata:\ndata: }\n\n", [b"{\n\n}"], id="data with an empty line"),
    pytest.param(b": ping\n\ndata: a\n\n: ping\n\n", [b"a"], id="comments between events"),
    pytest.param(b"data: a\n: ping\ndata: b\n\n", [b"a\nb"], id="a comment within an event"),
    pytest.param(b"id: 7\nretry: 100\ndata: a\n\n", [b"a"], id="ids and retry times"),
    pytest.param(b"data: \n\ndata\n\n\n\ndata: a\n\n", [b"a"], id="events without data"),
    pytest.param(b"<html>\nnonsense\n\ndata: a\n\n", [b"a"], id="unknown fields"),
    pytest.param(b'data: {"a": "\xc3\xa4"}\n\n', [b'{"a": "\xc3\xa4"}'], id="a character of two bytes"),
    pytest.param(
        b"data: a\xe2\x80\xa8b\x0bc\x85d\n\n", [b"a\xe2\x80\xa8b\x0bc\x85d"], id="line breaks of Unicode only"
    ),
    pytest.param(b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"], id="an end without a line break"),
    pytest.param(b"data: a\n\ndata: [DONE]\n", [b"a", b"[DONE]"], id="an end without an empty line"),
    pytest.param(b"", [], id="nothing"),
]


@pytest.mark.parametrize(("stream", "expected"), EVENTS)
def test_the_data_of_events_is_the_same_however_the_bytes_are_cut(stream: bytes, expected: list[bytes]) -> None:
    for pieces in every_split(stream):
        assert decode(SSEDecoder(), *pieces) == expected, pieces


def test_an_event_with_a_name_comes_with_its_name() -> None:
    for pieces in every_split(
        b"event: error\ndata: x\n\ndata: y\n\nevent: message\ndata: z\n\nevent: ghost\n\ndata: w\n\n"
    ):
        events = decode(SSEDecoder(), *pieces)
        names = [event.name if isinstance(event, Event) else None for event in events]
        assert list(zip(events, names, strict=True)) == [(b"x", "error"), (b"y", None), (b"z", None), (b"w", None)]


def test_events_are_handed_out_as_soon_as_they_are_whole() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n\ndata: b\n") == [b"a"]
    assert decoder.feed(b"\n") == [b"b"]
    assert decoder.feed(b"data: c\r\n\r") == [b"c"]
    assert decoder.feed(b"\ndata: d\n\n") == [b"d"]
    assert decoder.finish() == []


@given(
    events=st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=12).filter(lambda data: not set(data) & set(b"\r\n")),
            st.sampled_from([b"\n", b"\r\n", b"\r"]),
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_any_events_survive_any_cuts(events: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(b"data: " + data + end + end for data, end in events)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(SSEDecoder(), *pieces) == [data for data, _ in events]


# -- lines of JSON ----------------------------------------------------------------------------------------------------

LINES = [
    pytest.param(b'{"a":1}\n', [b'{"a":1}'], id="one line"),
    pytest.param(b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}'], id="two lines"),
    pytest.param(b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}'], id="lines that end with CRLF"),
    pytest.param(b'\n\n{"a":1}\n\r\n\n', [b'{"a":1}'], id="empty lines"),
    pytest.param(b'{"a":1}\n{"b', [b'{"a":1}', b'{"b'], id="half of a line at the end"),
    pytest.param('{"a":"ä\u2028"}\n'.encode(), ['{"a":"ä\u2028"}'.encode()], id="characters of several bytes"),
    pytest.param(b"", [], id="nothing"),
]


@pytest.mark.parametrize(("stream", "expected"), LINES)
def test_lines_are_the_same_however_the_bytes_are_cut(stream: bytes, expected: list[bytes]) -> None:
    for pieces in every_split(stream):
        assert decode(NDJSONDecoder(), *pieces) == expected, pieces


@given(
    lines=st.lists(st.binary(min_size=1, max_size=12).filter(lambda line: not set(line) & set(b"\r\n")), max_size=8),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_any_lines_survive_any_cuts(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(NDJSONDecoder(), *pieces) == lines


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [SSEDecoder, NDJSONDecoder])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_line_over_the_limit_is_a_protocol_error_in_whatever_pieces_it_comes(
    decoder: type[Decoder], end: bytes, size: int
) -> None:
    line = b"data: " + b"x" * 1000 + end
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        decode(decoder(limit=1000), *(line[start : start + size] for start in range(0, len(line), size)))


@pytest.mark.parametrize("decoder", [SSEDecoder, NDJSONDecoder])
def test_a_line_at_the_limit_passes(decoder: type[Decoder]) -> None:
    line = b"data: " + b"x" * 994
    expected = [b"x" * 994] if decoder is SSEDecoder else [line]
    assert decode(decoder(limit=1000), line + b"\n\n") == expected
    assert decode(decoder(limit=1000), *(bytes([byte]) for byte in line + b"\n\n")) == expected


def test_many_short_lines_cannot_make_an_event_over_the_limit() -> None:
    with pytest.raises(ProtocolError, match="an event of more than 1000 bytes"):
        decode(SSEDecoder(limit=1000), *([b"data: 123456789\n"] * 200))


def test_many_events_in_one_read_may_be_longer_than_the_limit_together() -> None:
    assert decode(SSEDecoder(limit=100), b"data: x\n\n" * 1000) == [b"x"] * 1000
    assert decode(NDJSONDecoder(limit=100), b"x\n" * 1000) == [b"x"] * 1000


def test_comments_without_end_are_not_kept() -> None:
    decoder = SSEDecoder(limit=100)
    for _ in range(1000):
        assert decoder.feed(b": keep-alive, keep-alive\n\n") == []
    assert decoder.feed(b"data: a\n\n") == [b"a"]


@pytest.mark.parametrize("decoder", [SSEDecoder, NDJSONDecoder])
def test_a_line_of_a_megabyte_takes_time_in_proportion_to_its_length(decoder: type[Decoder]) -> None:
    """Were what is held back copied for each piece, the second would take a thousand times as long as the first."""

    def seconds(line: bytes) -> float:
        started = time.process_time()
        assert len(decode(decoder(), *(line[start : start + 64] for start in range(0, len(line), 64)), b"\n\n")) == 1
        return time.process_time() - started

    seconds(b"data: " + b"x" * 32_768)
    short = seconds(b"data: " + b"x" * 32_768)
    assert seconds(b"data: " + b"x" * 1_048_576) < 32 * max(short, 0.001) * 8
