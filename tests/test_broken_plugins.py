"""Every way in which an installed plugin can be broken: reported as what it is, within its time, while the others work."""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llm_hub import apart
from llm_hub.call import Call
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.discovery import installed
from llm_hub.errors import PluginBroken, PluginError, PluginIncompatible, PluginNotFound, SettingsError
from llm_hub.messages import ChatRequest, Message
from llm_hub.registry import PluginReport, PluginStatus, Registry, check_apart
from llm_hub.testing.distributions import install_distribution
from llm_hub.transport import Transport

HEAD = """
from llm_hub import ChatChunk, ChatResponse, Feature, Message, hookimpl
from llm_hub.capabilities import Probe
from llm_hub.manifest import KnownBad, PluginManifest
from llm_hub.messages import Choice
import msgspec

class Echo:
    features = frozenset({Feature.SYSTEM})

    def models(self, call): return ()
    async def amodels(self, call): return ()
    def probe(self, rung, model, call): return Probe(rung=rung, wanted=rung)
    async def aprobe(self, rung, model, call): return self.probe(rung, model, call)
    def close(self): pass
    def chat(self, request, call):
        return ChatResponse(choices=(Choice(message=request.messages[-1], finish_reason="stop"),))
    async def achat(self, request, call): return self.chat(request, call)
    def stream(self, request, call): yield ChatChunk(text="echo", finish_reason="stop")
    async def astream(self, request, call): yield ChatChunk(text="echo", finish_reason="stop")
"""
MANIFEST = """
@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0", summary="it echoes", features=Echo.features)
"""
TEXT = """
@hookimpl
def llm_hub_text(config, context):
    return Echo()
"""
SOUND = HEAD + MANIFEST + TEXT


def lay(folder: Path, source: str, *, name: str, groups: tuple[str, ...] = ("text",), value: str = "") -> str:
    """Install a plugin; every test has names of its own, for what is imported stays imported."""
    value = f"broken_{name}{value}"
    entries = {f"llm_hub.{group}": {name: value} for group in groups}
    install_distribution(folder, f"hub-{name}", entry_points=entries, modules={f"broken_{name}": source})
    return name


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def registry_of(folder: Path, **options: Any) -> Registry:
    return Registry(installed([str(folder)]), **options)


def ask(registry: Registry, name: str) -> str:
    """Build a backend with this plugin, and ask it."""
    config, context = BackendConfig(name="b", plugin=name), BuildContext(transport=Transport())
    backend: Any = registry.get(name).build(Capability.TEXT, config, context)
    text: str = backend.chat(ChatRequest(messages=(Message("user", "hello"),)), Call()).text
    return text


# -- what is wrong with its hooks and its manifest --------------------------------------------------------------------

