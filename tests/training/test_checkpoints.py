from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesearch.errors import CheckpointError
from moesearch.training import checkpoints
from moesearch.training.checkpoints import LaneCheckpoint, Progress, has_checkpoint, load_checkpoint, save_checkpoint
from moesearch.training.points import EvalPoint
from tests.training.tiny import BASE


def point(milestone: int) -> EvalPoint:
    return EvalPoint(
        milestone=milestone,
        num_milestones=4,
        step=5 * milestone,
        tokens=160 * milestone,
        active_flops=1e6 * milestone,
        train_loss=3.1,
        val_loss=1 / 3,
        val_bpb=0.1,
        val_block_losses=(0.1, 0.2),
        train_seconds=1.5,
        eval_seconds=0.5,
    )


def checkpoint(step: int = 7, value: float = 0.1) -> LaneCheckpoint:
    return LaneCheckpoint(
        config=BASE,
        corpus_sha256="abc",
        step=step,
        progress=Progress(train_loss_sum=0.1 + 0.2, train_seconds=1.25, eval_seconds=0.5),
        points=(point(1), point(2)),
        parameters={"head.weight": torch.full((2, 3), value)},
        exp_avg={"head.weight": torch.full((2, 3), value / 3)},
        exp_avg_sq={"head.weight": torch.full((2, 3), value / 7)},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors_file(folder: Path, step: int) -> Path:
    record = json.loads((folder / f"step-{step:09d}.json").read_text())
    return folder / str(record["tensors"])


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(saved, tmp_path / "new")
    loaded = load_checkpoint(tmp_path / "new")
    assert (loaded.config, loaded.corpus_sha256, loaded.step) == (saved.config, saved.corpus_sha256, saved.step)
    assert loaded.progress == saved.progress
    for ours, theirs in (
        (loaded.parameters, saved.parameters),
        (loaded.exp_avg, saved.exp_avg),
        (loaded.exp_avg_sq, saved.exp_avg_sq),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_losses_per_block_are_kept_for_the_last_point_only(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(), tmp_path)
    first, last = load_checkpoint(tmp_path).points
    assert first.val_block_losses == ()
    assert last == point(2)


def test_the_one_before_is_kept_and_older_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(checkpoint(step, value=step), tmp_path)
    assert [name for name in names(tmp_path) if name.endswith("json")] == ["step-000000002.json", "step-000000003.json"]
    assert len(names(tmp_path)) == 4


def test_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.json").touch()
    for step in (1, 2, 3):
        save_checkpoint(checkpoint(step), tmp_path)
    assert "notes.json" in names(tmp_path)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1, value=0.5), tmp_path)
    save_checkpoint(checkpoint(1, value=0.75), tmp_path)
    assert float(load_checkpoint(tmp_path).parameters["head.weight"][0, 0]) == 0.75
    assert len(names(tmp_path)) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    """What a power cut leaves of a file whose size was written but whose content was not."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = [truncate, flip_a_bit, empty, fill_with_zeros, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_make_the_one_before_count(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    save_checkpoint(checkpoint(2), tmp_path)
    damage(tensors_file(tmp_path, 2))
    assert load_checkpoint(tmp_path).step == 1


def become_a_list(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("damage", [truncate, empty, fill_with_zeros, become_a_list])
def test_a_damaged_record_makes_the_one_before_count(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    save_checkpoint(checkpoint(2), tmp_path)
    damage(tmp_path / "step-000000002.json")
    assert load_checkpoint(tmp_path).step == 1


def test_an_altered_record_makes_the_one_before_count(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    save_checkpoint(checkpoint(2), tmp_path)
    record = tmp_path / "step-000000002.json"
    record.write_text(record.read_text().replace('"step": 2', '"step": 9'))
    assert load_checkpoint(tmp_path).step == 1


def test_falling_back_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    save_checkpoint(checkpoint(2), tmp_path)
    truncate(tensors_file(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        load_checkpoint(tmp_path)
    assert "step-000000002.json" in caplog.text
    assert "going on from step-000000001.json" in caplog.text


def test_after_a_fall_back_the_torn_one_goes_and_the_intact_one_stays(tmp_path: Path) -> None:
    for step in (1, 3):
        save_checkpoint(checkpoint(step), tmp_path)
    truncate(tensors_file(tmp_path, 3))
    save_checkpoint(checkpoint(2), tmp_path)
    assert [name for name in names(tmp_path) if name.endswith("json")] == ["step-000000001.json", "step-000000002.json"]
    for step in (4, 5):
        truncate(tensors_file(tmp_path, 2)) if step == 4 else None
        save_checkpoint(checkpoint(step), tmp_path)
    truncate(tensors_file(tmp_path, 5))
    assert load_checkpoint(tmp_path).step == 4


def test_a_torn_checkpoint_is_never_the_one_that_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(checkpoint(step), tmp_path)
    truncate(tensors_file(tmp_path, 2))
    save_checkpoint(checkpoint(3), tmp_path)
    truncate(tensors_file(tmp_path, 3))
    assert load_checkpoint(tmp_path).step == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_intact_checkpoint_is_an_error_that_names_the_file_and_the_way_on(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    damage(tensors_file(tmp_path, 1))
    with pytest.raises(CheckpointError, match=r"step-000000001\.json: .*remove the folder"):
        load_checkpoint(tmp_path)


def test_an_empty_or_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert not has_checkpoint(folder)
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load_checkpoint(folder)


def rewrite(folder: Path, **changes: object) -> None:
    """Change a record as another version would have written it, with a checksum that fits."""
    path = folder / "step-000000001.json"
    record = {**json.loads(path.read_text()), **changes}
    del record["sha256"]
    path.write_text(json.dumps({**record, "sha256": checkpoints._checksum(record)}))


def test_a_newer_format_is_not_taken_for_a_torn_file(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    rewrite(tmp_path, format=99)
    with pytest.raises(CheckpointError, match=r"step-000000001\.json: written in format 99"):
        load_checkpoint(tmp_path)


def test_a_configuration_of_another_version_is_named(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    rewrite(tmp_path, config={"model": {"depth": 3}})
    with pytest.raises(CheckpointError, match=r"step-000000001\.json: its configuration"):
        load_checkpoint(tmp_path)


def test_a_record_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1), tmp_path / "inside")
    tensors_file(tmp_path / "inside", 1).rename(tmp_path / "outside.safetensors")
    rewrite(tmp_path / "inside", tensors="../outside.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "inside")


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    before = names(tmp_path)
    flush = os.fsync
    remaining = [None] * 2 * writes  # a file and its folder each

    def full_disk(descriptor: int) -> None:
        if not remaining:
            raise OSError(errno.ENOSPC, "No space left on device")
        remaining.pop()
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint(2, value=2.0), tmp_path)
    assert names(tmp_path) == before
    assert load_checkpoint(tmp_path).step == 1


def test_a_save_clears_what_a_kill_left_unfinished(tmp_path: Path) -> None:
    (tmp_path / "step-000000001-0123456789abcdef.safetensors.tmp").touch()
    save_checkpoint(checkpoint(1), tmp_path)
    assert not [name for name in names(tmp_path) if name.endswith("tmp")]
