"""Which expert product is fastest here: measured once per machine and shape, and remembered on disk.

Backends differ in the last bits of their sums, so trials that are compared to the last bit must use one: the choice is
made once per model, the first one written for a shape stays, and MOESEARCH_EXPERT_BACKEND=name overrides it.
``MoETransformer.expert_backend`` says what a model uses.

Shapes:  S slots   C model width   F expert hidden width   G expert groups
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch

from moesearch.config.places import default_cache_dir
from moesearch.config.shape import expert_inner_dim
from moesearch.config.trial import MoEConfig, TrialConfig
from moesearch.errors import InputError
from moesearch.model.experts import ExpertBackend, PackedExperts
from moesearch.model.lanes import LaneLayout
from moesearch.model.products import RowBackend
from moesearch.model.randomness import DropoutRates
from moesearch.model.routers import TopKRouter

OVERRIDE_VARIABLE = "MOESEARCH_EXPERT_BACKEND"
_ORACLE: Literal["loop"] = "loop"
_BACKENDS: tuple[str, ...] = (_ORACLE, *get_args(RowBackend))
# A rival must win by this factor: near ties would otherwise fall to noise, and differ from machine to machine.
_CLEAR_WIN = 1.1
_REPEATS = 7


@dataclass(frozen=True)
class ExpertShape:
    """What decides which product is fastest."""

    num_tokens: int
    """Tokens of a training step, over all lanes."""
    num_slots: int
    num_groups: int
    width: int
    hidden: int
    dtype: torch.dtype
    device: torch.device
    has_capacity: bool = False
    """Whether some slots may be dropped."""

    @classmethod
    def of(cls, configs: Sequence[TrialConfig], dtype: torch.dtype, device: torch.device) -> ExpertShape:
        """The shape of a model's training step; counts are rounded up to powers of two, so that few are measured."""
        first, layout = configs[0], LaneLayout.of(configs)
        return cls(
            _power_of_two(first.tokens_per_step * layout.num_lanes),
            _power_of_two(first.tokens_per_step * sum(layout.top_k)),
            _power_of_two(layout.num_groups),
            first.model.width,
            expert_inner_dim(first),
            dtype,
            device,
            any(factor is not None for config in configs for factor in config.moe.capacity_factors),
        )


def choose_backend(shape: ExpertShape) -> ExpertBackend:
    """The backend that was measured to be the fastest for this shape, or the one that the environment names.

    A name that cannot serve the shape (grouped_mm knows no float64) leaves the choice to the measurement.

    Raises:
        InputError: the environment names no backend.
    """
    rivals, named = candidates(shape), os.environ.get(OVERRIDE_VARIABLE)
    if named and named not in _BACKENDS:
        raise InputError(f"{OVERRIDE_VARIABLE} ({named}) must be one of {', '.join(_BACKENDS)}")
    for backend in (*rivals, _ORACLE):
        if named == backend:
            return backend
    return rivals[0] if len(rivals) == 1 else _remembered(shape, default_cache_dir(), torch.get_num_threads())


def candidates(shape: ExpertShape) -> tuple[RowBackend, ...]:
    """The backends that can serve a shape; the first is the one to beat."""
    # grouped_mm wants rows of whole 16-byte units and fewer than 1024 groups, and knows no float64.
    units = 16 // shape.dtype.itemsize
    is_groupable = shape.dtype != torch.float64 and shape.num_groups < 1024 and not shape.width % units
    is_groupable = is_groupable and not shape.hidden % units
    match shape.device.type:
        case "cpu":
            return ("grouped", "split", "padded") if is_groupable else ("split", "padded")
        case "cuda":
            # Elsewhere than here grouped_mm reads its offsets on the host, which no CUDA graph can capture; and all but
            # blocks read there how many slots were kept.
            has_kernel = shape.dtype == torch.bfloat16 and torch.cuda.get_device_capability(shape.device)[0] in (9, 10)
            return ("grouped", "blocks") if is_groupable and has_kernel and not shape.has_capacity else ("blocks",)
        case _:
            return ("blocks",)