OBJECTS = {
    "asynchook": (HEAD + MANIFEST + TEXT.replace("def ", "async def "), "its llm_hub_text is async"),
    "asyncmanifest": (HEAD + MANIFEST.replace("def ", "async def ") + TEXT, "its llm_hub_manifest is async"),
    "generator": (HEAD + MANIFEST + TEXT.replace("return", "yield"), "its llm_hub_text is a generator"),
    "wrapper": (
        HEAD + MANIFEST + "@hookimpl(wrapper=True)\ndef llm_hub_text(config, context):\n    return (yield)\n",
        "its llm_hub_text is a wrapper",
    ),
    "twohooks": (
        HEAD + MANIFEST + TEXT + "@hookimpl(specname='llm_hub_text')\ndef other(config, context): return Echo()\n",
        "2 of its functions are the hook llm_hub_text: llm_hub_text, other",
    ),
    "misspeltunmarked": (
        HEAD + MANIFEST + TEXT + "def llm_hub_embeding(config, context): return None\n",
        "its function llm_hub_embeding is no hook.*Did you mean llm_hub_embedding",
    ),
    "misspeltspecname": (
        HEAD + MANIFEST + TEXT + "@hookimpl(specname='llm_hub_visoin')\ndef see(config, context): return None\n",
        "its hook llm_hub_visoin does not exist.*Did you mean llm_hub_vision",
    ),
    "unmarkedmanifest": (HEAD + MANIFEST.replace("@hookimpl", "") + TEXT, "its llm_hub_manifest is not marked"),
    "nohook": (HEAD + MANIFEST, "its entry points offer text, but it has no hook llm_hub_text"),
    "noentry": (
        SOUND + TEXT.replace("llm_hub_text", "llm_hub_vision"),
        "it has a hook llm_hub_vision, but no entry point in the group llm_hub.vision",
    ),
    "exitsinmanifest": (
        SOUND.replace("return PluginManifest", "raise SystemExit(2) or PluginManifest"),
        "SystemExit: 2",
    ),
    "nothing": (SOUND.replace("return PluginManifest", "PluginManifest"), "its manifest hook returned a NoneType"),
    "settingsobject": (SOUND.replace("summary=", "settings={}, summary="), "the settings of its manifest is {}"),
    "settingslax": (
        SOUND.replace("class Echo:", "class Lax(msgspec.Struct): pass\nclass Echo:").replace(
            "summary=", "settings=Lax, summary="
        ),
        "Lax, pass over options.*forbid_unknown_fields=True",
    ),
    "settingsodd": (
        SOUND.replace(
            "class Echo:", "class Odd(msgspec.Struct, forbid_unknown_fields=True): x: int | str | bytes\nclass Echo:"
        ).replace("summary=", "settings=Odd, summary="),
        "Odd, cannot be used: Type unions may not contain",
    ),
    "featuretext": (
        SOUND.replace("features=Echo.features", "features=frozenset({'tools'})"),
        "the features of its manifest",
    ),
    "gpuodd": (SOUND.replace("summary=", "gpu=True, summary="), 'the gpu of its manifest is True.*"optional"'),
    "installodd": (
        SOUND.replace("summary=", "install_model='get {name}', summary="),
        "the install_model of its manifest",
    ),
    "badspec": (
        SOUND.replace("summary=", "known_bad=(KnownBad('5-6', 'x'),), summary="),
        "the known_bad of its manifest",
    ),
    "modelsodd": (
        SOUND.replace("summary=", "default_models={'text': 1}, summary="),
        "the default_models of its manifest",
    ),
    "summaryodd": (SOUND.replace('summary="it echoes"', "summary=None"), "the summary of its manifest is None"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_each_fault_of_a_plugin_is_named_with_its_remedy(site: Path, name: str) -> None:
    source, says = OBJECTS[name]
    lay(site, source, name=name)
    lay(site, SOUND, name=f"sound{name}")
    registry = registry_of(site)
    with pytest.raises(PluginBroken, match=f"(?s)^plugin '{name}': hub-{name} 1.0: .*{says}") as caught:
        registry.get(name)
    assert caught.value.hint is not None
    assert f"pip install -U hub-{name}" in caught.value.hint
    assert f"LLM_HUB_DISABLE={name}" in caught.value.hint
    assert ask(registry, f"sound{name}") == "hello"


def test_an_instance_a_module_and_static_methods_are_plugins_but_no_class_that_wants_an_instance(site: Path) -> None:
    inside = textwrap.indent(MANIFEST + TEXT, "    ")
    static = inside.replace("    @hookimpl", "    @hookimpl\n    @staticmethod")
    bound = inside.replace("llm_hub_manifest()", "llm_hub_manifest(self)").replace("(config,", "(self, config,")
    lay(site, f"{HEAD}\nclass Static:{static}", name="byclass", value=":Static")
    lay(site, f"{HEAD}\nclass Bound:{bound}\nit = Bound()", name="byinstance", value=":it")
    lay(site, f"{HEAD}\nclass Bound:{bound}", name="byboundclass", value=":Bound")
    registry = registry_of(site)
    assert ask(registry, "byclass") == ask(registry, "byinstance") == "hello"
    with pytest.raises(PluginBroken, match="name the class Bound, whose llm_hub_manifest wants an instance"):
        registry.get("byboundclass")


def test_looking_for_hooks_runs_no_properties_and_minds_no_modules(site: Path) -> None:
    source = f"""{HEAD}
import sys as llm_hub_else
class It:
    @property
    def llm_hub_secret(self): raise SystemExit("it was run")
{textwrap.indent(MANIFEST + TEXT, "    ").replace("llm_hub_manifest()", "llm_hub_manifest(self)").replace("(config,", "(self, config,")}
it = It()
"""
    lay(site, source, name="property", value=":it")
    lay(site, SOUND + "import sys as llm_hub_else", name="module")
    registry = registry_of(site)
    assert ask(registry, "property") == ask(registry, "module") == "hello"


def test_a_hook_of_a_newer_core_may_be_marked_optional(site: Path) -> None:
    newer = "@hookimpl(optionalhook=True)\ndef llm_hub_dream(config): return None\n"
    lay(site, SOUND + newer, name="optional")
    assert ask(registry_of(site), "optional") == "hello"


def test_one_for_another_api_is_incompatible_even_if_its_hooks_look_wrong_here(site: Path) -> None:
    future = SOUND.replace('"1.0"', '"2.0"').replace("(config, context)", "(world)").replace("_text", "_language")
    lay(site, future, name="future2")
    with pytest.raises(PluginIncompatible, match=r"hub-future2 1.0: it is made for api version 2.0.*llm-hub-core"):
        registry_of(site).get("future2")


def test_a_plugin_that_offers_only_what_this_core_does_not_know_is_never_imported(site: Path) -> None:
    lay(site, "raise SystemExit", name="rerank", groups=("embeddings",))
    report = registry_of(site).report("rerank", load=True)
    assert (report.status, report.capabilities) == (PluginStatus.INCOMPATIBLE, frozenset())
    assert "llm_hub.embeddings" in (report.reason or "")
    assert "llm_hub.embedding," in (report.hint or "")
    assert "broken_rerank" not in sys.modules


def test_an_entry_in_an_unknown_group_is_told_and_does_no_harm(site: Path) -> None:
    lay(site, SOUND, name="more", groups=("text", "rerank"))
    report = registry_of(site).report("more", load=True)
    assert report.status is PluginStatus.AVAILABLE
    assert "llm_hub.rerank" in (report.hint or "")


# -- what it builds ---------------------------------------------------------------------------------------------------

BACKENDS = {
    "lacksone": ("def close(self): pass", "", "a Echo, lacks close"),
    "asyncchat": (
        "    def chat",
        "    async def chat",
        "chat of the Echo that it built is a coroutine function.*achat",
    ),
    "asyncstream": ("    def stream", "    async def stream", "stream of the Echo that it built is an async generator"),
    "astreamodd": (
        "async def astream(self, request, call): yield",
        "async def astream(self, request, call): return",
        "astream of the Echo that it built is a coroutine function.*yield",
    ),
    "nomethod": ("def close(self): pass", "close = None", "close of the Echo that it built is no method"),
    "featurelist": ("frozenset({Feature.SYSTEM})\n", "['system']\n", "the features of the Echo that it built are"),
    "buildexits": ("return Echo()", "raise SystemExit(1)", "building 'b' raised SystemExit: 1"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_each_fault_of_a_backend_is_named(site: Path, name: str) -> None:
    old, new, says = BACKENDS[name]
    source = SOUND.replace(old, new)
    assert source != SOUND
    if name == "featurelist":
        source = source.replace("features=Echo.features", "")
    lay(site, source, name=name)
    with pytest.raises(PluginBroken, match=f"hub-{name} 1.0: .*{says}"):
        ask(registry_of(site), name)


def test_an_error_of_the_hub_that_a_hook_raises_comes_through_with_the_name_of_the_backend(site: Path) -> None:
    raising = SOUND.replace(
        "return Echo()", "from llm_hub.errors import SettingsError; raise SettingsError('no', where='X')"
    )
    lay(site, raising, name="refuses")
    with pytest.raises(SettingsError, match="X: b: no") as caught:
        ask(registry_of(site), "refuses")
    assert caught.value.backend == "b"


def test_a_capability_that_it_does_not_offer_is_not_asked_for(site: Path) -> None:
    lay(site, SOUND, name="onlytext")
    config, context = BackendConfig(name="b", plugin="onlytext"), BuildContext(transport=Transport())
    with pytest.raises(PluginNotFound, match="hub-onlytext 1.0 offers text, not vision"):
        registry_of(site).get("onlytext").build(Capability.VISION, config, context)


# -- what it does when it is imported ---------------------------------------------------------------------------------


def test_a_traceback_begins_at_the_plugin_and_keeps_its_cause(site: Path) -> None:
    lay(site, "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error", name="chained")
    with pytest.raises(PluginBroken, match="importing broken_chained raised KeyError: 'x'") as caught:
        registry_of(site).get("chained")
    details = caught.value.details or ""
    assert details.count("broken_chained.py") == 2
    assert "ZeroDivisionError" in details
    assert "stevedore" not in details
    assert "importlib" not in details
    assert isinstance(caught.value.__cause__, KeyError)


def test_whatever_is_raised_is_survived(site: Path) -> None:
    sources = {
        "baseexception": "class Odd(BaseException): pass\nraise Odd('odd')",
        "interrupt": "raise KeyboardInterrupt",
        "noexit": "import sys; sys.exit('go away')",
        "unprintable": "class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad",
        "deep": "def f(): f()\nf()",
        "syntax": "def (:",
        "huge": "raise ValueError('x' * 10_000_000)",
        "reference": "x = 1",
        "none": "plugin = None",
    }
    for name, source in sources.items():
        lay(site, source, name=name, value={"reference": ":y", "none": ":plugin"}.get(name, ""))
    lay(site, SOUND, name="survivor")
    registry = registry_of(site)
    reports = {report.name: report for report in registry.reports(load=True)}
    assert {name: report.status for name, report in reports.items()} == {
        **dict.fromkeys(sources, PluginStatus.BROKEN),
        "survivor": PluginStatus.AVAILABLE,
    }
    for name in sources:
        assert name == "none" or reports[name].details, name
        assert len(reports[name].reason or "") < 1000
        assert len(reports[name].details or "") < 30_000
    assert "called sys.exit('go away')" in (reports["noexit"].reason or "")
    assert "RecursionError" in (reports["deep"].reason or "")
    assert "has no attribute 'y'" in (reports["reference"].reason or "")
    assert ask(registry, "survivor") == "hello"


def test_a_missing_module_and_another_core_are_told_apart(site: Path) -> None:
    lay(site, "import a_package_nobody_has.sub", name="needs")
    lay(site, "from llm_hub.hub import SomethingNewer", name="newer")
    registry = registry_of(site)
    assert "needs the module a_package_nobody_has" in (registry.report("needs", load=True).hint or "")
    assert "pip install -U llm-hub-core" in (registry.report("newer", load=True).hint or "")


def test_one_that_hangs_costs_all_who_wait_its_time_once_and_shows_where_it_is(site: Path) -> None:
    source = "import threading\ndef dawdle():\n    threading.Event().wait()\ndawdle()"
    lay(site, source, name="dawdles")
    lay(site, SOUND, name="brisk")
    registry = registry_of(site, timeout=1.0)
    errors: list[PluginError] = []

    def wait() -> None:
        try:
            registry.get("dawdles")
        except PluginError as error:
            errors.append(error)

    began = time.monotonic()
    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert ask(registry, "brisk") == "hello"
    assert not errors, "the others need not wait for it"
    for thread in threads:
        thread.join()
    assert 0.9 < time.monotonic() - began < 5
    assert len(errors) == 4
    for error in errors:
        assert "took more than 1 s" in error.message
        assert "dawdle()\n" in (error.details or "")
        assert "stevedore" not in (error.details or "")
    assert registry.report("dawdles", load=True).seconds == 1.0


def test_a_plugin_that_waits_for_an_import_of_the_caller_is_told_so(site: Path) -> None:
    lay(site, "import broken_application", name="circular")
    code = """
    from llm_hub.registry import Registry
    report = Registry(timeout=0.5).report("circular", load=True)
    """
    (site / "broken_application.py").write_text(textwrap.dedent(code))
    code = "import broken_application as it; print(it.report.status, it.report.hint)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(site), capture_output=True, text=True)
    assert done.stdout.startswith("broken It waits for a module that another thread is still importing"), done.stderr


def test_errors_raised_again_do_not_collect_tracebacks(site: Path) -> None:
    lay(site, "1 / 0", name="again")
    registry = registry_of(site)
    seen: list[tuple[int, int]] = []
    for _ in range(5):
        try:
            registry.get("again")
        except PluginError as error:
            trace, length = error.__traceback__, 0
            while trace is not None:
                trace, length = trace.tb_next, length + 1
            seen.append((id(error), length))
    assert len({length for _, length in seen}) == 1
    assert sys.modules.get("broken_again") is None


def test_ctrl_c_stops_the_wait_and_leaves_the_plugin_sound(site: Path) -> None:
    lay(site, f"import time; print('loading', flush=True); time.sleep(1)\n{SOUND}", name="slow")
    code = """
    from llm_hub.registry import Registry
    registry = Registry()
    try:
        registry.get("slow")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(registry.report("slow", load=False).status, registry.get("slow").name)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in what a shell runs behind it
    with subprocess.Popen(
        command, env=environment(site), stdout=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert rest == "interrupted\ninstalled slow\n"  # and it was imported once


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_one_loads_leaves_the_registry_of_the_child_usable(site: Path) -> None:
    lay(site, f"import time; time.sleep(0.5)\n{SOUND}", name="slowfork")
    lay(site, SOUND, name="soundfork")
    code = """
    import os, sys, threading, time
    from llm_hub.registry import Registry
    registry = Registry(timeout=5.0)
    thread = threading.Thread(target=registry.get, args=("slowfork",))
    thread.start()
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        # The lock of the module that was being imported is lost with its thread: no more than the time limit can help.
        ok = registry.get("soundfork").name == "soundfork"
        os._exit(0 if ok and registry.report("slowfork", load=True).status in ("broken", "available") else 1)
    thread.join()
    print(registry.get("slowfork").name, os.waitpid(child, 0)[1])
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment(site), capture_output=True, text=True, timeout=30)
    assert done.stdout == "slowfork 0\n", done.stderr


def test_a_thread_that_hangs_does_not_hold_up_the_end_of_the_program(site: Path) -> None:
    lay(site, "import threading; threading.Event().wait()", name="clings")
    code = "from llm_hub.registry import Registry; print(Registry(timeout=0.2).report('clings', load=True).status)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(site), capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (0, "broken\n"), done.stderr


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site)}


# -- many at once -----------------------------------------------------------------------------------------------------


def test_strict_names_every_broken_plugin(site: Path) -> None:
    lay(site, "1 / 0", name="bad1")
    lay(site, "1 / 0", name="bad2")
    lay(site, "1 / 0", name="bad3")
    lay(site, SOUND, name="good1")
    with pytest.raises(PluginBroken, match="^plugin 'bad1'.*And: plugin 'bad2'") as caught:
        registry_of(site, disabled=frozenset({"bad3"})).check()
    assert "bad3'" not in str(caught.value)
    assert "LLM_HUB_DISABLE=bad1,bad3" in str(caught.value)
    registry_of(site, disabled=frozenset({"bad1", "bad2", "bad3"})).check()


def test_a_plugin_that_nobody_installed_is_reported_as_missing() -> None:
    report = Registry([]).report("absent", load=True)
    assert (report.status, report.distribution) == (PluginStatus.MISSING, "")
    assert "pip install llm-hub-absent" in (report.hint or "")


def test_a_sound_plugin_reports_what_it_declares(site: Path) -> None:
    lay(site, SOUND, name="reports")
    registry = registry_of(site)
    assert registry.report("reports", load=False) == PluginReport(
        name="reports",
        status=PluginStatus.INSTALLED,
        capabilities=frozenset({Capability.TEXT}),
        distribution="hub-reports",
        version="1.0",
    )
    report = registry.report("reports", load=True)
    assert (report.status, report.api_version, report.summary) == (PluginStatus.AVAILABLE, "1.0", "it echoes")
    assert report.features == frozenset({"system"})
    assert report.seconds is not None
    assert report.reason is None


def test_an_object_takes_the_place_of_an_installed_plugin_and_is_never_named_by_distribution(site: Path) -> None:
    class Given:
        pass

    lay(site, "1 / 0", name="replaced")
    registry = registry_of(site, plugins={"replaced": Given()}, allowed=frozenset())
    assert registry.names() == ("replaced",)
    with pytest.raises(PluginBroken, match="given to the hub: it has no llm_hub_manifest hook"):
        registry.get("replaced")
    with pytest.raises(SettingsError, match=r"LLM_HUB_DISABLE.*no plugin 'other' is installed"):
        registry_of(site, plugins={"mine": Given()}, disabled=frozenset({"mine", "other"}))


def test_loading_leaves_no_garbage_of_threads(site: Path) -> None:
    lay(site, SOUND, name="tidy")
    registry = registry_of(site)
    registry.get("tidy")
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "llm-hub-load-tidy"]


