"""Writes the reference pages that come from the code: `uv run python docs/generate.py`; `--check` only compares."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import click
from hooks_page import hooks_page

from llm_hub import errors
from llm_hub.cli import cli
from llm_hub.gpu.facts import facts_from_config
from llm_hub.gpu.memory import CUDA_CONTEXT, STEP_TOKENS, kv_cache

HERE = Path(__file__).parent
MADE = "<!-- Made from the code by docs/generate.py: do not edit. -->\n\n"


def command_line() -> str:
    """Every command with its help, as the terminal shows it."""
    context = click.Context(
        cli, info_name="llm-hub", max_content_width=110, terminal_width=110, help_option_names=["-h", "--help"]
    )
    parts = [
        MADE,
        "# Command line\n\n",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.\n\n",
    ]
    parts.append(f"```text\n{cli.get_help(context)}\n```\n")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(
            command,
            info_name=name,
            parent=context,
            max_content_width=110,
            terminal_width=110,
            help_option_names=["-h", "--help"],
        )
        parts.append(f"\n## llm-hub {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "".join(parts)


def error_tree() -> str:
    """Every error: what it means, and what the hub does with it."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip("\n")
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        said = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
        marks = ["yes" if flag else "" for flag in (kind.retryable, kind.failover, kind.blames_backend)]
        rows.append(f"| `{name}` | {said} | {' | '.join(marks)} | {kind.exit_code} |")
    head = (
        "All are in `llm_hub.errors`, and say in `message`, `backend` and `hint` what happened, where, and what to do next. "
        "`retryable`: the same request may be sent there again. `failover`: a declared fallback may be tried, before anything "
        "was produced. `blames`: counts against the health of the backend. The last column is the exit code of the command line.\n\n"
    )
    table = "| error | meaning | retryable | failover | blames | exit |\n| --- | --- | --- | --- | --- | --- |\n"
    return f"{MADE}# Errors\n\n{head}```text\n{tree}\n```\n\n{table}" + "\n".join(rows) + "\n"


def gpu_memory() -> str:
    """Estimates of memory beside the sizes that others have published."""
    rows = []
    for one in json.loads((HERE.parent / "tests" / "data" / "gpu" / "published.json").read_text("utf-8"))["models"]:
        facts = facts_from_config(one["config"])
        weights = facts.weights or 0
        cells = [
            one["name"],
            f"{weights:,}",
            f"{one['weights']:,}",
            f"{weights / one['weights'] - 1:+.2%}",
            one["weights_source"],
        ]
        if (published := one.get("kv_cache")) is not None:
            size = published.get("bytes") or published["gib"] * (1 << 30)
            cache = kv_cache(facts, tokens=published["tokens"])
            each = f"{published['tokens']:,} token{'s' * (published['tokens'] > 1)}"
            cells += [f"{cache:,} ({each})", f"{size:,.0f}", f"{cache / size - 1:+.2%}", one["kv_source"]]
        rows.append(cells)
    text = inspect.cleandoc(_MEMORY).replace("CONTEXT", str(CUDA_CONTEXT >> 20)).replace("STEP", str(STEP_TOKENS))
    weights_table = _table(("model", "estimated", "published", "error", "published where"), [row[:5] for row in rows])
    cache_table = _table(
        ("model", "estimated", "published", "error", "published where"), [[row[0], *row[5:]] for row in rows if row[5:]]
    )
    return f"{MADE}{text.replace('WEIGHTS', weights_table).replace('CACHE', cache_table)}\n"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_MEMORY = """
    # How GPU memory is estimated

    `llm-hub plan` counts, for each model, in bytes:

    | part | how |
    | --- | --- |
    | weights | the sizes of its files (GGUF header, `model.safetensors.index.json`, the files themselves); without them, for families that are known, its parameters counted from `config.json` |
    | cache of keys and values | 2 · layers · heads for keys and values · size of a head · bytes of a number · tokens · calls at once |
    | beside | CONTEXT MiB for CUDA in each process and card, and what lies between two layers for STEP tokens: a margin, not a measurement |

    Tokens and calls are those that the backend is started with: `max_model_len` for vLLM (one call must fit), `num_ctx` and
    `num_parallel` for Ollama (by default by the memory of the GPUs, as Ollama decides it), `n_ctx` and `n_parallel` for llamacpp.

    The number is called **a lower bound** where the formula does not hold: a sliding window (counted with its window; an engine that
    keeps all tokens needs more), multi-head latent attention (counted with the latent vector; an engine that unpacks it keeps far
    more), hybrids with layers that keep a state (the state is not counted), a vision part of which only `config.json` is there.

    What is not known is said to be unknown, never guessed from a name: fetch the model or its `config.json`, or set `memory` in the
    assignment. What a server really takes beside weights and cache depends on its version; look at it once it runs: `llm-hub gpus`.

    ## Weights, counted from config.json alone

    Bytes. The facts are in `tests/data/gpu/published.json`.

    WEIGHTS

    ## Cache of keys and values

    Bytes, in 16 bits a number. The blog's figures are rounded to hundredths of a GB of 2^30 bytes.

    CACHE
"""


def conformance() -> str:
    """The rules that plugins are held to, and what their authors say of them."""
    from llm_hub.testing import embedding, text, vision
    from llm_hub.testing.conformance.reference import markdown

    return MADE + markdown([text.SUITE, embedding.SUITE, vision.SUITE])


def hooks() -> str:
    """Every hook, Protocol and value of a plugin."""
    page: str = hooks_page()
    return MADE + page


PAGES = {
    "reference/cli.md": command_line,
    "reference/conformance.md": conformance,
    "reference/errors.md": error_tree,
    "reference/gpu-memory.md": gpu_memory,
    "reference/hooks.md": hooks,
}


def main() -> None:
    """Write or compare."""
    stale = []
    for name, make in PAGES.items():
        path = HERE / name
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"stale: {', '.join(stale)}. Run: uv run python docs/generate.py")


if __name__ == "__main__":
    main()
