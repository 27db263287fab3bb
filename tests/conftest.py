"""What holds for every test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_expert_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither measure which expert product is fastest, nor leave the answer in the user's cache."""
    monkeypatch.setenv("MOESEARCH_EXPERT_BACKEND", "grouped")
