from pathlib import Path

import pytest

from moesearch import export
from moesearch.config.loader import load_trial
from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.errors import InputError, UnknownStudyError
from moesearch.results.provenance import _architecture, choose, export_yaml
from moesearch.results.study import read_study
from moesearch.search.storage import open_storage
from tests.results.stores import BASE_PARAMS, LEADERS, StoreBuilder, finished_study


def test_an_exported_configuration_loads_as_an_equal_trial(tmp_path: Path) -> None:
    results = read_study(finished_study().storage, "experts_topk")
    path = tmp_path / "best.yaml"
    path.write_text(export_yaml(results), encoding="utf-8")
    exported = load_trial(path)
    assert exported == choose(results, "best").config.spelled_out()
    assert exported.moe.expert_hidden_dim == 4 * exported.model.width
    assert exported.fingerprint() == choose(results, "best").config.fingerprint()


def test_best_is_the_configuration_of_the_verdict() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    assert results.verdict.best is not None
    assert choose(results, "best").config.fingerprint() == results.verdict.best.fingerprint


def test_base_is_the_study_files_own() -> None:
    results = read_study(finished_study().storage, "experts_topk")
    assert choose(results, "base").config == results.config.base


def test_a_number_is_that_trial() -> None:
    builder = StoreBuilder()
    builder.add()
    builder.add(LEADERS[2])
    assert choose(read_study(builder.storage, "experts_topk"), 1).config.moe.top_k == 4


def test_without_a_finished_trial_nothing_is_best() -> None:
    with pytest.raises(UnknownStudyError, match="--trial base exports its base"):
        choose(read_study(StoreBuilder().storage, "experts_topk"), "best")


def test_an_infeasible_trial_has_nothing_to_export() -> None:
    builder = StoreBuilder()
    builder.add({**BASE_PARAMS, "moe.num_experts": 2, "moe.top_k": 4}, "infeasible")
    with pytest.raises(UnknownStudyError, match="it is infeasible"):
        choose(read_study(builder.storage, "experts_topk"), 0)


@pytest.mark.parametrize(
    "fact",
    [
        "study: experts_topk",
        "expert_hidden_dim: 256",
        "attention_scale: 0.25",
        "sha256: abab",
        "vocab_size: 65",
        "train_bytes: 4500000",
        "warmup_fraction: 0.0",
        "peak_memory_bytes: 700000000",
        "lr_and_init_chosen_at_width: 64",
        "total_params: 2201217",
        "forward_flops_per_token: 1261696",
        "configurations_tried: 22",
        "num_seeds: 3",
        "mean_bits_per_byte",
        "torch: 2.13.0",
        "device: cpu",
        "top_k / num_experts = 4/16",
        "capacity: 'dropless",
    ],
)
def test_provenance_says_what_a_rerun_elsewhere_needs(fact: str) -> None:
    assert fact in export_yaml(read_study(finished_study().storage, "experts_topk"))


def test_provenance_says_how_tokens_are_routed_and_dropped() -> None:
    moe = MoEConfig(router="sigmoid", route_scale=2.5, bias_update_speed=0.001, noise=False, capacity_factor=1.25)
    facts = _architecture(TrialConfig(moe=moe))
    assert facts["router"] == (
        "float32 sigmoid of each logit; the top_k of them are the gates; gates divided by their sum; gates times 2.5; "
        "a bias per expert is added to scores for the choice only, in training and evaluation"
    )
    assert "by position, causally" in facts["capacity"]
    assert facts["capacity"].endswith("factor in training 1.25; evaluation 1.25")


def stored(tmp_path: Path) -> list[str]:
    """Flags for a store on disk with one finished trial."""
    builder = StoreBuilder(storage=open_storage(f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"))
    builder.add(LEADERS[0])
    return ["--runs", str(tmp_path / "runs")]


def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "best.yaml"
    assert export.main(["experts_topk", "-o", str(path), *stored(tmp_path)]) == 0
    assert load_trial(path).moe.num_experts == 16
    assert "E16 k4 xavier noise-off, from study experts_topk" in capsys.readouterr().out


def test_the_command_takes_a_study_file_for_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "name: experts_topk\nnum_trials: 1\nsearch:\n  moe.noise: {type: categorical, choices: [true, false]}\n"
    )
    assert export.main([str(file), "--trial", "0", "-o", "-", *stored(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("# E16 k4 xavier noise-off: configuration number 0 of study experts_topk")


def test_the_command_makes_no_store_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study store is here"):
        export.main(["experts_topk", "-o", "-", "--runs", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_persons_mistake(tmp_path: Path) -> None:
    flags = stored(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        export.main(["experts_topk", "-o", str(tmp_path), *flags])


def test_a_trial_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["experts_topk", "--trial", "worst", "-o", "-"])
    assert "'worst' is none of best, base, or the number of a trial" in capsys.readouterr().err
