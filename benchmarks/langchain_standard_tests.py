"""LangChain's own standard tests for HubChatModel, ChatOpenAI and ChatOllama on the same fake servers, as a table.

    uv run --group peers python benchmarks/langchain_standard_tests.py [--all]

Every class is asked for the same: nothing is declared to be beyond it but PDF and audio, which the servers do not take, and
images by URL. Printed are the tests that not all pass (with --all, every test), and how many each class passes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from llm_hub import Hub
from llm_hub.langchain import HubChatModel
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, draw

NAMES = ("hub-test-vlm", "other-model")


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    model = FakeModel(name=NAMES[0], capabilities=("completion", "tools", "vision", "thinking"))
    with FakeVLLM(model, aliases=NAMES[1:]) as server:
        yield server.url


@pytest.fixture(scope="module")
def ollama() -> Iterator[str]:
    with FakeOllama([FakeModel(name=name) for name in NAMES]) as server:
        yield server.url


@pytest.fixture(scope="module")
def hub(vllm: str, ollama: str) -> Iterator[Hub]:
    with Hub.from_env({"VLLM_BASE_URL": vllm, "OLLAMA_BASE_URL": ollama}) as made:
        yield made


class Everything(ChatModelIntegrationTests):
    """What all are asked for."""

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_tool_message = True
    supports_anthropic_inputs = True
    model_override_value = NAMES[1]
    __test__ = False

    params: dict[str, Any]

    @pytest.fixture(autouse=True)
    def _picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = httpx.Response(200, content=draw("blue", "square"))
        monkeypatch.setattr("langchain_tests.integration_tests.chat_models.httpx.get", lambda *_, **__: picture)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": NAMES[0], "temperature": 0, **self.params}


class TestHubOnVLLM(Everything):
    __test__ = True
    chat_model_class = HubChatModel

    @pytest.fixture(autouse=True)
    def _on(self, hub: Hub) -> None:
        self.params = {"hub": hub, "backend": "vllm"}


class TestOpenAIOnVLLM(Everything):
    __test__ = True

    @property
    def chat_model_class(self) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI

    @pytest.fixture(autouse=True)
    def _on(self, vllm: str) -> None:
        self.params = {"base_url": f"{vllm}/v1", "api_key": "none", "stream_usage": True, "max_retries": 0}


class TestHubOnOllama(Everything):
    __test__ = True
    chat_model_class = HubChatModel

    @pytest.fixture(autouse=True)
    def _on(self, hub: Hub) -> None:
        self.params = {"hub": hub, "backend": "ollama"}


class TestOllamaOnOllama(Everything):
    __test__ = True

    @property
    def chat_model_class(self) -> Any:
        from langchain_ollama import ChatOllama

        return ChatOllama

    @pytest.fixture(autouse=True)
    def _on(self, ollama: str) -> None:
        self.params = {"base_url": ollama}


class UnitTests(ChatModelUnitTests):
    __test__ = False

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": NAMES[0]}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"OPENAI_API_KEY": "none", "LLM_PROVIDER": "vllm"}, {"model": NAMES[0]}, {"cache": None}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        if self.chat_model_class is HubChatModel:  # these two belong to the hub, and are refused
            params = {name: value for name, value in params.items() if name not in ("api_key", "max_retries")}
        return params


class TestHubOnVLLMUnit(UnitTests):
    __test__ = True
    chat_model_class = HubChatModel

    @pytest.fixture(autouse=True)
    def _listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The list inside langchain-core of classes that may be loaded has its partners' alone.
        load = sys.modules["langchain_core.load.load"]
        monkeypatch.setattr(load, "_get_default_allowed_class_paths", lambda _: {tuple(HubChatModel.lc_id())})


class TestOpenAIOnVLLMUnit(UnitTests):
    __test__ = True

    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "none")  # it cannot be made without

    @property
    def chat_model_class(self) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI


class TestOllamaOnOllamaUnit(UnitTests):
    __test__ = True

    @property
    def chat_model_class(self) -> Any:
        from langchain_ollama import ChatOllama

        return ChatOllama


COLUMNS = {
    "HubOnVLLM": "HubChatModel on vLLM",
    "OpenAIOnVLLM": "ChatOpenAI on vLLM",
    "HubOnOllama": "HubChatModel on Ollama",
    "OllamaOnOllama": "ChatOllama on Ollama",
}


class Table:
    """Remembers how each test ended."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}
        self.reasons: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        _, group, test = report.nodeid.split("::")
        column = COLUMNS[group.removeprefix("Test").removesuffix("Unit")]
        row = f"{'unit: ' if group.endswith('Unit') else ''}{test}"
        said = "skipped" if report.skipped else "pass" if report.passed else "FAIL"
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.reasons.append(f"{column}, {row.removeprefix('test_')}: {str(crash and crash.message)[:160]!r}")
        if report.failed or self.found.get(row, {}).get(column) != "FAIL":
            self.found.setdefault(row, {})[column] = said

    def show(self, *, everything: bool) -> None:
        columns = list(COLUMNS.values())
        print("| test | " + " | ".join(columns) + " |")
        print("| --- |" + " --- |" * len(columns))
        for row, ends in sorted(self.found.items()):
            said = [ends.get(column, "") for column in columns]
            if everything or not {*said} <= {"pass", ""}:
                print(f"| {row.removeprefix('test_')} | " + " | ".join(said) + " |")
        totals = [
            f"{sum(ends.get(column) == 'pass' for ends in self.found.values())} of "
            f"{sum(ends.get(column, 'skipped') != 'skipped' for ends in self.found.values())}"
            for column in columns
        ]
        print("| **passed** | " + " | ".join(totals) + " |")
        print("\nWhy:\n" + "\n".join(f"- {reason}" for reason in self.reasons))


def main() -> None:
    warnings.simplefilter("ignore")
    table = Table()
    options = [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-W",
        "ignore",
        "-o",
        "addopts=",
        "--benchmark-disable",
    ]
    arguments = [__file__, "--import-mode=importlib", "-o", "asyncio_mode=auto", "-rN", "--snapshot-update", *options]
    sys.argv, everything = sys.argv[:1], "--all" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        pytest.main([*arguments, f"--snapshot-dirname={folder}"], plugins=[table])
    table.show(everything=everything)


if __name__ == "__main__":
    main()