@lru_cache(maxsize=256)
def _remembered(shape: ExpertShape, cache_dir: Path | None, num_threads: int) -> RowBackend:
    """The choice on disk, or a new one that is written there; whoever writes first decides for all."""
    if cache_dir is None:
        return fastest(measure(shape))
    facts = {**_facts(shape), "threads": num_threads}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / "expert_backends" / f"{name}.json"
    held = _read(path, shape)
    if held is not None:
        return held
    if path.exists():
        path.unlink()  # Damaged, or of a backend that is no more.
    milliseconds = measure(shape)
    choice = fastest(milliseconds)
    _write_first(path, json.dumps({"backend": choice, "milliseconds": milliseconds, **facts}, indent=1))
    return _read(path, shape) or choice


def measure(shape: ExpertShape) -> dict[RowBackend, float]:
    """Milliseconds of a forward and backward pass, the fastest of a few, the backends taking turns.

    The load is uneven as in early training: the most loaded expert gets about twice the mean.
    """
    with torch.random.fork_rng([shape.device] if shape.device.type == "cuda" else []):
        passes = {backend: _pass(shape, backend) for backend in candidates(shape)}
    seconds: dict[RowBackend, list[float]] = {backend: [] for backend in passes}
    for _ in range(_REPEATS):
        for backend, run in passes.items():
            started = time.perf_counter()
            run()
            seconds[backend].append(time.perf_counter() - started)
    return {backend: round(min(times[1:]) * 1e3, 4) for backend, times in seconds.items()}


def fastest(milliseconds: dict[RowBackend, float]) -> RowBackend:
    """The first backend, unless another wins clearly."""
    first, *_ = milliseconds
    best = min(milliseconds, key=milliseconds.__getitem__)
    return best if milliseconds[best] * _CLEAR_WIN < milliseconds[first] else first


def _pass(shape: ExpertShape, backend: RowBackend) -> Callable[[], None]:
    """A forward and backward pass of the experts of one layer, on random tokens that a skewed router has placed."""
    torch.manual_seed(0)
    device, top_k = shape.device, max(1, shape.num_slots // shape.num_tokens)
    layout = LaneLayout((shape.num_groups,), (min(top_k, shape.num_groups),))
    no_dropout = DropoutRates([0.0], device)
    experts = PackedExperts(
        shape.num_groups, shape.width, shape.hidden, no_dropout, backend, device=device, dtype=shape.dtype
    )
    router = TopKRouter(
        layout, shape.width, [MoEConfig(noise=False)], shape.num_tokens, device=device, dtype=shape.dtype
    )
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    torch.nn.init.normal_(router.logits.weight, std=shape.width**-0.5)
    torch.nn.init.normal_(router.logits.bias, std=0.5)
    x_RNC = torch.randn(1, shape.num_tokens, shape.width, device=device)
    with torch.no_grad():
        routing = router(x_RNC, shape.num_tokens, None)

    def run() -> None:
        for parameter in experts.parameters():
            parameter.grad = None
        torch.autograd.backward(experts(x_RNC, routing, None).square().sum())
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _facts(shape: ExpertShape) -> dict[str, object]:
    """What a choice holds for: the shape, this device, this torch."""
    sizes = {"tokens": shape.num_tokens, "slots": shape.num_slots, "groups": shape.num_groups}
    is_cuda = shape.device.type == "cuda"
    return {
        **sizes,
        "width": shape.width,
        "hidden": shape.hidden,
        "dtype": str(shape.dtype),
        "device": torch.cuda.get_device_name(shape.device) if is_cuda else _cpu_name(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    """The processor's model and its vector instructions as torch sees them."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name}, {torch.backends.cpu.get_cpu_capability()}"


def _read(path: Path, shape: ExpertShape) -> RowBackend | None:
    """A remembered choice that still is one; None if there is none, or it is damaged."""
    try:
        named = json.loads(path.read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((backend for backend in candidates(shape) if backend == named), None)


def _write_first(path: Path, text: str) -> None:
    """Write a file whole, unless it is there and readable already; a folder that cannot be written is no matter."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text)
            os.link(temporary, path)  # Unlike a rename, this fails where another process was first.
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
