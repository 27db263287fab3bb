from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesearch.config.dumper import dump_yaml
from moesearch.config.loader import MAX_BYTES, MAX_PROBLEMS, load_study, load_trial
from moesearch.config.quantities import QUANTITIES
from moesearch.config.study import StudyConfig
from moesearch.config.trial import ModelConfig, OptimConfig, TrialConfig
from moesearch.errors import StudyFileError
from tests.config.helpers import STUDY, problems


def test_a_good_study_has_the_values_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    study = load_study(path)
    assert (study.name, study.num_trials, study.base.moe.num_experts) == ("tiny", 4, 4)
    assert study.search["moe.top_k"].model_dump(exclude_defaults=True) == {"type": "categorical", "choices": (1, 2)}


def test_choices_and_first_tries_are_of_their_fields_type(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("[1, 2]", "[1.0, 2e0]") + "enqueue: [{ moe.top_k: 2.0, optim.lr: 1e-3 }]")
    study = load_study(path)
    assert json.dumps(study.model_dump()["search"]["moe.top_k"]["choices"]) == "[1, 2]"
    assert json.dumps(study.enqueue[0]) == '{"moe.top_k": 2, "optim.lr": 0.001}'


def test_a_study_survives_the_way_through_the_store(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    study = load_study(path)
    assert StudyConfig.model_validate(json.loads(json.dumps(study.model_dump(mode="json")))) == study


STUDY_FIELDS = ", ".join(StudyConfig.model_fields)
QUANTITY_NAMES = ", ".join(QUANTITIES)

# Each row: what is written in place of what, and every line that is said about it.
FAULTS = {
    "misspelt fields": (
        [("num_experts: 4", "num_expert: 4"), ("num_trials", "num_trails")],
        [
            "study.yaml:2: num_trails names no field; did you mean num_trials?",
            "study.yaml:1: num_trials is missing",
            "study.yaml:4: base.moe.num_expert names no field; did you mean num_experts?",
        ],
    ),
    "fields in the wrong section": (
        [
            ("moe: {", "lr: 0.1\n  moe: {"),
            ("name: tiny", "name: tiny\ntop_k: 3"),
            ("  moe: {", "  optim.lr: 3\n  moe: {"),
        ],
        [
            "study.yaml:2: top_k names no field; did you mean base.moe.top_k?",
            "study.yaml:5: base.lr names no field; did you mean optim.lr?",
            "study.yaml:6: base.optim.lr names no field; write it nested, as optim: { lr: … }",
        ],
    ),
    "an unknown name": (
        [("name: tiny", "name: tiny\nflavour: 3")],
        [f"study.yaml:2: flavour names no field; known here: {STUDY_FIELDS}"],
    ),
    "rules across fields": (
        [("num_experts: 4", "num_experts: 1"), ("base:", "base:\n  model: { width: 100 }")],
        [
            "study.yaml:4: base.model: num_heads (8) must divide width (100)",
            "study.yaml:5: base.moe: top_k (2) must be at most num_experts (1)",
        ],
    ),
    "values of the wrong type": (
        [
            ("num_trials: 4", "num_trials: '4'"),
            ("num_experts: 4", "num_experts: true"),
            ("  moe: {", "  optim:\n  moe: {"),
        ],
        [
            'study.yaml:2: num_trials must be a whole number from 1 to 1000000 (given "4")',
            "study.yaml:4: base.optim is empty; give it fields, or leave it out",
            "study.yaml:5: base.moe.num_experts must be a whole number from 1 to 512 (given true)",
        ],
    ),
    "numbers out of range": (
        [
            ("num_trials: 4", "num_trials: -4"),
            ("  moe: {", "  budget: { steps: 1e400 }\n  optim: { lr: .nan }\n  moe: {"),
        ],
        [
            "study.yaml:2: num_trials must be a whole number from 1 to 1000000 (given -4)",
            "study.yaml:4: base.budget.steps must be a whole number from 1 to 1000000000 or null (given 1e400)",
            "study.yaml:5: base.optim.lr must be a number above 0 and at most 100 (given .nan)",
        ],
    ),
    "names that are no names": (
        [("num_trials: 4", "num_trials: 4\nobjective: val_los\nrun: { workers: 0, device: gpu }")],
        [
            f"study.yaml:3: objective must be one of {QUANTITY_NAMES} (given val_los); did you mean val_loss?",
            "study.yaml:4: run.device must be auto, cpu, cuda or cuda:N (given gpu)",
            "study.yaml:4: run.workers must be auto or a whole number from 1 to 1024 (given 0)",
        ],
    ),
    "knobs of no field": (
        [("moe.top_k: {", "moe.topk: {"), ("optim.lr: {", "optim: {")],
        [
            "study.yaml:6: search.moe.topk names no field of a trial; did you mean moe.top_k?",
            "study.yaml:7: search.optim is a whole section; name a field of it, such as optim.lr",
        ],
    ),
    "knobs that a search may not have": (
        [("moe.top_k: {", "seed: {"), ("optim.lr: {", "budget.milestone_share: {")],
        [
            "study.yaml:6: search.seed is not searched: the seed of each trial is derived from sampler.seed; "
            "confirm.seeds trains the best on fresh ones",
            "study.yaml:7: search.budget.milestone_share is not searched: trials are compared on equal windows; "
            "set base.budget.milestone_share",
        ],
    ),
    "knobs of the wrong type": (
        [("type: categorical, choices: [1, 2]", "type: float, low: 1, high: 2"), ("type: float", "type: flaot")],
        [
            "study.yaml:6: search.moe.top_k.type must be one of categorical, float, int (given flaot); "
            "did you mean float?",
        ],
    ),
    "a knob that its field cannot hold": (
        [("type: categorical, choices: [1, 2]", "type: float, low: 1, high: 2"), ("optim.lr: {", "moe.noise: {")],
        [
            "study.yaml:6: search.moe.top_k.type is float, but moe.top_k is a whole number from 1 to 512; "
            "use type: int",
            "study.yaml:7: search.moe.noise.type is float, but moe.noise is true or false; use type: categorical",
        ],
    ),
    "choices that the field cannot hold": (
        [("[1, 2]", "[0, 2, 2.0, '1']")],
        [
            "study.yaml:6: search.moe.top_k.choices[0] must be a whole number from 1 to 512 (given 0)",
            "study.yaml:6: search.moe.top_k.choices[2] (2.0) is given twice",
            'study.yaml:6: search.moe.top_k.choices[3] must be a whole number from 1 to 512 (given "1")',
        ],
    ),
    "no choices": (
        [("[1, 2]", "[]")],
        ["study.yaml:6: search.moe.top_k.choices must be a list of 1 to 1000 values (given [])"],
    ),
    "no knobs": (
        [("search:\n", "search: {}\nother:\n")],
        [
            "study.yaml:5: search must be a mapping with a knob or more, such as moe.top_k: "
            "{ type: categorical, choices: [1, 2] } (given {})",
            f"study.yaml:6: other names no field; known here: {STUDY_FIELDS}",
        ],
    ),
    "a list for a knob": (
        [("{ type: categorical, choices: [1, 2] }", "[1, 2]")],
        [
            "study.yaml:6: search.moe.top_k must be a knob, such as { type: categorical, choices: [1, 2] } "
            "(given [1, 2])",
        ],
    ),
    "a range outside of the field's": (
        [("low: 1e-4, high: 1e-2", "low: 1e-4, high: 1e3")],
        ["study.yaml:7: search.optim.lr.high must be a number above 0 and at most 100 (given 1e3)"],
    ),
    "a range upside down": (
        [("low: 1e-4, high: 1e-2", "low: 0.1, high: 0.01")],
        ["study.yaml:7: search.optim.lr: low (0.1) must be at most high (0.01)"],
    ),
    "a logarithm of nothing": (
        [("optim.lr: { type: float, low: 1e-4", "optim.weight_decay: { type: float, low: 0")],
        ["study.yaml:7: search.optim.weight_decay: low (0.0) must be above 0 where log is true"],
    ),
    "a grid in the logarithm": (
        [("log: true", "log: true, step: 0.0099")],
        ["study.yaml:7: search.optim.lr: step (0.0099) and log exclude each other; leave one out"],
    ),
    "a grid that misses its end": (
        [("low: 1e-4, high: 1e-2, log: true", "low: 0.1, high: 0.45, step: 0.1")],
        ["study.yaml:7: search.optim.lr: high (0.45) must be low plus a multiple of step (0.1), such as 0.4"],
    ),
    "two budgets": (
        [
            ("moe.top_k: {", "budget.steps: {"),
            ("optim.lr: { type: float, low: 1e-4", "budget.tokens: { type: int, low: 1"),
        ],
        [
            "study.yaml:5: search: search one of budget.steps, budget.tokens, not several",
            "study.yaml:7: search.budget.tokens.high must be a whole number from -1000000000000000 to "
            "1000000000000000 (given 1e-2)",
        ],
    ),
    "another budget than the base's": (
        [("moe.top_k: {", "budget.tokens: {")],
        [
            "study.yaml:6: search.budget.tokens: the base's budget is in steps; give base.budget.tokens, "
            "or search budget.steps",
        ],
    ),
    "first tries": (
        [
            (
                "name: tiny",
                "enqueue:\n- { moe.top_k: 3 }\n- { moe.topk: 1 }\n- { moe.noise: true }\n- {}\n- 3\n"
                "- { optim.lr: 0.1 }\n- { moe.top_k: [1] }\nname: tiny",
            )
        ],
        [
            "study.yaml:2: enqueue[0].moe.top_k must be one of the knob's choices 1, 2 (given 3)",
            "study.yaml:3: enqueue[1].moe.topk names no field of a trial; did you mean moe.top_k?",
            "study.yaml:4: enqueue[2].moe.noise is no knob of this search; set base.moe.noise, or add it to search",
            "study.yaml:5: enqueue[3] is empty; give it values, or leave it out",
            "study.yaml:6: enqueue[4] must be a mapping of names to values (given 3)",
            "study.yaml:7: enqueue[5].optim.lr must be in the knob's range 0.0001 to 0.01 (given 0.1)",
            "study.yaml:8: enqueue[6].moe.top_k must be a number, text, true, false or null (given [1])",
        ],
    ),
    "a first try that is infeasible": (
        [("[1, 2]", "[1, 8]"), ("name: tiny", "enqueue: [{ moe.top_k: 8, optim.lr: 1e-3 }]\nname: tiny")],
        ["study.yaml:1: enqueue[0]: moe: top_k (8) must be at most num_experts (4)"],
    ),
    "a part of a first try that is infeasible": (
        [("[1, 2]", "[1, 8]"), ("name: tiny", "enqueue: [{ moe.top_k: 8 }]\nname: tiny")],
        ["study.yaml:1: enqueue[0]: none of 1000 points is feasible: moe: top_k (8) must be at most num_experts (4)"],
    ),
    "a search without a feasible point": (
        [("[1, 2]", "[8, 16]"), ("  optim.lr: { type: float, low: 1e-4, high: 1e-2, log: true }", "")],
        ["study.yaml:5: search: none of 2 points is feasible: moe: top_k (8) must be at most num_experts (4)"],
    ),
    "faults of the text and of its values together": (
        [("num_trials: 4", "num_trials: 0\nname: again\nsampler: !!python/object:x { seed: -1 }")],
        [
            "study.yaml:2: num_trials must be a whole number from 1 to 1000000 (given 0)",
            "study.yaml:3: name is given twice (first on line 1)",
            "study.yaml:4: sampler.seed must be a whole number from 0 to below 2147483648 (given -1)",
            "study.yaml:4: the tag !!python/object:x is not allowed; write the plain value",
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_reported_with_its_line_and_a_way_on(fault: str, tmp_path: Path) -> None:
    text = STUDY
    for old, new in FAULTS[fault][0]:
        assert old in text
        text = text.replace(old, new, 1)
    assert sorted(problems(tmp_path, text)) == sorted(FAULTS[fault][1])


@pytest.mark.parametrize(
    "name",
    ["../up", "a/b", ".hidden", "a b", "é", "<script>", "x" * 201, '""', "a\\nb", '"a\\nb"', '"\\e[31m"', "3", "~"],
)
def test_a_name_that_could_not_be_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, STUDY.replace("name: tiny", f"name: {name}"))
    assert problem.startswith("study.yaml:1: name must be text of at most 200 letters")
    assert problem.isprintable()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "study.yaml: is empty; a study needs name, num_trials and search"),
        (b"# nothing\n", "study.yaml: is empty; a study needs name, num_trials and search"),
        (b"- 1\n", "study.yaml: must hold fields, one 'name: value' to a line (given [1]); a study needs name,"),
        (b"words", "study.yaml: must hold fields, one 'name: value' to a line (given words); a study needs name,"),
        (b"a: 1\nb: \xff", "study.yaml:2: is not UTF-8 text; save it as UTF-8"),
        (STUDY.encode("utf-16"), "study.yaml:1: is not UTF-8 text; save it as UTF-8"),
        (b"#" * (MAX_BYTES + 1), "study.yaml: is larger than 256 KiB; a configuration is far smaller"),
        (b"trial: {}", "study.yaml: this is the configuration of one trial; train it with python -m moesearch.train"),
    ],
)
def test_a_file_that_is_no_study_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    assert problems(tmp_path, content)[0].startswith(problem)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert problems(tmp_path, b"\xef\xbb\xbf" + STUDY.encode()) == []


