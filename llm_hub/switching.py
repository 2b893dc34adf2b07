"""The switches of one hub: the next epoch is built beside the one in force, proven, and published in one assignment."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from llm_hub.call import Call
from llm_hub.control import Document, Proof, merged, who
from llm_hub.control_book import Book, Change
from llm_hub.control_file import signature_of
from llm_hub.epochs import Epoch, EpochStore
from llm_hub.errors import ControlFileDamaged, HubClosed, HubError, StreamInterrupted, SwitchRefused
from llm_hub.events import SwitchStep
from llm_hub.following import Standing
from llm_hub.quarantine import said
from llm_hub.selection import Switch, Target
from llm_hub.switch_checks import check_keys, check_meanwhile, require
from llm_hub.transport import drive
from llm_hub.worlds import BLOCKING

if TYPE_CHECKING:
    from llm_hub.health import BackendCondition
    from llm_hub.runtime import Runtime
    from llm_hub.settings import Settings

__all__ = ["Switchboard", "Switched"]

logger = logging.getLogger("llm_hub")

Step = Literal["proposed", "proven", "published", "refused", "drained"]


class Switched(msgspec.Struct, frozen=True, kw_only=True):
    """A switch that was published: its epoch, the one before, and what was changed in it, with the proof.

    `notes` are for the operator: what was left out, what is not as it should be.
    """

    epoch: int
    id: str
    previous: int
    changed: Mapping[str, tuple[Target, ...]] = {}
    bindings: Mapping[str, tuple[Target, ...]] = {}
    proofs: tuple[Proof, ...] = ()
    notes: tuple[str, ...] = ()


class Switchboard:
    """Publishes the epochs of one hub. Safe to use from any thread.

    `make` makes the runtime of the first epoch. `reread` gives the settings as they are now, for backends that came into
    the settings file later; None: there is no such file. `snapshots` tell how the backends are found. `problem` says why this hub is not where the book is.
    """

    def __init__(
        self,
        epochs: EpochStore[Runtime],
        book: Book,
        make: Callable[[Switch | None], Runtime],
        *,
        pinned: bool = False,
        reread: Callable[[], Settings] | None = None,
        snapshots: Callable[[], Sequence[BackendCondition]] = tuple,
    ) -> None:
        self.book = book
        self.pinned = pinned
        self.problem: str | None = None
        self._epochs = epochs
        self._reread = reread
        self._snapshots = snapshots
        self._lock = threading.RLock()  # while an epoch is published
        self._proving = threading.Lock()  # while one is proven, which may take long
        self._refreshing = threading.Lock()
        self.document = Document.first()
        if not pinned:
            try:
                self.document = book.read()
            except ControlFileDamaged as error:
                self.document = book.last() or self.document
                self._report(str(error), f"starting with epoch {self.document.epoch}, the last one that is known")
        self._tried = self.document.current.id
        self._checked = False
        first = make(self.document.switch(book.where) if self.document.current.bindings else None)
        self._watch, self._settings = first.watch, first.settings
        self._last_read: tuple[object, Settings] | None = None
        epochs.rest(epochs.next_epoch(first, self._on_drained(self.document.epoch), number=self.document.epoch))
        _BOARDS.add(self)

    # -- following ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take up what the book says now. What stands in the way is logged and kept as `problem`; nothing is raised."""
        if not self.pinned:
            # So that of two the later one has the last word, and nothing is put in force after what is newer than it.
            with self._refreshing, self._lock:
                self._refresh()

    def _refresh(self) -> None:
        try:
            document = self.book.read()
        except ControlFileDamaged as error:
            self._report(str(error), f"epoch {self.document.epoch} goes on serving")
            return
        self._tried = document.current.id
        try:
            self.take_up(document)
        except HubClosed:
            return
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; what is in force goes on serving
            why = str(error) if isinstance(error, HubError) else said(error)
            what = f"epoch {document.epoch} cannot be taken up: {why}"
            meanwhile = f"epoch {self.document.epoch} goes on serving"
            if document.current.id == self.document.current.id:
                what = f"epoch {document.epoch} cannot serve in this process: {why}"
                meanwhile = "calls fail until that is mended"
            if self._report(what, meanwhile):
                self._tell("refused", document, reason=why)

    def _report(self, problem: str, meanwhile: str) -> bool:
        """Keep it, and log it when it is new."""
        new = problem != self.problem
        if new:
            logger.error("%s; %s", problem, meanwhile)
        self.problem = problem
        return new

    def standing(self) -> Standing:
        """How far this hub has come, for those who wait for it."""
        return Standing(
            epoch=self.document.epoch,
            switch=self.document.current.id,
            tried=self._tried,
            problem=self.problem,
            pinned=self.pinned,
            backends=tuple(self._snapshots()),
        )

    def take_up(self, document: Document) -> None:
        """Build the epoch of this document and publish it, unless it is in force. Raises what keeps it from being built."""
        from llm_hub.proving import warm_up  # here, because most processes are never switched

        with self._lock:
            entry = document.current
            if entry.id == self.document.current.id:
                if not self._checked:  # a process that has started here had nothing to stay with
                    for key in entry.bindings:
                        self._in_force().check(key)
                self.problem, self._checked = None, True
                return
            following = self._build(document.switch(self.book.where))
            try:
                for key in entry.bindings:
                    following.check(key)
                    if entry.warm:
                        warm_up(following, key)
                overtaken = entry.warm and self._newest(document).epoch > document.epoch
            except BaseException:
                following.close()
                raise
            if overtaken:  # rolled back while the models were loaded, say: it never comes into force here
                following.close()
                return
            self._publish(following, document)

    def _newest(self, otherwise: Document) -> Document:
        try:
            return self.book.read()
        except ControlFileDamaged:
            return otherwise

    def _in_force(self) -> Runtime:
        epoch = self._epochs.latest
        if epoch is None:
            raise HubClosed("the hub is closed", hint="Open a new one.")
        return epoch.value

    def _build(self, switch: Switch, *names: str) -> Runtime:
        """The next epoch, not in use yet; `names` are backends that it must know besides those that are bound."""
        named = {*names, *(target.backend for targets in switch.bindings.values() for target in targets)}
        return self._in_force().successor(self._settings_for(named), switch if switch.bindings else None)

    def _settings_for(self, named: set[str]) -> Settings:
        """The settings of the start, with what the settings file says now of the backends that are switched to.

        So a backend can be added and switched to with no restart, and what else somebody has changed in the file
        does not come along unproven.
        """
        if self._reread is None or not named:
            return self._settings
        try:
            now = self._settings_now().backends
        except HubError as error:  # a switch must not depend on a file that somebody edits right now
            logger.warning("the settings could not be read again, those of the start stay: %s", error)
            return self._settings
        fresh = {name: now[name] for name in named if name in now}
        return msgspec.structs.replace(self._settings, backends={**self._settings.backends, **fresh})

    def _settings_now(self) -> Settings:
        """What the settings file says, read again only if it is another than before."""
        assert self._reread is not None
        path, read = self._settings.config_path, self._last_read
        signature = signature_of(path) if path is not None else None
        if read is None or path is None or read[0] != signature:
            read = self._last_read = signature, self._reread()
        return read[1]

    def _publish(self, following: Runtime, document: Document) -> None:
        began = time.monotonic()
        epoch = self._epochs.next_epoch(following, self._on_drained(document.epoch), number=document.epoch)
        try:
            before = self._epochs.publish(epoch)
        except HubClosed:
            following.close()
            raise
        self.document, self.problem, self._tried = document, None, document.current.id
        self._checked = True
        self._tell(
            "published",
            document,
            before=before.number if before is not None else None,
            seconds=time.monotonic() - began,
        )
        drain = document.current.drain
        if before is not None and drain is not None and not before.closed:
            self._drain(before, drain)

    def _on_drained(self, number: int) -> Callable[[Runtime], None]:
        """Close in a thread of its own: the last lease may be returned by a call, or by the garbage collector."""

        def close(runtime: Runtime) -> None:
            try:
                threading.Thread(target=close_apart, args=(runtime,), name="llm-hub-reaper", daemon=True).start()
            except RuntimeError:  # the interpreter ends, or the process can have no more threads
                close_apart(runtime)

        def close_apart(runtime: Runtime) -> None:
            self._watch.tell(SwitchStep(step="drained", epoch=number))
            runtime.close()

        return close

    def _drain(self, epoch: Epoch[Runtime], seconds: float) -> None:
        """End what still holds the old epoch when its time is over."""
        to = self.document.epoch

        def expire() -> None:
            error = StreamInterrupted(
                f"the switch to epoch {to} gave it {seconds:g} s to end, and they are over",
                hint="Ask again: the new backend answers. A longer --drain lets more streams end by themselves.",
            )
            left = epoch.expire(error)
            if left:
                logger.warning(
                    "epoch %d was closed with %d calls on it, %g s after the switch", epoch.number, left, seconds
                )

        if seconds <= 0:
            expire()
            return
        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.name = "llm-hub-drain"
        timer.start()

    def _tell(self, step: Step, document: Document | None, **more: Any) -> None:
        """Tell observers and the log of a step."""
        entry = document.current if document is not None else None
        self._watch.tell(
            SwitchStep(
                step=step,
                action=entry.action if entry is not None and entry.action != "start" else "use",
                epoch=entry.epoch if entry is not None else None,
                by=entry.by if entry is not None else who(),
                routes=_routes(more.pop("bindings", entry.bindings if entry is not None else {})),
                **more,
            )
        )

    # -- switching ----------------------------------------------------------------------------------------------------

    def use(
        self,
        wanted: Mapping[str, tuple[Target, ...]],
        *,
        everything: str | None = None,
        warm: bool = False,
        new_space: bool = False,
        drain: float | None = None,
        timeout: float = 15.0,
    ) -> Switched:
        """Prove these targets, all of them, and publish the epoch in which they serve.

        `everything` is a backend for all that it offers, where `wanted` names no other. Raises SwitchRefused, with what
        was found, or what keeps `everything` from being loaded; then nothing has changed.
        """
        from llm_hub.proving import prove  # here, because most processes only follow

        self._allow()
        with self._proving:
            base = self.book.read()
            notes = self._taken_up(base)
            before = self._in_force()
            changes, whole, more = self._wanted(wanted, everything, base, timeout)
            notes += more
            self._tell("proposed", None, bindings=changes, before=base.epoch)
            following = self._build(Switch(bindings=merged(base.current.bindings, changes, whole)))
            try:
                began = time.monotonic()
                proofs, record = drive(
                    prove(
                        BLOCKING,
                        before,
                        following,
                        changes,
                        self.book,
                        base.current.space,
                        warm=warm,
                        new_space=new_space,
                        timeout=timeout,
                    )
                )
                require(proofs)
                self._tell("proven", None, bindings=changes, before=base.epoch, seconds=time.monotonic() - began)
                if record is not None:
                    self.book.save(record)

                def change(now: Document) -> Document:
                    check_meanwhile(base, now, {*changes, *_replaced(changes, whole)})
                    return now.after(
                        "use",
                        merged(now.current.bindings, changes, whole),
                        by=who(),
                        drain=drain,
                        warm=warm,
                        space=record.id if record is not None else now.current.space,
                        proofs=tuple(proofs),
                    )

                document = self.book.update(change)
                with self._lock:
                    if self.document.current.id == base.current.id and document.epoch == base.epoch + 1:
                        # The sources name the switch that is published; until here it had no number.
                        following.renamed(document.switch(self.book.where))
                        self._publish(following, document)
                    else:  # somebody has switched something else meanwhile
                        following.close()
                        notes += self._taken_up(document)
            except BaseException as error:
                following.close()
                if isinstance(error, HubError):
                    self._tell("refused", None, bindings=changes, before=base.epoch, reason=error.message)
                raise
        notes += [f"{proof.what}: {warning}" for proof in proofs for warning in proof.warnings]
        return _switched(document, base, changes, proofs, notes)

    def _wanted(
        self, wanted: Mapping[str, tuple[Target, ...]], everything: str | None, base: Document, timeout: float
    ) -> tuple[dict[str, tuple[Target, ...]], dict[str, frozenset[str]], list[str]]:
        """What is to be changed, which operations of a whole capability that means, and notes on what is left out."""
        from llm_hub.proving import asks_of, offered

        notes: list[str] = []
        named = [target.backend for targets in wanted.values() for target in targets]
        scratch = self._build(base.switch(self.book.where), *named, *filter(None, [everything]))
        try:
            changes: dict[str, tuple[Target, ...]] = {}
            if everything is not None:
                changes, left_out = drive(offered(BLOCKING, scratch, everything, Call(timeout=timeout)))
                notes = [note for capability, note in left_out.items() if capability not in wanted]
            changes.update(wanted)
            check_keys(changes)
            scratch.switch = Switch(bindings=changes)
            whole: dict[str, frozenset[str]] = {}
            for key in changes:
                if "." not in key:
                    with contextlib.suppress(HubError):  # which the proof is going to say
                        whole[key] = frozenset(ask.operation for ask in asks_of(key, scratch))
        finally:
            scratch.close()
        return changes, whole, notes

    def reset(self, *, drain: float | None = None) -> Switched:
        """Back to what the environment and the settings file say; it also puts a damaged book in order."""
        self._allow()

        def change(now: Document) -> Document:
            return now.after("reset", {}, by=who(), drain=drain)

        return self._at_once(change, repair=True)

    def rollback(self, to: int | None = None, *, drain: float | None = None) -> Switched:
        """Publish an older epoch anew, at once: nothing is asked before. Raises SwitchRefused if there is none."""
        self._allow()
        return self._at_once(lambda now: now.back(to, by=who(), drain=drain))

    def _at_once(self, change: Change, *, repair: bool = False) -> Switched:
        before: list[Document] = []

        def noted(now: Document) -> Document:
            before.append(now)
            return change(now)

        if self.book.shared:
            document = self.book.update(noted, repair=repair)
            notes = self._taken_up(document)
        else:
            document, notes = noted(self.book.read()), []
            self.take_up(document)
            self.book.update(lambda _: document)
        ours, theirs = document.current.bindings, before[0].current.bindings
        changed = {key: ours.get(key, ()) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
        return _switched(document, before[0], changed, (), notes)

    def _taken_up(self, document: Document) -> list[str]:
        """Take it up; a note if this process cannot, which is nothing to those that can."""
        try:
            self.take_up(document)
        except HubClosed:
            raise
        except HubError as error:
            return [f"this process itself cannot take up epoch {document.epoch}: {error}"]
        return []

    def _allow(self) -> None:
        if self.pinned:
            raise SwitchRefused(
                "this process is pinned (LLM_HUB_PIN) and refuses switches",
                hint="Unset LLM_HUB_PIN, or switch from another process.",
            )


def _switched(
    document: Document,
    before: Document,
    changed: Mapping[str, tuple[Target, ...]],
    proofs: Iterable[Proof],
    notes: Iterable[str],
) -> Switched:
    return Switched(
        epoch=document.epoch,
        id=document.current.id,
        previous=before.epoch,
        changed=changed,
        bindings=document.current.bindings,
        proofs=tuple(proofs),
        notes=tuple(notes),
    )


def _replaced(changes: Mapping[str, object], whole: Mapping[str, frozenset[str]]) -> set[str]:
    return {f"{key}.{operation}" for key, operations in whole.items() for operation in operations} - {*changes}


def _routes(bindings: Mapping[str, tuple[Target, ...]]) -> dict[str, str]:
    return {key: ",".join(map(str, targets)) for key, targets in sorted(bindings.items())}


_BOARDS: weakref.WeakSet[Switchboard] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child, a lock that another thread held would never be released."""
    for board in list(_BOARDS):
        board._lock = threading.RLock()
        board._proving, board._refreshing = threading.Lock(), threading.Lock()
        board.book.forked()


os.register_at_fork(after_in_child=_after_fork)
