"""Keeps backends running: starts them in turn, sees them serve, starts them again when they end, and stops them cleanly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

import msgspec

from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.capabilities import Probe, Rung
from llm_hub.errors import BackendLoading, Cancelled, HubError
from llm_hub.process import Process, started_at, sweep, tail
from llm_hub.running import Register, Running, RunningBackend, State, changed
from llm_hub.starting import Startable, environment, free_port, taken
from llm_hub.transport import drive
from llm_hub.worlds import BLOCKING

if TYPE_CHECKING:
    from llm_hub.runtime import Runtime

__all__ = ["Event", "Policy", "Supervisor"]

Check = Callable[[Startable], tuple[str, str] | None]
"""Says what is not as planned with a backend that serves, and what to do about it; None if nothing is."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the supervisor is. All times in seconds.

    A backend that ended is started again after `first`, twice that, and so on up to `longest`; after `attempts` starts in a
    row that did not lead to `settled` seconds of serving it is given up. It is asked every `every` how it is, waited for
    `answer` long; one that is silent `misses` times in a row is killed and started again. Whether it runs where it should is looked at every `check`.
    """

    first: float = 0.5
    longest: float = 30.0
    attempts: int = 5
    settled: float = 60.0
    every: float = 5.0
    answer: float = 5.0
    misses: int = 6
    check: float = 60.0

    def delay(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return float(min(self.longest, self.first * 2 ** max(0, failures - 1)))


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a backend, for whoever watches. `lines` are the last of its log."""

    backend: str
    state: State
    text: str
    hint: str = ""
    lines: tuple[str, ...] = ()


class Supervisor:
    """Runs backends until it is told to stop. One thread a backend; `run` waits for them all.

    `check` looks, when a backend serves and now and then, at whether it runs where it should (see `llm_hub.drift`). With
    `fetch`, models that are missing are fetched, by the commands of the backend's LaunchSpec.
    """

    def __init__(
        self,
        runtime: Runtime,
        backends: Sequence[Startable],
        register: Register,
        *,
        say: Callable[[Event], object],
        policy: Policy | None = None,
        environ: Mapping[str, str] | None = None,
        check: Check | None = None,
        fetch: bool = False,
    ) -> None:
        self._runtime = runtime
        self._register = register
        self._say = say
        self._check = check
        self._fetch = fetch
        self._policy = policy or Policy()
        self._environ = dict(os.environ if environ is None else environ)
        self._asked = 0
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._turns = {gpu.id: threading.Lock() for one in backends for gpu in one.spec.devices.gpus}
        self._keepers = [_Keeper(self, one) for one in backends]
        self._lock = threading.Lock()
        self._running = Running(
            mark=uuid.uuid4().hex,
            pid=os.getpid(),
            began=started_at(os.getpid()),
            since=time.time(),
            backends={
                one.name: RunningBackend(
                    state="waiting",
                    address=one.address,
                    plugin=one.config.plugin,
                    log=str(register.log(one.name)),
                    since=time.time(),
                    gpus=tuple(gpu.id for gpu in one.spec.devices.gpus),
                )
                for one in backends
            },
        )

    @property
    def backends(self) -> Mapping[str, RunningBackend]:
        """How each backend stands."""
        return self._running.backends

    def run(self) -> bool:
        """Start all, and keep them running until `stop`. Was no backend given up?"""
        self._clear_away()
        self._check_ports()
        self._register.write(self._running)
        threads = [threading.Thread(target=one.keep, name=f"llm-hub-up-{one.name}") for one in self._keepers]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                self._heed()
                thread.join(0.1)  # not for ever at once: signals are handled in this thread
        return all(one.state != "failed" for one in self._running.backends.values())

    def stop(self) -> None:
        """Stop all, each with its grace. Called again: at once. Safe in a signal handler, because it only counts."""
        self._asked += 1

    def _heed(self) -> None:
        if self._asked:
            self._stopping.set()
        if self._asked > 1:
            self._hurry.set()

    def _clear_away(self) -> None:
        """End what a supervisor before this one left when it was killed."""
        before = self._register.previous()
        if before is not None and not before.alive:
            for name in before.backends:
                sweep(f"{before.mark}/{name}")

    def _check_ports(self) -> None:
        for keeper in self._keepers:
            one = keeper.one
            reason = taken(one.host, one.port)
            if reason is not None:
                raise HubError(
                    reason,
                    backend=one.name,
                    hint=f"Stop that, or give the backend another port in its base_url: {free_port()} is free.",
                )

    # -- for the keepers ----------------------------------------------------------------------------------------------

    def note(self, name: str, backend: RunningBackend) -> None:
        """Put into the register how a backend stands."""
        with self._lock:
            backends = {**self._running.backends, name: backend}
            self._running = msgspec.structs.replace(self._running, backends=backends)
            with contextlib.suppress(HubError):  # a full disk stops no backend
                self._register.write(self._running)

    @contextlib.contextmanager
    def turn(self, one: Startable) -> Iterator[bool]:
        """One start at a time on each GPU: a server takes its share of what is free when it starts. False when stopping."""
        held: list[threading.Lock] = []
        try:
            for gpu in sorted(gpu.id for gpu in one.spec.devices.gpus):
                while not self._turns[gpu].acquire(timeout=0.1):
                    if self._stopping.is_set():
                        yield False
                        return
                held.append(self._turns[gpu])
            yield not self._stopping.is_set()
        finally:
            for lock in held:
                lock.release()


