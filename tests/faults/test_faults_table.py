"""The table of faults in the documentation names tests that there are, for every row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
TABLE = TESTS.parent / "docs" / "reference" / "faults.md"
ROW = re.compile(r"^\| (\d+) \|.*\| ([^|]+) \|$", re.MULTILINE)


def _functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_has_its_tests_and_every_test_its_row() -> None:
    rows = {int(number): re.findall(r"`([^`]+)`", named) for number, named in ROW.findall(TABLE.read_text("utf-8"))}
    assert sorted(rows) == list(range(1, 38))
    shown: set[tuple[int, str]] = set()
    for number, named in rows.items():
        assert named, f"row {number} names no test"
        for one in named:
            file, _, function = one.partition("::")
            functions = _functions(TESTS / file)
            if function:
                assert function in functions, f"row {number}: there is no {one}"
            elif file.startswith("faults/"):
                of_row = {name for name in functions if name.startswith(f"test_row_{number:02}_")}
                assert of_row, f"row {number}: {file} has no test of it"
                shown |= {(number, name) for name in of_row}
            else:
                assert any(name.startswith("test_") for name in functions)
    written = {
        (int(match[1]), name)
        for path in (TESTS / "faults").glob("test_*.py")
        for name in _functions(path)
        if (match := re.match(r"test_row_(\d\d)_", name))
    }
    assert written == shown
