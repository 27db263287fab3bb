"""The lanes that train together: one model, one optimizer per lane, one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moesearch.config.trial import TrialConfig
from moesearch.model.experts import ExpertBackend
from moesearch.model.initialization import initialize_lane
from moesearch.model.parametrization import lr_factor
from moesearch.model.transformer import MoETransformer
from moesearch.training.cuda_graph import places_for, runner
from moesearch.training.lane import Lane, LaneTensors
from moesearch.training.optimizer import LaneOptimizer
from moesearch.training.peers import Peers
from moesearch.training.step import TrainStep


class LanePack:
    """A model with a place for each of its lanes, none of them idle.

    A packed lane's tensors are views of the model and the optimizer's own moments: training changes them.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        train_tokens_N: Tensor,
        vocab_size: int,
        *,
        dtype: torch.dtype,
        expert_backend: ExpertBackend | None = None,
        peers: Peers | None = None,
    ) -> None:
        """Move the lanes in; CaptureError, with the lanes intact, if a CUDA device cannot capture their step."""
        device = train_tokens_N.device
        configs = [lane.config for lane in lanes]
        self.lanes = list(lanes)
        self.model = MoETransformer(
            configs, vocab_size, device=device, dtype=dtype, expert_backend=expert_backend, initialized_lanes=()
        )
        self._optimizers = [
            _optimizer(lane.config, self.model.lane_parameters(place)) for place, lane in enumerate(lanes)
        ]
        self.step = TrainStep(self.model, self._optimizers, train_tokens_N, peers)
        for place, lane in enumerate(lanes):
            self._move_in(place, lane)
        # Averaging among processes is left out of a captured step.
        self.run_step = runner(self.step, device) if peers is None else self.step

    def refill(self, lanes: Sequence[Lane]) -> bool:
        """Put newcomers into the places of those that left; False, and nothing changed, if that takes another pack."""
        vacant = {place: lane.config for place, lane in enumerate(self.lanes) if lane not in lanes}
        newcomers = [lane for lane in lanes if lane not in self.lanes]
        places = places_for(vacant, [lane.config for lane in newcomers])
        if places is None:
            return False
        for place, lane in zip(places, newcomers, strict=True):
            self.step.set_lane(place, lane.config)
            self.lanes[place] = lane
            self._move_in(place, lane)
        return True

    def _move_in(self, place: int, lane: Lane) -> None:
        """Copy a lane's tensors in, or start it, and let it see the pack's tensors from now on."""
        optimizer = self._optimizers[place]
        optimizer.configure(lane.config.optim)
        if lane.tensors is None:
            initialize_lane(self.model.lane_tensors(place), lane.config)
            optimizer.reset()
        else:
            self.model.load_lane(place, lane.tensors.parameters)
            optimizer.load(lane.step, lane.tensors.exp_avg, lane.tensors.exp_avg_sq)
        lane.tensors = LaneTensors(self.model.lane_tensors(place), optimizer.exp_avg, optimizer.exp_avg_sq)


def _optimizer(config: TrialConfig, parameters: Mapping[str, Tensor]) -> LaneOptimizer:
    factors = {name: lr_factor(config, name, tensor) for name, tensor in parameters.items()}
    return LaneOptimizer(config.optim, parameters, factors)