def test_a_missing_file_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "experts_topk.yaml").write_text(STUDY)
    with pytest.raises(StudyFileError, match=r"expert_topk\.yml: does not exist; did you mean .*experts_topk\.yaml\?"):
        load_study(tmp_path / "expert_topk.yml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="is a folder, not a YAML file"):
        load_study(tmp_path)


def test_a_device_is_refused_before_it_is_read() -> None:
    with pytest.raises(StudyFileError, match="is not a regular file"):
        load_study(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "\udce4.yaml"])
def test_a_path_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyFileError):
        load_study(tmp_path / name)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(StudyFileError):
        load_study(tmp_path / "loop.yaml")


def test_a_grid_of_more_values_than_memory_holds_is_no_trouble(tmp_path: Path) -> None:
    grid = "optim.lr: { type: float, low: 1e-300, high: 1, step: 1e-300 }"
    assert problems(tmp_path, STUDY.replace("optim.lr: { type: float, low: 1e-4, high: 1e-2, log: true }", grid)) == []


def test_thousands_of_problems_are_counted_not_listed(tmp_path: Path) -> None:
    lines = problems(tmp_path, STUDY + "".join(f"zzz{index}: 1\n" for index in range(500)))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "study.yaml: and 450 more problems"


def test_a_trial_file_is_what_is_written_under_trial(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("provenance: { study: x, anything: [1, 2] }\ntrial: { moe: { top_k: 1 } }\n")
    assert load_trial(path) == TrialConfig.model_validate({"moe": {"top_k": 1}})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("trial:", "study.yaml:1: trial is empty; give it fields, or leave it out"),
        ("trial: 3", "study.yaml:1: trial must be a mapping of names to values (given 3)"),
        ("a: 1\ntrial: { moe: { top_k: 9 } }", "study.yaml:2: trial.moe: top_k (9) must be at most num_experts (8)"),
        ("trial: { optim: { lrr: 1 } }", "study.yaml:1: trial.optim.lrr names no field; did you mean lr?"),
        ("a: 1", "study.yaml: has no trial: section; make a configuration with python -m moesearch.export"),
        (STUDY, "study.yaml: this is a study; run it with python -m moesearch.run"),
    ],
)
def test_a_trial_file_has_its_faults_reported(text: str, line: str, tmp_path: Path) -> None:
    [problem] = problems(tmp_path, text, load=load_trial)
    assert problem.startswith(line)


