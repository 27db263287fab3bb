"""Random numbers are good enough, and depend on a lane's seed, step and place in the model alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moesearch.model.randomness import DropoutRates, LayerRandomness, Place, StepRandomness

CPU = torch.device("cpu")


def layer(seeds: list[int], step: int = 0, index: int = 0) -> LayerRandomness:
    seeds_R = torch.tensor(seeds)
    return StepRandomness(seeds_R, torch.full_like(seeds_R, step)).layers(3)[index]


def masks(rate: float, steps: int = 24, rows: int = 256, columns: int = 64) -> Tensor:
    """Masks of consecutive steps of one lane, (steps, rows, columns)."""
    rates = DropoutRates([rate], CPU)
    return torch.cat(
        [rates.mask(layer([7], step).row_keys(Place.EXPERT_OUTPUT, rows), columns) for step in range(steps)]
    )


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_entries_are_dropped_at_the_rate(rate: float) -> None:
    mask = masks(rate)
    dropped = 1 - float(mask.double().mean())
    assert dropped == pytest.approx(rate, abs=4.5 * (rate * (1 - rate) / mask.numel()) ** 0.5)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("byte", range(4))
def test_all_four_draws_of_a_word_have_the_rate(byte: int) -> None:
    part = masks(0.3)[..., byte::4]
    assert float(part.mean()) == pytest.approx(0.7, abs=4.5 * (0.21 / part.numel()) ** 0.5)


def test_a_scaled_mask_keeps_the_expectation() -> None:
    rates = DropoutRates([0.0, 0.1, 0.37], CPU)
    kept = 1 - torch.tensor([0.0, 0.1, 0.37])
    torch.testing.assert_close(rates.scale_R * kept, torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["steps", "rows", "columns"])
def test_entries_are_independent_along_each_axis(axis: int) -> None:
    centred = masks(0.3).movedim(axis, 0).flatten(1) - 0.7
    correlation = centred @ centred.T / centred.shape[1] / 0.21
    off_diagonal = correlation - torch.diag(correlation.diag())
    # The largest of up to 256 * 255 / 2 normal deviations of 1 / sqrt(n).
    assert float(off_diagonal.abs().max()) < 5.5 / centred.shape[1] ** 0.5


def test_sums_of_rows_and_columns_vary_as_those_of_independent_entries() -> None:
    mask = masks(0.3)
    for axis, length in ((2, 64), (1, 256)):
        sums = mask.sum(axis)
        assert float(sums.var()) / (0.21 * length) == pytest.approx(1, abs=5 * (2 / sums.numel()) ** 0.5)


def test_places_layers_and_seeds_draw_different_masks() -> None:
    rates = DropoutRates([0.5], CPU)
    drawn = [
        rates.mask(source.row_keys(place, 64), 64).flatten() - 0.5
        for source in (layer([7]), layer([7], index=1), layer([8]), layer([7], step=1))
        for place in Place
    ]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert float(correlation.abs().max()) < 5 / 64


def test_normal_numbers_have_normal_moments() -> None:
    normal = layer([7, 8]).normal(Place.ROUTER_NOISE, 4096, 24).double()
    count = normal.numel()
    assert float(normal.mean()) == pytest.approx(0, abs=4.5 / count**0.5)
    assert float(normal.var()) == pytest.approx(1, abs=4.5 * (2 / count) ** 0.5)
    assert float((normal**3).mean()) == pytest.approx(0, abs=4.5 * (15 / count) ** 0.5)
    assert float((normal**4).mean()) == pytest.approx(3, abs=4.5 * (96 / count) ** 0.5)
    assert 4 < float(normal.abs().max()) < 6


def test_normal_numbers_of_neighbouring_tokens_and_experts_are_independent() -> None:
    normal_NE = layer([7]).normal(Place.ROUTER_NOISE, 512, 32)[0]
    for rows in (normal_NE, normal_NE.T):
        correlation = torch.corrcoef(rows) - torch.eye(len(rows))
        assert float(correlation.abs().max()) < 5.5 / rows.shape[1] ** 0.5


def test_a_lanes_numbers_do_not_depend_on_its_place_or_neighbours() -> None:
    alone, beside = layer([7]), layer([3, 4, 7])
    rates, mixed = DropoutRates([0.2], CPU), DropoutRates([0.5, 0.0, 0.2], CPU)
    for place in Place:
        mask, beside_mask = (r.mask(s.row_keys(place, 9), 13) for r, s in ((rates, alone), (mixed, beside)))
        assert torch.equal(mask[0], beside_mask[2])
        assert torch.equal(alone.normal(place, 9, 5)[0], beside.normal(place, 9, 5)[2])


def test_an_entry_does_not_depend_on_how_many_are_drawn() -> None:
    rates, source = DropoutRates([0.2], CPU), layer([7])
    large = rates.mask(source.row_keys(Place.EXPERT_OUTPUT, 20), 30)
    assert torch.equal(rates.mask(source.row_keys(Place.EXPERT_OUTPUT, 8), 6), large[:, :8, :6])
    normal = source.normal(Place.ROUTER_NOISE, 20, 30)
    assert torch.equal(source.normal(Place.ROUTER_NOISE, 8, 6), normal[:, :8, :6])


def test_keys_of_chosen_rows_are_those_of_all_rows() -> None:
    source = layer([7, 8])
    keys_RN = source.row_keys(Place.EXPERT_OUTPUT, 6)
    lane_M, row_M = torch.tensor([1, 0, 1]), torch.tensor([5, 2, 0], dtype=torch.int32)
    assert torch.equal(source.keys_of(Place.EXPERT_OUTPUT, lane_M, row_M), keys_RN[lane_M, row_M.long()])
    rates = DropoutRates([0.2, 0.6], CPU)
    mask_RNJ = rates.mask(keys_RN, 12)
    assert torch.equal(rates.mask_of(keys_RN[lane_M, row_M.long()], lane_M, 12), mask_RNJ[lane_M, row_M.long()])


def test_the_streams_have_not_moved() -> None:
    """Whoever changes them breaks exact resume across versions: say so in the changelog."""
    source = layer([7], step=3)
    assert source.row_keys(Place.ATTENTION_WEIGHTS, 3).tolist() == [[1460558098, -591956699, -1032067398]]
    bits = DropoutRates([0.5], CPU).mask(source.row_keys(Place.EXPERT_OUTPUT, 1), 16)
    assert "".join(str(int(bit)) for bit in bits.flatten()) == "1101010001001101"


def test_rates_near_one_drop_all_but_every_256th_entry() -> None:
    rates = DropoutRates([0.9999], CPU)
    mask = rates.mask(layer([7]).row_keys(Place.EXPERT_OUTPUT, 512), 512)
    assert float(mask.mean()) == pytest.approx(1 / 256, rel=0.1)
    assert rates.scale_R.tolist() == [256]


def test_lanes_without_dropout_keep_everything() -> None:
    rates = DropoutRates([0.0, 0.5], CPU)
    x_RNC = torch.randn(2, 6, 8)
    dropped = rates.apply(x_RNC, layer([1, 2]), Place.ATTENTION_OUTPUT)
    assert torch.equal(dropped[0], x_RNC[0])
    assert (dropped[1] == 0).any()
    assert rates.apply(x_RNC, None, Place.ATTENTION_OUTPUT) is x_RNC
