"""Writes examples/plugins from the templates of `llm-hub new-plugin`: `uv run python examples/make_plugins.py`; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_hub.capabilities import Capability
from llm_hub.scaffold import render

HERE = Path(__file__).parent / "plugins"
OFFERS = {
    "http": (Capability.TEXT, Capability.EMBEDDING),
    "openai": (Capability.TEXT, Capability.EMBEDDING, Capability.VISION),
    "engine": (Capability.TEXT, Capability.EMBEDDING),
    "langchain": (Capability.TEXT, Capability.EMBEDDING, Capability.VISION),
}


def rendered() -> dict[Path, str]:
    """Every file of the examples, with what it should hold."""
    return {
        HERE / kind / name: text
        for kind, offers in OFFERS.items()
        for name, text in render(f"example-{kind}", kind, offers).items()
    }


def stale() -> list[Path]:
    """The files that differ from the templates, or are there and should not be."""
    wanted = rendered()
    left_out = {"__pycache__", ".venv"}
    there = {path for kind in OFFERS for path in (HERE / kind).rglob("*") if path.is_file()}
    there = {path for path in there if not left_out & set(path.parts)}
    differ = {path for path, text in wanted.items() if path not in there or path.read_text(encoding="utf-8") != text}
    return sorted(differ | (there - wanted.keys()))


def main() -> None:
    """Write or compare."""
    if "--check" in sys.argv:
        if found := stale():
            raise SystemExit(f"stale: {', '.join(map(str, found))}. Run: uv run python examples/make_plugins.py")
        return
    for path in stale():
        path.unlink(missing_ok=True)
    for path, text in rendered().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
