"""The Pareto front of a study of several objectives, as a frame."""

from __future__ import annotations

import pandas as pd

from moesearch.config.knobs import active_values
from moesearch.config.labels import config_label
from moesearch.results.frames import knob_values
from moesearch.results.front import front, objective_means
from moesearch.results.records import FINGERPRINT
from moesearch.results.standing import first_value
from moesearch.results.study import StudyResults


def pareto_front(results: StudyResults) -> pd.DataFrame:
    """One row per configuration on the front: fingerprint, label, knobs, the means of the objectives, num_seeds.

    With one objective it is the best configuration alone.
    """
    objectives, knobs = results.config.all_objectives, tuple(results.config.search)
    complete = [trial for trial in results.search_trials if first_value(trial) is not None]
    means = objective_means(complete)
    rows = []
    for name in front(means, objectives):
        seeds = [trial for trial in complete if trial.user_attrs[FINGERPRINT] == name]
        values = knob_values(seeds[0], knobs)
        rows.append(
            [
                name,
                config_label(active_values(results.config.search, values)),
                *values.values(),
                *means[name],
                len(seeds),
            ]
        )
    return pd.DataFrame(rows, columns=["fingerprint", "label", *knobs, *objectives, "num_seeds"])
