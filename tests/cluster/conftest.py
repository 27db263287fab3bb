from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Ray reads them when it is imported. Its nodes listen on the loopback interface alone, and tell nobody of their use.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else actors give way to whatever the machine does beside


@pytest.fixture(scope="package")
def head() -> Iterator[Any]:
    """A Ray cluster on this machine, of a head without cores."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'moesearch[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # actors find the tests' modules
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(head: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cluster at RAY_ADDRESS; the nodes that a test adds go with it."""
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    yield head
    for node in tuple(head.worker_nodes):
        head.remove_node(node)
