"""A real worker process that dies at armed points: ``python -m tests.chaos.mortal_worker``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from moesearch.search import job, process, worker
from moesearch.training import checkpoints
from tests.chaos.points import die_if_armed, kill_after, kill_before


def make_mortal() -> None:
    # Tiny trials would have one checkpoint at most; here each milestone has its own.
    vars(process)["Job"] = partial(job.Job, checkpoint_share=1e9)
    kill_after(worker, "next_assignment", "after ask")
    kill_before(worker._Worker, "_write_down", "before report")
    kill_after(worker._Worker, "_save", "between checkpoint and report")
    kill_before(worker, "finish", "before tell")
    kill_after(worker, "finish", "after tell")
    write_durably = checkpoints.write_durably

    def write_or_die(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            path.with_name(f"{path.name}.tmp").write_bytes(content[: len(content) // 2])
            die_if_armed("inside a checkpoint's write")
        else:
            die_if_armed("before a checkpoint's record")
        write_durably(path, content)

    checkpoints.write_durably = write_or_die


if __name__ == "__main__":
    make_mortal()
    process.leave(process.main())