# -- in a process of its own ------------------------------------------------------------------------------------------

CATASTROPHE = "import re\nre.match('(a*)*b', 'a' * 64)"  # holds the GIL for ages
APART = {
    "leaves": ("import os; os._exit(7)", "importing it ended the interpreter with exit code 7", ""),
    "leavesinsilence": ("import os; os._exit(0)", "importing it ended the interpreter with exit code 0", ""),
    "crashes": ("import os; os.abort()", r"importing it crashed the interpreter \(SIGABRT\)", "broken_crashes.py"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", r"\(SIGSEGV\)", "Segmentation fault"),
    "hangsapart": ("import time; time.sleep(60)", "took more than", "time.sleep(60)"),
    "hangsdeep": (CATASTROPHE, "importing it took more than 2 s", "broken_hangsdeep.py"),
    "closesall": ("import os; os.closerange(0, 100)\nraise ValueError", "ended the interpreter", ""),
    "forgery": ("import os; os.write(1, b'{}'); print('{}'); os._exit(0)", "exit code 0", "{}"),
}


def test_apart_what_hangs_ends_by_itself_if_its_parent_is_gone(site: Path) -> None:
    lay(site, CATASTROPHE, name="hangsalone")
    ask = {"name": "hangsalone", "path": sys.path, "until": time.time() + 0.5, "timeout": 0.5}
    alone = subprocess.Popen(
        [sys.executable, "-P", "-c", apart._CODE, json.dumps(ask)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert alone.wait(30) == -signal.SIGALRM
    finally:
        alone.kill()
        alone.wait()


@pytest.mark.parametrize("name", APART)
def test_apart_even_the_end_of_the_interpreter_is_a_report(site: Path, name: str) -> None:
    source, says, details = APART[name]
    lay(site, source, name=name)
    began = time.monotonic()
    report = check_apart(name, timeout=2.0)
    assert time.monotonic() - began < 5
    assert report.status is PluginStatus.BROKEN
    assert re.search(says, report.reason or ""), report
    assert details in (report.details or "")
    assert f"hub-{name} 1.0: " in (report.reason or "")
    assert f"LLM_HUB_DISABLE={name}" in (report.hint or "")
    assert f"broken_{name}" not in sys.modules


def test_apart_a_sound_plugin_is_available_whatever_it_prints_starts_or_registers(site: Path) -> None:
    noise = """
    import atexit, subprocess, sys, threading, time
    print("noise"); sys.stderr.write("more noise")
    threading.Thread(target=time.sleep, args=(60,)).start()
    atexit.register(time.sleep, 60)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(__file__ + ".pid", "w").write(str(child.pid))
    """
    lay(site, textwrap.dedent(noise) + SOUND, name="noisy")
    report = check_apart("noisy", timeout=8.0)
    assert report.status is PluginStatus.AVAILABLE, report
    assert (report.summary, report.features) == ("it echoes", frozenset({"system"}))
    pid = int((site / "broken_noisy.py.pid").read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.02)
    assert not alive(pid), "what it started was ended with it"


def alive(pid: int) -> bool:
    """Does the process run? One that ended and that nobody has waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_apart_the_current_folder_is_not_searched_for_modules(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(site, SOUND, name="elsewhere")
    trap = tmp_path_factory.mktemp("trap")
    for name in ("msgspec", "json", "llm_hub"):
        (trap / f"{name}.py").write_text("raise SystemExit('a trap')")
    monkeypatch.chdir(trap)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    report = check_apart("elsewhere", timeout=8.0)
    assert report.status is PluginStatus.AVAILABLE, report


def test_apart_what_metadata_tells_needs_no_process(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    install_distribution(site, "hub-x1", entry_points={"llm_hub.text": {"claimed": "a"}})
    install_distribution(site, "hub-x2", entry_points={"llm_hub.text": {"claimed": "a"}})
    assert check_apart("claimed").status is PluginStatus.CONFLICT
    assert check_apart("claimedbynone").status is PluginStatus.MISSING