@pytest.mark.parametrize(
    "trial",
    [
        TrialConfig(),
        TrialConfig(
            seed=2**63 - 1, model=ModelConfig(attention_scale=1e-3), optim=OptimConfig(eps=1e-300, lr=0.1 + 0.2)
        ),
    ],
)
def test_a_trial_survives_the_way_through_a_file(trial: TrialConfig, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_yaml({"trial": trial.model_dump(mode="json")}, comment="from a test"))
    assert load_trial(path) == trial


anything = st.one_of(st.binary(max_size=200), st.text(max_size=200))
yaml_soup = st.text(alphabet="abn:#-?[]{}&*!|>'\"%@`\\ \n\t,.=0123e~<", max_size=80)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["name", "num_trials", "base", "search", "enqueue", "run", "sampler", "trial", "moe", "top_k"])
studies = st.dictionaries(fields, values | st.dictionaries(fields, values, max_size=3), max_size=6).map(
    lambda study: json.dumps(study).replace("NaN", ".nan").replace("Infinity", ".inf")
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=anything | yaml_soup | studies)
def test_no_content_gives_anything_but_a_study_file_error(content: str | bytes, tmp_path: Path) -> None:
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    lines = problems(tmp_path, encoded)
    assert lines
    assert all(line.startswith("study.yaml:") and line.isprintable() for line in lines)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    override=st.text(max_size=40)
    | st.tuples(st.sampled_from(["name", "base", "moe.top_k", "search.optim.lr.low"]), yaml_soup).map("=".join)
)
def test_no_override_gives_anything_but_a_study_file_error(override: str, tmp_path: Path) -> None:
    problems(tmp_path, STUDY, [override])
    problems(tmp_path, "trial: {}", [override], load=load_trial)


@pytest.mark.parametrize(
    "knob",
    [
        "data.tokenizer: { type: categorical, choices: [char, byte] }",
        "data.vocab_size: { type: int, low: 300, high: 900 }",
    ],
)
def test_tokenizers_are_not_compared_in_nats_per_token(tmp_path: Path, knob: str) -> None:
    text = STUDY.replace("search:", f"search:\n  {knob}")
    (problem,) = problems(tmp_path, text)
    assert "objective: val_loss is nats per token" in problem
    assert problem.endswith("compare bits per byte: objective: val_bpb")
    assert problems(tmp_path, f"objective: val_bpb\n{text}") == []
