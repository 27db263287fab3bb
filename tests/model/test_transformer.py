from __future__ import annotations

import pytest
import torch

from moesearch.config.resolve import resolve
from moesearch.config.trial import TrialConfig
from moesearch.model.cost import total_params
from moesearch.model.losses import language_model_losses
from moesearch.model.transformer import MoETransformer, replace_lane, select_lane
from tests.model.tiny import MIX, VOCAB_SIZE, mixed_trials, model_of, randomness_for, tokens_for, trial

ARTICLE = resolve(TrialConfig(), {"model.attention_scale": "width"})
# The 65 characters of tiny Shakespeare, in the order of their tokens.
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

TEXT = """To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles
And by opposing end them. To die: to sleep;
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to, 'tis a consummation
Devoutly to be wish'd. To die, to sleep;
"""


@pytest.fixture(scope="module")
def article_model() -> MoETransformer:
    return MoETransformer([ARTICLE], len(CHARACTERS), expert_backend="grouped")


def test_the_articles_model_has_the_articles_number_of_parameters(article_model: MoETransformer) -> None:
    assert sum(tensor.numel() for tensor in article_model.lane_parameters(0).values()) == 8_996_545


def test_the_articles_model_starts_at_the_articles_loss(article_model: MoETransformer) -> None:
    ids = torch.tensor([CHARACTERS.index(character) for character in TEXT])
    windows = ids.unfold(0, 33, 16)[None]
    with torch.no_grad():
        loss = language_model_losses(article_model(windows[..., :-1]).logits_RBTV, windows[..., 1:])
    assert 5.2 < float(loss) < 5.5


@pytest.mark.parametrize("lane", range(len(MIX)))
def test_a_lane_holds_exactly_the_parameters_that_its_configuration_counts(lane: int) -> None:
    configs = mixed_trials()
    held = sum(tensor.numel() for tensor in model_of(*configs).lane_parameters(lane).values())
    assert held == total_params(configs[lane], VOCAB_SIZE)


def test_names_and_shapes_of_a_lane_do_not_depend_on_its_neighbours() -> None:
    configs = mixed_trials()
    together = model_of(*configs)
    for lane, config in enumerate(configs):
        alone = model_of(config).lane_parameters(0)
        beside = together.lane_parameters(lane)
        assert {name: t.shape for name, t in beside.items()} == {name: t.shape for name, t in alone.items()}


def test_a_lanes_tensors_are_contiguous_views_of_the_model() -> None:
    model = model_of(*mixed_trials())
    for lane in range(len(MIX)):
        for tensor in model.lane_parameters(lane).values():
            assert tensor.is_contiguous()
            tensor.fill_(lane + 1.0)
    assert all(float(tensor.min()) == 1.0 == float(tensor.max()) for tensor in model.lane_parameters(0).values())


def test_a_lane_without_noise_has_no_noise_router() -> None:
    noisy, quiet = trial({"moe.noise": True}), trial()
    names = [set(model_of(noisy, quiet).lane_parameters(lane)) for lane in range(2)]
    assert names[0] - names[1] == {
        f"layers.{layer}.moe.router.noise.{leaf}" for layer in range(2) for leaf in ("weight", "bias")
    }


def test_without_randomness_two_passes_are_bit_equal() -> None:
    model = model_of(*mixed_trials())
    window_RBT = tokens_for(model.configs, context=7)
    assert torch.equal(model(window_RBT).logits_RBTV, model(window_RBT).logits_RBTV)


def test_noise_and_dropout_are_absent_in_evaluation() -> None:
    quiet = trial(seed=1)
    noisy = trial({"moe.noise": True, "model.dropout": 0.5}, seed=1)
    model = model_of(noisy)
    silent = model_of(quiet)
    silent.load_lane(0, {name: t for name, t in model.lane_parameters(0).items() if ".noise." not in name})
    window_RBT = tokens_for([quiet], context=7)
    torch.testing.assert_close(model(window_RBT).logits_RBTV, silent(window_RBT).logits_RBTV, rtol=0, atol=0)


def test_with_noise_and_dropout_off_training_is_deterministic() -> None:
    config = trial()
    model = model_of(config)
    window_RBT = tokens_for([config], context=7)
    steps = [model(window_RBT, randomness_for([config], step)).logits_RBTV for step in range(2)]
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], model(window_RBT).logits_RBTV)


