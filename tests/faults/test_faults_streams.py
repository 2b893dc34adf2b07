"""Rows 6, 8, 9, 10, 21, 22 and 26 of the table of faults: what goes wrong within an answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import pytest

from llm_hub import Timeouts
from llm_hub.errors import BackendError, BackendFailed, DeadlineExceeded, ProtocolError, StreamInterrupted
from llm_hub.testing import FakeServer, Fault, Reply, Request

LONG = "Count from 1 to 20."


def _interrupted(rig: Any, *servers: Any) -> StreamInterrupted:
    hub = rig.hub(*servers)
    with pytest.raises(StreamInterrupted) as caught:
        rig.ask(hub, LONG)
    assert caught.value.backend == "b0"
    assert caught.value.partial.startswith("1 2")
    assert rig.is_idle(hub)
    found = rig.condition(hub)
    assert (found.calls, found.failures, found.retries, found.breaker) == (1, 1, 0, "closed")
    return caught.value


def test_row_06_a_hang_between_chunks_ends_at_its_deadline_with_the_part_that_came(streaming: Any) -> None:
    server, other = streaming.server(), streaming.server()
    server.fault(Fault.HANG_BETWEEN_CHUNKS, path=streaming.path)
    error = _interrupted(streaming, server, other)
    assert isinstance(error.__cause__, DeadlineExceeded)
    assert error.__cause__.stage == "between tokens"
    assert streaming.last(server).wait(1)
    assert streaming.last(server).gone_early
    assert not other.requests


@pytest.mark.parametrize("fault", [Fault.END_WITHOUT_MARK, Fault.CLOSE_MID_BODY, Fault.RESET_MID_BODY])
def test_row_08_a_stream_that_merely_stops_is_an_error_with_the_part_that_came(streaming: Any, fault: Fault) -> None:
    server, other = streaming.server(), streaming.server()
    server.fault(fault, path=streaming.path)
    _interrupted(streaming, server, other)
    assert not other.requests


def test_row_08_a_whole_answer_that_merely_stops_is_never_taken_for_one(whole: Any) -> None:
    server = whole.server()
    server.fault(Fault.CLOSE_MID_BODY, path=whole.path)
    with pytest.raises(BackendError):
        whole.ask(whole.hub(server), LONG)


def test_row_09_an_error_in_a_stream_is_that_error_and_never_a_normal_end(streaming: Any) -> None:
    server, other = streaming.server(), streaming.server()
    server.fault(Fault.ERROR_IN_STREAM, path=streaming.path, message="the fan has stopped")
    error = _interrupted(streaming, server, other)
    assert "the fan has stopped" in str(error)
    assert isinstance(error.__cause__, BackendFailed)
    assert not other.requests


def test_row_09_a_dead_engine_is_out_of_use_though_the_stream_had_begun(streaming: Any) -> None:
    server, other = streaming.server(), streaming.server()
    message = "EngineCore died" if streaming.wire == "vllm" else "llama runner process has terminated: exit status 2"
    server.fault(Fault.ERROR_IN_STREAM, path=streaming.path, message=message)
    hub = streaming.hub(server, other)
    with pytest.raises(StreamInterrupted):
        streaming.ask(hub, LONG)
    assert streaming.condition(hub).breaker == "open"
    assert streaming.ask(hub).served_by.backend == "b1"


def test_row_10_an_error_as_the_first_event_is_tried_again(streaming: Any) -> None:
    server = streaming.server()
    server.fault(Fault.ERROR_FIRST, path=streaming.path, times=1, message="the fan has stopped")
    response = streaming.ask(streaming.hub(server))
    assert (response.text, response.served_by.attempts) == ("pong", 2)


def test_row_10_an_error_as_the_first_event_is_passed_on(streaming: Any) -> None:
    server, other = streaming.server(), streaming.server()
    server.fault(Fault.ERROR_FIRST, path=streaming.path)
    response = streaming.ask(streaming.hub(server, other))
    assert (response.text, response.served_by.backend) == ("pong", "b1")
    assert streaming.asked(server) == 1


def test_row_21_what_is_split_anywhere_is_put_together_again(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    text = "Grüße, 世界 \U0001f30d!"
    right = rig.ask(hub, text).text
    server.fault(Fault.SPLIT_BYTES, path=rig.path)
    assert rig.ask(hub, text).text == right
    assert "世界" in right


def test_row_21_garbage_is_a_typed_error(streaming: Any) -> None:
    server = streaming.server()
    server.fault(Fault.GARBAGE_IN_STREAM, path=streaming.path)
    error = _interrupted(streaming, server)
    assert isinstance(error.__cause__, ProtocolError)


def test_row_22_many_lines_in_one_read_and_very_long_ones_are_decoded(streaming: Any) -> None:
    server = streaming.server()
    hub = streaming.hub(server, timeouts=Timeouts())
    right = streaming.ask(hub, LONG).text
    with server.fault(Fault.ONE_SEND, path=streaming.path):
        assert streaming.ask(hub, LONG).text == right
    with server.fault(Fault.LONG_LINE, path=streaming.path, size=300_000):
        assert streaming.ask(hub, LONG).text.endswith(right)


def test_row_22_a_line_without_an_end_is_cut_off(streaming: Any) -> None:
    server = streaming.server()
    server.fault(Fault.ENDLESS_LINE, path=streaming.path)
    with pytest.raises(ProtocolError, match="a line of more than 8 MiB"):
        streaming.ask(streaming.hub(server, timeouts=Timeouts()))
    assert streaming.last(server).wait(1)


def _endless(request: Request) -> Reply:
    """An answer that goes on for ever, 16 KB a chunk."""
    text = "x" * 16_000
    if request.path == "/api/chat":
        line = json.dumps({"model": "m", "message": {"role": "assistant", "content": text}, "done": False}) + "\n"
        return Reply(200, {"content-type": "application/x-ndjson"}, itertools.repeat(line.encode()))
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    event = json.dumps({"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})
    return Reply(200, {"content-type": "text/event-stream"}, itertools.repeat(f"data: {event}\n\n".encode()))


def test_row_26_a_slow_consumer_is_felt_by_the_server(streaming: Any) -> None:
    with FakeServer(_endless, send_buffer=4096) as server:
        hub = streaming.hub(server, timeouts=Timeouts())

        def is_held() -> bool:
            """Does the server stop sending before it has sent much?"""
            request = streaming.last(server)
            before = -1
            while request.bytes_sent != before:
                before = request.bytes_sent
                assert before < 64_000_000
                time.sleep(0.1)
            return True

        if streaming.way == "stream":
            with hub.text().stream("ping") as stream:
                next(stream)
                assert is_held()
        else:

            async def later() -> None:
                async with hub.text().astream("ping") as stream:
                    await anext(stream)
                    assert await asyncio.to_thread(is_held)

            asyncio.run(later())
        assert streaming.last(server).wait(1)
        assert streaming.last(server).gone_early
