"""Clips of any length: what was given stays, segments follow their prompts, an interrupted clip goes on as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vgen.io.media.take import take_folder
from vgen.io.media.video import read_metadata, read_video, write_video
from vgen.pipelines import MaskedPredictionPipeline
from vgen.pipelines.long_video import Part, blend, make_windows
from vgen.request.windows import plan_windows

STORY = """
seed = 3
num_inference_steps = 2
[[segment]]
prompt = "a red circle"
num_frames = 20
[[segment]]
prompt = "a blue square"
num_frames = 14
cross_fade = 1.0
guidance_scale = 1.5
"""


class Kept:
    """Frames in memory, and every call that the pipeline got."""

    def __init__(self, first: np.ndarray | None = None) -> None:
        self.windows_done = 0
        self.parts: list[np.ndarray] = []
        if first is not None:
            self.append(first)

    def append(self, frames: np.ndarray) -> None:
        self.parts.append(frames)
        self.windows_done += 1

    def last(self, count: int) -> np.ndarray:
        return np.concatenate(self.parts)[-count:]

    def first(self) -> np.ndarray:
        return self.parts[0][0]


@pytest.fixture(params=["native", "0.9.5"])
def words(request, tiny_pipeline_folder, ltx_folders):
    model = tiny_pipeline_folder if request.param == "native" else ltx_folders[request.param]
    return ["--model", model, "--height", 32, "--width", 32, "--num-frames", 17, "--frame-rate", 8]


@pytest.fixture
def story(tmp_path):
    (tmp_path / "s.toml").write_text(STORY)
    return tmp_path / "s.toml"


def test_a_video_is_extended(run_cli, words, tmp_path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(f"{tmp_path}/v/", frames, 8.0, {}, False)
    output = f"{tmp_path}/out/"
    done = run_cli("extend", tmp_path / "v", "a", "--seconds", 3, *words, "--steps", 2, "--seed", 1, "-o", output)
    assert done.code == 0, done.err
    made = read_video(output).frames
    assert made.shape == (11 + 24, 32, 32, 3) and np.array_equal(made[:11], frames)
    assert read_metadata(output)["seconds"] == 3
    assert not take_folder(output).exists()
    for wrong, message in ((["--overlap", 4], "overlap=4"), (["--seconds", 0], "seconds=0")):
        done = run_cli("extend", tmp_path / "v", "a", "--seconds", 3, *words, *wrong, "-o", f"{tmp_path}/x/")
        assert done.code == 2 and message in " ".join(done.err.split()), done.err
        assert not (tmp_path / "x").exists() and not take_folder(f"{tmp_path}/x/").exists()


def test_a_story(run_cli, words, story, tmp_path) -> None:
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "p.png")
    outputs = {}
    more = {"first": ["--reference", "first"], "looks": ["--reference", tmp_path / "p.png"]}
    for name in ("plain", "again", "first", "looks", "image"):
        if name == "image":
            story.write_text(f'image = "{tmp_path / "p.png"}"\n' + STORY)
        done = run_cli("story", story, *words, *more.get(name, []), "-o", f"{tmp_path / name}/")
        assert done.code == 0, done.err
        outputs[name] = read_video(tmp_path / name).frames
        assert outputs[name].shape == (34, 32, 32, 3)
    assert np.array_equal(outputs["plain"], outputs["again"])
    assert np.array_equal(outputs["plain"][:10], outputs["first"][:10])
    assert not np.array_equal(outputs["first"], outputs["plain"])
    assert not np.array_equal(outputs["looks"], outputs["plain"])
    assert read_metadata(tmp_path / "first")["reference"] == "first"
    assert (outputs["image"][0] == (200, 30, 30)).all()
    assert [part["prompt"] for part in read_metadata(tmp_path / "plain")["segments"]] == [
        "a red circle",
        "a blue square",
    ]


@pytest.mark.parametrize("words", ["native"], indirect=True)
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed = 3", "sed = 3", "'sed' is not a field"),
        ("seed = 3", "seed = -3", "seed=-3"),
        ("num_frames = 14", "", "segment 2: a segment needs seconds or num_frames"),
        ("num_inference_steps = 2", 'image = "none.png"', "none.png"),
        ("num_inference_steps = 2", 'reference = "none.png"', "none.png"),
    ],
)
def test_stories_that_are_wrong(run_cli, words, story, tmp_path, before, after, message) -> None:
    story.write_text(STORY.replace(before, after))
    done = run_cli("story", story, *words, "-o", tmp_path / "x.mp4")
    assert done.code == 2 and message in " ".join(done.err.split()), done.err
    assert {path.name for path in tmp_path.iterdir()} == {"s.toml"}


@pytest.mark.parametrize("words", ["native"], indirect=True)
def test_an_interrupted_story_goes_on(run_cli, words, story, tmp_path, monkeypatch) -> None:
    assert run_cli("story", story, *words, "-o", f"{tmp_path}/whole/").code == 0
    calls = []
    generate = MaskedPredictionPipeline._generate

    def failing(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *arguments, **keywords)

    monkeypatch.setattr(MaskedPredictionPipeline, "_generate", failing)
    assert run_cli("story", story, *words, "-o", f"{tmp_path}/out/").code == 130
    assert take_folder(f"{tmp_path}/out/").is_dir() and not (tmp_path / "out").exists()
    done = run_cli("story", story, *words, "-o", f"{tmp_path}/out/")
    assert done.code == 0 and "Resumed at frame" in done.out
    windows = len(plan_windows([20, 14], 17, 5, 4))
    assert len(calls) == windows + 1
    assert np.array_equal(read_video(tmp_path / "out").frames, read_video(tmp_path / "whole").frames)
    assert not take_folder(f"{tmp_path}/out/").exists()


def test_a_window_sees_what_came_before_and_nothing_else(make_native_components) -> None:
    pipe = MaskedPredictionPipeline(**make_native_components())
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 32, "width": 32, "frame_rate": 8.0, "num_inference_steps": 2, "max_sequence_length": 16}
    windows = plan_windows([24, 16], 17, 5, 4)
    kept = Kept()
    make_windows(pipe, [Part("a red circle"), Part("a blue square", cross_fade=16)], windows, kept, 7, **settings)
    frames = np.concatenate(kept.parts)
    assert frames.shape == (40, 32, 32, 3)
    last, start = windows[-1], Kept(frames[: windows[-1].start])
    make_windows(
        pipe, [Part("a red circle"), Part("a blue square", cross_fade=16)], [*windows[:-1], last], start, 7,
        first_windows=1 - (len(windows) - 1), **settings,
    )  # fmt: skip
    assert np.array_equal(start.parts[-1], kept.parts[-1])


def test_every_window_is_given_the_reference(make_native_components, monkeypatch) -> None:
    pipe = MaskedPredictionPipeline(**make_native_components())
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 32, "width": 32, "frame_rate": 8.0, "num_inference_steps": 2, "max_sequence_length": 16}
    seen = []
    call = MaskedPredictionPipeline.__call__
    monkeypatch.setattr(
        MaskedPredictionPipeline, "__call__",
        lambda self, conditions, **rest: seen.append(conditions) or call(self, conditions=conditions, **rest),
    )  # fmt: skip
    windows = plan_windows([30], 17, 5, 4)
    picture = np.full((32, 32, 3), 200, np.uint8)
    frames = {}
    for name, reference in {"none": None, "first": "first", "picture": picture}.items():
        seen.clear()
        kept = Kept()
        make_windows(pipe, [Part("a red circle")], windows, kept, 7, reference=reference, **settings)
        frames[name] = np.concatenate(kept.parts)
        first = frames[name][0]
        given = [[entry.frames for entry in conditions if entry.reference] for conditions in seen]
        expected = {"none": [None] * 3, "first": [None, first, first], "picture": [picture] * 3}
        for found, wanted in zip(given, expected[name], strict=True):
            assert (found == []) if wanted is None else np.array_equal(found[0], wanted)
    start = windows[0].new
    assert np.array_equal(frames["none"][:start], frames["first"][:start])
    assert not np.array_equal(frames["none"][start:], frames["first"][start:])
    assert not np.array_equal(frames["none"], frames["picture"])


def test_prompts_between_two_prompts() -> None:
    embeds = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    mixed, both = blend(embeds, mask, 0.25)
    assert torch.equal(both, mask[:1])
    torch.testing.assert_close(mixed[0, :2], 0.75 * embeds[0, :2] + 0.25 * embeds[1, :2])
    assert torch.equal(mixed[0, 2], embeds[0, 2])
    for share, row in ((0.0, 0), (1.0, 1)):
        assert torch.equal(blend(embeds, mask, share)[0][0, :2], embeds[row, :2])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("words", ["native"], indirect=True)
def test_memory_stays_flat(words, tmp_path) -> None:
    """2,000 frames take no more memory than 200; the frames lie on disk."""
    code = """
