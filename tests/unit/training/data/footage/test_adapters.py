"""LoRAs that are trained: where they go, how they begin, and frozen weights in 8 bits."""

from __future__ import annotations

import pytest
import torch

from vgen.errors import RequestError, VgenError
from vgen.training.config.data import LoraConfig
from vgen.training.objectives.lora import add_lora, lora_layers, quantize_blocks


@pytest.fixture
def transformer(make_native_components):
    return make_native_components()["transformer"]


def _call(transformer):
    generator = torch.Generator().manual_seed(0)
    tokens, text = torch.randn(1, 6, 4, generator=generator), torch.randn(1, 3, 32, generator=generator)
    mask, coordinates = torch.ones(1, 3, dtype=torch.bool), torch.rand(1, 3, 6, generator=generator)
    return transformer(
        tokens, text, torch.tensor([500.0]), encoder_attention_mask=mask, video_coords=coordinates, return_dict=False
    )[0]


def test_targets_by_name(transformer) -> None:
    attention = lora_layers(transformer, ["attention"])
    assert len(attention) == 2 * 8 and all(".attn" in name for name in attention)
    assert len(lora_layers(transformer, ["blocks"])) == 2 * 10
    assert set(lora_layers(transformer, ["blocks"])) < set(lora_layers(transformer, ["all"]))
    assert lora_layers(transformer, ["attn1.to_q", "proj_out"])[-1] == "proj_out"
    with pytest.raises(RequestError, match="'nothing' is no linear layer"):
        lora_layers(transformer, ["attention", "nothing"])


def test_it_begins_as_the_base_and_only_it_is_trained(transformer, make_native_components) -> None:
    before = _call(transformer)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    add_lora(transformer, LoraConfig(rank=3, alpha=6.0), seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(_call(transformer), before)
    trained = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 20 and all("lora_" in name for name in trained)
    again = make_native_components()["transformer"]
    add_lora(again, LoraConfig(rank=3, alpha=6.0), seed=4)
    parameters = dict(again.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in trained.items())


def test_without_torchao_the_refusal_says_what_to_install(transformer, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(VgenError, match=r"pip install 'vgen\[low-memory\]'"):
        quantize_blocks(transformer, "int8")


@pytest.mark.parametrize(("kind", "within"), [("int8", 0.02), ("float8", 0.1)])
def test_frozen_weights_in_8_bits_train_a_lora(transformer, kind, within) -> None:
    pytest.importorskip("torchao")
    before = _call(transformer)
    quantize_blocks(transformer, kind)
    after = _call(transformer)
    assert 0 < float((after - before).norm() / before.norm()) < within
    add_lora(transformer, LoraConfig(rank=2), seed=0)
    _call(transformer).square().mean().backward()
    gradients = [value.grad for value in transformer.parameters() if value.requires_grad]
    assert len(gradients) == 40 and sum(bool(gradient.any()) for gradient in gradients) == 20  # the second factors
