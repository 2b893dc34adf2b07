"""What stands in the way of a switch: names that are none, what is not proven, and what somebody else has switched meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llm_hub.control import KEYS
from llm_hub.errors import InvalidRequest, SwitchRefused

if TYPE_CHECKING:
    from llm_hub.control import Document, Proof
    from llm_hub.selection import Target

__all__ = ["check_keys", "check_meanwhile", "require"]


def check_keys(changes: Mapping[str, tuple[Target, ...]]) -> None:
    """Raise InvalidRequest unless something is named, and each is something that can be switched, to somewhere."""
    for key, targets in changes.items():
        if key not in KEYS:
            raise InvalidRequest(f"there is nothing called {key!r} to switch", hint=f"There are: {', '.join(KEYS)}.")
        if not targets:
            raise InvalidRequest(f"{key} is given no backend", hint=f"Write {key}=BACKEND or {key}=BACKEND/MODEL.")
    if not changes:
        raise InvalidRequest("nothing to switch is named", hint="Name a backend, or CAPABILITY=BACKEND.")


def require(proofs: Iterable[Proof]) -> None:
    """Raise SwitchRefused unless everything is proven."""
    failed = [proof for proof in proofs if not proof.ok]
    if not failed:
        return
    said = "; ".join(f"{proof.what} by {proof.target}: {proof.problem}" for proof in failed)
    raise SwitchRefused(
        f"not switched, and nothing has changed: {said}",
        problems={proof.what: str(proof.problem) for proof in failed},
        hint=" ".join(dict.fromkeys(proof.hint for proof in failed if proof.hint))
        or "See what is wrong with it: llm-hub doctor; then switch again.",
    )


def check_meanwhile(base: Document, now: Document, keys: Iterable[str]) -> None:
    """Raise SwitchRefused if somebody has switched one of these since `base`, beside which the proof was made."""
    ours, theirs = base.current.bindings, now.current.bindings
    both = sorted(key for key in keys if ours.get(key) != theirs.get(key))
    if both:
        raise SwitchRefused(
            f"not switched, and nothing has changed: meanwhile {now.current.by or 'somebody'} has switched "
            f"{', '.join(both)} (epoch {now.epoch})",
            hint="Look at `llm-hub history`, and switch again if it is still wanted.",
        )
