"""The document of the control file, as a value: epochs, rollbacks, merging, and what is no such document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.control import KEPT, KEYS, Document, Proof, decode, merged, parse_target, who
from llm_hub.errors import ControlFileDamaged, InvalidRequest, SwitchRefused
from llm_hub.selection import Target

A, B, C = ((Target(name, None),) for name in "abc")


def test_it_survives_being_written_and_read() -> None:
    proof = Proof(what="text", backend="a", model="m", rung="loaded", seconds=0.1, warnings=("slow",))
    written = (
        Document.first()
        .after("use", {"text": (Target("a", "m/n"), Target("b", None))}, by="me@here", drain=60.0, proofs=(proof,))
        .after("reset", {})
        .back()
    )
    assert decode(written.encode(), "f") == written
    assert json.loads(written.encode())["epoch"] == 4


def test_a_binding_names_the_switch_that_brought_it() -> None:
    document = Document.first().after("use", {"text": A}, by="me@here").after("use", {"text": A, "embedding": B})
    sources = document.switch("/control.json").sources
    assert sources["text"].startswith("/control.json, switch 2 by me@here at 20")
    assert sources["embedding"].startswith("/control.json, switch 3 at 20")


def test_the_history_is_bounded_and_what_is_forgotten_cannot_be_gone_back_to() -> None:
    document = Document.first()
    for _ in range(KEPT + 5):
        document = document.after("use", {"text": A})
    assert len(document.history) == KEPT
    assert document.epoch == KEPT + 6
    with pytest.raises(SwitchRefused, match=f"epoch 3 is not in the history, which holds 7 to {KEPT + 6}"):
        document.back(3)
    assert document.back(7).current.restored == 7


def test_going_back_to_the_epoch_in_force_is_refused() -> None:
    with pytest.raises(SwitchRefused, match="epoch 2 is the one in force"):
        Document.first().after("use", {"text": A}).back(2)


def test_a_file_that_forgot_gets_a_number_above_those_that_processes_are_on() -> None:
    document = Document.first().after("use", {"text": A})
    assert document.above(1) is document
    raised = document.above(9)
    assert (raised.epoch, raised.current.epoch, raised.current.bindings) == (10, 10, {"text": A})
    assert decode(raised.encode(), "f") == raised


def test_a_capability_as_a_whole_takes_the_place_of_its_parts_that_the_backend_does() -> None:
    before = {"vision.read": A, "vision.describe": A, "text": A}
    assert merged(before, {"vision": B}, {"vision": frozenset({"describe"})}) == {
        "vision.read": A,
        "vision": B,
        "text": A,
    }
    assert merged(before, {"vision": B, "vision.read": C}, {"vision": frozenset({"describe", "read"})}) == {
        "vision.read": C,
        "vision": B,
        "text": A,
    }


def test_targets_as_people_write_them() -> None:
    assert parse_target("vllm") == (Target("vllm", None),)
    assert parse_target("v/meta-llama/Llama-3.1, ollama") == (
        Target("v", "meta-llama/Llama-3.1"),
        Target("ollama", None),
    )
    for wrong in ("", "/m", "a,,b"):
        with pytest.raises(InvalidRequest, match="names no backend"):
            parse_target(wrong)


def test_somebody_is_named_as_the_one_who_switches() -> None:
    assert "@" in who()


GOOD: dict[str, Any] = json.loads(Document.first().after("use", {"text": A}).encode())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b"{", "no control file"),
        (b"\xff\xfe\x00", "no control file"),
        (b"[]", "no control file"),
        (b"{}", "no control file"),
        (b'{"format": 2}', "format 2, and this version of llm-hub knows format 1. Upgrade"),
        (b'{"format": "1"}', "no control file"),
        (b"[" * 100_000, "no control file"),
        (json.dumps({**GOOD, "history": []}).encode(), "epochs are not in order"),
        (json.dumps({**GOOD, "epoch": 7}).encode(), "epochs are not in order"),
        (json.dumps({**GOOD, "history": GOOD["history"][::-1]}).encode(), "epochs are not in order"),
        (json.dumps(GOOD).replace('"text"', '"speech"').encode(), "binds 'speech' to nothing usable"),
        (json.dumps(GOOD).replace('"a"', '""').encode(), "binds 'text' to nothing usable"),
        (json.dumps(GOOD).replace('"use"', '"abuse"').encode(), "no control file"),
    ],
)
def test_what_is_no_such_document_is_said_to_be_none(data: bytes, said: str) -> None:
    with pytest.raises(ControlFileDamaged, match=said) as caught:
        decode(data, "/the/file")
    assert caught.value.where == "/the/file"
    assert "--reset" in str(caught.value)


@given(st.data())
def test_cutting_it_or_changing_a_byte_gives_a_document_or_says_that_it_is_damaged(data: st.DataObject) -> None:
    whole = Document.first().after("use", {"text": A, "vision.read": B}, by="me").back().encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        broken = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    try:
        found = decode(broken, "f")
    except ControlFileDamaged:
        return
    assert found.epoch == found.history[-1].epoch
    assert set(found.current.bindings) <= set(KEYS)


@given(st.lists(st.sampled_from(["a", "b", "back", "reset"]), max_size=20))
def test_rolling_back_to_the_end_comes_to_the_environment(steps: list[str]) -> None:
    document = Document.first()
    for step in steps:
        if step == "back":
            try:
                document = document.back()
            except SwitchRefused:
                assert document.current.previous is None
        elif step == "reset":
            document = document.after("reset", {})
        else:
            document = document.after("use", {"text": (Target(step, None),)})
    for _ in range(len(steps)):
        if document.current.previous is None:
            break
        before = document.entry(document.current.previous)
        document = document.back()
        assert before is not None
        assert document.current.bindings == before.bindings
    assert document.current.bindings == {}
    assert [one.epoch for one in document.history] == list(range(1, document.epoch + 1))
