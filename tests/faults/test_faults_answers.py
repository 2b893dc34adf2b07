"""Rows 23, 24, 36 and 37 of the table of faults: answers that are none, and models that are not what they were."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llm_hub import Timeouts
from llm_hub.capabilities import Capability
from llm_hub.errors import BackendUnreachable, EmbeddingSpaceChanged, ProtocolError
from llm_hub.testing import FakeModel, Fault


def _embedding(rig: Any, *, space: str = "", size: int = 1000) -> Any:
    model = FakeModel(name="e", capabilities=("embedding",), dimension=64, space=space, size=size)
    return rig.server(models=[model]) if rig.wire == "ollama" else rig.server(model=model)


def _hub(rig: Any, *servers: Any) -> Any:
    return rig.hub(*servers, model="e", capability=Capability.EMBEDDING, timeouts=Timeouts())


@pytest.mark.parametrize(
    "fault", [Fault.EMBED_WRONG_COUNT, Fault.EMBED_WRONG_DIMENSION, Fault.EMBED_NAN, Fault.EMBED_ZERO]
)
def test_row_23_vectors_that_cannot_be_right_are_refused(whole: Any, fault: Fault) -> None:
    server = _embedding(whole)
    hub = _hub(whole, server)
    with server.fault(fault), pytest.raises(ProtocolError) as caught:
        whole.embed(hub, ["a", "b", "c"])
    assert caught.value.backend == "b0"
    assert len(whole.embed(hub, ["a", "b", "c"]).vectors) == 3


@pytest.mark.parametrize("fault", [Fault.GZIP_BOMB, Fault.OVERSIZED_BODY])
def test_row_24_an_answer_over_the_limit_is_cut_off(rig: Any, fault: Fault) -> None:
    server, other = rig.server(), rig.server()
    server.fault(fault, path=rig.path, size=64_000_000)
    with pytest.raises(ProtocolError):
        rig.ask(rig.hub(server, timeouts=Timeouts()))
    assert rig.last(server).bytes_sent < 32_000_000
    assert rig.ask(rig.hub(server, other, timeouts=Timeouts())).served_by.backend == "b1"


@pytest.mark.parametrize("wire", ["ollama"], indirect=True)
def test_row_36_a_changed_model_is_noticed_at_the_next_probe(whole: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = whole.server()
    hub = whole.hub(server)
    hub.status()
    hub.status()
    assert "is another than before" not in caplog.text
    server.models["hub-test-vlm:latest"] = FakeModel(name="hub-test-vlm", size=1)
    hub.status()
    assert "b0: the model hub-test-vlm is another than before" in caplog.text


@pytest.mark.parametrize("wire", ["ollama"], indirect=True)
@pytest.mark.parametrize("same", [True, False])
def test_row_36_the_space_of_a_changed_model_is_checked_again(
    whole: Any, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = _embedding(whole), _embedding(whole)
    hub = _hub(whole, first, second)
    whole.embed(hub, ["a"])  # which puts the space on record, because there is a fallback
    hub.status(["embedding"])
    space = "" if same else "another"
    first.models["e:latest"] = FakeModel(name="e", capabilities=("embedding",), dimension=64, space=space, size=2)
    hub.status(["embedding"])
    if same:
        asked = len(first.requests)
        assert whole.embed(hub, ["a"]).served_by.backend == "b0"
        assert len(first.requests) > asked + 1  # the canaries
        asked = len(first.requests)
        whole.embed(hub, ["a"])
        assert len(first.requests) == asked + 1  # once
        return
    for _ in range(2):
        with pytest.raises(EmbeddingSpaceChanged, match="has changed and embeds into another space"):
            whole.embed(hub, ["a"])


def test_row_37_a_fallback_of_another_space_is_refused_and_one_of_the_same_serves(whole: Any) -> None:
    first, second, third = _embedding(whole), _embedding(whole, space="another"), _embedding(whole)
    hub = _hub(whole, first, second)
    alike = _hub(whole, first, third)
    whole.embed(hub, ["a"])
    whole.embed(alike, ["a"])
    first.stop()
    with pytest.raises(BackendUnreachable, match="No fallback: b1: it embeds into another space"):
        whole.embed(hub, ["a"])
    assert whole.embed(alike, ["a"]).served_by.backend == "b1"
