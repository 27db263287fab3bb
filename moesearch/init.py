"""python -m moesearch.init: write a commented study file that runs as it is, to be changed into one's own question."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from moesearch.cli import new_parser, run_command
from moesearch.errors import InputError

SCHEMA_FILE = "study.schema.json"

EXAMPLES = """\
  python -m moesearch.init my_study.yaml
  python -m moesearch.init my_study.yaml --schema    and the JSON Schema by which editors complete and check it
  python -m moesearch.init --schema                  the schema alone, for a study that is there"""

HINT = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""First line of a study file: the YAML extensions of editors read it."""

TEMPLATE = """\
# Question:    how many experts, and how many of them per token, at a learning rate that suits each?
# Cost:        `{run} --dry-run` prints it, and trains nothing.
# Expectation: write down what you expect before the run; the report tells whether it was so.
name: {name}

# Every trial is scored by its loss on the whole validation split, in nats per token: lower is better.
# `val_bpb` (bits per byte) is for a search over tokenizers, whose tokens differ in length.
objective: val_loss

# Finished trials (complete or pruned) at which the search ends, however often it is stopped and started again.
num_trials: 16

# What all trials share, where it differs from the defaults. `python -m moesearch.reference` explains every field;
# `python -m moesearch.reference moe` those of one section.
base:
  model: {{ width: 64, num_layers: 2, num_heads: 4, context: 64 }}
  moe: {{ init: xavier_normal, noise: false }}
  data: {{ corpus: shakespeare, batch_size: 16 }} # your own text: `text: path/to/file.txt` in place of corpus
  # Or tokens, active_flops or seconds in place of steps. Milestones before the last, which pruning looks at, are
  # evaluated on a quarter of the validation split, spread over all of it; the objective always is of the whole.
  budget: {{ steps: 200, milestones: 5, milestone_share: 0.25 }}

# What is searched: fields of a trial by their dotted paths, a knob for each. Three kinds of knob there are.
search:
  # One of a list of values; write the list once, since a study keeps its choices for good.
  moe.num_experts: {{ type: categorical, choices: [2, 4, 8] }}
  # A whole number, both ends included; `step: 2` or `log: true` can be added. Points that break a rule, here those
  # with top_k above num_experts, cost nothing.
  moe.top_k: {{ type: int, low: 1, high: 4 }}
  # A real number; `log: true` tries 0.001 to 0.002 as often as 0.002 to 0.004, which is right for rates and weights.
  # An architecture compared at a single learning rate may win by that rate alone.
  optim.lr: {{ type: float, low: 1e-3, high: 2e-2, log: true }}

# Tried first, in this order. The first is the baseline that the verdict measures the others against.
enqueue:
  - {{ moe.num_experts: 4, moe.top_k: 2, optim.lr: 2e-3 }}

# Trials are stopped early when they are worse than the median of the others at the same milestone; `type: none` lets
# each run to its end.
pruner: {{ type: median, warmup_milestones: 2, warmup_trials: 5 }}

# The best of many trials is flattered by luck. So the leaders and the baseline are trained again on fresh seeds, and
# the verdict rests on these runs alone: 3 seeds for a first look, 5 for a claim.
confirm: {{ top: 2, seeds: 3 }}

# Where it runs; it never changes what is found. `auto` takes one worker per GPU, or one per CPU core.
run: {{ workers: auto, device: auto }}
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    path: Path | None = args.study
    if path is None and not args.schema:
        raise InputError("name the study file to write: python -m moesearch.init my_study.yaml")
    written = []
    if path is not None:
        _see_that_it_can_be_a_study(path)
        _write(path, study_text(path, with_hint=args.schema), mode="x")
        written.append(path)
    if args.schema:
        from moesearch.config.schema import study_json_schema

        schema = (path.parent if path is not None else Path()) / SCHEMA_FILE
        _write(schema, json.dumps(study_json_schema(), indent=1) + "\n", mode="w")
        written.append(schema)
    print(f"wrote {' and '.join(map(str, written))}")
    if path is not None:
        print(f"next  {_run_command(path)} --dry-run")
    else:
        print(f"next  make this the first line of a study beside it: {HINT}")
    return 0


def study_text(path: Path, *, with_hint: bool) -> str:
    """A study file that teaches by its comments; its name is the file's."""
    text = TEMPLATE.format(name=json.dumps(name) if _is_no_text(name := _name(path)) else name, run=_run_command(path))
    return f"{HINT}\n{text}" if with_hint else text


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("init", "Write a commented study file that runs as it is.", EXAMPLES)
    parser.add_argument("study", metavar="STUDY.yaml", type=Path, nargs="?", help="the file to write")
    parser.add_argument(
        "--schema", action="store_true", help=f"write {SCHEMA_FILE} beside it, for completion and checks in editors"
    )
    return parser.parse_args(argv)


def _see_that_it_can_be_a_study(path: Path) -> None:
    if not str(path).isprintable():
        raise InputError(f"{str(path)!r}: choose a name without control characters")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path}: a study file ends in .yaml; write {path.with_name(f'{path.name}.yaml')}")


def _write(path: Path, text: str, mode: str) -> None:
    """Write a file; mode x refuses one that is there.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if mode == "x" and path.exists():
            raise InputError(f"{path} is there already and stays as it is; choose another name, or delete it") from None
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another place") from None


def _run_command(path: Path) -> str:
    return f"python -m moesearch.run {shlex.quote(str(path))}"


def _name(path: Path) -> str:
    """The file's name as that of a study, in which few characters are allowed."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)[:200].lstrip("_.-")
    return name or "study"


def _is_no_text(name: str) -> bool:
    """Whether YAML would take the name for something else: a number, true, null."""
    from moesearch.config.document import plain_scalar

    return not isinstance(plain_scalar(name), str)


if __name__ == "__main__":
    run_command(main)
