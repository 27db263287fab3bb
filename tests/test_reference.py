from __future__ import annotations

import pytest

from moesearch import reference
from moesearch.config.reference import reference_markdown
from moesearch.errors import InputError


def test_without_a_name_it_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([]) == 0
    assert capsys.readouterr().out == reference_markdown()


@pytest.mark.parametrize("name", ["moe.top_k", "base.moe.top_k", "search.moe.top_k"])
def test_a_field_is_explained_under_each_of_its_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference.main([name])
    printed = capsys.readouterr().out
    assert printed.startswith("moe.top_k\n")
    assert "values   a whole number from 1 to 512\n  default  2\n  knob     lane" in printed


def test_a_section_is_explained_field_by_field(capsys: pytest.CaptureFixture[str]) -> None:
    reference.main(["confirm"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("confirm")] == [
        "confirm.top",
        "confirm.seeds",
        "confirm.lr_search",
    ]


@pytest.mark.parametrize(("name", "meant"), [("topk", "moe.top_k"), ("lr", "optim.lr"), ("moe.topk", "moe.top_k")])
def test_an_unknown_name_is_met_with_the_one_that_is_meant(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        reference.main([name])
