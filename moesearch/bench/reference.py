"""The model and the training step as a reader of the makeMoE article would write them: what the bench compares with.

Written for clarity, one module per idea, and timed as it stands. It is the same function of the same weights as
``MoETransformer``, which a test shows, so every difference in speed is one of execution.

Shapes:  B batch   T context   C model width   H heads   D = C/H head width   E experts   K experts per token
         N = B*T tokens   F expert hidden width   V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moesearch.config.trial import TrialConfig


class Head(nn.Module):
    """One head of causal self-attention."""

    causal_mask: Tensor

    def __init__(self, width: int, head_width: int, context: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.key = nn.Linear(width, head_width, bias=False)
        self.query = nn.Linear(width, head_width, bias=False)
        self.value = nn.Linear(width, head_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.register_buffer("causal_mask", torch.tril(torch.ones(context, context, dtype=torch.bool)))

    def forward(self, x_BTC: Tensor) -> Tensor:
        num_tokens = x_BTC.shape[1]
        scores_BTT = self.query(x_BTC) @ self.key(x_BTC).transpose(-2, -1) * self.scale
        scores_BTT = scores_BTT.masked_fill(~self.causal_mask[:num_tokens, :num_tokens], float("-inf"))
        weights_BTT = self.dropout(F.softmax(scores_BTT, dim=-1))
        out_BTD: Tensor = weights_BTT @ self.value(x_BTC)
        return out_BTD


class MultiHead(nn.Module):
    """Heads side by side, then a projection."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        model = config.model
        head_width = model.width // model.num_heads
        scale = attention_scale(config)
        self.heads = nn.ModuleList(
            Head(model.width, head_width, model.context, scale, model.dropout) for _ in range(model.num_heads)
        )
        self.projection = nn.Linear(model.width, model.width)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        heads_BTC = torch.cat([head(x_BTC) for head in self.heads], dim=-1)
        out_BTC: Tensor = self.dropout(self.projection(heads_BTC))
        return out_BTC


class Expert(nn.Sequential):
    """Linear, ReLU, Linear, dropout."""

    def __init__(self, config: TrialConfig) -> None:
        width, hidden = config.model.width, config.expert_hidden_dim
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Dropout(config.model.dropout)
        )


class NoisyTopKRouter(nn.Module):
    """Noisy top-k gating (Shazeer et al. 2017), the noise on in evaluation too, as in the article."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.top_k = config.moe.top_k
        self.route = nn.Linear(config.model.width, config.moe.num_experts)
        self.noise = nn.Linear(config.model.width, config.moe.num_experts)

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (B, T, E), zero for every expert not chosen, and the chosen experts (B, T, K)."""
        logits_BTE = self.route(x_BTC)
        noisy_BTE = logits_BTE + torch.randn_like(logits_BTE) * F.softplus(self.noise(x_BTC))
        top_BTK, chosen_BTK = noisy_BTE.topk(self.top_k, dim=-1)
        sparse_BTE = torch.full_like(noisy_BTE, float("-inf")).scatter(-1, chosen_BTK, top_BTK)
        return F.softmax(sparse_BTE, dim=-1), chosen_BTK


class SparseMoE(nn.Module):
    """Every expert in turn picks its tokens by a boolean mask."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.router = NoisyTopKRouter(config)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.moe.num_experts))

    def forward(self, x_BTC: Tensor) -> Tensor:
        gates_BTE, chosen_BTK = self.router(x_BTC)
        output_BTC = torch.zeros_like(x_BTC)
        x_NC = x_BTC.flatten(0, 1)
        gates_NE = gates_BTE.flatten(0, 1)
        for index, expert in enumerate(self.experts):
            is_mine_BT = (chosen_BTK == index).any(dim=-1)
            is_mine_N = is_mine_BT.flatten()
            if is_mine_N.any():
                expert_output = expert(x_NC[is_mine_N])
                output_BTC[is_mine_BT] += expert_output * gates_NE[is_mine_N, index].unsqueeze(1)
        return output_BTC


class Block(nn.Module):
    """Attention, then experts, each added to the stream behind a layer norm."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.model.width)
        self.attention = MultiHead(config)
        self.moe_norm = nn.LayerNorm(config.model.width)
        self.moe = SparseMoE(config)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC))
        moe_BTC: Tensor = self.moe(self.moe_norm(x_BTC))
        return x_BTC + moe_BTC


class ReferenceTransformer(nn.Module):
    """The article's language model."""

    def __init__(self, config: TrialConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        self.token_embedding = nn.Embedding(vocab_size, model.width)
        self.position_embedding = nn.Embedding(model.context, model.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(model.num_layers)))
        self.final_norm = nn.LayerNorm(model.width)
        self.head = nn.Linear(model.width, vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, shape (B, T, V)."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTC = self.token_embedding(tokens_BT) + self.position_embedding(positions_T)
        logits_BTV: Tensor = self.head(self.final_norm(self.blocks(x_BTC)))
        return logits_BTV

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean nats per token, a scalar."""
        return F.cross_entropy(self(tokens_BT).flatten(0, 1), targets_BT.flatten())


class ReferenceTrainer:
    """The article's loop: a random batch, a step of unfused AdamW, and now and then a noisy look at the losses."""

    def __init__(self, config: TrialConfig, tokens: Tensor, vocab_size: int, device: str) -> None:
        self.model = ReferenceTransformer(config, vocab_size).to(device)
        # As in the article, AdamW is left to its defaults: not fused, and on a CPU one tensor at a time.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr)
        self.tokens = tokens
        self.batch_size = config.data.batch_size
        self.context = config.model.context
        self.device = device

    def random_batch(self) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(self.tokens) - self.context, (self.batch_size,)).tolist()
        inputs_BT = torch.stack([self.tokens[start : start + self.context] for start in starts])
        targets_BT = torch.stack([self.tokens[start + 1 : start + self.context + 1] for start in starts])
        return inputs_BT.to(self.device), targets_BT.to(self.device)

    def step(self) -> None:
        """One training step."""
        self.model.train()
        loss = self.model.loss(*self.random_batch())
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    @torch.no_grad()
    def evaluation_batch(self) -> float:
        """Loss of one random batch: the article's estimate is a mean of 400 of these per split."""
        self.model.eval()
        return self.model.loss(*self.random_batch()).item()


def attention_scale(config: TrialConfig) -> float:
    """Factor on the attention scores that the configuration means."""
    model = config.model
    match model.attention_scale:
        case "head":
            return float((model.width // model.num_heads) ** -0.5)
        case "width":
            return float(model.width**-0.5)
        case number:
            return float(number)
