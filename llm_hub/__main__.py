"""`python -m llm_hub` is `llm-hub`."""

from __future__ import annotations

from llm_hub.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
