"""VideoDiT as a citizen of diffusers, and its own rules."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import LayerSkipConfig, apply_group_offloading, apply_layer_skip
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from vgen.errors import RequestError, ShapeError
from vgen.models import VideoDiT
from vgen.models.transformer.block import VideoDiTBlock


def _same(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_two_steps_of_the_forward_can_be_taken_over(dit, dit_inputs):
    plain, taken = dit(**dit_inputs).sample, []

    class Steps:
        def embed(self, *inputs):
            taken.append("embed")
            return dit.embed(*inputs)

        def run_blocks(self, inputs, skips=None):
            taken.append("run_blocks")
            return dit.run_blocks(inputs, skips)

    dit.fast_path = Steps()
    assert torch.equal(dit(**dit_inputs).sample, plain)
    dit.fast_path = None
    assert torch.equal(dit(**dit_inputs).sample, plain)
    assert taken == ["embed", "run_blocks"]


@torch.no_grad()
def test_one_timestep_for_all_tokens_equals_one_by_sample(dit, dit_inputs):
    by_sample = torch.tensor([700.0, 20.0])
    dit_inputs["timestep"] = by_sample[:, None].expand(2, 6)
    by_token = dit(**dit_inputs).sample
    dit_inputs["timestep"] = by_sample
    _same(dit(**dit_inputs).sample, by_token)


@torch.no_grad()
def test_a_token_feels_its_own_timestep_most(dit, dit_inputs):
    before = dit(**dit_inputs).sample
    dit_inputs["timestep"][0, 2] += 300
    change = (dit(**dit_inputs).sample - before).abs().amax(dim=-1)
    assert change[0].argmax() == 2
    assert change[1].max() == 0, "the other sample must not notice"


@torch.no_grad()
def test_tokens_are_a_set_with_coordinates(dit, dit_inputs):
    """Permuting tokens, their timesteps and coordinates permutes the answer."""
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    expected = dit(**dit_inputs).sample[:, order]
    for key, axis in (("hidden_states", 1), ("timestep", 1), ("video_coords", 2)):
        dit_inputs[key] = dit_inputs[key].index_select(axis, order)
    _same(dit(**dit_inputs).sample, expected)


@torch.no_grad()
def test_coordinates_may_be_shared_by_the_batch(dit, dit_inputs):
    dit_inputs["video_coords"] = dit_inputs["video_coords"][:1]
    shared = dit(**dit_inputs).sample
    dit_inputs["video_coords"] = dit_inputs["video_coords"].expand(2, -1, -1)
    _same(dit(**dit_inputs).sample, shared)


@torch.no_grad()
def test_rope_settings_matter_and_are_saved_only_where_changed(dit, dit_config, dit_inputs, tmp_path):
    near = VideoDiT(**dit_config, rope_theta=100.0, rope_base_size=(4, 64, 64)).eval()
    near.load_state_dict(dit.state_dict())
    assert (near(**dit_inputs).sample - dit(**dit_inputs).sample).abs().max() > 1e-3
    dit.save_pretrained(tmp_path / "plain")
    near.save_pretrained(tmp_path / "near")
    plain_keys = json.loads((tmp_path / "plain/config.json").read_text())
    near_keys = json.loads((tmp_path / "near/config.json").read_text())
    assert not {"rope_theta", "rope_base_size"} & plain_keys.keys()
    assert near_keys["rope_theta"] == 100.0 and near_keys["rope_base_size"] == [4, 64, 64]
    again = VideoDiT.from_pretrained(tmp_path / "near")
    _same(again(**dit_inputs).sample, near(**dit_inputs).sample)
    again = VideoDiT.from_pretrained(tmp_path / "plain")
    _same(again(**dit_inputs).sample, dit(**dit_inputs).sample)


def test_gradient_checkpointing_changes_no_gradient(dit, dit_inputs):
    gradients = []
    for enable in (False, True):
        dit.zero_grad()
        if enable:
            dit.enable_gradient_checkpointing()
        dit.train()(**dit_inputs).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in dit.named_parameters()})
    for name, expected in gradients[0].items():
        _same(gradients[1][name], expected)
        assert expected.abs().max() > 0, f"{name} gets no gradient"


@torch.no_grad()
def test_fused_projections_give_the_same(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    dit.fuse_qkv_projections()
    block = dit.transformer_blocks[0]
    assert block.attn1.to_qkv.out_features == 72 and block.attn2.to_kv.out_features == 48
    for attention in (block.attn1, block.attn2):
        attention.to_k.weight.fill_(float("nan"))  # proves that the fused ones are used
    _same(dit(**dit_inputs).sample, expected)


@torch.no_grad()
def test_attention_backends_are_this_models_own_affair(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    default, _ = _AttentionBackendRegistry.get_active_backend()
    dit.set_attention_backend("_native_math")
    assert dit.transformer_blocks[1].attn2.processor._attention_backend == AttentionBackendName._NATIVE_MATH
    assert _AttentionBackendRegistry.get_active_backend()[0] == default
    _same(dit(**dit_inputs).sample, expected)
    dit.reset_attention_backend()
    assert dit.transformer_blocks[1].attn2.processor._attention_backend is None
    with pytest.raises(ValueError, match="must be one of"):
        dit.set_attention_backend("no such thing")


@pytest.mark.parametrize(("backend", "shape"), [("xformers", (2, 5)), ("flex", (2, 1, 1, 5)), (None, (2, 1, 1, 5))])
@torch.no_grad()
def test_every_backend_gets_the_mask_in_its_own_shape(dit, dit_inputs, monkeypatch, backend, shape):
    seen = []

    def dispatch(query, key, value, attn_mask, backend, parallel_config):
        seen.append(attn_mask)
        return query

    monkeypatch.setattr("vgen.models.transformer.attention.dispatch_attention_fn", dispatch)
    for block in dit.transformer_blocks:
        block.attn2.processor._attention_backend = AttentionBackendName(backend) if backend else None
    dit(**dit_inputs)
    assert [mask if mask is None else tuple(mask.shape) for mask in seen] == [None, shape] * 2
    assert torch.equal(seen[1].flatten(1), dit_inputs["encoder_attention_mask"].bool())


@torch.no_grad()
def test_lora_round_trip(dit, dit_config, dit_inputs, tmp_path):
    plain = dit(**dit_inputs).sample
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    dit.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=targets), adapter_name="style")
    torch.manual_seed(3)
    for name, parameter in dit.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.3)
    tuned = dit(**dit_inputs).sample
    assert (tuned - plain).abs().max() > 1e-3
    _same(dit(**dit_inputs, attention_kwargs={"scale": 0.0}).sample, plain)
    _same(dit(**dit_inputs).sample, tuned)
    assert len(get_peft_model_state_dict(dit, adapter_name="style")) == 2 * 4 * 2 * 2
    dit.save_lora_adapter(tmp_path, adapter_name="style")

    other = VideoDiT(**dit_config).eval()
    dit.unload_lora()
    other.load_state_dict(dit.state_dict())
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".safetensors"
    other.load_lora_adapter(str(tmp_path), weight_name=file.name, prefix=None, adapter_name="style")
    _same(other(**dit_inputs).sample, tuned)
    other.disable_adapters()
    _same(other(**dit_inputs).sample, plain)


@torch.no_grad()
def test_layerwise_casting_stores_small_and_computes_large(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    dit.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    block = dit.transformer_blocks[0]
    assert block.ff.net[2].weight.dtype == torch.float8_e4m3fn
    assert block.attn1.norm_q.weight.dtype == torch.float32
    cast = dit(**dit_inputs).sample
    assert cast.dtype == torch.float32
    assert 0 < (cast - expected).abs().max() < 0.2


@torch.no_grad()
def test_group_offloading_gives_the_same(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    apply_group_offloading(
        dit, onload_device="cpu", offload_device="cpu", offload_type="block_level", num_blocks_per_group=1
    )
    _same(dit(**dit_inputs).sample, expected)


@torch.no_grad()
def test_first_block_cache_skips_the_rest_where_nothing_changed(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    dit.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    calls = []
    dit.transformer_blocks[1].ff.register_forward_hook(lambda *_: calls.append(1))
    with dit.cache_context("cond"):
        _same(dit(**dit_inputs).sample, expected)
        _same(dit(**dit_inputs).sample, expected)
    assert len(calls) == 1, "the second call comes from the cache"
    dit.disable_cache()
    _same(dit(**dit_inputs).sample, expected)


@torch.no_grad()
def test_a_block_can_be_skipped(dit, dit_config, dit_inputs):
    short = VideoDiT(**{**dit_config, "num_layers": 1}).eval()
    short.load_state_dict({k: v for k, v in dit.state_dict().items() if not k.startswith("transformer_blocks.1.")})
    apply_layer_skip(dit, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    _same(dit(**dit_inputs).sample, short(**dit_inputs).sample)


@torch.no_grad()
def test_bfloat16_stays_close(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    dit.to(torch.bfloat16)
    for key in ("hidden_states", "encoder_hidden_states"):
        dit_inputs[key] = dit_inputs[key].to(torch.bfloat16)
    velocity = dit(**dit_inputs).sample
    assert velocity.dtype == torch.bfloat16
    torch.testing.assert_close(velocity.float(), expected, atol=0.05, rtol=0.05)


def test_class_attributes_that_diffusers_reads_name_real_things(dit):
    assert VideoDiT._repeated_blocks == VideoDiT._no_split_modules == [VideoDiTBlock.__name__]
    assert VideoDiT._supports_gradient_checkpointing and VideoDiT._supports_group_offloading
    for name in VideoDiT._cp_plan:
        assert name == "" or dit.get_submodule(name) is not None


@torch.no_grad()
def test_regional_compile_is_one_graph_for_all_blocks(dit, dit_inputs):
    expected = dit(**dit_inputs).sample
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    dit.compile_repeated_blocks(fullgraph=True, backend=backend)
    _same(dit(**dit_inputs).sample, expected)
    assert len(graphs) == 1, "both blocks run the same graph"
    torch._dynamo.reset()


def test_fresh_weights_start_quiet_and_alive(dit, dit_inputs):
    dit.init_weights(torch.Generator().manual_seed(0))
    again = VideoDiT.from_config(dit.config)
    again.init_weights(torch.Generator().manual_seed(0))
    for (name, one), other in zip(dit.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), f"{name} is not drawn from the generator"
    velocity = dit.train()(**dit_inputs).sample
    assert velocity.abs().max() == 0
    dit.proj_out.weight.data.normal_(0, 0.1)
    dit(**dit_inputs).sample.square().mean().backward()
    dead = [name for name, p in dit.named_parameters() if p.grad.abs().max() == 0]
    assert not dead, f"no gradient reaches {dead}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": torch.zeros(1)}, r"timestep has shape \(1,\)"),
        ({"timestep": torch.tensor(3.0)}, r"timestep has shape \(\)"),
        ({"timestep": torch.zeros(2, 5)}, r"timestep has shape \(2, 5\)"),
        ({"video_coords": torch.zeros(2, 6, 3)}, r"video_coords has shape \(2, 6, 3\)"),
        ({"video_coords": torch.zeros(2, 3, 5)}, r"positions for 2 x 5 tokens .* must be \[2, 3, 6\]"),
        ({"video_coords": None}, "num_frames, height and width"),
        ({"video_coords": None, "num_frames": 2, "height": 2, "width": 2}, "positions for 1 x 8 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(dit, dit_inputs, change, message):
    with pytest.raises(ShapeError, match=message):
        dit(**{**dit_inputs, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cross_attention_dim": 20}, ShapeError, "use 24"),
        ({"attention_head_dim": 3, "num_attention_heads": 1, "cross_attention_dim": 3}, ShapeError, "use 2 or 4"),
        ({"qk_norm": "layer_norm"}, RequestError, "rms_norm_across_heads"),
        ({"activation_fn": "relu"}, RequestError, "gelu-approximate"),
    ],
)
def test_configurations_that_cannot_work_are_refused(dit_config, change, error, message):
    with pytest.raises(error, match=message):
        VideoDiT(**{**dit_config, **change})
