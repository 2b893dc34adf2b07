"""docs/write_a_backend.md, followed step by step in an empty folder, as its reader does.

Followed on a machine of 2 cores, with the packages in uv's cache: 24 s in all, of which the first `uv run pytest` took 11
and `llm-hub check` 9. The rest of the ten minutes is the reader's, who has seven lines to change.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "write_a_backend.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(600)]


class Block(NamedTuple):
    """A fenced block: its language, what stands behind that, and its text."""

    language: str
    note: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*match) for match in re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)]


def changed(text: str, hunk: list[str]) -> str:
    """A file with a change in it, which must fit in exactly one place."""
    old = "".join(f"{line[1:]}\n" for line in hunk if line[:1] in " -")
    new = "".join(f"{line[1:]}\n" for line in hunk if line[:1] in " +")
    assert text.count(old) == 1, f"the page changes what is not there, or more than once:\n{old}"
    return text.replace(old, new)


class Reader:
    """Someone who does what the page says, and nothing else."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self.environ = environ
        self.said = ""

    def follow(self, block: Block) -> None:
        if block.language == "sh":
            self.said = "".join(self._run(line) for line in block.text.splitlines())
        elif block.language == "python":
            (self.folder / block.note).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            before, after, *lines = block.text.splitlines()
            assert before.startswith("--- a/")
            path = self.folder / after.removeprefix("+++ b/")
            assert path.name == Path(before).name
            hunk = [line for line in lines if line != "@@"]
            path.write_text(changed(path.read_text(encoding="utf-8"), hunk), encoding="utf-8")
        elif block.language == "text":
            for line in block.text.splitlines():
                assert " ".join(line.split()) in " ".join(self.said.split()), f"{line!r} is not in:\n{self.said}"
        else:
            raise AssertionError(f"the page has a block of {block.language!r}, which no step here is for")

    def _run(self, line: str) -> str:
        command, _, remark = line.partition("  # ")
        if command.startswith("cd "):
            self.folder /= command[3:]
            return ""
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(f"{time.monotonic() - began:6.1f} s  {command}")
        wanted = 1 if remark.startswith("red") else 0
        assert done.returncode == wanted, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """With uv, an empty home, and the core as it is here in place of the one on the package index."""
    uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("uv is not installed")
    wheels, home, folder = tmp_path / "wheels", tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    folder.mkdir()
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", wheels, ROOT], check=True, timeout=300)
    cache = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    kept = {
        name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_", "LANG", "LC_"))
    }
    path = os.pathsep.join([str(home / "bin"), str(Path(uv).parent), os.environ["PATH"]])
    return Reader(
        folder,
        {
            **kept,
            "HOME": str(home),
            "PATH": path,
            "NO_COLOR": "1",
            "UV_CACHE_DIR": cache,
            "UV_FIND_LINKS": str(wheels),
            "UV_PYTHON": sys.executable,
            "UV_TOOL_DIR": str(home / "tools"),
            "UV_TOOL_BIN_DIR": str(home / "bin"),
        },
    )


def test_the_page_can_be_followed_from_an_empty_folder(reader: Reader) -> None:
    began = time.monotonic()
    for block in blocks(PAGE):
        reader.follow(block)
    took = time.monotonic() - began
    print(f"{took:6.1f} s in all")
    assert took < 300, "it promises ten minutes, and most of them are for reading"


def test_it_is_all_there() -> None:
    languages = [block.language for block in blocks(PAGE)]
    assert languages.count("sh") >= 8
    assert languages.count("diff") >= 5
    assert {"python", "text"} <= set(languages)
