"""What LoRA files hold beyond two factors: each kind against the merged weight computed by hand in float64."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vgen.engine.memory.offload import offload_blocks
from vgen.errors import CheckpointError, RequestError
from vgen.io.weights.ltx_keys import TRANSFORMER_KEYS
from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.loading.weight_changes import ChangedLayer

LINEAR, NORM = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.norm_k"  # 32 x 32, 32
WIDE, TEXT = "transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.attn2.to_v"  # 128 x 32, 32 x 32
CALL = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(ltx_folders):
    pipe = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _clean(pipe):
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    yield
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _norm(matrix, axis):
    return np.sqrt((matrix**2).sum(axis=axis, keepdims=True))


LORA = {"lora_A.weight": _random(4, 32), "lora_B.weight": _random(32, 4, seed=1), "alpha": torch.tensor(2.0)}
HADA = {
    "hada_w1_a": _random(128, 3),
    "hada_w1_b": _random(3, 32),
    "hada_w2_a": _random(128, 3, seed=2),
    "hada_w2_b": _random(3, 32, seed=2),
    "alpha": torch.tensor(6.0),
}
ROWS, COLUMNS = _random(32, 1).abs() + 1, _random(1, 32).abs() + 1


def _lora(t):
    return t["lora_B.weight"] @ t["lora_A.weight"] * (2 / 4)


def _lokr(t, scale):
    one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    two = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    return np.kron(one, two) * scale


def _hada(t):
    return (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * (6 / 3)


def _dora(update, magnitude, axis):
    return lambda w, t: (w + update(t)) / _norm(w + update(t), axis) * magnitude(t)


# module, tensors by ending, merged weight of (weight, tensors), merged bias of (bias, tensors); in float64
KINDS = {
    "plain, with its bias": (
        LINEAR,
        {**LORA, "lora_B.bias": _random(32)},
        lambda w, t: w + _lora(t),
        lambda b, t: b + t["lora_B.bias"] * (2 / 4),
    ),
    "plain, with a difference of the bias": (
        LINEAR,
        {**LORA, "diff_b": _random(32)},
        lambda w, t: w + _lora(t),
        lambda b, t: b + t["diff_b"],
    ),
    "difference": (WIDE, {"diff": _random(128, 32), "diff_b": _random(128)}, lambda w, t: w + t["diff"],
                   lambda b, t: b + t["diff_b"]),
    "difference of a bias": (TEXT, {"diff_b": _random(32)}, lambda w, t: w, lambda b, t: b + t["diff_b"]),
    "norm": (NORM, {"diff": _random(32)}, lambda w, t: w + t["diff"], None),
    "norm of LyCORIS": (NORM, {"w_norm": _random(32)}, lambda w, t: w + t["w_norm"], None),
    "LoKr, whole": (LINEAR, {"lokr_w1": _random(4, 8), "lokr_w2": _random(8, 4), "alpha": torch.tensor(9.0)},
                    lambda w, t: w + _lokr(t, 1), None),
    "LoKr, second in factors": (
        WIDE,
        {"lokr_w1": _random(4, 4), "lokr_w2_a": _random(32, 2), "lokr_w2_b": _random(2, 8), "alpha": torch.tensor(3.0)},
        lambda w, t: w + _lokr(t, 3 / 2),
        None,
    ),
    "LoKr, both in factors, DoRA": (
        LINEAR,
        {"lokr_w1_a": _random(4, 2), "lokr_w1_b": _random(2, 8), "lokr_w2_a": _random(8, 2), "lokr_w2_b": _random(2, 4),
         "dora_scale": ROWS},
        _dora(lambda t: _lokr(t, 1), lambda t: t["dora_scale"], 1),
        None,
    ),
    "LoHa": (WIDE, HADA, lambda w, t: w + _hada(t), None),
    "DoRA by rows": (TEXT, {**LORA, "dora_scale": ROWS}, _dora(_lora, lambda t: t["dora_scale"], 1), None),
    "DoRA of peft": (
        LINEAR,
        {**LORA, "lora_magnitude_vector": ROWS[:, 0]},
        _dora(_lora, lambda t: t["lora_magnitude_vector"][:, None], 1),
        None,
    ),
    "DoRA by columns, with a bias": (
        TEXT,
        {**LORA, "dora_scale": COLUMNS, "lora_B.bias": _random(32)},
        _dora(_lora, lambda t: t["dora_scale"], 0),
        lambda b, t: b + t["lora_B.bias"] * (2 / 4),
    ),
}  # fmt: skip


def _stem(module, layout):
    original = TRANSFORMER_KEYS.to_original(f"{module}.")[:-1]
    return {
        "diffusers": f"transformer.{module}",
        "original": f"diffusion_model.{original}",
        "kohya": "lora_unet_" + original.replace(".", "_"),
    }[layout]


def _layer(pipe, module):
    layer = pipe.transformer.get_submodule(module)
    return layer.get_base_layer() if hasattr(layer, "base_layer") else layer


def _check(pipe, module, before, weight, bias, scale=1.0):
    """The fused layer against the merged weight; `scale` is the share of the way to it."""
    layer = _layer(pipe, module)
    for name, merged in (("weight", weight), ("bias", bias)):
        if merged is None:
            continue
        start = before[name].double().numpy()
        expected = torch.from_numpy(start + scale * (merged(start) - start))
        found = getattr(layer, name).detach().double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def _latents(pipe):
    return pipe(**CALL, max_sequence_length=16, generator=torch.Generator().manual_seed(3)).frames


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["diffusers", "original", "kohya"])
def test_every_kind(pipe, tmp_path, kind, layout) -> None:
    module, tensors, weight, bias = KINDS[kind]
    numbers = {name: value.double().numpy() for name, value in tensors.items()}
    before = {name: value.detach().clone() for name, value in _layer(pipe, module).named_parameters()}
    plain = _latents(pipe) if layout == "kohya" else None
    save_file({f"{_stem(module, layout)}.{name}": value for name, value in tensors.items()}, tmp_path / "a.safetensors")
    loaded = pipe.load_lora_weights(tmp_path / "a.safetensors", "a")
    assert (loaded.modules, loaded.unmatched) == ((module,), ())

    def merged(of):
        return None if of is None else (lambda start: of(start, numbers))

    for scale in (1.0, -0.5, 0.0):
        pipe.set_adapters("a", scale)
        pipe.fuse_lora()
        _check(pipe, module, before, merged(weight), merged(bias), scale)
        pipe.unfuse_lora()
    if layout != "kohya":
        return
    assert torch.equal(_latents(pipe), plain)  # a scale of 0 changes nothing
    pipe.set_adapters("a", 0.7)
    used = _latents(pipe)
    assert (used - plain).abs().max() > 1e-4
    pipe.fuse_lora()
    torch.testing.assert_close(_latents(pipe), used, rtol=0, atol=1e-4)
    pipe.transformer.unfuse_lora()  # peft's own way back, exact up to rounding
    torch.testing.assert_close(_latents(pipe), used, rtol=0, atol=1e-4)
    pipe.disable_lora()
    torch.testing.assert_close(_latents(pipe), plain, rtol=0, atol=1e-4)
    pipe.enable_lora()
    pipe.save_lora(tmp_path / "saved")
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(_latents(pipe), plain)
    pipe.load_lora_weights(tmp_path / "saved", "again")
    pipe.set_adapters("again", 0.7)
    torch.testing.assert_close(_latents(pipe), used, rtol=0, atol=1e-5)


def test_kinds_on_one_layer_add_up(pipe) -> None:
    """A plain LoRA, a LoKr, a DoRA and a difference, loaded in any order, switched, scaled and deleted one by one."""
    before = {name: value.detach().clone() for name, value in _layer(pipe, LINEAR).named_parameters()}
    start = before["weight"].double().numpy()
    kinds = {
        "lokr": KINDS["LoKr, whole"],
        "lora": (LINEAR, LORA, lambda w, t: w + _lora(t), None),
        "dora": KINDS["DoRA of peft"],
        "diff": (LINEAR, {"diff": _random(32, 32)}, lambda w, t: w + t["diff"], None),
    }
    merged = {}
    for name, (module, tensors, weight, _) in kinds.items():
        merged[name] = weight(start, {key: value.double().numpy() for key, value in tensors.items()}) - start
        pipe.load_lora_weights({f"transformer.{module}.{key}": value for key, value in tensors.items()}, name)
        assert pipe.get_active_adapters() == [name]
    assert pipe.get_list_adapters() == {"transformer": list(kinds)}
    for scales in ({"lokr": 1.0, "diff": -1.0}, {"lora": 0.5, "dora": 1.0, "diff": 0.25, "lokr": 2.0}, {"dora": 0.5}):
        pipe.set_adapters(list(scales), list(scales.values()))
        used = _latents(pipe)
        pipe.fuse_lora()
        expected = start + sum(scale * merged[name] for name, scale in scales.items())
        _check(pipe, LINEAR, before, lambda _, expected=expected: expected, None)
        torch.testing.assert_close(_latents(pipe), used, rtol=0, atol=1e-4)
        pipe.unfuse_lora()
    pipe.set_adapters(["lora", "diff"], [1.0, 1.0])
    pipe.delete_adapters("diff")
    with_lora = _latents(pipe)
    pipe.delete_adapters(["lokr", "dora"])
    torch.testing.assert_close(_latents(pipe), with_lora, rtol=0, atol=0)
    scaled = pipe(**CALL, max_sequence_length=16, generator=torch.Generator().manual_seed(3),
                  attention_kwargs={"scale": 0.0}).frames  # fmt: skip
    pipe.unload_lora_weights()
    torch.testing.assert_close(_latents(pipe), scaled, rtol=0, atol=1e-6)


def test_a_scale_of_the_call(pipe) -> None:
    pipe.load_lora_weights({f"transformer.{TEXT}.{name}": value for name, value in HADA_TEXT.items()}, "a")
    whole = _latents(pipe)
    call = {**CALL, "max_sequence_length": 16, "attention_kwargs": {"scale": 0.5}}
    half = pipe(**call, generator=torch.Generator().manual_seed(3)).frames
    assert (half - whole).abs().max() > 1e-4
    torch.testing.assert_close(_latents(pipe), whole, rtol=0, atol=0)
    pipe.set_adapters("a", 0.5)
    torch.testing.assert_close(_latents(pipe), half, rtol=0, atol=1e-5)


def test_changes_come_and_go_with_offloaded_blocks(ltx_folders) -> None:
    """All kinds at once, in blocks that are copied to the device; fused on the host, they are seen at the next call."""
    pipe = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    pipe.set_progress_bar_config(disable=True)
    for number, kind in enumerate(("difference", "norm", "LoHa", "DoRA by rows", "plain, with its bias")):
        module, tensors, _, _ = KINDS[kind]
        pipe.load_lora_weights({f"transformer.{module}.{key}": value for key, value in tensors.items()}, f"n{number}")
    pipe.set_adapters([f"n{number}" for number in range(5)], [0.5] * 5)
    expected = _latents(pipe)
    offload = offload_blocks(pipe.transformer, pipe.transformer.transformer_blocks, "cpu", prefetch=True)
    torch.testing.assert_close(_latents(pipe), expected, rtol=0, atol=1e-5)
    assert offload.num_copies == 2  # two blocks, two places
    pipe.fuse_lora()
    torch.testing.assert_close(_latents(pipe), expected, rtol=0, atol=1e-4)
    assert offload.num_copies == 4


HADA_TEXT = {name: value[:32] if name.endswith("_a") else value for name, value in HADA.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"diff": _random(32, 31)}, r"takes a difference of \[32, 32\]"),
        ({"diff_b": _random(31)}, r"takes a bias of \[32\]"),
        ({**LORA, "lora_B.bias": _random(31)}, r"takes a bias of \[32\]"),
        ({**LORA, "dora_scale": _random(31, 1)}, r"takes a magnitude of \[32, 1\] or \[1, 32\]"),
        ({"lokr_w1": _random(4, 8), "lokr_w2": _random(8, 5)}, r"takes factors of \[32, 32\]"),
        (HADA, r"takes factors of \[32, 32\]"),
        ({"lokr_w1": _random(4, 8, 1), "lokr_w2": _random(8, 4)}, "factors of two dimensions"),
        ({"lokr_w1": _random(4, 8), "lokr_w2": _random(8, 4), "lokr_t2": _random(2)}, "Tucker"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, tensors, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        pipe.load_lora_weights({f"transformer.{LINEAR}.{name}": value for name, value in tensors.items()}, "a")
    assert not getattr(pipe.transformer, "peft_config", {})
    assert not any(isinstance(module, ChangedLayer) for module in pipe.transformer.modules())


def test_only_plain_factors_are_swapped(pipe) -> None:
    plain = {f"transformer.{LINEAR}.{name}": value for name, value in LORA.items()}
    pipe.load_lora_weights(plain, "a")
    with pytest.raises(RequestError, match="cannot be swapped in place"):
        pipe.load_lora_weights({**plain, f"transformer.{LINEAR}.diff_b": _random(32)}, "a", hotswap=True)


def test_the_warning_says_what_is_left_out(pipe, caplog) -> None:
    bias = {f"transformer.{LINEAR}.{name}": value for name, value in {**LORA, "lora_B.bias": _random(32)}.items()}
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights({**bias, "transformer.proj_in.oft_blocks": _random(2)}, "a")
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "1 keys end in nothing that is read: 'transformer.proj_in.oft_blocks'" in said and "bias" not in said


def test_saved_files_keep_their_kinds(pipe, tmp_path) -> None:
    tensors = {**LORA, "dora_scale": ROWS}
    pipe.load_lora_weights({f"transformer.{LINEAR}.{name}": value for name, value in tensors.items()}, "a")
    saved = load_file(pipe.save_lora(tmp_path))
    assert {name.removeprefix(f"transformer.{LINEAR}."): tuple(value.shape) for name, value in saved.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