import resource, sys
from vgen.cli import main
for frames in ("200", "2000"):
    try:
        main([frames + ".toml" if word == "STORY" else word for word in sys.argv[1:]] + ["-o", frames + ".mp4"])
    except SystemExit as leaving:
        assert not leaving.code
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    for frames in (200, 2000):
        text = f'seed = 1\n[[segment]]\nprompt = "a"\nnum_frames = {frames}\n'
        (tmp_path / f"{frames}.toml").write_text(text)
    sides = ["--height", 64, "--width", 64, "--steps", 1, "--guidance-scale", 1]
    # A process of its own: this one may have been larger before, and its peak would hide any growth.
    done = subprocess.run(
        [sys.executable, "-c", code, "story", "STORY", *map(str, [*words, *sides])],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert large - small < 12_000  # kB; the frames alone are 24,576


def _write_lora(file, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stem = "transformer.transformer_blocks.0.attn1.to_q"
    sides = {"lora_A": (2, 24), "lora_B": (24, 2)}
    save_file({f"{stem}.{name}.weight": torch.randn(shape, generator=generator) for name, shape in sides.items()}, file)


@pytest.mark.parametrize("words", ["native"], indirect=True)
def test_an_interrupted_story_does_not_go_on_with_other_inputs(run_cli, words, story, tmp_path, monkeypatch) -> None:
    """Files of the same name and size may hold something else: each is meant by its content."""
    encoder, lora = tmp_path / "encoder", tmp_path / "mine.safetensors"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(words[1] / part, encoder / part)
    _write_lora(lora, 0)
    fail_at, calls = [2], []
    generate = MaskedPredictionPipeline._generate

    def failing(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == fail_at[0]:
            raise KeyboardInterrupt
        return generate(self, *arguments, **keywords)

    monkeypatch.setattr(MaskedPredictionPipeline, "_generate", failing)

    def windows_done(window: int) -> int:
        """Windows that are kept after an interrupt in the `window`-th of this start."""
        calls.clear()
        fail_at[0] = window
        output = f"{tmp_path}/out/"
        more = ["--text-encoder", encoder, "--lora", lora, "--seed", 1, "-o", output]
        assert run_cli("story", story, *words, *more).code == 130
        state = take_folder(output) / "state.json"
        return json.loads(state.read_text())["windows"] if state.exists() else 0

    assert windows_done(2) == 1
    assert windows_done(1) == 1, "nothing has changed"
    _write_lora(lora, 1)
    assert windows_done(1) == 0, "another LoRA"
    assert windows_done(2) == 1
    weights = encoder / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert windows_done(1) == 0, "another text encoder"


def test_a_clip_says_which_lora_made_it(run_cli, tiny_pipeline_folder, tmp_path) -> None:
    lora, made = tmp_path / "mine.safetensors", {}
    for seed in (0, 1):
        _write_lora(lora, seed)
        words = ["--model", tiny_pipeline_folder, "--lora", lora, "--steps", 1, "--seed", 1, "--num-frames", 5]
        done = run_cli("generate", "a", *words, "-o", tmp_path / f"{seed}.gif")
        assert done.code == 0, done.err
        made[seed] = read_metadata(tmp_path / f"{seed}.gif")
    assert made[0].pop("contents") != made[1].pop("contents") and made[0] == made[1]
