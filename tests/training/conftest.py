from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_expert_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert product is not the fastest one of this machine, but the same everywhere: so are the last bits."""
    monkeypatch.setenv("MOESEARCH_EXPERT_BACKEND", "grouped")
