"""Weights as people have them: variants, shards, and what an earlier save left behind."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from vgen.errors import CheckpointError, RequestError
from vgen.hub.find import model_hash, resolve_model, text_encoder_bytes
from vgen.io.weights.weight_files import find_weights, variants_in
from vgen.models import CausalVideoVAE, LatentUpsampler, VideoDiT
from vgen.pipelines import LatentUpsamplePipeline, TextToVideoPipeline, load_upsampler
from vgen.pipelines.loading.model_files import ModelParts
from vgen.pipelines.text.cache import TextCache

NAME = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_folder: Path) -> TextToVideoPipeline:
    return TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"config.json"}


def _same(ours: torch.nn.Module, other: torch.nn.Module, factor: float = 1.0) -> bool:
    pairs = zip(ours.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x * factor, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("shards", ["10GB", "30KB"])
def test_a_variant_is_saved_and_loaded(pipe, tmp_path, shards) -> None:
    """By ours and by diffusers' class, whole and in shards, from a folder that holds nothing else, named or not."""
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    for name in ("transformer", "vae", "text_encoder"):
        assert variants_in(tmp_path / name) == ["fp16"]
        assert len(find_weights(tmp_path / name, "fp16").files) > (1 if shards == "30KB" else 0)
    for loaded in (
        TextToVideoPipeline.from_pretrained(tmp_path, variant="fp16", use_safetensors=True),
        TextToVideoPipeline.from_pretrained(tmp_path),
        diffusers.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16"),
    ):
        assert type(loaded) is TextToVideoPipeline
        for name in ("transformer", "vae", "text_encoder"):
            assert _same(getattr(pipe, name), getattr(loaded, name))
            assert str(getattr(loaded, name).config._name_or_path).startswith(str(tmp_path))
        assert str(loaded.config._name_or_path) == str(tmp_path) and loaded.name_of_model == tmp_path.name
    model = VideoDiT.from_pretrained(tmp_path, subfolder="transformer", variant="fp16")
    assert _same(pipe.transformer, model)
    with pytest.raises(OSError, match="no file named"):  # a model alone is as strict as diffusers' own
        VideoDiT.from_pretrained(tmp_path / "transformer")


def test_every_name_of_an_index_is_known(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="30KB")
    for name, stem in (("transformer", NAME), ("text_encoder", "model")):
        index = tmp_path / name / f"{stem}.safetensors.index.fp16.json"
        for other in ("safetensors.fp16.index.json", "fp16.safetensors.index.json"):
            index = index.rename(index.with_name(f"{stem}.{other}"))
            loaded = TextToVideoPipeline.from_pretrained(tmp_path, variant="fp16")
            assert _same(getattr(pipe, name), getattr(loaded, name))


def test_of_each_component_the_variant_where_it_has_it(pipe, tiny_pipeline_folder, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    whole = folder / "transformer" / f"{NAME}.safetensors"
    doubled = {key: value * 2 for key, value in load_file(whole).items()}
    save_file(doubled, folder / "transformer" / f"{NAME}.fp16.safetensors")
    (folder / "transformer" / "LICENSE").write_text("free")
    plain, half = (TextToVideoPipeline.from_pretrained(folder, variant=v) for v in (None, "fp16"))
    assert _same(pipe.transformer, plain.transformer) and _same(pipe.transformer, half.transformer, 2)
    assert _same(pipe.vae, half.vae) and _same(pipe.text_encoder, half.text_encoder)
    with pytest.raises(CheckpointError, match=r"no weights of variant='bf16' \(variants there: fp16\); leave it out"):
        resolve_model(folder, variant="bf16")
    with pytest.raises(RequestError, match=r"variant='\.\./x' must be a name such as 'fp16'"):
        TextToVideoPipeline.from_pretrained(folder, variant="../x")
    with pytest.raises(RequestError, match="use_safetensors=False would run what a pickle says"):
        TextToVideoPipeline.from_pretrained(folder, use_safetensors=False)
    save_file(doubled, folder / "transformer" / f"{NAME}.bf16.safetensors")
    whole.unlink()
    with pytest.raises(CheckpointError, match=r"only the variants bf16, fp16: pass variant='bf16'"):
        TextToVideoPipeline.from_pretrained(folder)
    damaged = folder / "transformer" / f"{NAME}.fp16.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"fp16\.safetensors is truncated"):
        resolve_model(folder, variant="fp16")


@pytest.mark.parametrize("shards_are_there", [True, False])
def test_a_whole_file_counts_before_an_old_index(
    pipe, tiny_pipeline_folder, tmp_path, caplog, shards_are_there
) -> None:
    """It is what is loaded, checked and hashed, by every way in."""
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    clean = model_hash(folder)
    part = folder / "transformer"
    whole = load_file(part / f"{NAME}.safetensors")
    old = {key: torch.zeros_like(value) for key, value in whole.items()}
    save_file(old, part / f"{NAME}-00001-of-00001.safetensors")
    index = part / f"{NAME}.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(old, f"{NAME}-00001-of-00001.safetensors")})
    )
    if not shards_are_there:
        (part / f"{NAME}-00001-of-00001.safetensors").unlink()
    assert model_hash(folder) == clean
    with caplog.at_level(logging.WARNING):
        loaded = TextToVideoPipeline.from_pretrained(folder)
    assert f"{index.name}, which another save left behind, is ignored" in caplog.text
    for model in (loaded.transformer, VideoDiT.from_pretrained(part), diffusers.AutoModel.from_pretrained(str(part))):
        assert _same(pipe.transformer, model)
    whole_file = part / f"{NAME}.safetensors"
    whole_file.write_bytes(whole_file.read_bytes()[:-4])
    assert model_hash(folder) != clean
    with pytest.raises(CheckpointError, match=rf"{NAME}\.safetensors is truncated"):
        TextToVideoPipeline.from_pretrained(folder)


