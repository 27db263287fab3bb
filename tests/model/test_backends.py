from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moesearch.errors import InputError
from moesearch.model.backends import OVERRIDE_VARIABLE, ExpertShape, _remembered, candidates, choose_backend, fastest
from tests.model.tiny import model_of, trial

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and nothing that overrides the measurement or was remembered in this process."""
    monkeypatch.delenv(OVERRIDE_VARIABLE, raising=False)
    monkeypatch.setenv("MOESEARCH_CACHE", str(tmp_path))
    _remembered.cache_clear()
    return tmp_path / "expert_backends"


def shape(dtype: torch.dtype = torch.float32, width: int = 16, hidden: int = 24) -> ExpertShape:
    config = trial({"model.width": width, "moe.expert_hidden_dim": hidden})
    return ExpertShape.of([config], dtype, CPU)


def test_a_choice_is_measured_once_and_then_read_from_disk(cache: Path) -> None:
    chosen = choose_backend(shape())
    (path,) = cache.iterdir()
    written = path.read_text()
    record = json.loads(written)
    assert record["backend"] == chosen
    assert record["milliseconds"].keys() == set(candidates(shape()))
    _remembered.cache_clear()
    path.write_text(json.dumps({**record, "backend": "padded"}))
    assert choose_backend(shape()) == "padded"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"backend": "gone"}'])
def test_a_damaged_choice_is_measured_anew(cache: Path, damage: str) -> None:
    choose_backend(shape())
    (path,) = cache.iterdir()
    path.write_text(damage)
    _remembered.cache_clear()
    assert choose_backend(shape()) == json.loads(path.read_text())["backend"]


def test_a_cache_that_cannot_be_written_costs_a_measurement(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOESEARCH_CACHE", str(tmp_path / "file"))
    assert choose_backend(shape()) in candidates(shape())


def test_measuring_leaves_torchs_global_generator_alone(cache: Path) -> None:
    state = torch.get_rng_state()
    choose_backend(shape())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_environment_overrides_the_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*candidates(shape()), "loop"):
        monkeypatch.setenv(OVERRIDE_VARIABLE, name)
        assert choose_backend(shape()) == name
    assert not cache.exists()


def test_a_name_of_no_backend_says_which_there_are(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE_VARIABLE, "triton")
    with pytest.raises(InputError, match=r"MOESEARCH_EXPERT_BACKEND \(triton\) must be one of loop, grouped, split"):
        choose_backend(shape())


def test_a_name_that_cannot_serve_a_shape_leaves_the_choice_to_the_measurement(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE_VARIABLE, "grouped")
    assert choose_backend(shape(torch.float64)) in ("split", "padded")


@pytest.mark.parametrize(
    "odd", [shape(torch.float64), shape(width=18), shape(hidden=30)], ids=["float64", "width", "hidden"]
)
def test_grouped_mm_is_no_candidate_where_its_contract_does_not_hold(odd: ExpertShape) -> None:
    assert "grouped" not in candidates(odd)


def test_the_first_candidate_stays_unless_another_wins_clearly() -> None:
    assert fastest({"grouped": 1.0, "split": 0.95}) == "grouped"
    assert fastest({"grouped": 1.0, "split": 0.95, "padded": 0.8}) == "padded"


def test_counts_are_rounded_up_so_that_few_shapes_are_measured() -> None:
    three, four = (ExpertShape.of([trial({"moe.num_experts": n})], torch.float32, CPU) for n in (3, 4))
    assert three == four


def test_a_model_says_which_backend_it_computes_with(cache: Path) -> None:
    assert model_of(trial(), backend="padded").expert_backend == "padded"
