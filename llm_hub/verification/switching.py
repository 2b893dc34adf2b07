"""Questions about changing the backend while a service runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from llm_hub.capabilities import Capability
from llm_hub.errors import HubError, SwitchRefused
from llm_hub.hub import Hub
from llm_hub.verification.bench import Bench
from llm_hub.verification.common import COUNT, by, refused, two
from llm_hub.verification.questions import No, expect, question

__all__ = [
    "can_i_roll_back",
    "can_i_switch_with_no_restart",
    "do_all_processes_follow",
    "does_a_stream_survive_a_switch",
    "is_a_switch_to_a_dead_provider_refused",
]


@question("Can I switch with no restart?")
def can_i_switch_with_no_restart(bench: Bench) -> str:
    """The handle that a service holds is served by the new backend from the next call on."""
    first, second = two(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=first) as hub:
        text = hub.text()
        before = text.chat("ping", max_tokens=8, timeout=bench.timeout).served_by
        began = time.monotonic()
        switched = hub.use(text=second)
        took = time.monotonic() - began
        after = text.chat("ping", max_tokens=8, timeout=bench.timeout).served_by
    seen = f"{by(before)}, then {by(after)} in epoch {switched.epoch}, proven and published in {took * 1000:.0f} ms"
    expect(
        seen=seen,
        holds=before is not None
        and after is not None
        and (before.backend, after.backend, after.epoch) == (first, second, switched.epoch),
    )
    return seen


@question("Do all processes follow a switch, with no restart of any?")
def do_all_processes_follow(bench: Bench) -> str:
    """Another process shares the control file, calls before and after, and is told nothing."""
    first, second = two(bench, Capability.TEXT)
    variables = bench.variables(LLM_TEXT_PROVIDER=first)
    command = [sys.executable, "-m", "llm_hub.verification.follower", str(bench.timeout)]
    if bench.config is not None:
        command.append(os.fspath(bench.config))
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            before = _told(process, 1)
            with Hub.from_env(variables, config=bench.config) as hub:
                switched = hub.use(text=second)
            done = time.monotonic()
            after = _told(process, switched.epoch)
        finally:
            process.kill()
    seen = (
        f"the other process: {before['backend']}, then {after['backend']} in epoch {after['epoch']}, "
        f"{max(after['at'] - done, 0) * 1000:.0f} ms after the switch"
    )
    expect(
        seen=seen,
        holds=(before["backend"], after["backend"], after["epoch"]) == (first, second, switched.epoch),
    )
    return seen


def _told(process: subprocess.Popen[str], epoch: int) -> dict[str, Any]:
    """What the other process says when it has come to this epoch."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{epoch}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise No("the other process ended without an answer")
    told: dict[str, Any] = json.loads(line)
    return told


@question("Can I roll back?")
def can_i_roll_back(bench: Bench) -> str:
    """One step back is what served before, at once and without a question to it."""
    first, second = two(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=first) as hub:
        hub.use(text=second)
        began = time.monotonic()
        back = hub.rollback()
        took = time.monotonic() - began
        served = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout).served_by
    seen = f"{by(served)} again, in epoch {back.epoch}, after {took * 1000:.0f} ms"
    expect(seen=seen, holds=served is not None and served.backend == first)
    return seen


@question("Does a stream that is running end on the backend it began on?")
def does_a_stream_survive_a_switch(bench: Bench) -> str:
    """A switch in the middle of it takes nothing from it."""
    first, second = two(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=first) as hub:
        with hub.text().stream(COUNT, max_tokens=100, timeout=bench.timeout) as stream:
            pieces = [next(stream).text]
            switched = hub.use(text=second)
            pieces += [chunk.text for chunk in stream]
            response = stream.response
        after = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout).served_by
    served = response.served_by
    seen = f"{len(pieces)} pieces by {by(served)} across the switch to epoch {switched.epoch}, then {by(after)}"
    whole = "".join(pieces) == response.text and response.choices[0].finish_reason is not None
    expect(
        seen=seen,
        holds=whole
        and served is not None
        and served.backend == first
        and after is not None
        and after.backend == second,
    )
    return seen


@question("Provider down at a switch: is it refused, and does the old one go on?")
def is_a_switch_to_a_dead_provider_refused(bench: Bench) -> str:
    """The target is put behind a wire that is cut."""
    first, second = two(bench, Capability.TEXT)
    with (
        bench.relay(second, Capability.TEXT) as relay,
        bench.hub({second: relay}, LLM_TEXT_PROVIDER=first) as hub,
    ):
        epoch = hub.epoch
        try:
            hub.use(text=second, timeout=5.0)
        except SwitchRefused as error:
            said: HubError = error
        else:
            raise No(f"{second} was switched to, although nothing answers there")
        served = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout).served_by
        expect(
            seen=f"after the refusal {by(served)} serves in epoch {hub.epoch}",
            holds=served is not None and served.backend == first and hub.epoch == epoch,
        )
    expect(seen=f"it says: {said}", holds=second in str(said) and said.hint is not None)
    return refused(said)