@pytest.mark.parametrize("params", [{"moe.noise": True}, {"model.dropout": 0.2}])
def test_each_step_draws_anew_where_a_trial_is_random(params: dict[str, object]) -> None:
    config = trial(params)
    model = model_of(config)
    window_RBT = tokens_for([config], context=7)
    first, again, second = (model(window_RBT, randomness_for([config], step)).logits_RBTV for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_later_token_never_changes_an_earlier_output(noise: bool, is_training: bool) -> None:
    config = trial({"moe.noise": noise, "model.dropout": 0.1})
    model = model_of(config)
    randomness = randomness_for([config]) if is_training else None
    window_RBT = tokens_for([config], context=7)
    logits_RBTV = model(window_RBT, randomness).logits_RBTV
    for position in range(window_RBT.shape[2]):
        changed_RBT = window_RBT.clone()
        changed_RBT[..., position:] = (changed_RBT[..., position:] + 1) % VOCAB_SIZE
        changed_RBTV = model(changed_RBT, randomness).logits_RBTV
        torch.testing.assert_close(changed_RBTV[:, :, :position], logits_RBTV[:, :, :position])
        assert not torch.allclose(changed_RBTV[:, :, position], logits_RBTV[:, :, position])


def test_one_sequence_never_changes_another() -> None:
    config = trial({"moe.num_experts": 8, "moe.top_k": 3})
    model = model_of(config)
    window_RBT = tokens_for([config], context=7)
    changed_RBT = window_RBT.clone()
    changed_RBT[:, 1:] = (changed_RBT[:, 1:] + 1) % VOCAB_SIZE
    before, after = model(window_RBT).logits_RBTV, model(changed_RBT).logits_RBTV
    torch.testing.assert_close(after[:, 0], before[:, 0])


def test_a_shorter_context_gives_the_beginning_of_a_longer_one() -> None:
    config = trial()
    model = model_of(config)
    window_RBT = tokens_for([config], context=7)
    torch.testing.assert_close(
        model(window_RBT[..., :3]).logits_RBTV, model(window_RBT).logits_RBTV[:, :, :3], rtol=1e-5, atol=1e-5
    )


def test_replacing_a_lane_keeps_the_others_bit_for_bit() -> None:
    model = model_of(*mixed_trials())
    newcomer = trial({"moe.num_experts": 9, "moe.top_k": 4}, seed=9)
    replaced = replace_lane(model, 1, newcomer)
    for lane in (0, 2, 3):
        for name, tensor in model.lane_parameters(lane).items():
            assert torch.equal(replaced.lane_parameters(lane)[name], tensor), name
    for name, tensor in model_of(newcomer).lane_parameters(0).items():
        assert torch.equal(replaced.lane_parameters(1)[name], tensor), name


def test_a_selected_lane_has_tensors_of_its_own() -> None:
    model = model_of(*mixed_trials())
    alone = select_lane(model, 2)
    before = {name: tensor.clone() for name, tensor in model.lane_parameters(2).items()}
    for tensor in alone.lane_parameters(0).values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.lane_parameters(2).items())


def test_loading_tensors_of_another_model_says_what_does_not_fit() -> None:
    model = model_of(trial())
    with pytest.raises(ValueError, match=r"layers\.0\.moe\.router\.noise\.bias.* on one side only"):
        model.load_lane(0, model_of(trial({"moe.noise": True})).lane_parameters(0))
    with pytest.raises(ValueError, match=r"has shape \(5, .*\), the lane \(4, "):
        model.load_lane(0, model_of(trial({"moe.num_experts": 5})).lane_parameters(0))


def test_lanes_of_two_shape_families_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape family; these differ in context \(4, 8\)$"):
        model_of(trial(), trial({"model.context": 4, "moe.num_experts": 2}))


def test_logits_are_float32_also_with_bfloat16_products() -> None:
    config = trial({"model.dropout": 0.1, "moe.noise": True})
    model = model_of(config, dtype=torch.bfloat16)
    logits_RBTV = model(tokens_for([config], context=7), randomness_for([config])).logits_RBTV
    assert logits_RBTV.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in model.lane_parameters(0).values())


def test_bfloat16_products_stay_near_float32_ones() -> None:
    config = trial()
    window_RBT = tokens_for([config], context=7)
    near = model_of(config, dtype=torch.bfloat16)(window_RBT).logits_RBTV
    torch.testing.assert_close(near, model_of(config)(window_RBT).logits_RBTV, rtol=0.1, atol=0.1)
