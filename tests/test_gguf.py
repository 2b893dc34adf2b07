"""Headers of GGUF files: whole, cut, damaged, and of something else."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_hub.errors import BackendFailed
from llm_hub.gguf import Header, read_header

MODELS = Path(__file__).parent / "data" / "models" / "hub-test-vlm"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The file of hub-test-vlm."""
    return MODELS / "hub-test-vlm-f16.gguf"


@pytest.fixture(scope="session")
def projector() -> Path:
    """What hub-test-vlm sees through."""
    return MODELS / "mmproj-hub-test-vlm-f16.gguf"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(*pairs: bytes, tensors: bytes = b"", count: int = 0, data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(pairs)) + b"".join(pairs) + tensors
    return head + b"\0" * (-len(head) % 32) + data


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


@pytest.fixture(scope="module")
def small() -> bytes:
    """A file of every kind of value, with two tensors."""
    return gguf(
        pair("general.architecture", 8, text("llama")),
        pair("llama.context_length", 4, struct.pack("<I", 4096)),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("bé") + text("")),
        pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + struct.pack("<3f", 1, 2, 3)),
        pair("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 2) + struct.pack("<2I", 1, 2)),
        pair("flag", 7, b"\1"),
        pair("tokenizer.chat_template", 8, text("{% if tools %}{{ enable_thinking }}{% endif %}")),
        tensors=tensor("one", (32, 2), 8, 0) + tensor("two", (4,), 0, 96),
        count=2,
        data=bytes(96 + 16),
    )


def test_it_tells_what_a_model_is(tiny: Path) -> None:
    header = read_header(tiny)
    assert header.architecture == "llama"
    assert header.context_length == 4096
    assert header.knows_tools
    assert header.knows_thinking
    assert not header.knows_effort
    assert not header.is_projector
    assert header.about["llama.block_count"] >= 1
    assert not any(key.startswith("tokenizer.") for key in header.about)
    assert header.weights < header.size
    assert header.weights >= 2 * header.parameters  # 16 bits, some of 32
    assert header.size == tiny.stat().st_size


def test_it_tells_a_projector(projector: Path) -> None:
    assert read_header(projector).is_projector


def test_it_steps_over_what_it_does_not_need(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(small)
    assert read_header(path) == Header(
        architecture="llama",
        context_length=4096,
        chat_template="{% if tools %}{{ enable_thinking }}{% endif %}",
        size=len(small),
        parameters=64 + 4,
        weights=64 // 32 * 34 + 4 * 4,
        about={"general.architecture": "llama", "llama.context_length": 4096, "flag": True},
    )


def test_a_file_that_is_cut_short_anywhere_is_found_out(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(4, len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(BackendFailed, match=r"is cut short or damaged.*Download it again"):
            read_header(path)


def test_a_real_model_that_is_cut_short_is_found_out(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = tiny.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BackendFailed, match="its tensors need"):
        read_header(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_read_or_refused_but_never_anything_else(
    small: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    broken = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(small) - 120))
        broken[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "broken.gguf"
    path.write_bytes(broken)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    try:
        assert isinstance(read_header(path), Header)
    except BackendFailed as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no GGUF file: it begins with b''"),
        (b"PK\x03\x04 a zip file", "Name a GGUF file"),
        (b"version https://git-lfs.example/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (gguf(version=1), "version 1"),
        (gguf(pair("key", 77, b"")), "unknown kind 77"),
        (gguf(tensors=tensor("much", (1,) * 9, 0, 0), count=1), "9 dimensions"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with pytest.raises(BackendFailed, match=said):
        read_header(path)


def test_a_file_is_read_again_when_it_has_changed(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(small)
    assert read_header(path).context_length == 4096
    path.write_bytes(small.replace(struct.pack("<I", 4096), struct.pack("<I", 2048)))
    os.utime(path, ns=(1, 1))
    assert read_header(path).context_length == 2048
