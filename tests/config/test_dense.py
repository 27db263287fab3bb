from __future__ import annotations

from moesearch.config.dense import dense_control
from moesearch.config.trial import MoEConfig, TrialConfig


def test_the_control_is_as_wide_as_the_experts_of_a_token() -> None:
    control = dense_control(TrialConfig(moe=MoEConfig(top_k=3, expert_hidden_dim=100)))
    assert (control.moe.num_experts, control.moe.top_k, control.expert_hidden_dim) == (1, 1, 300)


def test_the_control_keeps_everything_but_the_router() -> None:
    config = TrialConfig(moe=MoEConfig(noise=False, router_z_loss_weight=0.1, init="xavier_normal"), seed=5)
    control = dense_control(config)
    assert control.moe == MoEConfig(num_experts=1, top_k=1, expert_hidden_dim=1024, init="xavier_normal")
    assert control.model_copy(update={"moe": config.moe}) == config


def test_a_dense_control_is_its_own_control() -> None:
    control = dense_control(TrialConfig())
    assert dense_control(control) == control


def test_routers_fields_are_not_read_without_a_router() -> None:
    configs = [TrialConfig(moe=MoEConfig(num_experts=1, top_k=1, noise=noise)) for noise in (False, True)]
    assert configs[0].fingerprint() == configs[1].fingerprint()
