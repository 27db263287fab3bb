"""Trains many trials side by side: lanes are loaded, advanced from milestone to milestone, and freed.

Shapes:  N training tokens
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.data.tokens import TokenData, check_length
from moesearch.errors import CheckpointError
from moesearch.model.experts import ExpertBackend
from moesearch.model.transformer import MoETransformer, require_one_shape
from moesearch.training.checkpoints import LaneCheckpoint
from moesearch.training.cuda_graph import CaptureError
from moesearch.training.evaluation import SplitResult, evaluate_split, never
from moesearch.training.lane import Lane
from moesearch.training.muon import expert_matrices
from moesearch.training.pack import LanePack
from moesearch.training.peers import Peers
from moesearch.training.points import EvalPoint
from moesearch.training.step import MAX_PLANNED_STEPS

_log = logging.getLogger(__name__)


class LaneTrainer:
    """Up to ``num_lanes`` trials of one shape family, trained as one model.

    A trial's results do not depend on which others train beside it, when they come or how they end.
    """

    def __init__(
        self, tokens: TokenData, *, num_lanes: int = 1, device: str = "cpu", peers: Peers | None = None
    ) -> None:
        """With ``peers`` it trains one lane on its part of each batch; what it reports is of the whole."""
        self._peers = peers
        self._tokens = tokens
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # Streams and graphs belong to the current device.
        self._train_tokens_N = tokens.train.to(self._device)
        # Products in bfloat16 are a GPU's fast path, and far slower than float32 on most CPUs.
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        # None lets the model choose; set where its choice cannot be captured on this device.
        self._expert_backend: ExpertBackend | None = None
        self._lanes: list[Lane | None] = [None] * num_lanes
        self._pack: LanePack | None = None

    @property
    def free_lanes(self) -> tuple[int, ...]:
        """Lanes that wait for a trial."""
        return tuple(index for index, lane in enumerate(self._lanes) if lane is None)

    def load(self, lane: int, config: TrialConfig, checkpoint: LaneCheckpoint | None = None) -> None:
        """Fill a free lane with a trial, from its start or from a checkpoint.

        Raises:
            CheckpointError: the checkpoint is of another configuration, corpus or model.
            CorpusError: a split holds no window of the trial's context.
            ValueError: the trial is of another shape family than those that are training.
        """
        assert self._lanes[lane] is None, f"lane {lane} is not free"
        config = config.fitted(self._tokens.facts.bytes_per_token)
        check_length(self._tokens, config.model.context)
        beside = [other.config for other in self._active()]
        require_one_shape([*beside, config])
        if any(other.data.batch_size != config.data.batch_size for other in beside):
            raise ValueError(f"lanes must share one batch_size, this one has {config.data.batch_size}")
        if checkpoint is not None:
            self._check_fit(config, checkpoint)
        self._lanes[lane] = Lane(config, self._tokens, checkpoint)

    def free(self, lane: int) -> None:
        """Forget a lane's trial."""
        self._loaded(lane)
        self._lanes[lane] = None

    def advance(self, should_stop: Callable[[], bool] = never) -> list[tuple[int, EvalPoint]]:
        """Train all loaded lanes until at least one reaches its next milestone, and evaluate those that did.

        A lane that diverges is reported at once, with ``is_diverged``. A lane that is diverged or at its last milestone
        is not trained on. Returns nothing if no lane is left to train, or if ``should_stop`` (asked between steps and
        between batches of an evaluation) said so before any was evaluated; each lane then stands exactly at its current
        step.

        Raises:
            MemoryError: the host has too little memory; a CUDA device raises torch's OutOfMemoryError.
        """
        with _memory_errors():
            return self._advance(should_stop)

    def _advance(self, should_stop: Callable[[], bool]) -> list[tuple[int, EvalPoint]]:
        active = self._active()
        if active and all(lane.steps_to_milestone > 0 for lane in active):
            self._train(active, should_stop)
        due = [lane for lane in active if not lane.is_diverged and lane.steps_to_milestone == 0]
        results: dict[Lane, SplitResult] = {}
        for share in sorted({lane.share_due for lane in due}):
            together = [lane for lane in due if lane.share_due == share]
            results |= self._evaluate(together, "val", should_stop, share) or {}
        points = []
        for index, lane in enumerate(self._lanes):
            if lane is None or lane not in active or not (lane.is_diverged or lane in results):
                continue
            points.append((index, lane.report(results.get(lane))))
        return points

    def step(self, lane: int) -> int:
        """Optimizer steps that a lane has done."""
        return self._loaded(lane).step

    def points(self, lane: int) -> tuple[EvalPoint, ...]:
        """All evaluations of a lane so far, those before its checkpoint included."""
        return tuple(self._loaded(lane).points)

    def checkpoint(self, lane: int) -> LaneCheckpoint:
        """All that an exact resume of a lane needs, as it stands now."""
        loaded = self._loaded(lane)
        self._start([loaded])
        return loaded.checkpoint()

    def evaluate(self, lane: int, split: Literal["val", "test"]) -> SplitResult:
        """Exact loss and router health of a lane on a whole split."""
        return self.evaluate_together([lane], split)[lane]

    def evaluate_together(self, lanes: Sequence[int], split: Literal["val", "test"]) -> dict[int, SplitResult]:
        """The same for several lanes, in one pass over the split."""
        loaded = {self._loaded(index): index for index in lanes}
        results = self._evaluate(list(loaded), split, never)
        assert results is not None
        return {loaded[lane]: result for lane, result in results.items()}

    def model(self, lane: int) -> MoETransformer:
        """A lane's model alone; it is the one in training where no other lane is."""
        return self._model_of([self._loaded(lane)])

    def _active(self) -> list[Lane]:
        """Lanes with something left to train."""
        return [lane for lane in self._lanes if lane is not None and not lane.is_done]

    def _loaded(self, index: int) -> Lane:
        lane = self._lanes[index]
        assert lane is not None, f"lane {index} is free"
        return lane

    def _start(self, lanes: list[Lane]) -> None:
        """See to it that these lanes have tensors."""
        if any(lane.tensors is None for lane in lanes):
            self._packed()

    def _packed(self) -> LanePack:
        """The pack of exactly the active lanes, which keeps the tensors of those that were packed before."""
        active = self._active()
        self._settle(active)
        if self._pack is None or not self._pack.refill(active):
            if self._pack is not None and not any(lane in self._pack.lanes for lane in active):
                self._pack = None  # Nothing of it is needed, so its memory is free before the new one takes its own.
            self._pack = self._new_pack(active)
        return self._pack

    def _new_pack(self, lanes: list[Lane]) -> LanePack:
        def pack() -> LanePack:
            return LanePack(
                lanes,
                self._train_tokens_N,
                self._tokens.vocab_size,
                dtype=self._dtype,
                expert_backend=self._expert_backend,
                peers=self._peers,
            )

        try:
            return pack()
        except CaptureError as error:
            if self._expert_backend == "blocks":
                raise
            _log.warning("%s; experts are computed in padded blocks from here on", error)
            self._expert_backend = "blocks"
            return pack()

    def _train(self, active: list[Lane], should_stop: Callable[[], bool]) -> None:
        """Step all lanes until one is due or diverged, or until stopped."""
        pack = self._packed()
        # Asked anew after each plan: how many steps are left of a budget in seconds shows on the way.
        while (remaining := min(lane.steps_to_milestone for lane in active)) > 0:
            if not self._run_steps(pack, min(remaining, MAX_PLANNED_STEPS), should_stop):
                return

    def _run_steps(self, pack: LanePack, num_steps: int, should_stop: Callable[[], bool]) -> bool:
        """Plan and do some steps; whether all of them were done by all lanes."""
        started = time.perf_counter()
        # Looking at a flag of a CUDA device would make each step wait for the one before.
        looks_at_each_step = self._device.type == "cpu"
        pack.step.begin([lane.plan(num_steps) for lane in pack.lanes])
        is_stopped = False
        for _ in range(num_steps):
            if is_stopped := should_stop():
                break
            pack.run_step()
            if looks_at_each_step and not pack.step.all_alive():
                break
        results = pack.step.results()
        train_seconds = (time.perf_counter() - started) / len(pack.lanes)
        for lane, result in zip(pack.lanes, results, strict=True):
            lane.absorb(result, train_seconds)
        return not is_stopped and all(result.is_alive for result in results)

    def _evaluate(
        self, lanes: list[Lane], split: Literal["val", "test"], should_stop: Callable[[], bool], share: float = 1.0
    ) -> dict[Lane, SplitResult] | None:
        """Evaluate these lanes together, on a share of the split; None if stopped."""
        if not lanes:
            return {}
        started = time.perf_counter()
        if self._pack is not None and set(self._pack.lanes) == set(lanes):
            lanes = self._pack.lanes  # In the order of the model in training, which then needs no copy.
        tokens_N = (self._tokens.val if split == "val" else self._tokens.test).to(self._device)
        results = evaluate_split(self._model_of(lanes), tokens_N, self._tokens.bytes_per_id_V, should_stop, share=share)
        eval_seconds = (time.perf_counter() - started) / len(lanes)
        for lane in lanes:
            lane.eval_seconds += eval_seconds
        return None if results is None else dict(zip(lanes, results, strict=True))

    def _model_of(self, lanes: list[Lane]) -> MoETransformer:
        """A model of exactly these lanes: the one in training where no others are, else a copy."""
        self._start(lanes)
        if self._pack is not None and self._pack.lanes == lanes:
            return self._pack.model
        model = MoETransformer(
            [lane.config for lane in lanes],
            self._tokens.vocab_size,
            device=self._device,
            dtype=self._dtype,
            expert_backend=self._expert_backend,
            initialized_lanes=(),
        )
        for place, lane in enumerate(lanes):
            assert lane.tensors is not None
            model.load_lane(place, lane.tensors.parameters)
        return model

    def _settle(self, active: list[Lane]) -> None:
        """Give lanes that train no more tensors of their own, since their places in the pack will be others'."""
        for lane in self._lanes:
            if lane is not None and lane not in active and self._pack is not None and lane in self._pack.lanes:
                assert lane.tensors is not None
                lane.tensors = lane.tensors.copy()

    def _check_fit(self, config: TrialConfig, checkpoint: LaneCheckpoint) -> None:
        if checkpoint.config != config:
            raise CheckpointError("the checkpoint is of another configuration; start from step 0, or use its own")
        if checkpoint.corpus_sha256 != self._tokens.corpus_sha256:
            raise CheckpointError(
                f"the checkpoint was trained on another text (sha256 {checkpoint.corpus_sha256[:12]}…, "
                f"this is {self._tokens.corpus_sha256[:12]}…); start from step 0, or bring that text back"
            )
        # Shapes alone: nothing is allocated, nothing computed.
        model = MoETransformer(
            [config], self._tokens.vocab_size, device="meta", expert_backend="loop", initialized_lanes=()
        )
        moments = model.lane_parameters(0)
        by_muon = expert_matrices(moments) if config.optim.expert_optimizer == "muon" else {}
        for held, expected in (
            (checkpoint.parameters, model.lane_tensors(0)),
            (checkpoint.exp_avg, moments),
            (checkpoint.exp_avg_sq, {name: t for name, t in moments.items() if name not in by_muon}),
        ):
            if _shapes(held) != _shapes(expected):
                raise CheckpointError("the checkpoint's tensors are of another model; start from step 0")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Give torch's plain RuntimeError for a failed allocation on the host its proper type."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator: can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from error
