"""Prompts whose embeddings are known load no text encoder; what comes out is the same."""

from __future__ import annotations

import shutil

import pytest
import torch

from vgen.engine.lossy.quantize import Int8WeightLinear
from vgen.errors import CheckpointError, RequestError
from vgen.io.media.video import read_metadata, read_video
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline
from vgen.pipelines.text.cache import DeferredText, TextCache, cache_folder

FORWARD = Int8WeightLinear.forward
CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}


def _latents(pipe, prompt="a fox", **more):
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, max_sequence_length=16, generator=torch.Generator().manual_seed(3), **CALL, **more).frames


@pytest.mark.parametrize("name", ["0.9.5", "native"])
def test_the_second_run_loads_no_encoder_and_gives_the_same(name, ltx_folders, tiny_pipeline_folder, tmp_path) -> None:
    folder = tiny_pipeline_folder if name == "native" else ltx_folders[name]
    plain = _latents(TextToVideoPipeline.from_pretrained(folder))
    for loads in (1, 0):
        pipe = TextToVideoPipeline.from_pretrained(folder, text_cache=TextCache(tmp_path / "cache"))
        assert pipe.text_encoder is None and pipe.tokenizer is None
        torch.testing.assert_close(_latents(pipe), plain, rtol=0, atol=1e-5)
        assert pipe.deferred_text.loads == loads
    assert (_latents(pipe, "another") - plain).abs().max() > 1e-4
    assert pipe.deferred_text.loads == 1


def test_the_weights_may_even_be_gone(ltx_folders, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ltx_folders["0.9.5"], folder)
    cache = TextCache(tmp_path / "cache")
    pipe = TextToVideoPipeline.from_pretrained(folder, text_cache=cache)
    first = _latents(pipe)
    shutil.rmtree(folder / "text_encoder")
    assert torch.equal(_latents(pipe), first)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        _latents(pipe, "another")


def test_other_weights_lengths_or_masks_are_other_entries(ltx_folders, tmp_path) -> None:
    folder = tmp_path / "model"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(ltx_folders["0.9.5"] / part, folder / part)
    cache = TextCache(tmp_path / "cache")
    text = DeferredText(folder, torch.float32, cache)
    for masked, length in ((True, 8), (False, 8), (True, 9)):
        embeds, mask = text.encode(["a"], length, masked=masked, device="cpu")
        assert embeds.shape[:2] == mask.shape == (1, length)
    assert text.loads == 3
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + " ")
    other = DeferredText(folder, torch.float32, cache)
    other.encode(["a"], 8, masked=True, device="cpu")
    assert other.loads == 1 and len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("way", ["dropped", "blocks"])
def test_an_encoder_in_8_bits_is_near_and_an_entry_of_its_own(way, ltx_folders, tmp_path) -> None:
    cache = TextCache(tmp_path / "cache")
    exact = DeferredText(ltx_folders["0.9.5"], torch.float32, cache)
    narrow = DeferredText(ltx_folders["0.9.5"], torch.float32, cache)
    narrow.quantize, narrow.way = "int8-weights", way
    found = [text.encode(["a fox", "two"], 8, masked=True, device="cpu")[0] for text in (exact, narrow)]
    assert narrow.loads == 1 and len(list((tmp_path / "cache").iterdir())) == 4
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert 1e-5 < float(error) < 0.02
    again = DeferredText(ltx_folders["0.9.5"], torch.float32, cache)
    assert torch.equal(again.encode(["two"], 8, masked=True, device="cpu")[0][0], found[0][1]) and again.loads == 0


def test_the_command_with_an_encoder_in_8_bits(run_cli, ltx_folders, tmp_path, monkeypatch) -> None:
    """One that stays beside the other models, and one that comes for new prompts only."""
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    words = ["generate", "a fox", "--model", ltx_folders["0.9.5"], "--seed", 3, "--steps", 2, "--height", 32]
    words += ["--width", 32, "--num-frames", 9]
    narrowed = []
    monkeypatch.setattr(Int8WeightLinear, "forward", lambda self, x: (narrowed.append(1), FORWARD(self, x))[1])
    for name, more in {"beside": (), "deferred": ("--text-cache",)}.items():
        narrowed.clear()
        made = run_cli(*words, *more, "--quantize-text", "int8-weights", "-o", tmp_path / f"{name}.gif")
        assert made.code == 0 and "Lossy" in made.out, made.err
        assert narrowed
        assert read_metadata(tmp_path / f"{name}.gif")["lossy"] == ["quantize_text=int8-weights"]


def test_faults_of_the_disk_cost_time_and_nothing_else(ltx_folders, tmp_path, caplog) -> None:
    text = DeferredText(ltx_folders["0.9.5"], torch.float32, TextCache(tmp_path / "cache"))
    first, _ = text.encode(["a", "b", "a"], 8, masked=True, device="cpu")
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    again, _ = text.encode(["a"], 8, masked=True, device="cpu")
    assert text.loads == 2
    torch.testing.assert_close(again[0], first[0], rtol=0, atol=1e-6)
    (tmp_path / "file").write_text("not a folder")
    blocked = DeferredText(ltx_folders["0.9.5"], torch.float32, TextCache(tmp_path / "file"))
    for _ in range(2):
        blocked.encode(["a"], 8, masked=True, device="cpu")
    assert blocked.loads == 1 and "cannot be written" in caplog.text


