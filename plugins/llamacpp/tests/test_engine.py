"""The engine at work: loading, sharing, several calls at once, cancelling, forks, health and bad files."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_hub.call import Call, CancelToken
from llm_hub.capabilities import Capability, Feature, Rung
from llm_hub.config import Progress
from llm_hub.engine import EngineBackend
from llm_hub.errors import (
    BackendFailed,
    Cancelled,
    DeadlineExceeded,
    HubError,
    ModelNotFound,
    SettingsError,
    UnsupportedFeature,
)
from llm_hub.messages import ChatRequest, ChatResponse, Message, Tool
from llm_hub_llamacpp import loading
from llm_hub_llamacpp.loading import first_complaint, make_plan, reason_of_failure
from llm_hub_llamacpp.settings import LlamaCppSettings

Ask = Callable[..., ChatResponse]
Build = Callable[..., EngineBackend]


def say(text: str, **options: object) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), **{"temperature": 0.0, **options})  # type: ignore[arg-type]


ENDLESS = say("Count from 1 to 60.", options={"ignore_eos": True})
SLOW = say("hi " * 900)  # 1800 tokens of prompt


# -- loading ----------------------------------------------------------------------------------------------------------


def test_building_loads_nothing_and_the_first_call_says_what_it_waits_for(
    build: Build, tiny: Path, ask_once: Ask
) -> None:
    told: list[Progress] = []
    backend = build(tiny, told=told)
    assert told == []
    assert not backend.models(Call())[0].loaded
    assert told == []
    assert ask_once(backend, "ping").text == "pong"
    assert {progress.backend for progress in told} == {"box"}
    assert told[0].doing == f"loading {tiny}"
    assert [progress.done for progress in told] == [False] * (len(told) - 1) + [True]
    fractions = [progress.fraction or 0.0 for progress in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert backend.models(Call())[0].loaded
    count = len(told)
    ask_once(backend, "ping")
    assert len(told) == count


def test_many_first_calls_load_once(build: Build, tiny: Path, ask_once: Ask) -> None:
    told: list[Progress] = []
    backend = build(tiny, told=told, n_parallel=4)
    answers: list[str] = []
    callers = [threading.Thread(target=lambda: answers.append(ask_once(backend, "ping").text)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == ["pong"] * 8
    assert sum(progress.done for progress in told) == 1


def in_memory(path: Path, **fields: object) -> list[loading.Plan]:
    """The plans of what is loaded from this file; backends of other tests may still hold models of other files."""
    gc.collect()
    plans = [plan for plan in loading._loaded if plan.path == str(path)]
    return [plan for plan in plans if all(getattr(plan, name) == value for name, value in fields.items())]


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """The same model in a file that no other test loads."""
    path = tmp_path / "copied.gguf"
    path.write_bytes(tiny.read_bytes())
    return path


def test_backends_that_are_alike_share_one_model(build: Build, copied: Path, ask_once: Ask) -> None:
    one, two, other = build(copied), build(copied), build(copied, n_ctx=512)
    for backend in (one, two, other):
        ask_once(backend, "ping")
    assert len(in_memory(copied)) == 2
    one.close()
    assert ask_once(two, "ping").text == "pong"
    two.close()
    other.close()
    assert in_memory(copied) == []


def test_a_load_that_failed_is_tried_again(build: Build, tiny: Path, tmp_path: Path, ask_once: Ask) -> None:
    path = tmp_path / "model.gguf"
    backend = build(path)
    with pytest.raises(ModelNotFound, match="box: there is no model .*model.gguf"):
        ask_once(backend, "ping")
    path.write_bytes(tiny.read_bytes()[:-100])
    with pytest.raises(BackendFailed, match="box: .* is cut short or damaged"):
        ask_once(backend, "ping")
    path.write_bytes(tiny.read_bytes())
    assert ask_once(backend, "ping").text == "pong"


def test_all_who_wait_for_a_load_share_its_failure(build: Build, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    tries = 0
    gate = threading.Event()

    def fail(plan: object, progress: object) -> None:
        nonlocal tries
        tries += 1
        gate.wait(5)
        raise BackendFailed("out of memory")

    monkeypatch.setattr("llm_hub_llamacpp.engine.load", fail)
    backend = build(tiny, n_parallel=4)
    failed: list[HubError] = []

    def call() -> None:
        with pytest.raises(BackendFailed, match="box: out of memory") as caught:
            backend.chat(say("ping"), Call())
        failed.append(caught.value)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    until = time.monotonic() + 5
    while len(backend._calls._running) < 4 and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.05)  # until each waits for the first one's load
    gate.set()
    for caller in callers:
        caller.join()
    assert tries == 1
    assert len({id(error) for error in failed}) == 4


def test_who_gives_up_waiting_for_a_load_does_not_stop_it(
    build: Build, monkeypatch: pytest.MonkeyPatch, tiny: Path, ask_once: Ask
) -> None:
    gate = threading.Event()
    real = loading.load

    def slowly(plan: loading.Plan, progress: Callable[[float | None], None]) -> loading.Loaded:
        gate.wait(5)
        return real(plan, progress)

    monkeypatch.setattr("llm_hub_llamacpp.engine.load", slowly)
    backend = build(tiny)
    for _ in range(2):  # the one who loads, and one who waits for that
        with pytest.raises(DeadlineExceeded):
            backend.chat(say("ping"), Call(timeout=0.05))
    gate.set()
    assert ask_once(backend, "ping").text == "pong"


def test_models_that_nobody_configured_are_loaded_when_asked_for_and_few_are_kept(
    build: Build, tiny: Path, copied: Path, ask_once: Ask
) -> None:
    backend = build(n_ctx=300)
    assert ask_once(backend, "ping", model=str(copied)).text == "pong"
    assert ask_once(backend, "ping", model=str(tiny)).text == "pong"
    assert in_memory(copied) == []
    assert len(in_memory(tiny, context=300)) == 1


def test_a_model_may_be_let_go_as_soon_as_it_is_loaded(tiny: Path) -> None:
    plan, _ = make_plan(str(tiny), LlamaCppSettings(n_ctx=256))
    for _ in range(10):
        loading.load(plan, lambda fraction: None)  # a server that is deleted before its loop runs would never end


# -- bad files and settings -------------------------------------------------------------------------------------------


def test_a_file_that_is_no_model_is_a_typed_error_in_every_way_of_asking(
    build: Build, tmp_path: Path, ask: Ask
) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<html>404</html>")
    with pytest.raises(BackendFailed, match="box: .*model.gguf is no GGUF file.*web page"):
        ask(build(path), "ping")


def test_a_context_over_the_models_is_refused(build: Build, tiny: Path, ask_once: Ask) -> None:
    with pytest.raises(
        SettingsError, match="n_ctx is 8192, and .* was trained for a context of 4096 tokens.*4096 or less"
    ):
        ask_once(build(tiny, n_ctx=8192), "ping")


def test_a_projector_is_no_model_and_a_model_no_projector(
    build: Build, tiny: Path, projector: Path, tmp_path: Path, ask_once: Ask
) -> None:
    with pytest.raises(SettingsError, match="is a projector .* and no model"):
        ask_once(build(projector), "ping")
    with pytest.raises(SettingsError, match="mmproj is .*, and that is no projector"):
        ask_once(build(tiny, mmproj=str(tiny)), "ping")
    with pytest.raises(ModelNotFound, match=r"there is no projector \(mmproj\) .*gone.gguf"):
        ask_once(build(tiny, mmproj=str(tmp_path / "gone.gguf")), "ping")


def test_a_chat_template_is_taken_from_a_file(build: Build, tiny: Path, tmp_path: Path, ask_once: Ask) -> None:
    template = tiny.parent / "chat_template_thinking.jinja"
    backend = build(tiny, chat_template=str(template))
    assert ask_once(backend, "What is the capital of Japan?", temperature=0.0).reasoning is not None
    with pytest.raises(SettingsError, match="the chat template .*gone.jinja cannot be read"):
        ask_once(build(tiny, chat_template=str(tmp_path / "gone.jinja")), "ping")


def test_what_only_llama_cpp_can_know_is_said_in_its_own_words(
    build: Build, tiny: Path, tmp_path: Path, ask_once: Ask
) -> None:
    template = tmp_path / "bad.jinja"
    template.write_text("{% if %}")
    with pytest.raises(BackendFailed, match="llama.cpp cannot load .*Unexpected token"):
        ask_once(build(tiny, chat_template=str(template)), "ping")


def test_an_architecture_that_llama_cpp_does_not_know_is_said_in_its_own_words(
    build: Build, tiny: Path, tmp_path: Path, ask_once: Ask
) -> None:
    path = tmp_path / "alien.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"llama", b"alien"))
    with pytest.raises(BackendFailed, match="unknown model architecture: 'alien'"):
        ask_once(build(path), "ping")


def test_the_cause_is_the_first_error_of_a_log() -> None:
    log = "0.00.1 I srv: fine\n0.00.2 E llama_model_load: error loading model: no tensors\n0.00.3 E srv: exiting\n"
    assert first_complaint(log) == "no tensors"
    assert first_complaint("nothing\n") is None
    assert first_complaint("0.00.1 E gone") == "gone"


def test_nobody_asks_after_the_cause_where_no_process_can_be_started(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = make_plan(str(tiny), LlamaCppSettings())
    monkeypatch.setattr(sys, "executable", "")
    assert reason_of_failure(plan) is None


@pytest.mark.parametrize("bad", [{"n_ctx": 0}, {"n_parallel": 0}, {"queue": -1}, {"temperature": -0.5}, {"n_batch": 0}])
def test_settings_that_cannot_be_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        LlamaCppSettings(**bad)  # type: ignore[arg-type]


# -- at once, and no longer -------------------------------------------------------------------------------------------


def test_two_requests_for_two_answers_each_do_not_block_one_another(shared: EngineBackend) -> None:
    async def run() -> list[ChatResponse]:
        return await asyncio.gather(*(shared.achat(say("ping", n=2), Call(timeout=30)) for _ in range(4)))

    for response in asyncio.run(run()):
        assert [choice.message.text for choice in response.choices] == ["pong", "pong"]


def idle(backend: EngineBackend, *, within: float) -> bool:
    """Do all its workers come to rest?"""
    until = time.monotonic() + within
    while backend._calls._running:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_an_answer_can_be_cancelled_in_its_midst(shared: EngineBackend) -> None:
    chunks = shared.stream(ENDLESS, Call())
    for _ in range(10):
        next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert idle(shared, within=0.5)

    async def run() -> None:
        chunks = shared.astream(ENDLESS, Call())
        for _ in range(10):
            await anext(chunks)
        task = asyncio.ensure_future(shared.achat(ENDLESS, Call()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await chunks.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert idle(shared, within=0.5)
    assert shared.chat(say("ping"), Call()).text == "pong"


def test_a_call_is_cancelled_or_times_out_while_it_answers(shared: EngineBackend) -> None:
    token = CancelToken()
    threading.Timer(0.05, token.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        shared.chat(ENDLESS, Call(cancel=token))
    with pytest.raises(DeadlineExceeded):
        list(shared.stream(ENDLESS, Call(timeout=0.05)))
    assert time.monotonic() - began < 1.0  # it would go on for much longer
    assert idle(shared, within=0.5)


def test_a_long_prompt_can_be_cancelled_before_anything_is_answered(build: Build, tiny: Path, ask_once: Ask) -> None:
    backend = build(tiny, n_batch=8)
    ask_once(backend, "ping")
    began = time.monotonic()
    backend.chat(say("ho " * 900, max_tokens=1), Call())
    whole = time.monotonic() - began
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        backend.chat(SLOW, Call(timeout=whole / 10))
    assert idle(backend, within=whole * 0.7)
    assert time.monotonic() - began < whole * 0.9


def test_closing_while_it_answers_fails_the_call_and_frees_the_model(build: Build, copied: Path) -> None:
    backend = build(copied)
    chunks = backend.stream(ENDLESS, Call())
    next(chunks)
    backend.close()
    with pytest.raises(BackendFailed, match="closed while this call ran"):
        list(chunks)
    assert in_memory(copied) == []


def test_nobody_outside_can_reach_it(build: Build, copied: Path, ask_once: Ask) -> None:
    backend = build(copied)
    ask_once(backend, "ping")
    (plan,) = in_memory(copied)
    server = loading._loaded[plan].server
    assert server.listening_address.startswith("unix://")
    assert not os.path.exists(server.listening_address.removeprefix("unix://"))


# -- control ----------------------------------------------------------------------------------------------------------


def test_it_tells_what_its_model_can_do(shared: EngineBackend, tiny: Path, build: Build) -> None:
    (model,) = shared.models(Call())
    assert model.name == str(tiny)
    assert model.context_length == 2048
    assert model.size == tiny.stat().st_size
    assert model.capabilities == frozenset({Capability.TEXT, Capability.VISION})
    assert model.features is not None
    assert {Feature.TOOLS, Feature.IMAGES, Feature.REASONING} <= model.features
    assert Feature.REASONING_EFFORT not in model.features
    assert asyncio.run(shared.amodels(Call())) == (model,)
    (blind,) = build(tiny).models(Call())
    assert blind.features is not None
    assert Feature.IMAGES not in blind.features


def test_it_lists_what_there_is_where_nothing_is_configured(build: Build) -> None:
    (model, *_) = build().models(Call())
    assert model.name == "smollm2"
    assert "SmolLM2-135M-Instruct" in model.aliases
    assert model.features is not None
    assert Feature.TOOLS not in model.features


def test_a_probe_says_which_rung_broke_and_why(build: Build, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.read_bytes()[:1000])
    probe = build(path).probe(Rung.GENERATING, None, Call())
    assert probe.rung is Rung.ALIVE
    assert "cut short" in probe.detail
    assert probe.hint == "Download it again."
    assert "other" in build(tiny).probe(Rung.MODEL_PRESENT, "other", Call()).detail


# -- the default model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default() -> Iterator[EngineBackend]:
    from llm_hub.config import BackendConfig, BuildContext
    from llm_hub.transport import Transport
    from llm_hub_llamacpp.plugin import llm_hub_text

    config = BackendConfig(name="default", plugin="llamacpp")
    backend = llm_hub_text(config, BuildContext(transport=Transport()))
    assert isinstance(backend, EngineBackend)
    yield backend
    backend.close()


def test_the_default_model_answers_the_question_of_the_readme_whatever_the_seed(default: EngineBackend) -> None:
    for seed in (None, 1, 2):
        request = ChatRequest(messages=(Message(role="user", content="What is the capital of France?"),), seed=seed)
        assert default.chat(request, Call()).text == "The capital of France is Paris."


def test_the_default_model_refuses_the_tools_it_would_never_see(default: EngineBackend) -> None:
    with pytest.raises(UnsupportedFeature, match="default: its model knows no tools") as caught:
        default.chat(say("What is the weather?", tools=(Tool(name="weather"),)), Call())
    assert caught.value.features == ("tools",)
    with pytest.raises(UnsupportedFeature, match="no reasoning to turn on"):
        default.chat(say("hi", reasoning=True), Call())


def test_its_own_system_prompt_gives_way_to_that_of_the_request(default: EngineBackend) -> None:
    def prompt_tokens(*messages: Message) -> int | None:
        return default.chat(ChatRequest(messages=messages, max_tokens=1), Call()).usage.prompt_tokens

    user = Message(role="user", content="Hi")
    bare, own = prompt_tokens(user), prompt_tokens(Message(role="system", content="Speak."), user)
    assert bare is not None
    assert own is not None
    assert own < bare


# -- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_serves_on_in_the_child_of_a_fork_and_the_child_ends_properly(tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jinja"
    bad.write_text("{% if %}")
    program = textwrap.dedent(
        f"""
        import os, sys
        from llm_hub.call import Call
        from llm_hub.capabilities import Capability
        from llm_hub.config import BackendConfig, BuildContext
        from llm_hub.errors import HubError
        from llm_hub.messages import ChatRequest, Message
        from llm_hub.transport import Transport
        from llm_hub_llamacpp.plugin import llm_hub_text

        def build(template):
            config = BackendConfig(
                name="box",
                plugin="llamacpp",
                models={{Capability.TEXT: {str(tiny)!r}}},
                options={{"chat_template": template}} if template else {{}},
            )
            return llm_hub_text(config, BuildContext(transport=Transport()))

        backend = build(None)
        ping = ChatRequest(messages=(Message(role="user", content="ping"),), temperature=0.0)
        print(backend.chat(ping, Call()).text, flush=True)
        child = os.fork()
        print(backend.chat(ping, Call(timeout=20)).text, flush=True)
        if child == 0:
            try:
                build({str(bad)!r}).chat(ping, Call())
            except HubError as error:
                print(type(error).__name__, flush=True)
            backend.close()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split()) == ["7", "BackendFailed", "pong", "pong", "pong"]


def test_a_process_may_end_in_the_midst_of_an_answer(tiny: Path) -> None:
    program = textwrap.dedent(
        f"""
        from llm_hub.hub import Hub
        hub = Hub.from_env({{"LLM_PROVIDER": "llamacpp", "LLAMACPP_MODEL": {str(tiny)!r}}})
        stream = hub.text().stream("Count from 1 to 60.", options={{"ignore_eos": True}})
        print(next(stream).text)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.strip()
