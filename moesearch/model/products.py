"""The product of rows with the weights of their own group, in several ways that agree.

Each way lays the slots out as rows so that a group's rows are neighbours, and then offers the three products that a
linear map needs: forward, and backward for its input and for its weights. Which one is fastest depends on the
machine and the shapes (`backends.choose_backend`).

Shapes:  S slots   P rows: the slots, and padding in some layouts   G expert groups   I inputs   O outputs
         R lanes   N tokens of a lane   C model width
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from moesearch.model.routers import Routing

RowBackend = Literal["grouped", "split", "padded", "blocks"]
_ROWS_PER_BLOCK = 32


class RowProduct(ABC):
    """Rows of one routing and the products over them."""

    slot_P: Tensor
    """Slot of each row; a padding row has some slot of its own lane, so that a NaN there stays in its lane."""
    row_S: Tensor
    """Row of each slot, int32; a dropped slot, whose weight is 0, shares the row of another of its lane."""
    is_real_P1: Tensor | None
    """1.0 for a slot's row, 0.0 for padding; None where there is no padding."""

    @abstractmethod
    def forward(self, x_PI: Tensor, weight_GIO: Tensor, bias_GO: Tensor) -> Tensor:
        """Rows times weights plus bias, by groups: (P, O)."""

    @abstractmethod
    def backward_input(self, grad_PO: Tensor, weight_GIO: Tensor) -> Tensor:
        """Rows of gradient times transposed weights, by groups: (P, I)."""

    @abstractmethod
    def backward_weights(self, x_PI: Tensor, grad_PO: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of weights and biases: (G, I, O) and (G, O). Padding rows of ``grad_PO`` must be 0."""


def lay_out(backend: RowBackend, routing: Routing) -> RowProduct:
    """The rows of a routing for a backend."""
    match backend:
        case "grouped":
            return GroupedProduct(routing)
        case "split":
            return SplitProduct(routing)
        case "padded":
            return PaddedProduct(routing)
        case "blocks":
            return BlockProduct(routing)
        case unknown:
            assert_never(unknown)


class GroupedProduct(RowProduct):
    """torch.nn.functional.grouped_mm over the sorted slots; float32, bfloat16 and float16 only.

    One kernel for bfloat16 on a Hopper GPU; a loop over groups inside torch elsewhere.
    """

    def __init__(self, routing: Routing) -> None:
        self.slot_P, self.row_S, self.is_real_P1 = _kept(routing), _rows(routing), None
        self._ends_G = routing.ends_G
        self._starts_G = _starts(routing.ends_G)
        self._rows_P = torch.arange(len(self.slot_P), dtype=torch.int32, device=self.row_S.device)

    def forward(self, x_PI: Tensor, weight_GIO: Tensor, bias_GO: Tensor) -> Tensor:
        y_PO = F.grouped_mm(x_PI, weight_GIO, offs=self._ends_G)
        if y_PO.device.type == "cpu":
            # In place and group by group: a gathered bias costs another array of the size of the output.
            for rows_O, bias_O in zip(torch.split(y_PO, _sizes(self._ends_G)), bias_GO.unbind(), strict=True):
                rows_O += bias_O
            return y_PO
        group_P = torch.searchsorted(self._ends_G, self._rows_P, right=True, out_int32=True)
        return y_PO.add_(bias_GO.index_select(0, group_P))

    def backward_input(self, grad_PO: Tensor, weight_GIO: Tensor) -> Tensor:
        return F.grouped_mm(grad_PO, weight_GIO.mT, offs=self._ends_G)

    def backward_weights(self, x_PI: Tensor, grad_PO: Tensor) -> tuple[Tensor, Tensor]:
        weight_GIO = F.grouped_mm(x_PI.t(), grad_PO, offs=self._ends_G)
        return weight_GIO, sum_bags(grad_PO, self._rows_P, self._starts_G)


class SplitProduct(RowProduct):
    """One product per group over views of the sorted slots; for a CPU, since it reads the group sizes on the host."""

    def __init__(self, routing: Routing) -> None:
        self.slot_P, self.row_S, self.is_real_P1 = _kept(routing), _rows(routing), None
        self._sizes = _sizes(routing.ends_G)

    def forward(self, x_PI: Tensor, weight_GIO: Tensor, bias_GO: Tensor) -> Tensor:
        y_PO = x_PI.new_empty(len(x_PI), weight_GIO.shape[2])
        parts = zip(self._split(x_PI), weight_GIO.unbind(), bias_GO.unbind(), self._split(y_PO), strict=True)
        for x, weight, bias, y in parts:
            torch.addmm(bias, x, weight, out=y)
        return y_PO

    def backward_input(self, grad_PO: Tensor, weight_GIO: Tensor) -> Tensor:
        x_PI = grad_PO.new_empty(len(grad_PO), weight_GIO.shape[1])
        for grad, weight, x in zip(self._split(grad_PO), weight_GIO.mT.unbind(), self._split(x_PI), strict=True):
            torch.mm(grad, weight, out=x)
        return x_PI

    def backward_weights(self, x_PI: Tensor, grad_PO: Tensor) -> tuple[Tensor, Tensor]:
        G = len(self._sizes)
        weight_GIO = x_PI.new_empty(G, x_PI.shape[1], grad_PO.shape[1])
        bias_GO = grad_PO.new_empty(G, grad_PO.shape[1])
        parts = zip(self._split(x_PI), self._split(grad_PO), weight_GIO.unbind(), bias_GO.unbind(), strict=True)
        for x, grad, weight, bias in parts:
            torch.mm(x.t(), grad, out=weight)
            torch.sum(grad, 0, out=bias)
        return weight_GIO, bias_GO

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, self._sizes)


class PaddedProduct(RowProduct):
    """One batched product, all groups padded to the largest; for a CPU, since it reads that size on the host."""

    def __init__(self, routing: Routing) -> None:
        G = len(routing.ends_G)
        capacity = max(_sizes(routing.ends_G))
        first_row_G = torch.arange(0, G * capacity, capacity, dtype=torch.int32, device=routing.ends_G.device)
        padding_P = routing.slots.first_slot_G.repeat_interleave(capacity)
        self.slot_P, self.row_S, self.is_real_P1 = _pad(routing, first_row_G, padding_P)
        self._num_groups = G

    def forward(self, x_PI: Tensor, weight_GIO: Tensor, bias_GO: Tensor) -> Tensor:
        return torch.baddbmm(bias_GO.unsqueeze(1), self._by_groups(x_PI), weight_GIO).flatten(0, 1)

    def backward_input(self, grad_PO: Tensor, weight_GIO: Tensor) -> Tensor:
        return torch.bmm(self._by_groups(grad_PO), weight_GIO.mT).flatten(0, 1)

    def backward_weights(self, x_PI: Tensor, grad_PO: Tensor) -> tuple[Tensor, Tensor]:
        grad_GMO = self._by_groups(grad_PO)
        return torch.bmm(self._by_groups(x_PI).mT, grad_GMO), grad_GMO.sum(1)

    def _by_groups(self, rows: Tensor) -> Tensor:
        return rows.view(self._num_groups, -1, rows.shape[1])


class BlockProduct(RowProduct):
    """One batched product over blocks of rows, each group padded to whole blocks, each block with its own weights.

    As many blocks as any routing can need are always computed, so no shape depends on the data and nothing is read on
    the host: what a CUDA graph can capture on every card. The idea of MegaBlocks (Gale et al. 2022), in plain torch.
    """

    def __init__(self, routing: Routing) -> None:
        G, size = len(routing.ends_G), _ROWS_PER_BLOCK
        counts_G = routing.ends_G - _starts(routing.ends_G)
        block_ends_G = ((counts_G + (size - 1)) // size).cumsum(0, dtype=torch.int32)
        self._first_block_G = _starts(block_ends_G)
        self._blocks = torch.arange(routing.most_kept // size + G, dtype=torch.int32, device=block_ends_G.device)
        # Blocks that this routing leaves over count as the last group's, and hold padding alone.
        self._group_of_block = torch.searchsorted(block_ends_G, self._blocks, right=True).clamp_(max=G - 1)
        padding_P = routing.slots.first_slot_G[self._group_of_block].repeat_interleave(size)
        self.slot_P, self.row_S, self.is_real_P1 = _pad(routing, self._first_block_G * size, padding_P)

    def forward(self, x_PI: Tensor, weight_GIO: Tensor, bias_GO: Tensor) -> Tensor:
        weight, bias = weight_GIO[self._group_of_block], bias_GO[self._group_of_block]
        return torch.baddbmm(bias.unsqueeze(1), self._in_blocks(x_PI), weight).flatten(0, 1)

    def backward_input(self, grad_PO: Tensor, weight_GIO: Tensor) -> Tensor:
        return torch.bmm(self._in_blocks(grad_PO), weight_GIO[self._group_of_block].mT).flatten(0, 1)

    def backward_weights(self, x_PI: Tensor, grad_PO: Tensor) -> tuple[Tensor, Tensor]:
        grad = self._in_blocks(grad_PO)
        weight = torch.bmm(self._in_blocks(x_PI).mT, grad)
        # Sums over neighbouring blocks in their order: no atomics, so the same bits each time.
        weight_GIO = sum_bags(weight.flatten(1), self._blocks, self._first_block_G).view(-1, *weight.shape[1:])
        return weight_GIO, sum_bags(grad.sum(1), self._blocks, self._first_block_G)

    def _in_blocks(self, rows: Tensor) -> Tensor:
        return rows.view(-1, _ROWS_PER_BLOCK, rows.shape[1])


def sum_bags(rows: Tensor, index: Tensor, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of ``rows[index]`` (times weights) from each start to the next, in order; 0 for an empty bag."""
    summed: Tensor = torch.embedding_bag(rows, index, starts, mode=0, per_sample_weights=weights)[0]
    return summed


def _kept(routing: Routing) -> Tensor:
    """The slots that were not dropped, by groups; where some were, their number is read on the host."""
    return routing.order_S if routing.kept_S is None else routing.order_S[: int(routing.ends_G[-1])]


def _rows(routing: Routing) -> Tensor:
    """Row of each slot, int32, where rows are the kept slots by groups."""
    rows_S = torch.arange(len(routing.order_S), dtype=torch.int32, device=routing.order_S.device)
    return _by_slot(rows_S, routing, _starts(routing.ends_G))


def _by_slot(rows_S: Tensor, routing: Routing, first_row_G: Tensor) -> Tensor:
    """Row of each slot, from the rows of the sorted slots and the first row of each group."""
    row_S = torch.empty_like(rows_S).scatter_(0, routing.order_S, rows_S)
    if routing.kept_S is None:
        return row_S
    # Each lane keeps the first token of each sequence at least, so it has rows, and they begin here.
    first_row_R = first_row_G.index_select(0, routing.slots.groups_RE[:, 0])
    return row_S.where(routing.kept_S, first_row_R.index_select(0, routing.slots.lane_S))


def _starts(ends_G: Tensor) -> Tensor:
    return F.pad(ends_G[:-1], (1, 0))


def _sizes(ends_G: Tensor) -> list[int]:
    """Rows of each group, on the host: free on a CPU, a sync elsewhere."""
    return [end - start for start, end in pairwise([0, *ends_G.tolist()])]


def _pad(routing: Routing, first_row_G: Tensor, padding_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slots of rows, rows of slots and which rows are real, for groups that begin at these rows."""
    P = len(padding_P)
    sorted_S = torch.arange(len(routing.order_S), dtype=torch.int32, device=routing.order_S.device)
    group_S = torch.searchsorted(routing.ends_G, sorted_S, right=True).clamp_(max=len(routing.ends_G) - 1)
    rows_S = sorted_S + (first_row_G - _starts(routing.ends_G))[group_S]
    if routing.kept_S is not None:
        rows_S = rows_S.where(sorted_S < routing.ends_G[-1], P)
    # Dropped slots go to one row more, which is cut off.
    slot_P = F.pad(padding_P, (0, 1)).scatter_(0, rows_S.long(), routing.order_S)[:P]
    is_real_P = torch.zeros(P + 1, device=rows_S.device).scatter_(0, rows_S.long(), 1.0)[:P]
    return slot_P, _by_slot(rows_S, routing, first_row_G), is_real_P.unsqueeze(1)
