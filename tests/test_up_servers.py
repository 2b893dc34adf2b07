"""`llm-hub up` starts what is called `ollama` and `vllm` as their plugins say: stand-ins of both, which serve as the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_hub import Hub
from llm_hub.running import Running, read_running
from llm_hub.starting import free_port

OLLAMA = """
import os, signal, sys
from llm_hub.testing import FakeModel, FakeOllama
print("ran", sys.argv[1:], {name: os.environ[name] for name in sorted(os.environ) if name.startswith("OLLAMA_")}, flush=True)
if sys.argv[1] == "pull":
    sys.exit(1)
with FakeOllama([FakeModel(name="llava:7b")], port=int(os.environ["OLLAMA_HOST"].rpartition(":")[2]), in_gpu=1.0):
    signal.sigwait([signal.SIGTERM])
"""
VLLM = """
import os, signal, sys
from llm_hub.testing import FakeModel, FakeVLLM
print("ran", sys.argv[1:], flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
with FakeVLLM(FakeModel(name=sys.argv[2]), port=port, api_key=os.environ["VLLM_API_KEY"]):
    signal.sigwait([signal.SIGTERM])
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], Running]]:
    """The folder, the environment, and what runs once neither starts any more."""
    folder = tmp_path_factory.mktemp("servers")
    for name, script in (("ollama", OLLAMA), ("vllm", VLLM)):
        (folder / name).write_text(f"#!{sys.executable}\n{script}")
        (folder / name).chmod(0o755)
    (folder / "llm-hub.toml").write_text(
        f'[backends.ollama]\nbase_url = "http://127.0.0.1:{free_port()}"\n'
        'models = { vision = "llava:7b", embedding = "nomic-embed-text" }\n'
        f'[backends.vllm]\nbase_url = "http://127.0.0.1:{free_port()}"\napi_key_env = "TEAM_KEY"\n'
        'models = { text = "org/model" }\nlaunch = { max_model_len = 2048 }\n[routes]\ntext = ["vllm"]\n'
    )
    state = str(folder / "control.json")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))},
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "LLM_HUB_CONFIG": str(folder / "llm-hub.toml"),
        "LLM_HUB_STATE": state,
        "TEAM_KEY": "sesame-4711",
    }
    with (folder / "up.txt").open("w") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "llm_hub", "up", "--fetch"], env=environ, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + 60
        while (found := read_running(state)) is None or any(
            one.state in ("waiting", "starting") for one in found.backends.values()
        ):
            assert up.poll() is None, (folder / "up.txt").read_text()
            assert time.monotonic() < until, (folder / "up.txt").read_text()
            time.sleep(0.05)
        yield folder, environ, found
    finally:
        up.terminate()
        assert up.wait(30) == 0


Made = tuple[Path, dict[str, str], Running]


def test_vllm_gets_its_options_and_its_key_and_answers_with_it(stack: Made) -> None:
    folder, environ, running = stack
    assert running.backends["vllm"].state == "ready"
    log = (folder / "control.up" / "logs" / "vllm.log").read_text()
    assert "'serve', 'org/model', '--host', '127.0.0.1'" in log
    assert "'--max-model-len', '2048', '--shutdown-timeout', '30'" in log
    with Hub.from_env(environ) as hub:
        assert hub.text().chat("Hello").text


def test_ollama_gets_its_variables_and_a_model_that_cannot_be_fetched_is_told(stack: Made) -> None:
    folder, _, running = stack
    ollama = running.backends["ollama"]
    assert ollama.state == "degraded"
    assert "does not have the model 'nomic-embed-text'" in ollama.detail
    assert ollama.hint == "Fetch it: ollama pull nomic-embed-text"
    log = (folder / "control.up" / "logs" / "ollama.log").read_text()
    host = ollama.address.removeprefix("http://")
    assert (
        f"ran ['serve'] {{'OLLAMA_HOST': '{host}', 'OLLAMA_KEEP_ALIVE': '-1', 'OLLAMA_MAX_LOADED_MODELS': '2'}}" in log
    )
    assert f"ran ['pull', 'nomic-embed-text'] {{'OLLAMA_HOST': '{host}'" in log
    assert "ollama pull nomic-embed-text failed (code 1)" in (folder / "up.txt").read_text()


def test_the_key_is_in_no_file_and_on_no_command_line(stack: Made) -> None:
    folder, _, running = stack
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 6
    assert not [path for path in kept if "sesame" in path.read_text("utf-8", "replace")]
    for one in running.backends.values():
        for pid in (one.pid, one.guardian):
            assert b"sesame" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ollama = Path(f"/proc/{running.backends['ollama'].pid}/environ").read_bytes()
    assert b"sesame" not in ollama, "a backend gets its own key and nobody else's"
