"""What the plugin declares, its settings, its languages, and what importing it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub, Settings
from llm_hub.config import BackendConfig
from llm_hub.errors import InvalidRequest, SettingsError
from llm_hub_tesseract import plugin
from llm_hub_tesseract.languages import available, canonical, folders


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"languages": []}, "at least one language"),
        ({"layout": "circle"}, "circle"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"queue": -1}, "queue"),
        ({"psm": 3}, "psm"),
    ],
)
def test_wrong_settings_are_refused_where_they_stand(options: Mapping[str, Any], words: str) -> None:
    with Hub(Settings.of(backends={"tesseract": options})) as hub:
        with pytest.raises(SettingsError, match=words):
            hub.explain("vision", operation="read", backend="tesseract")
    config = BackendConfig(name="mine", plugin="tesseract", options=options, source="llm-hub.toml:3")
    with pytest.raises(SettingsError, match=words):
        plugin.llm_hub_vision(config, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["eng"], ("eng",)),
        (["en", "de"], ("eng", "deu")),
        (["de-AT", "DE", "deu"], ("deu",)),
        (["zh", "zh-TW"], ("chi_sim", "chi_tra")),
        (["chi_sim_vert", "script/Latin"], ("chi_sim_vert", "script/Latin")),
        (["ger", "fre"], ("deu", "fra")),
    ],
)
def test_languages_are_known_by_any_of_their_codes(given: list[str], names: tuple[str, ...]) -> None:
    assert canonical(given) == names


@pytest.mark.parametrize("code", ["", "../../etc/passwd", "eng+deu", "e n g", "a/b/c", "~eng"])
def test_what_is_no_code_never_becomes_a_path(code: str) -> None:
    with pytest.raises(InvalidRequest, match="no code of a language"):
        canonical([code])


def test_folders_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (own / "one.traineddata").touch()
    (other / "two.traineddata").touch()
    (other / "osd.traineddata").touch()
    monkeypatch.setenv("TESSDATA_PREFIX", str(other))
    assert folders(str(own))[:2] == [own, other]
    assert {"one", "two", "eng"} <= set(available(str(own)))
    assert "osd" not in available(str(own))
