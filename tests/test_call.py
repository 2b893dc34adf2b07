"""Deadlines and cancellation of a call, and the errors that tell of them."""

from __future__ import annotations

import pickle
import threading
import time
from functools import partial

import pytest

from llm_hub import errors
from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.errors import Cancelled, ContextOverflow, DeadlineExceeded, HubError


def test_a_token_runs_each_callback_once_however_often_it_cancels() -> None:
    token, ran = CancelToken(), []
    token.subscribe("a", lambda: ran.append("a"))
    token.subscribe("b", lambda: ran.append("b"))
    token.unsubscribe("b")
    token.cancel()
    token.cancel()
    assert ran == ["a"]
    token.subscribe("late", lambda: ran.append("late"))
    assert ran == ["a", "late"]


def test_subscribing_while_another_thread_cancels_never_loses_the_callback() -> None:
    for _ in range(300):
        token = CancelToken()
        ran: list[int] = []
        thread = threading.Thread(target=token.cancel)
        thread.start()
        token.subscribe("x", partial(ran.append, 1))
        thread.join()
        assert ran == [1]


def test_check_raises_what_has_happened() -> None:
    token = CancelToken()
    call = Call(cancel=token, timeout=60)
    call.check()
    token.cancel()
    with pytest.raises(Cancelled):
        call.check()
    late = Call(timeout=0.001)
    time.sleep(0.005)
    with pytest.raises(DeadlineExceeded, match=r"deadline of 0.001 s passed"):
        late.check()


def test_ids_are_unique() -> None:
    assert len({Call().request_id for _ in range(100)}) == 100
    assert Call(request_id="mine").request_id == "mine"


@pytest.mark.parametrize("name", Timeouts.__struct_fields__)
def test_a_timeout_is_more_than_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Timeouts(**{name: 0.0})


def test_every_error_survives_pickling_with_all_it_says() -> None:
    error = ContextOverflow("too long", tokens=9, limit=4, backend="b", hint="Shorten it.")
    error.earlier = (HubError("down", backend="a"),)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.tokens, copy.limit) == (ContextOverflow, str(error), 9, 4)
    assert str(error) == "b: too long. Shorten it. Before that: a: down"


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.lstrip("│├└─ ").split()
        if words and isinstance(getattr(errors, words[0], None), type):
            drawn.append((line.index(words[0]) // 4, words[0]))
    parents: dict[int, str] = {}
    for depth, drawn_name in drawn:
        parents[depth] = drawn_name
        if depth:
            assert getattr(errors, drawn_name).__bases__[0].__name__ == parents[depth - 1], drawn_name
    assert {drawn_name for _, drawn_name in drawn} == set(errors.__all__)
