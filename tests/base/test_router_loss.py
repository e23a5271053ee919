"""What is noticed of the load-balancing loss, and that transformers adds it as its config says."""

import torch

import lorica
from lorica.base.router_loss import router_loss_notices
from tests.base.architectures import tiny

IDS = torch.tensor([[5, 9, 33, 70, 12, 8, 99, 40]])


def test_the_notice_says_what_the_config_says():
    (notice,) = router_loss_notices(tiny("mixtral"))
    assert "is not added, as the base's config says" in notice
    model = tiny("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    (notice,) = router_loss_notices(model)
    assert "router_aux_loss_coef: 0.5" in notice and "lorica train does not" in notice
    for name in ("llama", "deepseek_v3", "gpt2"):
        assert router_loss_notices(tiny(name)) == []


def test_an_adapted_model_keeps_the_loss_of_its_config():
    """As the notice says of transformers' Trainer, which takes the model's own loss."""
    plain = tiny("mixtral")
    balanced = tiny("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    losses = []
    for model in (plain, balanced):
        lorica.adapt(model, lorica.Lora(r=2), target_parameters="experts")
        output = model(input_ids=IDS, labels=IDS)
        losses.append(output)
    torch.testing.assert_close(losses[1].loss, losses[0].loss + 0.5 * losses[1].aux_loss)
    assert losses[1].aux_loss > 0.5
