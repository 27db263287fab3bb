"""The committed studies: each loads, and says what it asks. tests/fuzz spoils them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesearch.config.loader import load_study
from moesearch.config.resolve import resolve
from moesearch.config.space import feasible_points, size
from moesearch.config.trial import ModelConfig

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))

ARTICLE = {"moe.num_experts": 8, "moe.top_k": 2, "moe.init": "kaiming_normal", "moe.noise": True}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_committed_study_loads_under_its_own_name(path: Path) -> None:
    assert load_study(path).name == path.stem


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_committed_study_opens_with_question_cost_and_expectation(path: Path) -> None:
    opening = path.read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in opening.splitlines())
    assert all(f"# {word}:" in opening for word in ("Question", "Cost", "Expectation"))


@pytest.mark.parametrize("name", ["experts_topk", "makemoe"])
def test_the_articles_question_has_66_feasible_points_and_starts_at_its_setting(name: str) -> None:
    study = load_study(Path(__file__).parents[1] / "studies" / f"{name}.yaml")
    feasible = feasible_points(study)
    assert feasible is not None
    assert (size(study.search), len(feasible)) == (72, 66)
    assert study.enqueue[0] == ARTICLE
    assert study.num_trials >= 24


def test_makemoe_is_the_articles_model_and_run() -> None:
    study = load_study(Path(__file__).parents[1] / "studies" / "makemoe.yaml")
    trial = resolve(study.base, study.enqueue[0])
    model = {"width": 128, "num_layers": 8, "num_heads": 8, "context": 32, "dropout": 0.1, "attention_scale": "width"}
    assert trial.model == ModelConfig.model_validate(model)
    assert (trial.data.corpus, trial.data.text, trial.data.tokenizer) == ("tiny_shakespeare", None, "char")
    assert (trial.data.batch_size, trial.data.order_seed, trial.data.context_bytes) == (16, None, None)
    assert (trial.budget.steps, trial.budget.milestones) == (5000, 50)
    assert (trial.optim.lr, trial.optim.weight_decay, trial.optim.schedule) == (1e-3, 0.01, "constant")
