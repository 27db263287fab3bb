"""The step as one CUDA graph: captured once per set of shapes and constants, replayed without the host.

A lane that is refilled keeps the captured step if its configuration differs from its predecessor's only in what a step
reads from tensors. `captured_part` is that rule; `places_for` applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from moesearch.config.trial import BudgetConfig, TrialConfig
from moesearch.training.step import TrainStep

_ANY_INIT = {
    "init": "normal",
    "init_std": 1.0,
    "init_scale": 1.0,
    "init_depth_scaled": False,
    "init_router": None,
    "init_experts": None,
    "init_attention": None,
    "router_init_gain": 1.0,
}
_WARM_UP_STEPS = 3
"""Steps before a capture, for what libraries allocate on first use; what torch's own guide takes."""


def captured_part(config: TrialConfig) -> TrialConfig:
    """What of a configuration a captured step has built in: all but what it reads from tensors.

    Those are initial values, seeds, window starts, learning rates and the clipping bound. The rest is shapes, constants
    of kernels (AdamW's betas, eps and decay) and tensors of the model (dropout, routing, loss weights).
    """
    return config.model_copy(
        update={
            "seed": 0,
            "budget": BudgetConfig(),
            "moe": config.moe.model_copy(update=_ANY_INIT),
            "optim": config.optim.model_copy(
                update={
                    "lr": 1.0,
                    "grad_clip": None,
                    "schedule": "constant",
                    "warmup_tokens": 0,
                    "final_lr_fraction": 0.0,
                    "decay_fraction": 1.0,
                    "muon_lr": None,
                }
            ),
            "data": config.data.model_copy(update={"order_seed": 0}),
        }
    )


def places_for(vacant: Mapping[int, TrialConfig], incoming: Sequence[TrialConfig]) -> list[int] | None:
    """A vacant place for each incoming configuration such that the captured step stays valid; None if there is none.

    ``vacant`` maps a place to the configuration that was last trained there. Lanes may not outnumber or undernumber
    the places, since an idle lane would cost as much as a busy one.
    """
    if len(vacant) != len(incoming):
        return None
    left = {place: captured_part(config) for place, config in vacant.items()}
    places = []
    for config in incoming:
        part = captured_part(config)
        place = next((place for place, other in left.items() if other == part), None)
        if place is None:
            return None
        del left[place]
        places.append(place)
    return places


class CaptureError(RuntimeError):
    """A step does something that a CUDA graph cannot record."""


def runner(step: TrainStep, device: torch.device) -> Callable[[], None]:
    """What does the next planned step on a device: the step itself, or its captured graph on CUDA."""
    return capture(step).replay if device.type == "cuda" else step


def capture(step: TrainStep) -> torch.cuda.CUDAGraph:
    """Record a step as a graph; its gradients and activations live in the graph's own memory from then on.

    Raises:
        CaptureError: a kernel of the step waits for the host, as grouped products do on some cards.
    """
    with step.rehearsal():
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(f"the step cannot be captured: {error}") from error
    return graph
