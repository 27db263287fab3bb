"""What is fed with spoilt input. A target returns if the input was taken or refused in words, and raises otherwise."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from pydantic import ValidationError

from moesearch.config.loader import load_study, load_trial
from moesearch.config.secrets import hide_secrets, mask_url
from moesearch.config.study import StudyConfig
from moesearch.config.trial import DataConfig, TrialConfig
from moesearch.data.corpora import load_corpus
from moesearch.errors import CheckpointError, CorpusError, InfeasibleError, InputError, StoreError, StudyFileError
from moesearch.model import backends
from moesearch.results.overview import read_overview
from moesearch.search.plan import plan
from moesearch.search.storage import open_storage
from moesearch.search.study import open_study
from moesearch.training.checkpoints import LaneCheckpoint, Progress, load_checkpoint, save_checkpoint
from tests.fuzz.mutations import NASTY, bomb, spoil_bytes, spoil_text, yaml_soup

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
TRIAL = """\
provenance: { study: x }
trial:
  model: { width: 64, num_layers: 3, num_heads: 4, context: 64 }
  moe: { num_experts: 8, top_k: 2, init: xavier_normal, noise: false }
  optim: { lr: 1e-3, schedule: cosine }
  budget: { steps: 250, milestones: 5 }
  seed: 7
