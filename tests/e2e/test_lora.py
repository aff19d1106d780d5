"""LoRA on a pipeline: every layout gives the same weights, and they can be taken away again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vgen.errors import CheckpointError, RequestError
from vgen.io.media.video import read_metadata, read_video
from vgen.io.weights.ltx_keys import TRANSFORMER_KEYS
from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.loading.lora import linear_layers

RANKS = {
    "proj_in": 2,
    "time_embed.linear": 3,
    "transformer_blocks.0.attn1.to_q": 4,
    "transformer_blocks.1.ff.net.0.proj": 4,
}
ALPHAS = {"proj_in": 1.0, "time_embed.linear": 6.0, "transformer_blocks.0.attn1.to_q": 2.0}


@pytest.fixture(scope="module")
def pipe(ltx_folders):
    pipe = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _clean(pipe):
    yield
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


def _factors(pipe, seed=0):
    layers, generator = linear_layers(pipe.transformer), torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, layers[name][1], generator=generator),
            torch.randn(layers[name][0], rank, generator=generator),
        )
        for name, rank in RANKS.items()
    }


def _file(factors, layout):
    tensors = {}
    for name, (down, up) in factors.items():
        original = TRANSFORMER_KEYS.to_original(f"{name}.")[:-1]
        stem, parts = {
            "diffusers": (f"transformer.{name}", ("lora_A", "lora_B")),
            "original": (f"diffusion_model.{original}", ("lora_A", "lora_B")),
            "kohya": ("lora_unet_" + original.replace(".", "_"), ("lora_down", "lora_up")),
        }[layout]
        tensors |= {f"{stem}.{parts[0]}.weight": down, f"{stem}.{parts[1]}.weight": up}
        if name in ALPHAS:
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHAS[name])
    return tensors


def _weights(pipe):
    state = pipe.transformer.state_dict()
    return {key.replace(".base_layer", ""): value.clone() for key, value in state.items() if "lora_" not in key}


def _deltas(pipe, before):
    pipe.fuse_lora()
    after = _weights(pipe)
    pipe.unfuse_lora()
    return {name: after[f"{name}.weight"] - before[f"{name}.weight"] for name in RANKS}, after


def _expected(factors):
    return {name: (up @ down) * ALPHAS.get(name, RANKS[name]) / RANKS[name] for name, (down, up) in factors.items()}


def _close(got, expected):
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("layout", ["diffusers", "original", "kohya"])
def test_every_layout_adds_the_same_and_fusing_is_undone_to_the_bit(pipe, tmp_path, layout) -> None:
    before, factors = _weights(pipe), _factors(pipe)
    save_file(_file(factors, layout), tmp_path / "l.safetensors")
    loaded = pipe.load_lora_weights(tmp_path / "l.safetensors", "a")
    assert (loaded.layout, set(loaded.modules), loaded.unmatched) == (layout, set(RANKS), ())
    deltas, fused = _deltas(pipe, before)
    _close(deltas, _expected(factors))
    assert not torch.equal(fused["proj_in.weight"], before["proj_in.weight"])
    for key, value in _weights(pipe).items():
        assert torch.equal(value, before[key]), key
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(_weights(pipe)["proj_in.weight"], fused["proj_in.weight"])
    pipe.unfuse_lora()
    assert all(torch.equal(value, before[key]) for key, value in _weights(pipe).items())


def test_two_with_scales_add_up(pipe) -> None:
    before, first, second = _weights(pipe), _factors(pipe, 1), _factors(pipe, 2)
    pipe.load_lora_weights(_file(first, "original"), "a")
    pipe.load_lora_weights(_file(second, "kohya"), "b")
    pipe.set_adapters(["a", "b"], [0.5, -2.0])
    deltas, _ = _deltas(pipe, before)
    one, two = _expected(first), _expected(second)
    _close(deltas, {name: 0.5 * one[name] - 2.0 * two[name] for name in RANKS})


def test_saved_and_loaded_again_it_is_the_same(pipe, tmp_path) -> None:
    before = _weights(pipe)
    pipe.load_lora_weights(_file(_factors(pipe), "kohya"), "a")
    _, first = _deltas(pipe, before)
    pipe.save_lora(tmp_path)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    _, second = _deltas(pipe, before)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_does_not_fit(pipe, tmp_path, caplog) -> None:
    tensors = _file(_factors(pipe), "diffusers")
    odd = {"transformer.transformer_blocks.9.attn1.to_q.lora_A.weight": torch.zeros(2, 32)}
    loaded = pipe.load_lora_weights({**tensors, **odd}, "a")
    assert loaded.unmatched == tuple(odd) and "transformer_blocks.9" in caplog.text
    with pytest.raises(RequestError, match="is taken"):
        pipe.load_lora_weights(tensors, "a")
    with pytest.raises(CheckpointError, match="fits no layer"):
        pipe.load_lora_weights(odd, "b")
    wide = {f"transformer.proj_in.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}
    with pytest.raises(CheckpointError, match="does not fit this transformer in 1 layer: proj_in takes"):
        pipe.load_lora_weights(wide, "b")
    with pytest.raises(RequestError, match="names none"):
        pipe.save_lora(tmp_path, "c")
    assert list(pipe.transformer.peft_config) == ["a"]


def test_the_command_takes_files_with_scales(run_cli, pipe, ltx_folders, tmp_path) -> None:
    file = tmp_path / "l.safetensors"
    save_file(_file(_factors(pipe), "kohya"), file)
    words = ["generate", "a", "--model", ltx_folders["0.9.5"], "--seed", 3, "--steps", 2, "--height", 32, "--width",
             32, "--num-frames", 9, "--frame-rate", 8]  # fmt: skip
    outputs = {"plain": [], "off": ["--lora", f"{file}:0"], "on": ["--lora", file, "--lora", f"{file}:-0.5"]}
    frames, said = {}, {}
    for name, more in outputs.items():
        done = run_cli(*words, "-o", tmp_path / f"{name}.gif", *more)
        assert done.code == 0, done.err
        frames[name], said[name] = read_video(tmp_path / f"{name}.gif").frames.astype(float), " ".join(done.out.split())
    assert "4 layers, scale -0.5 (kohya keys)" in said["on"] and "LoRA" not in said["plain"]
    assert np.abs(frames["off"] - frames["plain"]).mean() < 0.5 < np.abs(frames["on"] - frames["plain"]).mean()
    assert read_metadata(tmp_path / "on.gif")["lora"] == [str(file), f"{file}:-0.5"]
    save_file({"unet.down.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    for wrong, message in (("other.safetensors", "fits no layer"), ("none.safetensors", "is not there")):
        done = run_cli(*words, "-o", tmp_path / "x.gif", "--lora", tmp_path / wrong)
        assert done.code == 2 and message in " ".join(done.err.split())
        assert not (tmp_path / "x.gif").exists()
    assert run_cli(*words, "-o", tmp_path / "x.gif", "--lora", f"{file}:1e9").code == 2


def test_pipelines_that_share_a_transformer_share_what_is_kept_of_its_loras(pipe) -> None:
    before, own = _weights(pipe), set(vars(pipe.transformer))
    pipe.load_lora_weights(_file(_factors(pipe), "kohya"), "a")
    pipe.fuse_lora()
    assert set(vars(pipe.transformer)) - own <= {"peft_config"}, "nothing of ours is hung on the transformer"
    other = type(pipe).from_pipe(pipe)
    assert other.loras.state is pipe.loras.state and other.loras.state.unfused
    other.unload_lora_weights()
    other.unfuse_lora()
    assert all(torch.equal(value, before[key]) for key, value in _weights(pipe).items())


def test_the_command_takes_the_settings_that_a_lora_was_made_for(run_cli, pipe, ltx_folders, tmp_path) -> None:
    """Without --steps or --guidance-scale: its sigmas are what the clip is made with, and nothing else is allowed."""
    few = {"num_inference_steps": 2, "guidance_scale": 1.0, "sigmas": [1.0, 0.7], "distilled": True}
    tensors = _file(_factors(pipe), "diffusers")
    save_file(tensors, tmp_path / "few.safetensors", {"vgen_defaults": json.dumps(few)})
    save_file(tensors, tmp_path / "other.safetensors", {"vgen_defaults": json.dumps({**few, "sigmas": [1.0, 0.5]})})
    words = ["generate", "a", "--model", ltx_folders["0.9.5"], "--seed", 3, "--height", 32, "--width", 32,
             "--num-frames", 9, "--frame-rate", 8, "--lora", tmp_path / "few.safetensors"]  # fmt: skip
    done = run_cli(*words, "-o", tmp_path / "clip.gif")
    assert done.code == 0, done.err
    made = read_metadata(tmp_path / "clip.gif")
    assert (made["num_inference_steps"], made["sigmas"], made["guidance_scale"]) == (2, [1.0, 0.7], 1.0)
    for more, message in (
        (("--steps", 3), "num_inference_steps=3: this model was distilled for exactly 2 steps"),
        (("--guidance-scale", 3), "guidance_scale=3.0: this model was distilled with its guidance"),
        (("--lora", tmp_path / "other.safetensors"), "another LoRA for [1.0, 0.7]: use one of them"),
    ):
        refused = run_cli(*words, *more, "-o", tmp_path / "x.gif")
        assert refused.code == 2 and message in " ".join(refused.err.split()), refused.err
        assert not (tmp_path / "x.gif").exists()
