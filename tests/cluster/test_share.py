from __future__ import annotations

import sys

import pytest

from moesearch.config.study import RunConfig
from moesearch.errors import InputError
from moesearch.search.cluster import Share, joined_cluster, share

CORES = {"CPU": 4.0}
GPUS = {"CPU": 16.0, "GPU": 4.0}
HEAD = {"memory": 1e9}


@pytest.mark.parametrize(
    ("run", "nodes", "expected"),
    [
        ({}, [HEAD, CORES, CORES], Share("cpu", 8, 1, 0.0)),
        ({"workers": 3}, [CORES, CORES], Share("cpu", 3, 2, 0.0)),
        ({"workers": 1}, [CORES, CORES], Share("cpu", 1, 4, 0.0)),  # a worker is never larger than a node
        ({}, [CORES, GPUS], Share("cuda", 4, 4, 1.0)),
        ({"device": "cpu"}, [CORES, GPUS], Share("cpu", 20, 1, 0.0)),
        ({"workers": 8}, [GPUS], Share("cuda", 8, 2, 0.5)),
        ({"workers": 2}, [GPUS], Share("cuda", 2, 4, 1.0)),
        ({}, [HEAD], Share("cpu", 1, 1, 0.0)),  # it waits for a node to join
    ],
)
def test_a_cluster_is_divided_by_its_gpus_or_else_by_its_cores(
    run: dict[str, object], nodes: list[dict[str, float]], expected: Share
) -> None:
    assert share(RunConfig.model_validate(run), nodes, num_runs=1000) == expected


def test_there_are_no_more_workers_than_runs() -> None:
    assert share(RunConfig(), [CORES, CORES], num_runs=3).num_workers == 3


def test_a_gpu_that_no_node_has_is_a_mistake() -> None:
    with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
        share(RunConfig(device="cuda"), [CORES], num_runs=3)


def test_without_ray_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install moesearch\[ray\]"), joined_cluster():
        pass
