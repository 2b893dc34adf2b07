"""What the control file says, as values: the epochs that were published, by whom and with which proof, and the next one."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Mapping
from typing import Literal

import msgspec

from llm_hub.errors import ControlFileDamaged, InvalidRequest, SwitchRefused
from llm_hub.selection import Switch, Target

__all__ = ["FORMAT", "KEPT", "KEYS", "Action", "Document", "Entry", "Proof", "decode", "merged", "parse_target", "who"]

FORMAT = 1
"""The version of the file's format. A file of another one is not read, and not written over without being asked to."""

KEPT = 100
"""How many epochs the history holds; older ones are forgotten."""

FIRST = 1
"""The number of the epoch before any switch."""

KEYS = ("text", "embedding", "vision", "vision.describe", "vision.read")
"""What can be switched."""

Action = Literal["start", "use", "rollback", "reset"]
Bindings = Mapping[str, tuple[Target, ...]]


class Proof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was shown of a target before a switch to it was published.

    `what` is a capability or an operation ("vision.read"), `rung` the highest rung of the health ladder that held, in
    words, `space` what the canary texts showed of its embedding space, `problem` why it is no proof (None: it is one).
    """

    what: str
    backend: str
    model: str | None = None
    rung: str | None = None
    space: str | None = None
    seconds: float = 0.0
    problem: str | None = None
    hint: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Is the target proven?"""
        return self.problem is None

    @property
    def target(self) -> Target:
        """The backend and the model."""
        return Target(self.backend, self.model)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One epoch: what serves from it on, who published it and how.

    `bindings` are all that is switched, by capability or operation; what is not in them is as the environment says.
    `previous` is the epoch that a rollback goes back to, `restored` the one whose bindings a rollback has restored.
    `space` is the id of the embedding space that was proven. `drain` is in seconds; None: streams may take what they take.
    `warm`: each process has the models loaded before it goes over (an engine in the process has a copy of its own).
    """

    epoch: int
    id: str
    action: Action
    bindings: dict[str, tuple[Target, ...]] = {}
    previous: int | None = None
    restored: int | None = None
    by: str = ""
    at: str = ""
    drain: float | None = None
    warm: bool = False
    space: str | None = None
    proofs: tuple[Proof, ...] = ()

    @property
    def when(self) -> str:
        """The time for a person, in UTC."""
        return self.at.replace("T", " ").replace("Z", " UTC")

    @property
    def described(self) -> str:
        """What was done, what serves and by whom, in one line."""
        bound = " ".join(f"{key}={','.join(map(str, targets))}" for key, targets in sorted(self.bindings.items()))
        what = {
            "start": "before any switch",
            "use": "switched",
            "rollback": f"rolled back to what epoch {self.restored} had",
            "reset": "reset",
        }[self.action]
        by = f" (by {self.by})" if self.by else ""
        return f"{what}: {bound or 'as the environment and the settings file say'}{by}"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `history` is in order; its last entry, whose epoch is `epoch`, is in force."""

    format: int
    epoch: int
    history: tuple[Entry, ...]

    @classmethod
    def first(cls) -> Document:
        """Before any switch: the environment and the settings file decide."""
        return cls(format=FORMAT, epoch=FIRST, history=(Entry(epoch=FIRST, id="start", action="start"),))

    @property
    def current(self) -> Entry:
        """The epoch in force."""
        return self.history[-1]

    def entry(self, epoch: int) -> Entry | None:
        """The epoch of this number, if it is still in the history."""
        return next((one for one in reversed(self.history) if one.epoch == epoch), None)

    def switch(self, where: str) -> Switch:
        """For `select`. `where` is the file, for people."""
        return Switch(
            bindings=self.current.bindings,
            sources={key: self._source(key, where) for key in self.current.bindings},
        )

    def _source(self, key: str, where: str) -> str:
        """The switch that brought this binding: the oldest from which on it has been the same."""
        since = self.current
        for one in reversed(self.history):
            if one.bindings.get(key) != since.bindings.get(key):
                break
            since = one
        who = f" by {since.by}" if since.by else ""
        return f"{where}, switch {since.epoch}{who} at {since.when}" if since.at else f"{where}, switch {since.epoch}"

    def after(
        self,
        action: Action,
        bindings: Bindings,
        *,
        by: str = "",
        drain: float | None = None,
        warm: bool = False,
        space: str | None = None,
        proofs: tuple[Proof, ...] = (),
    ) -> Document:
        """With one epoch more."""
        return self._with(
            Entry(
                epoch=self.epoch + 1,
                id=_fresh_id(),
                action=action,
                bindings=dict(bindings),
                previous=self.epoch,
                by=by,
                at=_now(),
                drain=drain,
                warm=warm,
                space=space,
                proofs=proofs,
            )
        )

    def back(self, to: int | None = None, *, by: str = "", drain: float | None = None) -> Document:
        """With one epoch more, which restores the bindings of an older one: of `to`, else of the one before the switch.

        Rolling back again goes further back, not forth to what was rolled back from. Raises SwitchRefused.
        """
        wanted = self.current.previous if to is None else to
        if wanted is None:
            raise SwitchRefused(
                "there is nothing to roll back to: no switch is in force",
                hint="`llm-hub history` lists the epochs; --to N goes to any of them.",
            )
        found = self.entry(wanted)
        if found is None:
            raise SwitchRefused(
                f"epoch {wanted} is not in the history, which holds {self.history[0].epoch} to {self.epoch}",
                hint="Name one that `llm-hub history` lists, or go back to the environment: llm-hub use --reset",
            )
        if to == self.epoch:
            raise SwitchRefused(f"epoch {to} is the one in force", hint="`llm-hub history` lists the others.")
        return self._with(
            Entry(
                epoch=self.epoch + 1,
                id=_fresh_id(),
                action="rollback",
                bindings=found.bindings,
                previous=found.previous,
                restored=found.epoch,
                by=by,
                at=_now(),
                drain=drain,
                space=found.space,
            )
        )

    def above(self, epoch: int) -> Document:
        """With a number above this for the last epoch: for a file that has forgotten those that processes are on."""
        if self.epoch > epoch:
            return self
        entry = msgspec.structs.replace(self.current, epoch=epoch + 1)
        return Document(format=FORMAT, epoch=entry.epoch, history=(*self.history[:-1], entry))

    def _with(self, entry: Entry) -> Document:
        history = (*self.history, entry)
        return Document(format=FORMAT, epoch=entry.epoch, history=history[-KEPT:])

    def encode(self) -> bytes:
        """As it stands in the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class _Format(msgspec.Struct):
    format: int


def decode(data: bytes, where: str) -> Document:
    """The document in these bytes. Raises ControlFileDamaged, which names `where`."""
    try:
        version = msgspec.json.decode(data, type=_Format).format
        if version != FORMAT:
            raise ControlFileDamaged(
                f"it has format {version}, and this version of llm-hub knows format {FORMAT}",
                where=where,
                hint="Upgrade llm-hub here to the version that wrote it (pip install -U llm-hub-core), "
                "or begin anew: llm-hub use --reset",
            )
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "it is empty" if not data.strip() else f"it is no control file ({error})"
        raise ControlFileDamaged(why, where=where, hint=_REPAIR) from error
    epochs = [one.epoch for one in document.history]
    if not epochs or epochs[-1] != document.epoch or epochs != sorted(set(epochs)) or epochs[0] < FIRST:
        raise ControlFileDamaged("its epochs are not in order", where=where, hint=_REPAIR)
    for one in document.history:
        for key, targets in one.bindings.items():
            if key not in KEYS or not targets or not all(target.backend for target in targets):
                raise ControlFileDamaged(
                    f"epoch {one.epoch} binds {key!r} to nothing usable", where=where, hint=_REPAIR
                )
    return document


_REPAIR = "Restore it, or begin anew with what the environment says: llm-hub use --reset"


def merged(
    before: Bindings, changes: Bindings, whole: Mapping[str, frozenset[str]] = {}
) -> dict[str, tuple[Target, ...]]:
    """The bindings after these changes.

    `whole` says for each capability that is changed as a whole which of its operations the new backend does: what was
    bound for those alone gives way.
    """
    result = dict(before)
    for capability, operations in whole.items():
        for operation in operations:
            if f"{capability}.{operation}" not in changes:
                result.pop(f"{capability}.{operation}", None)
    return {**result, **changes}


def parse_target(text: str) -> tuple[Target, ...]:
    """The targets in "vllm-text/qwen3-8b,ollama": a backend, perhaps with a model, then fallbacks. Raises InvalidRequest."""
    targets = []
    for part in text.split(","):
        backend, _, model = part.strip().partition("/")
        if not backend:
            raise InvalidRequest(
                f"{text!r} names no backend", hint="Write BACKEND, BACKEND/MODEL, or several with commas."
            )
        targets.append(Target(backend, model or None))
    return tuple(targets)


def who() -> str:
    """Who switches: user and machine."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        user = f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


def _fresh_id() -> str:
    return os.urandom(16).hex()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
