"""The decoder-only sparse-MoE language model, R trials wide.

Shapes:  R lanes   B batch   T context   N = B*T tokens   C model width   V vocabulary   E experts   G = sum of E
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moesearch.config.shape import dense_inner_dim, has_experts
from moesearch.config.trial import TrialConfig
from moesearch.model.attention import CausalSelfAttention
from moesearch.model.backends import ExpertShape, choose_backend
from moesearch.model.experts import ExpertBackend, PackedExperts
from moesearch.model.feed_forward import LaneFeedForward
from moesearch.model.initialization import initialize_lane
from moesearch.model.lanes import LaneLayout
from moesearch.model.layers import LaneEmbedding, LaneLinear, TiedLaneHead, full_precision, lane_norm
from moesearch.model.moe import MoELayer
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place, StepRandomness
from moesearch.model.routers import BalancingBias, RouterLinear, Routing, TopKRouter


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass gives."""

    logits_RBTV: Tensor
    """float32 (float64 in a float64 model)."""
    routings: tuple[Routing, ...]
    """One per layer with a router, in order; of none where all lanes are dense."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + moe(norm(x)); or, between layers of experts, x + feed_forward(norm(x))."""

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        layer: int,
        dropout: DropoutRates,
        backend: ExpertBackend,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        R, first, model = len(configs), configs[0], configs[0].model
        self.attention_norm = lane_norm(model.norm, R, model.width, device=device, dtype=dtype)
        self.attention = CausalSelfAttention(R, model, dropout, device=device, dtype=dtype)
        self.moe_norm = lane_norm(model.norm, R, model.width, device=device, dtype=dtype)
        self.moe = self.feed_forward = None
        if has_experts(first, layer):
            self.moe = MoELayer(configs, dropout, backend, device=device, dtype=dtype)
        else:
            self.feed_forward = LaneFeedForward(
                R,
                model.width,
                dense_inner_dim(first),
                first.moe.activation,
                dropout,
                Place.EXPERT_OUTPUT,
                device=device,
                dtype=dtype,
            )

    def forward(self, x_RNC: Tensor, context: int, randomness: LayerRandomness | None) -> tuple[Tensor, Routing | None]:
        x_RNC = x_RNC + self.attention(self.attention_norm(x_RNC), context, randomness)
        normed_RNC = self.moe_norm(x_RNC)
        if self.moe is None:
            assert self.feed_forward is not None
            return x_RNC + self.feed_forward(normed_RNC, randomness), None
        out_RNC, routing = self.moe(normed_RNC, context, randomness)
        return x_RNC + out_RNC, routing


