"""Compose files: what they hold, kept as files beside their settings, and read by a strict reader of the specification."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from llm_hub import Hub, Settings
from llm_hub.compose import Stack, contained, placeholders, render
from llm_hub.config import BackendConfig
from llm_hub.errors import ConfigurationError, HubError, SettingsError
from llm_hub.gpu import Gpu, Inventory, resolve
from llm_hub.launch import Container, LaunchSpec

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "data" / "compose"
GIB = 1 << 30
FOUR = Inventory(gpus=tuple(Gpu(index=number, uuid=f"GPU-{number}000", total=80 * GIB) for number in range(4)))
ONE = Inventory(gpus=(Gpu(index=0, uuid="GPU-8f2a", total=24 * GIB),))
NONE = Inventory()
LAYOUTS: dict[str, tuple[Path, Path, Inventory]] = {
    "ollama-only": (CASES / "ollama-only.toml", CASES / "ollama-only.yaml", NONE),
    "vllm-only": (CASES / "vllm-only.toml", CASES / "vllm-only.yaml", NONE),
    "two-gpus": (ROOT / "deploy" / "llm-hub.vllm.toml", ROOT / "deploy" / "docker-compose.vllm.yml", NONE),
    "one-gpu-shared": (CASES / "one-gpu-shared.toml", CASES / "one-gpu-shared.yaml", ONE),
    "four-gpus": (CASES / "four-gpus.toml", CASES / "four-gpus.yaml", FOUR),
    "cpu-only": (CASES / "cpu-only.toml", CASES / "cpu-only.yaml", NONE),
}
KEYS = {"TEAM_KEY": "sesame-1", "VLLM_API_KEY": "sesame-2"}
MODELS = {"text": "org/model"}


def made(
    text: str,
    inventory: Inventory = NONE,
    *,
    name: str = "llm-hub.toml",
    config: str | None = None,
    file: str | None = None,
) -> str:
    settings = Settings.from_toml(text, name=name, environ=KEYS, plugins=["llamacpp", "ollama", "vllm", "wordllama"])
    with Hub(settings) as hub:
        placements = resolve(settings.assignments, inventory)
        stack = contained(hub.runtime, devices={key: one.devices for key, one in placements.items()}, config=config)
    elsewhere = "" if inventory.gpus else " --elsewhere"
    option = "" if name == "llm-hub.toml" else f" --config {name}"
    return render(stack, command=f"llm-hub{option} compose{elsewhere}", file=file)


def layout(name: str) -> str:
    toml, kept, inventory = LAYOUTS[name]
    return made(toml.read_text("utf-8"), inventory, name=toml.name, config=f"./{toml.name}", file=kept.name)


@pytest.fixture(params=LAYOUTS)
def case(request: pytest.FixtureRequest) -> tuple[str, str, dict[str, Any]]:
    """A layout: its name, its text and what that means."""
    text = layout(request.param)
    return request.param, text, yaml.safe_load(text)


def test_it_is_what_is_kept_beside_the_settings(case: tuple[str, str, dict[str, Any]]) -> None:
    """If this is meant to change, write the new text into the file that it names."""
    name, text, _ = case
    kept = LAYOUTS[name][1]
    assert kept.is_file(), kept
    assert text == kept.read_text("utf-8"), kept


def test_a_strict_reader_of_the_specification_takes_it(case: tuple[str, str, dict[str, Any]]) -> None:
    compose_spec = pytest.importorskip("compose_spec")  # there are wheels of it for Linux on x86-64 alone
    name, text, document = case
    read = compose_spec.PyCompose.from_yaml(text)
    read.validate()
    assert sorted(read.service_names()) == sorted(document["services"]), name


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("device_ids:", "device_idz:"),
        ("service_healthy", "service_hot"),
        ('interval: "10s"', 'interval: "10 parsecs"'),
        ("stop_grace_period:", "stop_gracefully:"),
        ("internal: true", "internal: maybe"),
    ],
)
def test_that_reader_is_strict(right: str, wrong: str) -> None:
    compose_spec = pytest.importorskip("compose_spec")
    text = layout("two-gpus")
    assert right in text
    with pytest.raises(ValueError, match=r"line \d+"):
        compose_spec.PyCompose.from_yaml(text.replace(right, wrong))


def test_every_image_is_pinned_and_every_name_is_defined(case: tuple[str, str, dict[str, Any]]) -> None:
    _, _, document = case
    services = document["services"]
    for name, one in services.items():
        image = one.get("image", "")
        assert re.search(r":[v\d][^/]*$|@sha256:[0-9a-f]{64}$", image) or "build" in one, name
        assert not image.endswith(":latest")
        assert set(one.get("depends_on", {})) <= set(services) - {name}
        assert set(one["networks"]) <= {*document["networks"], "default"}
        for volume in one.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            kind = volume["type"] if isinstance(volume, dict) else "volume"
            assert source in document["volumes"] if kind == "volume" else source.startswith((".", "/")), volume


def test_backends_are_not_published_and_are_checked_and_stopped_with_patience(
    case: tuple[str, str, dict[str, Any]],
) -> None:
    _, _, document = case
    backends = {name: one for name, one in document["services"].items() if "healthcheck" in one}
    assert backends
    assert document["networks"]["backends"] == {"internal": True}
    for name, one in backends.items():
        assert "ports" not in one, name
        assert one["healthcheck"]["test"][0] == "CMD"
        drain = dict(zip(one["command"], one["command"][1:], strict=False)).get("--shutdown-timeout", "0")
        assert int(one["stop_grace_period"].removesuffix("s")) > int(drain)
        for device in one.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", ()):
            assert "count" not in device, "count and device_ids exclude each other"
            assert device["driver"] == "nvidia"
            assert device["capabilities"] == ["gpu"]
            assert all(isinstance(one, str) for one in device["device_ids"])
            assert one["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
            assert "CUDA_VISIBLE_DEVICES" not in one["environment"], "inside, they are counted anew"


def test_the_health_of_a_container_is_asked_at_the_path_of_its_description() -> None:
    container = Container(image="org/s:1", command=(), port=81, health=("CMD", "curl", "-f", "{health}"))
    spec = LaunchSpec(command=("s",), health_path="/alive", container=container)
    config = BackendConfig(name="mine", plugin="mine")
    document = yaml.safe_load(render(Stack(backends=((config, spec),)), command="llm-hub compose"))
    assert document["services"]["mine"]["healthcheck"]["test"] == ["CMD", "curl", "-f", "http://127.0.0.1:81/alive"]


def test_no_key_is_in_it(case: tuple[str, str, dict[str, Any]]) -> None:
    _, text, _ = case
    assert "sesame" not in text


def test_own_services_find_the_backends_and_are_switched_with_the_others() -> None:
    document = yaml.safe_load(layout("four-gpus"))
    chat = document["services"]["chat"]
    assert chat["environment"] == {
        "LLM_PROVIDER": "${LLM_PROVIDER:-}",
        "LLM_HUB_STATE": "/var/lib/llm-hub/control.json",
        "LLM_HUB_CONFIG": "/etc/llm-hub/llm-hub.toml",
        "VLLM_EMBED_BASE_URL": "http://vllm-embed:8000",
        "EYES_BASE_URL": "http://eyes:8000",
        "VLLM_API_KEY": "${VLLM_API_KEY:?set VLLM_API_KEY}",
    }
    assert {"type": "volume", "source": "hub-state", "target": "/var/lib/llm-hub"} in chat["volumes"]
    assert chat["depends_on"]["vllm-text"] == {"condition": "service_healthy", "required": False}
    assert document["configs"] == {"llm-hub": {"file": "./four-gpus.toml"}}
    assert "far" not in document["services"], "it is on another machine"


def test_what_a_service_is_told_is_understood_by_the_hub_in_it() -> None:
    """The variables and the file, read as the service in its container will read them."""
    toml, _, _ = LAYOUTS["four-gpus"]
    environ = yaml.safe_load(layout("four-gpus"))["services"]["chat"]["environment"]
    told = {name: "sesame" if value.startswith("${VLLM") else value for name, value in environ.items()}
    told = {name: value for name, value in told.items() if name != "LLM_PROVIDER"}
    settings = Settings.from_env(told, config=toml, plugins=["llamacpp", "ollama", "vllm", "wordllama"])
    assert settings.backends["vllm-text"].base_urls[None] == "http://vllm-text:8000"
    assert settings.backends["vllm-embed"].base_urls[None] == "http://vllm-embed:8000"
    assert settings.backends["far"].base_urls[None] == "http://10.0.0.5:8000"
    assert settings.state_path == "/var/lib/llm-hub/control.json"


def test_backends_on_one_gpu_start_one_after_the_other() -> None:
    shared = yaml.safe_load(layout("one-gpu-shared"))["services"]
    assert shared["vllm"]["depends_on"] == {"ollama": {"condition": "service_healthy", "required": False}}
    assert "depends_on" not in shared["ollama"]
    four = yaml.safe_load(layout("four-gpus"))["services"]
    assert list(four["eyes"]["depends_on"]) == ["vllm-embed"]


def test_gpus_are_named_by_uuid_where_they_are_and_as_written_elsewhere() -> None:
    text = '[backends.ollama]\nmodels = { text = "m" }\n[gpu.assign.ollama]\ngpus = [0]\n'
    here = yaml.safe_load(made(text, ONE))["services"]["ollama"]
    there = yaml.safe_load(made(text))["services"]["ollama"]
    ids = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for one in (here, there)]
    assert ids == [["GPU-8f2a"], ["0"]]


def test_an_inventory_makes_the_file_for_the_machine_that_it_is_of(tmp_path: Path) -> None:
    """With the GPUs known, an amount of memory becomes the share of the card that vLLM wants to be told."""
    (tmp_path / "llm-hub.toml").write_text(
        '[backends.vllm]\nmodels = { text = "m" }\n[gpu.assign.vllm]\ngpus = [0]\nmemory = "12 GiB"\n'
    )
    (tmp_path / "gpus.json").write_bytes(msgspec.json.encode(ONE))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm_hub", "compose", *options], cwd=tmp_path, capture_output=True, text=True
        )

    done = run("--inventory", "gpus.json")
    assert done.returncode == 0, done.stderr
    service = yaml.safe_load(done.stdout)["services"]["vllm"]
    command = service["command"]
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.5"
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["GPU-8f2a"]
    assert "compose --inventory gpus.json" in done.stdout.partition("\n")[0]
    without = run("--elsewhere")
    assert without.returncode != 0
    assert "--inventory" in without.stderr
    assert run("--elsewhere", "--inventory", "gpus.json").returncode == 2


def test_with_several_kinds_of_backends_each_can_be_started_alone() -> None:
    services = yaml.safe_load(layout("two-gpus"))["services"]
    assert {name: one["profiles"] for name, one in services.items()} == {
        "vllm": ["vllm", "both"],
        "ollama": ["ollama", "both"],
        "ollama-models": ["ollama", "both"],
    }
    assert "profiles" not in yaml.safe_load(layout("ollama-only"))["services"]["ollama"]


def test_dollars_of_commands_are_no_variables() -> None:
    text = '[backends.vllm]\nmodels = { text = "m" }\nlaunch = { args = ["--x", "$HOME"] }\n'
    assert yaml.safe_load(made(text))["services"]["vllm"]["command"][-1] == "$$HOME"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no backend that runs in a container"),
        ('[backends.vllm]\nbase_url = "http://10.0.0.5:8000"\n', "there is no backend that runs in a container"),
        ("[backends.vllm]\n", "names no model"),
        (
            '[backends.vllm]\nmodels = { text = "m" }\n[gpu.assign.vllm]\ngpus = [0]\nmemory = "20 GiB"\n',
            "cannot be converted",
        ),
        (
            '[backends.ollama]\nmodels = { text = "m" }\n[services.ollama]\nimage = "x:1"\n',
            "llm-hub.toml:3: the service 'ollama' has the name of a backend",
        ),
        (
            '[backends.vllm-text]\nplugin = "vllm"\nmodels = { text = "m" }\n[services.s]\nimage = "x:1"\n',
            'cannot be told by a variable .* Write base_url = "http://vllm-text:8000"',
        ),
    ],
)
def test_what_cannot_be_made_is_said(text: str, said: str) -> None:
    with pytest.raises((ConfigurationError, SettingsError, HubError), match=said):
        made(text)


def test_keys_that_are_not_set_here_are_found_by_name() -> None:
    text = '[backends]\nvllm = { api_key_env = "A" }\n[backends.other]\napi_key_env = "B"\n[backends.third]\nx = 1\n'
    assert placeholders(text, {"B": "set"}) == ["A"]
    assert placeholders("not toml", {}) == []


def test_the_examples_of_the_page_are_settings() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    first, gpus, services = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    plugins = ["llamacpp", "ollama", "vllm"]
    local = Settings.from_toml(first, plugins=plugins)
    assert [config.base_urls[None] for config in local.backends.values()] == [
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
    ]
    assert [one.gpus for one in Settings.from_toml(gpus, environ=KEYS, plugins=plugins).assignments] == [(1,), (0,)]
    assert yaml.safe_load(made(f"{gpus}\n{services}"))["services"]["chat"]["ports"] == ["127.0.0.1:8080:8080"]


# -- the command ------------------------------------------------------------------------------------------------------


def compose(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_hub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_command_writes_compares_and_says_what_differs(tmp_path: Path) -> None:
    (tmp_path / "llm-hub.toml").write_text((CASES / "vllm-only.toml").read_text())
    printed = compose("compose", folder=tmp_path)  # TEAM_KEY is not set here, and need not be
    assert printed.returncode == 0, printed.stderr
    assert "${TEAM_KEY:?" in printed.stdout
    assert "file: ./llm-hub.toml" in printed.stdout
    (tmp_path / "deploy").mkdir()
    nowhere = compose("compose", "-o", "nowhere/compose.yaml", folder=tmp_path)
    assert nowhere.returncode == 1
    assert "nowhere/compose.yaml cannot be written: No such file or directory" in nowhere.stderr
    assert compose("compose", "-o", "deploy/compose.yaml", folder=tmp_path).returncode == 0
    written = (tmp_path / "deploy" / "compose.yaml").read_text()
    assert "file: ../llm-hub.toml" in written
    assert "build: ../chat" in written
    assert compose("compose", "--check", "deploy/compose.yaml", folder=tmp_path).returncode == 0
    with (tmp_path / "llm-hub.toml").open("a") as file:
        file.write("[services.more]\nimage = 'more:1'\n")
    changed = compose("compose", "--check", "deploy/compose.yaml", folder=tmp_path)
    assert changed.returncode == 1
    assert "+  more:" in changed.stderr
    assert "llm-hub compose -o deploy/compose.yaml" in changed.stderr


def test_the_deployed_file_is_made_from_its_settings() -> None:
    """The one in deploy/, by the command that stands at its top."""
    top = (ROOT / "deploy" / "docker-compose.vllm.yml").read_text("utf-8").partition("`")[2].partition("`")[0]
    again = compose(*top.split()[1:], "--check", "docker-compose.vllm.yml", folder=ROOT / "deploy")
    assert again.returncode == 0, again.stderr
