"""The committed studies: each loads, says what it asks, and stands up to being spoilt."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from moesearch.config.loader import load_study
from moesearch.config.resolve import resolve
from moesearch.config.space import feasible_points, size
from moesearch.errors import StudyFileError

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))

FUZZ_ROUNDS = int(os.environ.get("MOESEARCH_FUZZ_ROUNDS", "150"))
"""Spoilt copies of each study; a long run sets a large number."""

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
    assert trial.model.model_dump() == model
    assert trial.data.model_dump() == {"corpus": "tiny_shakespeare", "text": None, "batch_size": 16, "order_seed": None}
    assert (trial.budget.steps, trial.budget.milestones) == (5000, 50)
    assert (trial.optim.lr, trial.optim.weight_decay, trial.optim.schedule) == (1e-3, 0.01, "constant")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_spoilt_study_loads_or_says_why_not(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    spoilt = tmp_path / "spoilt.yaml"
    for number in range(FUZZ_ROUNDS):
        spoilt.write_bytes(_spoilt(text, random.Random(number)))
        try:
            study = load_study(spoilt)
        except StudyFileError as error:
            lines = str(error).splitlines()
            assert all(line.startswith(str(spoilt)) and line.isprintable() for line in lines), (number, lines)
        else:
            assert study.search, number


_NASTY = (
    *("", "~", "-1", "0", "1e400", ".nan", "-.inf", "99999999999999999999", "true", "'8'", "[]", "{}", "[[", "}", ":"),
    *(
        "&a",
        "*a",
        "!!python/name:os.system",
        "<<: *a",
        "? ",
        "|",
        "- ",
        "\t",
        "\0",
        "\\",
        '"',
        "é",
        "\u2028",
        "\x1b[0m",
    ),
    *(
        "moe",
        "moe.topk",
        "seed",
        "budget.tokens",
        "data.order_seed",
        "a" * 300,
        "../..",
        "{ type: int, low: 2, high: 1 }",
    ),
)


def _spoilt(text: str, draw: random.Random) -> bytes:
    """The text after one to three small accidents."""
    for _ in range(draw.randint(1, 3)):
        lines = text.splitlines(keepends=True) or [""]
        line = draw.randrange(len(lines))
        words = lines[line].split(" ")
        start = draw.randrange(len(text) + 1)
        match draw.randrange(6):
            case 0:
                del lines[line]
                text = "".join(lines)
            case 1:
                text = "".join([*lines[: line + 1], *lines[line:]])
            case 2:
                words[draw.randrange(len(words))] = draw.choice(_NASTY)
                lines[line] = " ".join(words)
                text = "".join(lines)
            case 3:
                text = text[:start] + draw.choice(_NASTY) + text[start:]
            case 4:
                text = text[:start] + text[start + draw.randint(1, 40) :]
            case _:
                draw.shuffle(lines)
                text = "".join(lines)
    content = bytearray(text.encode())
    if content and draw.random() < 0.1:
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)
