"""A dense model of equal active FLOPs: what an MoE layer's routing, sorting and gathering are weighed against.

It is made of the same layers as ``MoETransformer``, its experts replaced by one feed-forward layer as wide as the
top-k experts together and its router by nothing, and it is trained by the fused optimizer with no guard around it.
So all that routing costs is on the side of the MoE.

Shapes:  R lanes (1 here)   B batch   T context   N = B*T tokens   C model width   F hidden width   V vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesearch.config.dense import dense_control
from moesearch.config.trial import TrialConfig
from moesearch.data.batches import BatchOrder
from moesearch.model.attention import CausalSelfAttention
from moesearch.model.layers import LaneEmbedding, LaneLayerNorm, LaneLinear
from moesearch.model.losses import language_model_losses
from moesearch.model.randomness import DropoutRates, LayerRandomness, Place, StepRandomness


class DenseBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TrialConfig, dropout: DropoutRates, device: torch.device) -> None:
        super().__init__()
        width, hidden, dtype = config.model.width, dense_control(config).expert_hidden_dim, torch.float32
        self.dropout = dropout
        self.attention_norm = LaneLayerNorm(1, width, device=device, dtype=dtype)
        self.attention = CausalSelfAttention(1, config.model, dropout, device=device, dtype=dtype)
        self.feed_forward_norm = LaneLayerNorm(1, width, device=device, dtype=dtype)
        self.up = LaneLinear(1, width, hidden, bias=True, device=device, dtype=dtype)
        self.down = LaneLinear(1, hidden, width, bias=True, device=device, dtype=dtype)

    def forward(self, x_RNC: Tensor, context: int, randomness: LayerRandomness) -> Tensor:
        x_RNC = x_RNC + self.attention(self.attention_norm(x_RNC), context, randomness)
        out_RNC: Tensor = self.down(F.relu(self.up(self.feed_forward_norm(x_RNC))))
        return x_RNC + self.dropout.apply(out_RNC, randomness, Place.EXPERT_OUTPUT)


class DenseTransformer(nn.Module):
    """The dense language model; one lane."""

    def __init__(self, config: TrialConfig, vocab_size: int, device: torch.device) -> None:
        super().__init__()
        model, dtype = config.model, torch.float32
        dropout = DropoutRates([model.dropout], device)
        self.token_embedding = LaneEmbedding(1, vocab_size, model.width, device=device, dtype=dtype)
        self.position_embedding = LaneEmbedding(1, model.context, model.width, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(DenseBlock(config, dropout, device) for _ in range(model.num_layers))
        self.norm = LaneLayerNorm(1, model.width, device=device, dtype=dtype)
        self.head = LaneLinear(1, model.width, vocab_size, bias=True, device=device, dtype=dtype)
        for module in self.modules():
            match module:
                case LaneLinear():
                    module.weight.data.normal_(0, (2 / module.weight.shape[1]) ** 0.5)
                    if module.bias is not None:
                        module.bias.data.zero_()
                case LaneEmbedding():
                    module.weight.data.normal_()

    def forward(self, tokens_RBT: Tensor, randomness: StepRandomness) -> Tensor:
        """Logits in training, shape (R, B, T, V)."""
        R, B, T = tokens_RBT.shape
        tokens_RBTC = self.token_embedding(tokens_RBT.flatten(1)).view(R, B, T, -1)
        x_RNC = (tokens_RBTC + self.position_embedding.weight[:, None, :T]).flatten(1, 2)
        for block, layer_randomness in zip(self.blocks, randomness.layers(len(self.blocks)), strict=True):
            x_RNC = block(x_RNC, T, layer_randomness)
        logits_RNV: Tensor = self.head(self.norm(x_RNC))
        return logits_RNV.view(R, B, T, -1)


class DenseTrainer:
    """The whole training step of the dense model: draw a batch, forward, backward, fused AdamW."""

    def __init__(self, config: TrialConfig, tokens: Tensor, vocab_size: int, device: str) -> None:
        self.model = DenseTransformer(config, vocab_size, torch.device(device))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.tokens = tokens.to(device)
        self.order = BatchOrder(config.order_seed, len(tokens), config.data.batch_size, config.model.context)
        self.window_T1 = torch.arange(config.model.context + 1)
        self.seeds_R = torch.tensor([config.seed], device=device)
        self.num_steps = 0

    def step(self) -> Tensor:
        """One training step; its loss in nats per token, on the device."""
        window_BT1 = self.tokens[(self.order.window_starts(self.num_steps).unsqueeze(1) + self.window_T1)]
        randomness = StepRandomness(self.seeds_R, torch.full_like(self.seeds_R, self.num_steps))
        logits_RBTV = self.model(window_BT1[None, :, :-1], randomness)
        self.optimizer.zero_grad()
        loss = language_model_losses(logits_RBTV, window_BT1[None, :, 1:]).sum()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.num_steps += 1
        return loss.detach()