def test_saving_over_another_save_leaves_only_what_was_saved(pipe, tmp_path) -> None:
    for size in ("10GB", "30KB", "10GB", "20KB", "60KB"):
        pipe.save_pretrained(tmp_path, max_shard_size=size)
        for name in ("transformer", "vae", "text_encoder"):
            stem = "model" if name == "text_encoder" else NAME
            files = {path.name for path in find_weights(tmp_path / name).files}
            listed = files | ({f"{stem}.safetensors.index.json"} if len(files) > 1 else set())
            assert _names(tmp_path / name) == listed
    assert _same(pipe.vae, CausalVideoVAE.from_pretrained(tmp_path / "vae"))
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    assert _names(tmp_path / "transformer") == {f"{NAME}.safetensors"}
    pipe.transformer.save_pretrained(tmp_path / "transformer", variant="fp16")
    assert _names(tmp_path / "transformer") == {f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"}
    pipe.transformer.save_pretrained(tmp_path / "transformer", variant="fp16", max_shard_size="30KB")
    pipe.transformer.save_pretrained(tmp_path / "transformer")  # diffusers removes the shards of every variant
    assert _names(tmp_path / "transformer") == {f"{NAME}.safetensors"}


def test_an_upsampler_of_a_variant_or_in_shards(pipe, tmp_path) -> None:
    torch.manual_seed(0)
    upsampler = LatentUpsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1, dims=3)
    whole = LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)
    for variant, size in ((None, "100KB"), ("fp16", "10GB"), ("fp16", "100KB")):
        folder = tmp_path / f"{variant}-{size}"
        whole.save_pretrained(folder, variant=variant, max_shard_size=size)
        again = LatentUpsamplePipeline.from_pretrained(folder, variant=variant)
        assert _same(upsampler, again.latent_upsampler) and _same(pipe.vae, again.vae)
        assert _same(upsampler, load_upsampler(folder))


def test_the_only_variant_counts_where_none_is_named(pipe, tmp_path) -> None:
    """What a command can do, which names no variant."""
    pipe.save_pretrained(tmp_path / "model", variant="bf16", max_shard_size="30KB")
    assert _same(pipe.vae, ModelParts.find(tmp_path / "model").load_vae())
    assert text_encoder_bytes(tmp_path / "model") == sum(
        file.stat().st_size for file in (tmp_path / "model" / "text_encoder").glob("*.safetensors")
    )


def test_a_text_encoder_of_a_variant_is_cached_as_such(pipe, tiny_pipeline_folder, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    other = {key: value.flip(0).contiguous() for key, value in weights.items()}
    save_file(other, folder / "text_encoder" / "model.fp16.safetensors", metadata={"format": "pt"})
    clean, half = model_hash(tiny_pipeline_folder), model_hash(folder, "fp16")
    assert model_hash(folder) == clean != half
    cache = TextCache(tmp_path / "cache")
    encoded = []
    for variant in (None, "fp16", None):
        expected = TextToVideoPipeline.from_pretrained(folder, variant=variant).encode_prompt("a", None, False)
        found = TextToVideoPipeline.from_pretrained(folder, variant=variant, text_cache=cache)
        encoded.append(found.encode_prompt("a", None, False).prompt_embeds)
        torch.testing.assert_close(encoded[-1], expected.prompt_embeds, rtol=0, atol=1e-5)
    assert (encoded[0] - encoded[1]).abs().max() > 0.01
    assert found.deferred_text.loads == 0