class MoETransformer(nn.Module):
    """R language models of one shape family, trained as one; no lane's numbers depend on another's.

    ``dtype`` is that of the large products: bfloat16 keeps float32 weights, router, softmax and loss.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        vocab_size: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        expert_backend: ExpertBackend | None = None,
        initialized_lanes: Collection[int] | None = None,
    ) -> None:
        """Initialise all lanes, or these alone: the others then hold no meaningful values until `load_lane`."""
        super().__init__()
        require_one_shape(configs)
        self.configs = tuple(configs)
        self.vocab_size = vocab_size
        self.dtype = dtype
        self.layout = LaneLayout.of(configs)
        self.device = device = torch.device(device)
        if expert_backend is None:
            # Without a router rows need no product of their own, so there is nothing to measure.
            is_dense = self.layout.is_dense
            expert_backend = "grouped" if is_dense else choose_backend(ExpertShape.of(configs, dtype, device))
        self.expert_backend = expert_backend
        R, model = len(configs), configs[0].model
        dropout = DropoutRates([c.model.dropout for c in configs], device)
        self.token_embedding = LaneEmbedding(R, vocab_size, model.width, device=device, dtype=dtype)
        self.position_embedding = None
        if model.positions == "learned":
            self.position_embedding = LaneEmbedding(R, model.context, model.width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            Block(configs, layer, dropout, expert_backend, device=device, dtype=dtype)
            for layer in range(model.num_layers)
        )
        self.norm = lane_norm(model.norm, R, model.width, device=device, dtype=dtype)
        self.head: LaneLinear | TiedLaneHead
        if model.tied_head:
            self.head = TiedLaneHead(R, vocab_size, device=device, dtype=dtype)
        else:
            self.head = LaneLinear(R, model.width, vocab_size, bias=True, device=device, dtype=dtype)
        # Of every layer that routes, or of none.
        self._balancing = tuple(module for module in self.modules() if isinstance(module, BalancingBias))
        self._parts = tuple(tuple(self._parts_of(lane)) for lane in range(R))
        for lane in range(R) if initialized_lanes is None else initialized_lanes:
            initialize_lane(self.lane_tensors(lane), configs[lane])

    def forward(self, tokens_RBT: Tensor, randomness: StepRandomness | None = None) -> ModelOutput:
        """Logits of the next token; without randomness dropout and router noise are off."""
        R, B, T = tokens_RBT.shape
        x_RNC: Tensor = self.token_embedding(tokens_RBT.flatten(1))
        if self.position_embedding is not None:
            x_RNC = (x_RNC.view(R, B, T, -1) + self.position_embedding.weight[:, None, :T]).flatten(1, 2)
        per_layer = [None] * len(self.layers) if randomness is None else randomness.layers(len(self.layers))
        routings = []
        for layer, layer_randomness in zip(self.layers, per_layer, strict=True):
            x_RNC, routing = layer(x_RNC, T, layer_randomness)
            if routing is not None:
                routings.append(routing)
        return ModelOutput(self._logits(self.norm(x_RNC)).view(R, B, T, -1), tuple(routings))

    def _logits(self, x_RNC: Tensor) -> Tensor:
        is_tied = isinstance(self.head, TiedLaneHead)
        logits_RNV: Tensor = self.head(x_RNC, self.token_embedding.weight) if is_tied else self.head(x_RNC)
        return full_precision(logits_RNV)

    def lane_parameters(self, lane: int) -> dict[str, Tensor]:
        """This lane's part of every parameter that it uses: detached, contiguous views that share storage."""
        return {
            name: lane_view(module, parameter.detach(), self.layout, lane)
            for name, module, parameter in self._parts[lane]
        }

    def lane_tensors(self, lane: int) -> dict[str, Tensor]:
        """All that training changes of this lane: its parameters, and the biases that balance its experts, as views."""
        tensors = self.lane_parameters(lane)
        moe = self.configs[lane].moe
        if moe.bias_update_speed > 0 and not moe.is_dense:
            for owner, module in self.named_modules():
                if isinstance(module, BalancingBias):
                    tensors[f"{owner}.expert_bias"] = lane_view(module, module.expert_bias, self.layout, lane)
        return tensors

    def lane_gradients(self, lane: int) -> dict[str, Tensor]:
        """The same views of the gradients, under the same names; a backward pass must have filled them."""
        gradients = {}
        for name, module, parameter in self._parts[lane]:
            assert parameter.grad is not None, f"{name} has no gradient"
            gradients[name] = lane_view(module, parameter.grad, self.layout, lane)
        return gradients

    def balance_experts(
        self,
        routings: Sequence[Routing],
        is_applied_R: Tensor,
        average: Callable[[Sequence[Tensor]], None] = lambda _: None,
    ) -> None:
        """After a training step with these routings, move the balancing biases of the lanes that took the step.

        ``average`` replaces the experts' loads by their means over processes that share the batch.
        """
        if self._balancing:
            loads = [routing.counts_RE().float() for routing in routings]
            average(loads)
            for balancing, routing, counts_RE in zip(self._balancing, routings, loads, strict=True):
                balancing.update(routing, counts_RE, is_applied_R)

    def load_lane(self, lane: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy a lane's tensors in, by name; ValueError if names or shapes do not fit."""
        own = self.lane_tensors(lane)
        if own.keys() != tensors.keys():
            raise ValueError(f"tensors do not fit the lane: {sorted(own.keys() ^ tensors.keys())} on one side only")
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, the lane {tuple(tensor.shape)}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def _parts_of(self, lane: int) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        """Names, owners and parameters that a lane uses: no router where it is dense, no noise router without noise."""
        moe = self.configs[lane].moe
        routers = [module for module in self.modules() if isinstance(module, TopKRouter)]
        skipped = set() if moe.noise and not moe.is_dense else {router.noise for router in routers}
        if moe.is_dense:
            skipped |= {router.logits for router in routers}
        for owner, module in self.named_modules():
            if module not in skipped:
                for name, parameter in module.named_parameters(recurse=False):
                    yield f"{owner}.{name}", module, parameter


def lane_view(module: nn.Module, tensor: Tensor, layout: LaneLayout, lane: int) -> Tensor:
    """The part of a module's tensor (or of its gradient) that belongs to one lane."""
    match module:
        case PackedExperts():
            return tensor.narrow(0, layout.group_starts[lane], layout.num_experts[lane])
        case RouterLinear() | BalancingBias():
            return tensor[lane, : layout.num_experts[lane]]
        case _:
            return tensor[lane]


def require_one_shape(configs: Sequence[TrialConfig]) -> None:
    """ValueError unless all configurations give tensors of the same shapes, lanes apart."""
    if not configs:
        raise ValueError("a model needs at least one lane")
    shapes = [_shape_of(config) for config in configs]
    values = {name: sorted({str(shape[name]) for shape in shapes}) for name in shapes[0]}
    differing = [f"{name} ({', '.join(several)})" for name, several in values.items() if len(several) > 1]
    if differing:
        raise ValueError(f"lanes must be of one shape family; these differ in {', '.join(differing)}")


def _shape_of(config: TrialConfig) -> dict[str, object]:
    """What lanes must have in common, by name."""
    moe = config.moe
    shape = {
        **config.model.model_dump(exclude={"dropout"}),
        "expert_hidden_dim": config.expert_hidden_dim,
        "num_shared_experts": moe.num_shared_experts,
        "every": moe.every,
        "activation": moe.activation,
    }
    # Layers without experts are as wide as all experts of a token.
    return shape if moe.every == 1 else {**shape, "top_k": moe.top_k}


def replace_lane(model: MoETransformer, lane: int, config: TrialConfig) -> MoETransformer:
    """A model in which one lane is new, initialised from its seed, and the others keep their tensors bit for bit."""
    configs = [*model.configs[:lane], config, *model.configs[lane + 1 :]]
    replaced = _like(model, configs, initialized_lanes=[lane])
    for other in range(len(configs)):
        if other != lane:
            replaced.load_lane(other, model.lane_tensors(other))
    return replaced


def select_lane(model: MoETransformer, lane: int) -> MoETransformer:
    """A model of that lane alone, with its own copy of the tensors."""
    alone = _like(model, [model.configs[lane]], initialized_lanes=[])
    alone.load_lane(0, model.lane_tensors(lane))
    return alone


def _like(
    model: MoETransformer, configs: Sequence[TrialConfig], *, initialized_lanes: Collection[int]
) -> MoETransformer:
    """A model of other lanes that computes as this one does."""
    return MoETransformer(
        configs,
        model.vocab_size,
        device=model.device,
        dtype=model.dtype,
        expert_backend=model.expert_backend,
        initialized_lanes=initialized_lanes,
    )
