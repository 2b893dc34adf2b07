"""`llm-hub see` as a person meets it: a process, its two outputs, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from llm_hub.testing import FakeVLLM, Fault, draw

Done = subprocess.CompletedProcess[bytes]
See = Callable[..., Done]


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def see(vllm: FakeVLLM, tmp_path: Path) -> See:
    """Runs `llm-hub see` in a folder with the pictures red.png and blue.png and the page page.png."""
    (tmp_path / "red.png").write_bytes(draw("red", "circle"))
    (tmp_path / "blue.png").write_bytes(draw("blue", "square"))
    page = Image.new("RGB", (700, 200), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(36)
    pen.text((40, 30), "The ferry leaves at noon", font=font, fill="black")
    pen.text((40, 82), "and returns at midnight.", font=font, fill="black")
    page.save(tmp_path / "page.png")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    environ = {
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "LLM_VISION_DESCRIBE_PROVIDER": "vllm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_VISION_MODEL": "hub-test-vlm",
    }

    def run(*arguments: str, stdin: bytes = b"", **more: str) -> Done:
        variables = {**environ, **more}
        return subprocess.run(
            ["llm-hub", "see", *arguments], input=stdin, env=variables, cwd=tmp_path, capture_output=True, timeout=60
        )

    return run


def failed(done: Done, code: int) -> str:
    """What it said: an error for people, with no traceback."""
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert done.stdout == b""
    return said


def test_an_image_is_described_and_beside_it_stands_who_did(see: See) -> None:
    done = see("red.png", "--prompt", "What is in this picture?")
    assert (done.returncode, done.stdout) == (0, b"A red circle on a white background.\n")
    assert "vllm serves vision.describe: LLM_VISION_DESCRIBE_PROVIDER names it" in done.stderr.decode()
    assert "vllm/hub-test-vlm | " in done.stderr.decode()


def test_several_images_are_described_and_one_may_come_from_standard_input(see: See) -> None:
    said = b"First: A red circle on a white background. Second: A blue square on a white background.\n"
    assert see("red.png", "blue.png", "-q", "-p", "Describe the images.").stdout == said
    assert see("-", "blue.png", "-q", "-p", "Describe the images.", stdin=draw("red", "circle")).stdout == said


def test_the_text_on_an_image_is_printed(see: See) -> None:
    done = see("page.png", "--read")
    assert (done.returncode, done.stdout) == (0, b"The ferry leaves at noon\nand returns at midnight.\n")
    assert "tesseract serves vision.read: no rule names another" in done.stderr.decode()
    assert "tesseract/tesseract | 9 words | confidence 9" in done.stderr.decode()
    assert see("page.png", "--read", "-q", "--language", "en").stderr == b""


def test_json_has_the_words_with_boxes_and_confidences(see: See) -> None:
    done = see("page.png", "--read", "--json")
    answer = json.loads(done.stdout)
    assert (answer["width"], answer["height"], answer["languages"]) == (700, 200, ["eng"])
    first = answer["words"][0]
    assert (first["text"], first["line"]) == ("The", 0)
    assert abs(first["box"][0] - 40) < 6
    assert 0.5 < first["confidence"] <= 1
    assert answer["served_by"]["backend"] == "tesseract"


def test_an_image_without_text_prints_nothing_and_says_so(see: See) -> None:
    done = see("red.png", "--read")
    assert (done.returncode, done.stdout) == (0, b"")
    assert "no text found" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument 'IMAGE...'"),
        (("red.png",), 2, "say what to do: --prompt"),
        (("red.png", "--read", "-p", "What?"), 2, "--prompt is for a model that describes, --read"),
        (("red.png", "--read", "--max-tokens", "5"), 2, "--max-tokens is for a model that describes"),
        (("red.png", "blue.png", "--read"), 2, "one image at a time"),
        (("red.png", "-p", "What?", "--json"), 2, "--json goes with --read"),
        (("red.png", "-p", "What?", "-l", "de"), 2, "--language goes with --read"),
        (("red.png", "-p", " "), 1, "the prompt is empty"),
        (("nowhere.png", "--read"), 1, "'nowhere.png': No such file"),
        (("https://example.org/a.png", "--read"), 1, "fetches no URLs"),
        (("-", "--read"), 1, "the image is empty: 0 bytes"),
        (("page.png", "--read", "-l", "fin"), 1, "cannot read fin; it reads eng"),
        (("page.png", "--read", "-b", "vllm"), 1, "cannot read the text on images"),
        (("page.png", "-p", "What?", "-b", "tesseract"), 1, "cannot describe images"),
        (("page.png", "-p", "What?", "-m", "nope"), 1, "nope"),
    ],
)
def test_wrong_use_and_bad_images_are_one_clear_error(
    see: See, arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert words in " ".join(failed(see(*arguments), code).split())


def test_an_answer_that_breaks_off_is_printed_as_far_as_it_came_and_fails(see: See, vllm: FakeVLLM) -> None:
    vllm.fault(Fault.END_WITHOUT_MARK, after=3)
    done = see("red.png", "-p", "What is in this picture?")
    assert done.returncode == 1
    assert b"A red circle on a white background.".startswith(done.stdout.strip())
    assert "broke off" in done.stderr.decode() or "without" in done.stderr.decode()
