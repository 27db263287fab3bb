from __future__ import annotations

import pytest
import torch

from moesearch.model.layers import softmax


@pytest.mark.parametrize("num_entries", [1, 2, 15, 16, 40])
def test_softmax_is_torchs_whatever_the_width(num_entries: int) -> None:
    x = torch.randn(2, 7, num_entries, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 7, num_entries, dtype=torch.float64)
    expected = torch.softmax(x, -1)
    torch.testing.assert_close(softmax(x), expected)
    ours, theirs = (torch.autograd.grad(y, x, grad)[0] for y in (softmax(x), expected))
    torch.testing.assert_close(ours, theirs)
