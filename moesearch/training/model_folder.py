"""The folder that a final run leaves: weights, configuration, tokenizer, model card, curves; and how to load it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from moesearch.config.dumper import dump_yaml
from moesearch.config.loader import load_trial
from moesearch.config.quantities import CURVE_FIELDS, ROUTER_QUANTITIES
from moesearch.config.trial import TrialConfig
from moesearch.data.tokenizers import Tokenizer, tokenizer_from_json
from moesearch.errors import InputError
from moesearch.model.transformer import MoETransformer
from moesearch.training.checkpoints import save_weights, write_durably
from moesearch.training.points import EvalPoint

RESULT_FILES = ("model.safetensors", "config.yaml", "tokenizer.json", "curves.csv", "sample.txt", "README.md")

_CURVE_COLUMNS = (*CURVE_FIELDS, *ROUTER_QUANTITIES)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What a folder holds, ready to speak."""

    config: TrialConfig
    tokenizer: Tokenizer
    model: MoETransformer


def write_model_folder(
    folder: Path, weights: Mapping[str, Tensor], texts: Mapping[str, str], points: Sequence[EvalPoint]
) -> None:
    """Write RESULT_FILES; ``texts`` are those files of them that are text, but for the curves."""
    save_weights(weights, folder / "model.safetensors")
    for name, text in {**texts, "curves.csv": _curve_csv(points)}.items():
        write_durably(folder / name, text.encode())


def config_yaml(config: TrialConfig, data: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The configuration as training reads it, with its text and its result beside it."""
    return dump_yaml({"trial": config.model_dump(mode="json"), "data": dict(data), "result": dict(result)})


def curve_row(point: EvalPoint) -> dict[str, object]:
    """A milestone's numbers by the names of the columns of ``curves.csv``."""
    health = {} if point.router_health is None else point.router_health.summary()
    return {name: health.get(name, getattr(point, name, None)) for name in _CURVE_COLUMNS}


def load_model(folder: Path, device: str = "cpu") -> TrainedModel:
    """Load what a final run left.

    Raises:
        InputError: the folder is not one, or a file of it is missing, altered or of another model.
    """
    paths = {name: folder / name for name in ("config.yaml", "tokenizer.json", "model.safetensors")}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise InputError(
            f"{folder}: has no {', '.join(missing)}; give the folder that python -m moesearch.train wrote (--out)"
        )
    config = load_trial(paths["config.yaml"])
    try:
        tokenizer = tokenizer_from_json(paths["tokenizer.json"].read_text(encoding="utf-8"))
        model = MoETransformer([config], len(tokenizer.pieces), device=device, initialized_lanes=())
        model.load_lane(0, safetensors.torch.load_file(paths["model.safetensors"], device=device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: its files are damaged, or not of one model: {error}") from None
    return TrainedModel(config, tokenizer, model)


def _curve_csv(points: Sequence[EvalPoint]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(curve_row, points))
    return stream.getvalue()
