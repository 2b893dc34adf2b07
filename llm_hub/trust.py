"""Which plugins may be loaded: the allow and the block list, by the name of a plugin or by the distribution that brings it.

An entry is the name of a plugin (`ollama`), or `dist:` and the name of a distribution (`dist:llm-hub-ollama`). A name says
what a service asks for, and any distribution may claim it; a distribution says whose code it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from llm_hub.discovery import Installed, normalized
from llm_hub.errors import SettingsError
from llm_hub.settings_kinds import DISTRIBUTION

__all__ = ["Trust"]


class Trust(msgspec.Struct, frozen=True):
    """The two lists: `allowed` None lets in every plugin, and `disabled` wins over it."""

    allowed: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()

    def check(self, found: Iterable[Installed]) -> None:
        """Raise SettingsError for an entry that names nothing which is installed: a misspelt block would block nothing."""
        plugins = list(found)
        names = sorted(one.name for one in plugins)
        distributions = sorted({normalized(claim.distribution) for one in plugins for claim in _claims(one)})
        for variable, entries in (("LLM_HUB_PLUGINS", self.allowed or ()), ("LLM_HUB_DISABLE", self.disabled)):
            for entry in sorted(entries):
                if entry.startswith(DISTRIBUTION):
                    wanted, known = normalized(entry.removeprefix(DISTRIBUTION)), distributions
                    what = f"no distribution {wanted!r} with plugins is installed"
                else:
                    wanted, known = entry, names
                    what = f"no plugin {entry!r} is installed"
                    if normalized(entry) in distributions:
                        what += f", but a distribution of that name is: write {DISTRIBUTION}{normalized(entry)}"
                if wanted not in known:
                    import difflib

                    close = difflib.get_close_matches(wanted, known, 1)
                    meant = f"Did you mean {close[0]!r}? " if close else ""
                    raise SettingsError(
                        what, where=variable, hint=f"{meant}Installed are: {', '.join(known) or 'none'}."
                    )

    def settled(self, found: Installed) -> Installed:
        """Of a name that several distributions claim, the claim of the one that is left when the lists were heeded."""
        if not found.claims:
            return found
        left = [claim for claim in found.claims if self._of_distribution(claim)]
        return left[0] if len(left) == 1 else found

    def _of_distribution(self, claim: Installed) -> bool:
        """Is a claim left, as far as the lists speak of its distribution?"""
        entry = _entry(claim)
        if entry in _normal(self.disabled):
            return False
        named = {one for one in _normal(self.allowed or ()) if one.startswith(DISTRIBUTION)}
        return not named or entry in named

    def objection(self, found: Installed) -> tuple[str, str] | None:
        """Why a plugin is kept out, and what to do about it; None if it is not."""
        entries = {found.name, *(_entry(claim) for claim in _claims(found))}
        if by := sorted(entries & _normal(self.disabled)):
            return f"LLM_HUB_DISABLE keeps out {found.origin}", f"Take {by[0]} out of LLM_HUB_DISABLE."
        if self.allowed is not None and not entries & _normal(self.allowed):
            return f"LLM_HUB_PLUGINS does not allow {found.origin}", (
                f"Add {found.name} or {_entry(found)} to LLM_HUB_PLUGINS."
            )
        return None


def _claims(found: Installed) -> tuple[Installed, ...]:
    return found.claims or (found,)


def _entry(found: Installed) -> str:
    return DISTRIBUTION + normalized(found.distribution)


def _normal(entries: Collection[str]) -> set[str]:
    """The entries with the names of distributions as these are compared."""
    return {
        DISTRIBUTION + normalized(one.removeprefix(DISTRIBUTION)) if one.startswith(DISTRIBUTION) else one
        for one in entries
    }