class _Keeper:
    """Keeps one backend running."""

    def __init__(self, supervisor: Supervisor, one: Startable) -> None:
        self.one = one
        self.name = one.name
        self._supervisor = supervisor
        self._policy = supervisor._policy
        self._failures = 0
        self._checked = 0.0
        self._fetched = False
        self._drift: tuple[str, str] | None = None
        self._process: Process | None = None

    def keep(self) -> None:
        """Until it is told to stop, or gives up."""
        try:
            while not self._supervisor._stopping.is_set():
                if not self._once():
                    return
            self._become("stopped", "as it was asked to")
        except Exception as error:  # noqa: BLE001 - the others go on; it is told, and the command ends with 1
            if self._process is not None:
                self._process.kill()
                self._process.end(10)
            self._become("failed", f"the supervisor failed: {type(error).__name__}: {error}")

    def _once(self) -> bool:
        """One life of its process. Should there be another?"""
        stopping = self._supervisor._stopping
        ready: float | None = None
        with self._supervisor.turn(self.one) as mine:
            if not mine:
                return True
            try:
                process = self._process = self._begin()
            except HubError as error:
                self._become("failed", error.message, hint=error.hint or "")
                return False
            why = self._until_ready(process)
            if why is None:
                ready = time.monotonic()
        if why is None:
            why = self._watch(process)
        if stopping.is_set():
            self._end(process)
            return True
        served = ready is not None and time.monotonic() - ready >= self._policy.settled
        self._failures = 1 if served else self._failures + 1
        if not process.wait(0):
            process.kill()
            process.end(10)
        return self._again(why)

    def _begin(self) -> Process:
        supervisor, one = self._supervisor, self.one
        keys = supervisor._runtime.settings.backends.values()
        process = Process(
            one.spec.command,
            environ=environment(one, supervisor._environ, keys),
            log=supervisor._register.log(one.name),
            mark=f"{supervisor._running.mark}/{one.name}",
        )
        self._change(pid=process.pid, began=started_at(process.pid), guardian=process.guardian)
        where = f", on {', '.join(gpu.id for gpu in one.spec.devices.gpus)}" if one.spec.devices else ""
        self._become("starting", f"process {process.pid} at {one.address}{where}")
        return process

    def _end(self, process: Process) -> None:
        """Stop it with its grace; at once if somebody is in a hurry."""
        until = time.monotonic() + self.one.spec.stop_grace + 5
        process.stop(self.one.spec.stop_grace)
        while not process.wait(0.1) and time.monotonic() < until:
            if self._supervisor._hurry.is_set():
                process.kill()
                until = min(until, time.monotonic() + 5)
        process.end(0)
        self._change(pid=0, began=None, guardian=0)

    # -- how it is ----------------------------------------------------------------------------------------------------

    def _until_ready(self, process: Process) -> str | None:
        """Climb the health ladder: None when its models are in memory (or are not there to load), else why not."""
        until = time.monotonic() + self.one.spec.start_timeout
        pause = 0.05
        while not self._supervisor._stopping.is_set():
            if process.wait(pause):
                return f"ended with {_code(process.code)} before it served"
            left = until - time.monotonic()
            if left <= 0:
                return f"did not serve within {self.one.spec.start_timeout:g} s"
            pause = min(0.5, pause * 1.5)
            if self._probe(Rung.ALIVE, self._policy.answer) is None:
                continue
            if self._supervisor._fetch and not self._fetched:
                until += self._fetch_models(process)
                left = until - time.monotonic()
            worst = self._probe(Rung.LOADED, left, process=process)
            if worst is None or (not worst.ok and self._is_loading()):
                continue
            self._tell_health(worst, first=True)
            return None
        return "stopped"

    def _fetch_models(self, process: Process) -> float:
        """Fetch the models that are missing, if any; how long that took, in seconds. What it says goes into the log."""
        began = time.monotonic()
        self._fetched = True
        present = self._probe(Rung.MODEL_PRESENT, self._policy.answer)
        if present is None or present.ok:
            return time.monotonic() - began
        supervisor = self._supervisor
        environ = environment(self.one, supervisor._environ, supervisor._runtime.settings.backends.values())
        for command in self.one.spec.fetch:
            self._become("starting", f"fetching: {' '.join(command)}")
            with supervisor._register.log(self.name).open("ab") as log:
                done = _run(command, environ, log, until=lambda: supervisor._stopping.is_set() or process.wait(0))
            if done != 0:
                self._become("starting", f"{' '.join(command)} failed ({_code(done)})", hint="Its log says why.")
                break
        return time.monotonic() - began

    def _watch(self, process: Process) -> str:
        """Wait for its end, and ask it now and then how it is."""
        silent = 0
        stopping = self._supervisor._stopping
        while not process.wait(0):
            until = time.monotonic() + self._policy.every
            while not stopping.is_set() and (left := until - time.monotonic()) > 0 and not process.wait(min(0.1, left)):
                pass
            if stopping.is_set():
                return "stopped"
            if process.wait(0):
                break
            probe = self._probe(Rung.MODEL_PRESENT, self._policy.answer)
            silent = silent + 1 if probe is None else 0
            if silent >= self._policy.misses:
                self._become("unresponsive", f"has not answered {silent} times in a row: it is killed")
                return f"did not answer for {silent * self._policy.every:g} s"
            if probe is not None:
                self._tell_health(probe)
        return f"ended with {_code(process.code)}"

    def _is_loading(self) -> bool:
        """Does it say that it is loading its model, so that waiting helps?"""
        runtime = self._supervisor._runtime
        try:
            built = runtime.backend(self.name, self.one.capabilities[0])
            drive(runtime.models(BLOCKING, self.name, built, Call(timeout=self._policy.answer)))
        except BackendLoading:
            return True
        except HubError:
            return False
        return False

    def _probe(self, rung: Rung, timeout: float, *, process: Process | None = None) -> Probe | None:
        """The worst that is found over its capabilities; None if it does not even live. `process`: until that ends."""
        supervisor = self._supervisor
        worst: Probe | None = None
        cancel = CancelToken()
        watcher = _Watcher(cancel, supervisor._stopping, process)
        with watcher:
            for capability in self.one.capabilities:
                waits = Timeouts(connect=self._policy.answer, load=max(timeout, 0.1))
                call = Call(timeout=max(timeout, 0.1), timeouts=waits, cancel=cancel)
                try:
                    probe = drive(supervisor._runtime.probe(BLOCKING, self.name, capability, rung, call))
                except (Cancelled, HubError):
                    return None
                if probe.rung is None:
                    return None
                if worst is None or (probe.rung, not probe.degraded) < (worst.rung or Rung.ALIVE, not worst.degraded):
                    worst = probe
        return worst

    def _tell_health(self, probe: Probe, *, first: bool = False) -> None:
        before = self._supervisor.backends[self.name]
        if first or time.monotonic() - self._checked >= self._policy.check:
            self._checked = time.monotonic()
            self._drift = self._compared()
        reason, hint = self._drift or (probe.degraded or ("" if probe.ok else probe.detail), probe.hint or "")
        state: State = "degraded" if reason else "ready"
        if first or before.state != state or (reason and before.detail != reason):
            serves = ", ".join(
                f"{one} ({self.one.config.models.get(one, 'its model')})" for one in self.one.capabilities
            )
            self._become(state, reason or f"serves {serves}", hint=hint)

    def _compared(self) -> tuple[str, str] | None:
        """What is not as planned with it. That this cannot be found out is told, and is no reason to end what serves."""
        check = self._supervisor._check
        try:
            return check(self.one) if check is not None else None
        except Exception as error:  # noqa: BLE001 - a full disk, a register that somebody damaged: it is looked at again later
            why = error.message if isinstance(error, HubError) else f"{type(error).__name__}: {error}"
            hint = (error.hint if isinstance(error, HubError) else None) or "`llm-hub doctor` looks anew."
            return f"it could not be compared with the plan: {why}", hint

    # -- telling ------------------------------------------------------------------------------------------------------

    def _again(self, why: str) -> bool:
        """After its process ended: wait and try again, or give up. False when it gives up."""
        log = self._supervisor._register.log(self.name)
        self._change(pid=0, began=None, guardian=0)
        lines = tuple(tail(log))
        if self._failures >= self._policy.attempts:
            self._become(
                "failed", f"{why}; given up after {self._failures} starts", hint=f"Its log: {log}", lines=lines
            )
            return False
        delay = self._policy.delay(self._failures)
        restarts = self._supervisor.backends[self.name].restarts + 1
        self._change(restarts=restarts)
        self._become("restarting", f"{why}; started again in {delay:g} s", lines=lines if self._failures > 1 else ())
        self._supervisor._stopping.wait(delay)
        return True

    def _change(self, **fields: object) -> None:
        self._supervisor.note(self.name, msgspec.structs.replace(self._supervisor.backends[self.name], **fields))

    def _become(self, state: State, text: str, *, hint: str = "", lines: tuple[str, ...] = ()) -> None:
        detail = "" if state == "ready" else text
        self._supervisor.note(self.name, changed(self._supervisor.backends[self.name], state, detail=detail, hint=hint))
        with contextlib.suppress(Exception):  # whoever listened has gone (`llm-hub up | head`): that stops no backend
            self._supervisor._say(Event(backend=self.name, state=state, text=text, hint=hint, lines=lines))


class _Watcher:
    """Cancels a call when the supervisor stops, or when the process that it is about has ended."""

    def __init__(self, cancel: CancelToken, stopping: threading.Event, process: Process | None) -> None:
        self._cancel, self._stopping, self._process = cancel, stopping, process
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._process is not None:  # only a load takes long enough to be worth a thread
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def _look(self) -> None:
        assert self._process is not None
        while not self._done.wait(0.1):
            if self._stopping.is_set() or self._process.wait(0):
                self._cancel.cancel()
                return

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()


def _run(command: Sequence[str], environ: Mapping[str, str], log: IO[bytes], *, until: Callable[[], bool]) -> int:
    """Run a command to its end, or until there is no more use in it; its exit code."""
    try:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    except OSError:
        return 127
    while process.poll() is None:
        if until():
            process.kill()
        time.sleep(0.05)
    return process.returncode


def _code(code: int | None) -> str:
    if code is None:
        return "no code"
    if code >= 0:
        return f"code {code}"
    import signal

    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
