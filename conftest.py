"""For every test: a control file of its own, so that no test reads, or writes, that of the person who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Thousands of sequences: pytest --hypothesis-profile thorough tests/test_invariants.py
settings.register_profile("thorough", max_examples=3000, deadline=None)


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state folder of `platformdirs`, where the control file is by default."""
    folder: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
