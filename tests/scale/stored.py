"""What a long study costs: reading it, and proposing the next configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import create_trial

from moesearch.search.assignments import next_assignment
from tests.postgres import PostgresServer
from tests.scale.studies import Store, job_of, scale_config
from tests.search.stand_ins import MILESTONES, begin, url_of

STORED = (100, 1_000, 10_000)
FIRST = 100
"""Trials that are stored one by one."""


def print_stored(server: PostgresServer) -> None:
    print("| stored trials | stored at | first read | read again | TPE proposes | random proposes | a claim with TPE |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for number in STORED:
        print(_row(server, number), flush=True)
    print()


def _row(server: PostgresServer, number: int) -> str:
    with Store(server) as folder:
        config = scale_config(num_trials=number + 100)
        begin(config, folder)
        filled = _milliseconds(lambda: _store_first(job_of(config, folder).claims.study))
        _multiply(server, folder, number // FIRST)
        job, random = job_of(config, folder), job_of(scale_config(number + 100, "random"), folder)
        study = job.claims.study
        first, again = (_milliseconds(lambda: study.get_trials(deepcopy=False)) for _ in range(2))
        assert len(study.get_trials(deepcopy=False)) == number
        claim = min(_milliseconds(lambda: next_assignment(job.claims, config)) for _ in range(3))
        tpe, drawn = (_proposal(each.claims.study) for each in (job, random))
    return (
        f"| {number:,} | {1e3 * FIRST / filled:.0f} trials/s | {first:.0f} ms | {again:.0f} ms"
        f" | {tpe:.0f} ms | {drawn:.1f} ms | {claim:.0f} ms |"
    )


def _store_first(study: optuna.Study) -> None:
    """Store complete trials as Optuna does, one by one."""
    space = study.sampler.infer_relative_search_space(study, create_trial(value=0.0))
    for index in range(FIRST):
        study.add_trial(
            create_trial(
                params={
                    "moe.num_experts": (4, 8, 16)[index % 3],
                    "moe.top_k": (1, 2, 4)[index // 3 % 3],
                    "moe.noise": bool(index // 9 % 2),
                    "optim.lr": 10 ** (-4 + 2 * (index * 0.618 % 1)),
                    "optim.weight_decay": 10 ** (-3 + 3 * (index * 0.755 % 1)),
                },
                distributions=space,
                value=2 + (index * 0.381 % 1),
                intermediate_values=dict.fromkeys(range(1, MILESTONES + 1), 3.0),
                user_attrs={"outcome": "complete", "fingerprint": f"{index:012x}", "replicate": 0},
            )
        )


def _multiply(server: PostgresServer, folder: Path, times: int) -> None:
    """Copy the trials with other values, by SQL: one by one, thousands would take minutes."""
    copies = f"generate_series(1, {times - 1}) AS copy"
    value = "CASE param_name WHEN 'optim.lr' THEN power(10, 2 * random() - 4)"
    value += " WHEN 'optim.weight_decay' THEN power(10, 3 * random() - 3) ELSE param_value END"
    tables = {
        "trial_params": ("param_name, param_value, distribution_json", f"param_name, {value}, distribution_json"),
        "trial_values": ("objective, value, value_type", "objective, 2 + random(), value_type"),
        "trial_intermediate_values": (
            "step, intermediate_value, intermediate_value_type",
            "step, 2 + random(), intermediate_value_type",
        ),
        "trial_user_attributes": ("key, value_json", "key, value_json"),
    }
    statements = [
        f"INSERT INTO {table} (trial_id, {columns}) SELECT trial_id + {FIRST} * copy, {values} FROM {table}, {copies}"
        for table, (columns, values) in tables.items()
    ]
    columns = "study_id, state, datetime_start, datetime_complete"
    statements.insert(
        0,
        f"INSERT INTO trials (trial_id, number, {columns}) "
        f"SELECT trial_id + {FIRST} * copy, number + {FIRST} * copy, {columns} FROM trials, {copies}",
    )
    statements.append("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))")
    database = sqlalchemy.make_url(url_of(folder)).database
    assert database is not None
    for statement in statements:
        server.execute(statement, database)


def _proposal(study: optuna.Study) -> float:
    """Time of the sampler alone, the best of three."""
    trial = study.get_trials(deepcopy=False)[-1]
    space = study.sampler.infer_relative_search_space(study, trial)
    return min(_milliseconds(lambda: study.sampler.sample_relative(study, trial, space)) for _ in range(3))


def _milliseconds(task: Callable[[], object]) -> float:
    before = time.perf_counter()
    task()
    return 1e3 * (time.perf_counter() - before)
