"""Recorded curves as a table: every trial of a study that was trained to its end, a row per milestone.

A file of one is a CSV, gzipped where its name ends in .gz. Its first line is a comment with JSON: the study that the
curves are of, and what made them. Strategies of search are replayed on it (search/replay.py).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from moesearch.config.knobs import CategoricalKnob, FloatKnob, IntKnob, Knob
from moesearch.config.labels import config_label
from moesearch.config.quantities import CURVE_FIELDS
from moesearch.config.resolve import resolve
from moesearch.config.study import StudyConfig
from moesearch.errors import InfeasibleError, InputError
from moesearch.results.statistics import pooled_deviation
from moesearch.results.study import StudyResults

_WHOLE_FIELDS = ("milestone", "step", "tokens")


@dataclass(frozen=True)
class Curve:
    """One trial: its configuration, which of its seeds, and its milestones as ``CURVE_FIELDS`` -> value."""

    params: Mapping[str, Any]
    fingerprint: str
    replicate: int
    seed: int
    points: tuple[Mapping[str, float], ...]

    @property
    def final_loss(self) -> float:
        return self.points[-1]["val_loss"]


@dataclass(frozen=True)
class CurveTable:
    """The complete trials of a study that stopped none of them."""

    config: StudyConfig
    curves: tuple[Curve, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """Command, versions and corpus."""

    @cached_property
    def seeds(self) -> dict[str, list[Curve]]:
        """The curves of each configuration, by fingerprint."""
        found: dict[str, list[Curve]] = {}
        for curve in self.curves:
            found.setdefault(curve.fingerprint, []).append(curve)
        return found

    @cached_property
    def true_losses(self) -> dict[str, float]:
        """Final validation loss of each configuration, mean over its seeds: what is true of it in a replay."""
        return {key: float(np.mean([curve.final_loss for curve in curves])) for key, curves in self.seeds.items()}

    @property
    def best_loss(self) -> float:
        return min(self.true_losses.values())

    @property
    def seed_noise(self) -> float:
        """Standard deviation of one configuration's final loss over its seeds, pooled; 0 where none has two."""
        return pooled_deviation([[curve.final_loss for curve in curves] for curves in self.seeds.values()]) or 0.0

    def label(self, fingerprint: str) -> str:
        return config_label(dict(self.seeds[fingerprint][0].params))


def table_of(results: StudyResults) -> CurveTable:
    """The table of a study in the store.

    Raises:
        InputError: no trial of it was trained to its end.
    """
    complete = results.trials[results.trials["outcome"] == "complete"]
    points = {int(str(number)): rows for number, rows in results.curves.groupby("number")}
    curves = tuple(
        Curve(
            params={path: row[path] for path in results.config.search},
            fingerprint=str(row["fingerprint"]),
            replicate=int(row["replicate"]),
            seed=int(row["seed"]),
            points=tuple(
                {name: float(point[name]) for name in CURVE_FIELDS}
                for point in points[int(row["number"])].to_dict("records")
            ),
        )
        for row in complete.to_dict("records")
    )
    if not curves:
        raise InputError(f"study {results.name} has no complete trial, so there is no table of it")
    session = results.sessions[-1] if results.sessions else None
    made_by = {
        "corpus": dict(results.corpus),
        **({} if session is None else {"command": session.command, "versions": dict(session.versions)}),
    }
    order = {path: index for index, path in enumerate(results.config.search)}
    ordered = sorted(curves, key=lambda curve: (_place(curve, results.config.search, order), curve.replicate))
    return CurveTable(results.config, tuple(ordered), made_by)


def _place(curve: Curve, search: Mapping[str, Knob], order: Mapping[str, int]) -> tuple[float, ...]:
    """Sorts curves as the study file lists its values."""
    return tuple(
        float(knob.choices.index(curve.params[path]) if isinstance(knob, CategoricalKnob) else curve.params[path])
        for path, knob in sorted(search.items(), key=lambda item: order[item[0]])
    )


def write_table(table: CurveTable, path: Path) -> None:
    """Write the file of a table; equal tables give equal bytes."""
    header = {"study": table.config.model_dump(mode="json"), **table.made_by}
    knobs = tuple(table.config.search)
    text = io.StringIO()
    text.write(f"# {json.dumps(header)}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*knobs, "replicate", "seed", *CURVE_FIELDS])
    for curve in table.curves:
        configuration = [_text(curve.params[knob]) for knob in knobs]
        for point in curve.points:
            numbers = [_number(name, point[name]) for name in CURVE_FIELDS]
            rows.writerow([*configuration, curve.replicate, curve.seed, *numbers])
    content = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_table(path: Path) -> CurveTable:
    """Read the file of a table.

    Raises:
        InputError: it cannot be read, or is no table.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        comment, _, rows = text.partition("\n")
        header = json.loads(comment.removeprefix("#"))
        config = StudyConfig.model_validate(header.pop("study"))
        return CurveTable(config, tuple(_curves(config, csv.DictReader(io.StringIO(rows)))), header)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (ValueError, KeyError, TypeError, InfeasibleError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: is no table of curves ({reason}); python -m moesearch.replay STUDY --write FILE makes one"
        ) from None


def _curves(config: StudyConfig, rows: csv.DictReader[str]) -> Iterator[Curve]:
    points: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        points.setdefault((*(row[path] for path in config.search), row["replicate"]), []).append(row)
    for curve_rows in points.values():
        first = curve_rows[0]
        params = {path: _value(knob, first[path]) for path, knob in config.search.items()}
        yield Curve(
            params,
            fingerprint=resolve(config.base, params).fingerprint(),
            replicate=int(first["replicate"]),
            seed=int(first["seed"]),
            points=tuple({name: float(row[name]) for name in CURVE_FIELDS if row.get(name)} for row in curve_rows),
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(knob: Knob, text: str) -> Any:
    match knob:
        case CategoricalKnob():
            return {_text(choice): choice for choice in knob.choices}[text]
        case IntKnob():
            return int(text)
        case FloatKnob():
            return float(text)


def _number(name: str, value: float) -> str:
    """Seven digits: a loss to a ten-millionth of a nat, and FLOPs as close as they matter."""
    return str(int(value)) if name in _WHOLE_FIELDS else f"{value:.7g}"
