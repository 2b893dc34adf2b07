"""What the questions have in common: which backends they are put to, and how an answer is shown."""

from __future__ import annotations

from llm_hub.capabilities import Capability
from llm_hub.errors import HubError
from llm_hub.messages import ServedBy
from llm_hub.verification.bench import Bench
from llm_hub.verification.questions import No, Skip

__all__ = ["COUNT", "by", "one", "refused", "two"]

COUNT = "Count from 1 to 60."
"""A prompt whose answer is long enough to have a middle."""


def one(bench: Bench, capability: Capability) -> str:
    """The first backend that serves this. Raises Skip."""
    able = bench.able(capability)
    if able:
        return able[0]
    tried = bench.tried(capability)
    if tried:
        raise Skip(f"no backend serves {capability}: {tried[0].error}", "llm-hub doctor")
    error = bench.undecided(capability)
    raise Skip(
        f"no backend for {capability} is configured" + (f": {error.message}" if error is not None else ""),
        (error.hint if error is not None else None) or "`llm-hub plugins` lists what is installed.",
    )


def two(bench: Bench, capability: Capability) -> tuple[str, str]:
    """The first two. Raises Skip."""
    first = one(bench, capability)
    able = bench.able(capability)
    if len(able) > 1:
        return first, able[1]
    failed = [tried for tried in bench.tried(capability) if tried.error is not None]
    if failed:
        raise Skip(f"only {first} serves {capability}: {failed[0].error}", "llm-hub doctor")
    raise Skip(
        f"only {first} serves {capability}, and there is no second backend to turn to",
        "Configure a second one: [backends.NAME] in llm-hub.toml, or variables such as VLLM_BASE_URL",
    )


def by(served_by: ServedBy | None) -> str:
    """Who answered, as it is shown."""
    if served_by is None:
        raise No("the answer does not say who gave it", "Report it: this is a fault of the hub.")
    return f"{served_by.backend}/{served_by.model}" if served_by.model else served_by.backend


def refused(error: HubError) -> str:
    """An error, as it is shown: the first of it."""
    text = str(error)
    return text if len(text) <= 160 else f"{text[:160]}…"
