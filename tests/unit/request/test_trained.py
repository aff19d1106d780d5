"""What a model was trained for: stated by its folder, no part of its identity, refused or warned of beyond."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vgen.errors import CheckpointError, ShapeError, UntrainedWarning
from vgen.hub.find import model_hash, resolve_model
from vgen.hub.model import Model
from vgen.io.media.video import write_video
from vgen.pipelines import ImageToVideoPipeline, MaskedPredictionPipeline, TextToVideoPipeline, VideoCondition
from vgen.request.trained import Trained, unwarned, widened
from vgen.types import Strides, VideoShape

STATED = {
    "height": [32, 32],
    "width": [32, 64],
    "num_frames": [1, 17],
    "words": "a ball moves up",
    "world": "It knows one ball.",
}
STRIDES = Strides(4, 8, 8)
TASKS = ["generate", "animate", "interpolate", "predict", "loop", "inpaint", "outpaint", "extend", "story", "restyle"]


def _stating(folder: Path, stated: object) -> Path:
    file = folder / "model_index.json"
    index = {**json.loads(file.read_text()), "trained": stated}
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


@pytest.fixture
def stating(paper_model: Path) -> Path:
    return _stating(paper_model, STATED)


def test_a_statement_does_not_change_what_a_model_is(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))
    plain = json.loads((folder / "model_index.json").read_text())
    plain.pop("trained", None)
    (folder / "model_index.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    before = model_hash(folder)
    assert model_hash(_stating(folder, STATED)) == before
    assert model_hash(_stating(folder, None)) == before
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "convention": "original"}, indent=2, sort_keys=True))
    assert model_hash(folder) != before


def test_the_embedded_model_is_the_one_that_was_scored() -> None:
    scored = json.loads(Path("docs/scores/sprites-256.json").read_text())["hash"]
    assert model_hash(resolve_model("sprites")) == scored


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((17, 64, 64), r"width=64, height=64 is not a size .*\(height 32, width 32 to 64\); use 64 x 32"),
        ((21, 32, 32), r"num_frames=21 is not a length .*\(1 to 17\); use 17"),
        ((25, 32, 128), "use 64 x 32; and num_frames=25 .* use 17"),
        ((17, 32, 16), "use 32 x 32"),
    ],
)
def test_beyond_it_the_nearest_is_named(shape: tuple[int, int, int], says: str) -> None:
    trained = Trained.read({"trained": STATED})
    with pytest.raises(ShapeError, match=says):
        trained.refuse(VideoShape(*shape), STRIDES)
    with pytest.warns(UntrainedWarning, match=says):
        trained.warn_of_size(VideoShape(*shape), STRIDES)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 80), st.integers(1, 80))


@given(sizes, sizes, sizes, st.booleans())
def test_the_nearest_size_is_a_trained_one(asked, first, second, bounded) -> None:
    low, high = (tuple(f(a, b) for a, b in zip(first, second, strict=True)) for f in (min, max))
    pixels = {"pixels": [low[1] * 8 * low[2] * 8, high[1] * 8 * high[2] * 8]}
    sides = {"height": [low[1] * 8, high[1] * 8], "width": [low[2] * 8, high[2] * 8]}
    stated = {**(pixels if bounded else sides), "num_frames": [low[0] * 4 + 1, high[0] * 4 + 1]}
    trained, shape = Trained.read({"trained": stated}), VideoShape(asked[0] * 4 + 1, asked[1] * 8, asked[2] * 8)
    nearest = trained.nearest(shape, STRIDES)
    nearest.check(STRIDES)
    if not bounded:
        assert trained.outside(nearest, STRIDES) is None
    assert (trained.outside(shape, STRIDES) is None) == (nearest == shape)


def test_ltx_video_is_warned_of_and_never_refused(ltx_folders: dict[str, Path], ltx_original) -> None:
    strides = Strides(8, 32, 32)
    published = [Model("", folder).trained for folder in ltx_folders.values()]
    published += [Model("", ltx_original("0.9.5")[1]).trained, Trained.read({"convention": "original"})]
    for trained in published:
        for fits in (VideoShape(257, 704, 1216), VideoShape(257, 1280, 704), VideoShape(9, 32, 32)):
            trained.refuse(fits, strides)
            assert trained.outside(fits, strides) is None
        large = VideoShape(265, 1088, 1920)
        trained.refuse(large, strides)
        with pytest.warns(UntrainedWarning, match="use 1248 x 704; and num_frames=265 .* use 257"):
            trained.warn_of_size(large, strides)
        assert trained.unknown_words("a cat rides a surfboard") == []


@pytest.mark.parametrize(
    "stated",
    [[], {"height": 64}, {"height": [64, 32]}, {"width": [True, 64]}, {"words": 3}, {"hight": [1, 2]},
     {"num_frames": [0, 9]}, {"reconstruction_psnr": "x"}],
)  # fmt: skip
def test_a_statement_that_makes_no_sense_is_refused(stated: object) -> None:
    with pytest.raises(CheckpointError, match=r"'trained' in model_index\.json"):
        Trained.read({"trained": stated})


def test_words() -> None:
    trained = Trained.read({"trained": STATED})
    assert trained.unknown_words("A ball, moves UP.") == []
    assert trained.unknown_words(["A Bäll moves; a cat moves", "up, cat!"]) == ["cat"]
    assert Trained().unknown_words("a cat") == []


def test_further_training_widens_it() -> None:
    wide = widened(STATED, [VideoShape(33, 64, 128), VideoShape(1, 16, 32)])
    assert wide == {"height": [16, 64], "width": [32, 128], "num_frames": [1, 33]}
    assert widened(None, [VideoShape(33, 64, 128)]) is None


@pytest.fixture
def given_files(tmp_path: Path) -> dict[str, list[object]]:
    """Arguments of every command that makes a clip."""
    picture, video, mask, story = (tmp_path / name for name in ("a.png", "a.mp4", "mask.png", "story.toml"))
    Image.new("RGB", (32, 32)).save(picture)
    write_video(video, np.zeros((9, 32, 32, 3), np.uint8), 8.0)
    Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8)).save(mask)
    story.write_text('[[segment]]\nprompt = "a ball and a cat"\nseconds = 2\n')
    return {
        "generate": ["a ball and a cat"],
        "animate": [picture, "a ball and a cat"],
        "interpolate": [picture, picture, "a ball and a cat"],
        "predict": [video, "a ball and a cat", "--keep-frames", 5],
        "loop": ["a ball and a cat"],
        "inpaint": [video, "a ball and a cat", "--mask", mask],
        "outpaint": [video, "a ball and a cat"],
        "extend": [video, "a ball and a cat", "--seconds", 2],
        "story": [story],
        "restyle": [video, "a ball and a cat"],
    }


class Loaded(Exception):
    """The model would be loaded now."""


@pytest.mark.parametrize("task", TASKS)
def test_every_command_holds_to_it(task, given_files, stating, tmp_path, run_cli, monkeypatch) -> None:
    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    size = ["--height", 64, "--width", 64, "-o", tmp_path / "made.mp4", "--model", stating]
    done = run_cli(task, *given_files[task], *size)
    assert done.code == 2
    assert "height=64 is not a size that the model was trained for (height 32, width 32 to 64); use 64 x 32" in done.err
    assert "--allow-untrained" in done.err
    with pytest.raises(Loaded):
        run_cli(task, *given_files[task], *size, "--allow-untrained")


def test_a_command_says_what_it_does_not_know_and_goes_on(stating, tmp_path, run_cli, monkeypatch, capsys) -> None:
    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr("vgen.jobs.run.load_pipeline", load)
    size = ["--height", 32, "--width", 32, "-o", tmp_path / "made.mp4", "--model", stating]
    with pytest.raises(Loaded):
        run_cli("generate", "a ball and a cat", *size)
    note = "note: the model does not know 'and', 'cat'. It knows one ball."
    assert capsys.readouterr().err == f"{note}\nloading {stating}\n"
    with pytest.raises(Loaded):
        run_cli("generate", "a ball moves up", *size)
    assert capsys.readouterr().err == f"loading {stating}\n"


@pytest.fixture(scope="module")
def sprites() -> TextToVideoPipeline:
    pipeline = TextToVideoPipeline.from_pretrained("sprites")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CALL = {"num_inference_steps": 1, "output_type": "latent", "num_frames": 5, "draft_steps": 0}


def test_python_warns_where_the_caller_stands(sprites) -> None:
    with pytest.warns(UntrainedWarning, match="does not know 'cat'") as caught:
        sprites("a cat", **CALL)
    assert caught[0].filename == __file__
    with pytest.warns(UntrainedWarning, match="width=96, height=64 .* use 64 x 64"):
        sprites("a red circle", **CALL, width=96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sprites("a red circle moves up", **CALL)
        with unwarned():
            sprites("a cat", **CALL, width=96)


def test_what_is_given_is_judged_by_what_the_vae_keeps_of_it(sprites) -> None:
    from vgen.training.data.sprites import SpriteWorld

    animate, predict = ImageToVideoPipeline.from_pipe(sprites), MaskedPredictionPipeline.from_pipe(sprites)
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    strange = np.array(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))
    first, known = {"image": Image.fromarray(strange)}, {"conditions": [VideoCondition(strange)]}
    for pipe, inputs in ((animate, first), (predict, known)):
        with pytest.warns(UntrainedWarning, match="looks like nothing that the model was trained on"):
            pipe(prompt="", **inputs, **CALL)
    half = np.zeros((64, 64), np.float32)
    half[:, :32] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tier in (1, 2, 3):
            for place in range(6):
                frames = SpriteWorld("test", tier).sample(place, 5).frames
                predict(prompt="", conditions=[VideoCondition(frames[:1])], **CALL)
        black = np.where(half[..., None] > 0, 10, strange).astype(np.uint8)  # only what is known counts
        predict(prompt="", conditions=[VideoCondition(black, mask=half)], **CALL)


def test_a_pipeline_keeps_its_statement(sprites, tmp_path: Path) -> None:
    stated = sprites.config.trained
    assert stated["num_frames"] == [1, 65]
    assert MaskedPredictionPipeline.from_pipe(sprites).config.trained == stated
    assert TextToVideoPipeline(**sprites.components).config.trained == stated
    sprites.save_pretrained(tmp_path / "model")
    assert Model("", tmp_path / "model").trained == Model.find("sprites").trained


def test_a_single_file_keeps_the_statement_of_its_folder(ltx_random, tmp_path: Path) -> None:
    from vgen.hub.convert import folder_to_file
    from vgen.models.empty import model_shapes

    folder, file = _stating(ltx_random("0.9.5"), STATED), tmp_path / "one.safetensors"
    folder_to_file(folder, file, model_shapes)
    assert Model("", file).trained == Model("", folder).trained == Trained.read({"trained": STATED})
    pipe = TextToVideoPipeline.from_single_file(file, text_encoder_folder=folder)
    assert Trained.read(pipe.config) == Trained.read({"trained": STATED})
