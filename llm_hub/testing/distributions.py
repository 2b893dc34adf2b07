"""Throw-away distributions: what `pip install` would leave in a folder, for tests of how plugins are found and loaded."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

__all__ = ["install_distribution"]


def install_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Lay a distribution into `folder`, which is to be put on `sys.path` or PYTHONPATH; returns its .dist-info folder.

    entry_points: of each group, the object reference under each name: `{"llm_hub.text": {"acme": "acme.plugin"}}`.
    modules: the source under each dotted name; packages in between are made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = []
    for dotted, source in (modules or {}).items():
        path = folder.joinpath(*dotted.split(".")).with_suffix(".py")
        for parent in path.relative_to(folder).parents:
            if parent.parts and not (folder / parent / "__init__.py").exists():
                (folder / parent).mkdir(parents=True, exist_ok=True)
                (folder / parent / "__init__.py").write_text("", encoding="utf-8")
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        record.append(path.relative_to(folder).as_posix())
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = [
        f"[{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in entries.items())
        for group, entries in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    (info / "INSTALLER").write_text("llm-hub\n", encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in record), encoding="utf-8")
    return info
