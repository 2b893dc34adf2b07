"""For every test: a control file of its own, so that no test reads, or writes, that of the person who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of a test: how long an example takes is not judged.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
# Thousands of sequences: pytest --hypothesis-profile thorough tests/test_invariants.py
settings.register_profile("thorough", settings.get_profile("busy"), max_examples=3000)


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state folder of `platformdirs`, where the control file is by default."""
    folder: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
