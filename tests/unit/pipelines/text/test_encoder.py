"""Prompts to embeddings."""

import logging

import pytest
import torch
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from vgen.pipelines.text.encoder import encode_texts


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return ByT5Tokenizer(extra_ids=125), T5EncoderModel(config).eval()


@torch.no_grad()
def test_order_and_equal_texts(encoder):
    calls = []
    hook = encoder[1].register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    embeds, mask = encode_texts(*encoder, ["b", "a", "b", ""], 6, masked=True, device="cpu")
    hook.remove()
    assert calls == [3]
    assert embeds.shape == (4, 6, 16)
    assert torch.equal(embeds[0], embeds[2])
    assert not torch.equal(embeds[0], embeds[1])
    assert mask.sum(dim=1).tolist() == [2, 2, 2, 1]
    assert mask.dtype == torch.bool


@torch.no_grad()
def test_padding_reaches_the_text_only_without_a_mask(encoder):
    for masked in (True, False):
        short, long = (encode_texts(*encoder, ["ab"], length, masked=masked, device="cpu")[0] for length in (3, 9))
        assert torch.allclose(short[:, :3], long[:, :3], atol=1e-5) is masked


@torch.no_grad()
def test_what_is_cut_off_is_said(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encode_texts(*encoder, ["abcdefgh", "abc"], 6, masked=True, device="cpu")
    (record,) = caplog.records
    assert "'fgh'" in record.getMessage()
    caplog.clear()
    encode_texts(*encoder, ["abcde"], 6, masked=True, device="cpu")
    assert not caplog.records
