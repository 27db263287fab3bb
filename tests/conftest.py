"""What holds for every test."""

from __future__ import annotations

import os

import pytest

from tests.postgres import postgres  # noqa: F401 - fixtures for all tests
from tests.stores import empty_postgres_store, every_store  # noqa: F401

# Before torch is imported, here or in a process that a test starts: threads that wait for one another spin, and on
# tiny models they would do little else.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_expert_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither measure which expert product is fastest, nor leave the answer in the user's cache."""
    monkeypatch.setenv("MOESEARCH_EXPERT_BACKEND", "grouped")