def test_the_oldest_entries_go_first(ltx_folders, tmp_path) -> None:
    text = DeferredText(ltx_folders["0.9.5"], torch.float32, TextCache(tmp_path / "cache"))
    text.encode(["a"], 8, masked=True, device="cpu")
    size = next((tmp_path / "cache").iterdir()).stat().st_size
    text.cache.max_bytes = 3 * size
    for word in "bcdefg":
        text.encode([word], 8, masked=True, device="cpu")
    assert len(list((tmp_path / "cache").iterdir())) <= 3
    text.encode(["g"], 8, masked=True, device="cpu")
    assert text.loads == 7


def test_what_was_cut_off_is_said_each_time(ltx_folders, tmp_path, caplog) -> None:
    for _ in range(2):
        caplog.clear()
        text = DeferredText(ltx_folders["0.9.5"], torch.float32, TextCache(tmp_path))
        text.encode(["a long prompt of many words that has no room in so few tokens"], 4, masked=True, device="cpu")
        assert "is left out" in caplog.text
    assert text.loads == 0


def test_it_is_shared_and_saved_whole(ltx_folders, tmp_path) -> None:
    pipe = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"], text_cache=TextCache())
    shared = ImageToVideoPipeline.from_pipe(pipe)
    assert shared.deferred_text is pipe.deferred_text
    assert TextToVideoPipeline(**shared.components).deferred_text is pipe.deferred_text
    expected = _latents(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.text_encoder is None
    whole = TextToVideoPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(_latents(whole), expected, rtol=0, atol=1e-5)
    with pytest.raises(RequestError, match="text_cache cannot be given together with text_encoder"):
        TextToVideoPipeline.from_pretrained(tmp_path / "saved", text_cache=TextCache(), text_encoder=whole.text_encoder)
    bare = TextToVideoPipeline(**{**whole.components, "text_encoder": None, "tokenizer": None})
    with pytest.raises(RequestError, match="no text encoder"):
        _latents(bare)


def test_from_a_single_file(ltx_original, tmp_path) -> None:
    texts, file = ltx_original("0.9.5")
    plain = _latents(TextToVideoPipeline.from_pretrained(file, text_encoder_folder=texts))
    pipe = TextToVideoPipeline.from_pretrained(file, text_encoder_folder=texts, text_cache=TextCache(tmp_path / "c"))
    torch.testing.assert_close(_latents(pipe), plain, rtol=0, atol=1e-5)


def test_the_command(run_cli, ltx_folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(ltx_folders["0.9.5"], folder)
    words = ["--model", folder, "--seed", 3, "--steps", 2, "--height", 32, "--width", 32, "--num-frames", 9]
    assert run_cli("generate", "a fox", *words, "-o", tmp_path / "plain.gif").code == 0
    assert run_cli("generate", "a fox", *words, "-o", tmp_path / "a.gif", "--no-text-cache").code == 0
    assert not cache_folder().exists()
    loads = []
    load = DeferredText.load
    monkeypatch.setattr(DeferredText, "load", lambda self: (loads.append(1), load(self))[1])
    (tmp_path / "prompts.txt").write_text("a fox\na hare\n")
    done = run_cli(
        "generate", "--prompts", tmp_path / "prompts.txt", *words, "-o", f"{tmp_path}/clips/", "--text-cache"
    )
    assert done.code == 0, done.err
    assert len(loads) == 1 and list(cache_folder().iterdir())
    assert run_cli("generate", "a fox", *words, "-o", tmp_path / "b.gif", "--text-cache").code == 0
    assert len(loads) == 1
    plain = read_video(tmp_path / "plain.gif").frames.astype(float)
    for name in ("a", "b"):
        assert abs(read_video(tmp_path / f"{name}.gif").frames - plain).mean() < 0.5


def test_an_encoder_from_elsewhere(run_cli, ltx_original, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    folder, file = ltx_original("0.9.5")
    texts = tmp_path / "texts"
    for part in ("text_encoder", "tokenizer"):
        shutil.move(folder / part, texts / part)
    shutil.rmtree(folder)
    words = [
        "generate",
        "a",
        "--model",
        file,
        "--seed",
        3,
        "--steps",
        1,
        "--height",
        32,
        "--width",
        32,
        "--num-frames",
        9,
    ]
    lost = run_cli(*words, "-o", tmp_path / "a.gif")
    assert lost.code == 2 and "hf download" in lost.err and not (tmp_path / "a.gif").exists()
    assert run_cli(*words, "-o", tmp_path / "a.gif", "--text-encoder", texts).code == 0
