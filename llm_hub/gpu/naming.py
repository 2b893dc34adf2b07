"""Whether a name in an assignment can be used: it is there, it is one, and nothing keeps processes from it."""

from __future__ import annotations

from llm_hub.gpu.inventory import Gpu, Inventory, Unit
from llm_hub.gpu.ledger import label
from llm_hub.gpu.plan import Finding

__all__ = ["cannot_use", "named"]


def named(written: int | str) -> str:
    """What is written, for a sentence."""
    return f"index {written}" if isinstance(written, int) else written


def cannot_use(inventory: Inventory, written: int | str, matches: list[Unit], there: str) -> Finding | None:
    """Why what is written cannot be used; None if it can. `matches` is what it names, `there` what could be written."""
    if not matches:
        return Finding(
            code="unknown-gpu",
            level="error",
            message=f"there is no GPU {written!r} here",
            fix=f"There are: {there}. `llm-hub gpus` lists them.",
        )
    if len(matches) > 1:
        names = ", ".join(str(one.uuid) for one in matches)
        return Finding(
            code="ambiguous-gpu",
            level="error",
            message=f"{written!r} is the beginning of {len(matches)} UUIDs",
            fix=f"Write more of it: {names}",
        )
    unit = matches[0]
    if isinstance(unit, Gpu):
        if unit.problem:
            return Finding(
                code="lost-gpu", level="error", message=f"{unit} cannot be used: {unit.problem}", fix="Assign another."
            )
        if unit.mig:
            parts = ", ".join(one.uuid for one in unit.instances)
            return Finding(
                code="mig-card",
                level="error",
                message=f"{unit} is divided by MIG, and nothing runs on the card itself",
                fix=f"Name one of its instances: {parts}"
                if parts
                else "It has no instances: create one (nvidia-smi mig -cgi … -C).",
            )
    if unit.hidden_by:
        return Finding(
            code="hidden-gpu",
            level="error",
            message=f"{label(inventory, unit)} is kept from this process by {unit.hidden_by}",
            fix="Assign one that is left, or change the variable.",
        )
    return None