"""
SECRET = "hunter2"

Target = Callable[[random.Random, Path], None]
"""Of a source of chance and an empty folder of its own."""


def _see_that_the_words_are_clean(error: Exception, path: Path) -> None:
    lines = str(error).splitlines()
    assert lines
    assert all(line.startswith(str(path)) and line.isprintable() for line in lines), lines


def _see_that_the_words_name(folder: Path, error: Exception) -> None:
    assert str(folder) in str(error)


def studies(draw: random.Random, folder: Path) -> None:
    """Spoilt copies of the committed studies; some of those that still load are planned."""
    path = folder / "study.yaml"
    path.write_bytes(spoil_text(draw.choice(STUDIES).read_text(), draw))
    try:
        study = load_study(path)
    except StudyFileError as error:
        _see_that_the_words_are_clean(error, path)
        return
    assert study.search
    assert StudyConfig.model_validate(study.model_dump(mode="json")) == study
    if draw.random() < 0.02:
        with suppress(InputError, InfeasibleError):
            plan(study)


def trials(draw: random.Random, folder: Path) -> None:
    """Spoilt configurations of one trial."""
    path = folder / "best.yaml"
    path.write_bytes(spoil_text(TRIAL, draw))
    try:
        load_trial(path)
    except StudyFileError as error:
        _see_that_the_words_are_clean(error, path)


def documents(draw: random.Random, folder: Path) -> None:
    """YAML of any shape: tags, cycles, doubled keys, bombs."""
    path = folder / "study.yaml"
    text = bomb(draw) if draw.random() < 0.2 else yaml_soup(draw)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for load in (load_study, load_trial):
        with suppress(StudyFileError):
            load(path)


def overrides(draw: random.Random, folder: Path) -> None:
    """``--set path=value`` of any kind."""
    paths = ("base.moe.top_k", "num_trials", "search.optim.lr.low", "run.lanes", "name", "enqueue", "base", "moe.top_k")
    value = draw.choice((draw.choice(NASTY), yaml_soup(draw, 3)))
    given = draw.choice((f"{draw.choice(paths)}={value}", value, f"{value}={value}"))
    trial = folder / "best.yaml"
    trial.write_text(TRIAL)
    with suppress(StudyFileError):
        load_study(draw.choice(STUDIES), [given])
    with suppress(StudyFileError):
        load_trial(trial, [given])


def corpora(draw: random.Random, folder: Path) -> None:
    """Texts of any bytes, at paths of any kind."""
    path = folder / "text.txt"
    line = draw.choice(("to be or not to be\n", "\0", "\r\n", "é\u2028", "a", ""))
    path.write_bytes(spoil_bytes((line * draw.randint(0, 200)).encode(), draw))
    name = draw.choice((str(path), str(path), str(folder), draw.choice(NASTY), f"{path}/x", "/dev/zero", "a" * 5000))
    with suppress(CorpusError, ValidationError):
        corpus = load_corpus(DataConfig(text=name))
        assert corpus.train


def environment(draw: random.Random, folder: Path) -> None:
    """Variables that moesearch reads, of any value."""
    values = [value for value in (*NASTY, str(folder), f"{folder}/no/such", "/dev/null") if "\0" not in value]
    variables = {name: draw.choice(values) for name in ("MOESEARCH_TINY_SHAKESPEARE", "MOESEARCH_EXPERT_BACKEND")}
    variables |= {
        name: draw.choice(("/dev/null", str(folder / "cache"), f"{folder}/{'a' * 300}"))
        for name in ("MOESEARCH_CACHE", "XDG_CACHE_HOME")
    }
    variables["MOESEARCH_TINY_SHAKESPEARE"] = variables["MOESEARCH_TINY_SHAKESPEARE"] or "x"  # empty would download
    with mock.patch.dict(os.environ, variables), _inside(folder):
        with suppress(CorpusError):
            load_corpus(DataConfig(corpus="tiny_shakespeare"))
        shape = backends.ExpertShape(8, 16, 4, 8, 8, torch.float64, torch.device("cpu"))
        if os.environ[backends.OVERRIDE_VARIABLE] not in ("", "grouped", "blocks"):  # these leave it to a measurement
            with suppress(InputError):
                backends.choose_backend(shape)


def _checkpoint(step: int) -> LaneCheckpoint:
    groups = ({"head.weight": torch.full((2, 3), step + share)} for share in (0.1, 0.2, 0.3))
    return LaneCheckpoint(TrialConfig(), "ab" * 32, step, Progress(), (), *groups)


@cache
def _checkpoint_files() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        for step in (5, 10):
            save_checkpoint(_checkpoint(step), Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def checkpoints(draw: random.Random, folder: Path) -> None:
    """A folder of two checkpoints with spoilt files: what is loaded is one of the two, bit for bit, or nothing."""
    for name, content in _checkpoint_files().items():
        (folder / name).write_bytes(spoil_bytes(content, draw) if draw.random() < 0.4 else content)
    if draw.random() < 0.1:
        victim = draw.choice(sorted(folder.iterdir()))
        victim.unlink()
        draw.choice((victim.mkdir, lambda: victim.symlink_to(victim), lambda: None))()
    try:
        loaded = load_checkpoint(folder)
    except CheckpointError as error:
        _see_that_the_words_name(folder, error)
        return
    whole = _checkpoint(loaded.step)
    assert loaded.step in (5, 10)
    assert all(torch.equal(loaded.parameters[name], whole.parameters[name]) for name in whole.parameters)


@cache
def _store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/optuna.db")
        open_study(load_study(STUDIES[0]), storage, fresh=False)
        storage.engine.dispose()
        return (Path(folder) / "optuna.db").read_bytes()


def stores(draw: random.Random, folder: Path) -> None:
    """Files that lie where the study store should."""
    path = folder / "optuna.db"
    path.write_bytes(spoil_bytes(_store(), draw))
    url = f"sqlite:///{path}"
    with suppress(StoreError):
        read_overview(url)
    with suppress(StoreError):
        open_storage(url).engine.dispose()


def store_urls(draw: random.Random, folder: Path) -> None:
    """URLs of any kind, some with a secret, which is never shown."""
    user, host = draw.choice(("me", "m%40e", "")), draw.choice(("127.0.0.1:1", "[::1]:1", "localhost"))
    url = f"{draw.choice(('postgresql', 'postgresql+psycopg', 'mysql', 'http', 'x'))}://{user}:{SECRET}@{host}/db"
    query = draw.choice(("", f"?password={SECRET}", f"?sslmode=require&passfile={SECRET}", "?a=b&a=c"))
    position = draw.randrange(len(url))
    broken = draw.choice((url, url[:position] + draw.choice(("@", "/", ":", "%", " ", "é", "")) + url[position:]))
    if SECRET in broken + query and ":" in broken and "@" in broken:
        assert SECRET not in mask_url(broken + query), broken + query
    assert SECRET not in hide_secrets(f"no route to {url}{query} today")
    with _inside(folder), suppress(StoreError):
        open_storage(
            draw.choice((*NASTY, "sqlite://", "sqlite:///", "sqlite:///a/b", f"x:{SECRET}", "sqlite:///.")),
            create=False,
        )
    assert not list(folder.iterdir())


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


TARGETS: Mapping[str, Target] = {
    target.__name__: target
    for target in (
        *(studies, trials, documents, overrides),
        *(corpora, environment, checkpoints, stores, store_urls),
    )
}


def feed(target: Target, seed: int, folder: Path) -> None:
    """One input, made of the seed alone, in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target(random.Random(seed), folder)
