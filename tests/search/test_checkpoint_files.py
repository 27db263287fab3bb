from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from moesearch.errors import CheckpointError, InputError
from moesearch.search.checkpoint_files import UrlCheckpoints, checkpoints_at
from moesearch.search.disk import DiskCheckpoints
from moesearch.training.checkpoints import LaneCheckpoint
from moesearch.training.trainer import LaneTrainer
from tests.training.tiny import TOKENS, trial


@pytest.fixture(params=["folder", "url"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskCheckpoints | UrlCheckpoints]:
    fsspec.filesystem("memory").makedirs("/bucket", exist_ok=True)
    yield checkpoints_at(str(tmp_path / "checkpoints") if request.param == "folder" else "memory://bucket/checkpoints")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def trained() -> LaneCheckpoint:
    trainer = LaneTrainer(TOKENS)
    trainer.load(0, trial())
    trainer.advance(threading.Event().is_set)
    return trainer.checkpoint(0)


def test_what_is_saved_is_loaded_with_equal_tensors(checkpoints: Any, trained: LaneCheckpoint) -> None:
    checkpoints.save("abc-0", trained)
    loaded = checkpoints.load("abc-0")
    assert (loaded.step, loaded.points) == (trained.step, trained.points)
    assert all(loaded.parameters[name].equal(tensor) for name, tensor in trained.parameters.items())


def test_the_newest_one_is_loaded(checkpoints: Any, trained: LaneCheckpoint) -> None:
    checkpoints.save("abc-0", trained)
    checkpoints.save("abc-0", replace(trained, step=trained.step + 1))
    assert checkpoints.load("abc-0").step == trained.step + 1


def test_there_is_none_until_one_is_saved_and_after_it_is_deleted(checkpoints: Any, trained: LaneCheckpoint) -> None:
    assert (checkpoints.load("abc-0"), checkpoints.list()) == (None, ())
    checkpoints.save("abc-0", trained)
    checkpoints.save("def-1", trained)
    assert checkpoints.list() == ("abc-0", "def-1")
    checkpoints.delete("abc-0")
    assert (checkpoints.load("abc-0"), checkpoints.list()) == (None, ("def-1",))
    checkpoints.clear()
    checkpoints.clear()
    assert checkpoints.list() == ()


def test_behind_a_url_one_checkpoint_of_a_trial_is_kept(trained: LaneCheckpoint) -> None:
    checkpoints = checkpoints_at("memory://one/checkpoints")
    for step in range(3):
        checkpoints.save("abc-0", replace(trained, step=step))
    assert len(fsspec.filesystem("memory").ls("/one/checkpoints/abc-0")) == 2


def test_a_transfer_that_broke_off_leaves_the_one_before(trained: LaneCheckpoint) -> None:
    checkpoints: Any = checkpoints_at("memory://torn/checkpoints")
    checkpoints.save("abc-0", trained)

    class Torn:
        """The record of the next one does not arrive."""

        def __getattr__(self, name: str) -> Any:
            return getattr(checkpoints.filesystem, name)

        def put_file(self, local: str, remote: str) -> None:
            if remote.endswith(".json"):
                raise RuntimeError("connection reset")
            checkpoints.filesystem.put_file(local, remote)

    with pytest.raises(OSError, match=r"memory://torn.*could not save abc-0: connection reset"):
        replace(checkpoints, filesystem=Torn()).save("abc-0", replace(trained, step=trained.step + 1))
    loaded = checkpoints.load("abc-0")
    assert loaded is not None
    assert loaded.step == trained.step


def test_a_place_that_does_not_answer_is_an_error_of_the_checkpoint() -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no route to host")

    with pytest.raises(CheckpointError, match="could not load abc-0: no route to host"):
        UrlCheckpoints(Away(), "/bucket", "s3://bucket").load("abc-0")


def test_a_url_of_no_known_kind_is_a_mistake_and_shows_no_secret() -> None:
    with pytest.raises(InputError, match="files cannot be kept there") as error:
        checkpoints_at("delphi://me:secret@oracle/checkpoints")
    assert "secret" not in str(error.value)
