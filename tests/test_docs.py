"""The documentation is what the code is: generated pages are fresh, examples run, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md"))


def examples() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, example in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        ):
            found.append((f"{page.name}-{number + 1}", example))
    return found


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "example"), examples(), ids=[name for name, _ in examples()])
def test_examples_run(name: str, example: str, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path), "LLM_PROVIDER": "llamacpp"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in PAGES:
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT / 'docs').as_posix()})" in index, page
