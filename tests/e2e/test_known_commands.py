"""Commands whose clip is known in part: what is given comes back, what is hidden does not matter, faults are said."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vgen.errors import RequestError
from vgen.io.media.images import shrink_into
from vgen.io.media.video import read_metadata, read_video, write_video
from vgen.jobs.fitting import place
from vgen.request.fields import check_keyframes


@pytest.fixture(params=["native", "0.9.5"])
def words(request, tiny_pipeline_folder, ltx_folders):
    model = tiny_pipeline_folder if request.param == "native" else ltx_folders[request.param]
    return ["--model", model, "--seed", 3, "--steps", 2, "--height", 64, "--width", 64, "--num-frames", 17,
            "--frame-rate", 8]  # fmt: skip


@pytest.fixture
def footage(tmp_path):
    """17 frames of noise in blocks of 16 x 16, kept exactly; and its array."""
    blocks = np.random.default_rng(0).integers(0, 256, (17, 4, 4, 3), np.uint8)
    frames = blocks.repeat(16, axis=1).repeat(16, axis=2)
    folder = tmp_path / "footage"
    write_video(f"{folder}/", frames, 8.0, {}, False)
    return folder, frames


def _made(run_cli, tmp_path, name, *words):
    done = run_cli(*words, "-o", f"{tmp_path / name}/")
    assert done.code == 0, done.err
    return read_video(tmp_path / name).frames, " ".join(done.out.split())


def test_backward_keeps_the_end(run_cli, words, footage, tmp_path) -> None:
    folder, frames = footage
    made, said = _made(run_cli, tmp_path, "a", "predict", folder, "a", "--keep-frames", 9, "--backward", *words)
    assert len(made) == 17 and np.array_equal(made[8:], frames[:9])
    assert "the clip ends with its first 9 frames of 17" in said
    assert not np.array_equal(made[:8], frames[:8])
    assert read_metadata(tmp_path / "a")["backward"] is True


def test_keyframes_come_back_where_they_were_put(run_cli, words, footage, tmp_path) -> None:
    _, frames = footage
    for index in range(4):
        Image.fromarray(frames[index]).save(tmp_path / f"{index}.png")
    first, last, five, nine = (tmp_path / f"{index}.png" for index in range(4))
    keyframes = ["--keyframe", f"{five}@5", "--keyframe", f"{nine}@-8"]
    made, _ = _made(run_cli, tmp_path, "a", "interpolate", first, last, "a", *keyframes, *words)
    for place_, index in ((0, 0), (16, 1), (5, 2), (9, 3)):
        assert np.array_equal(made[place_], frames[index])
    for wrong, message in (("x.png", "is not FILE@INDEX"), (f"{five}@17", "use 1 to 15"), (f"{five}@-1", "LAST")):
        done = run_cli("interpolate", first, last, "a", "--keyframe", wrong, *words, "-o", tmp_path / "b.gif")
        assert done.code == 2 and message in " ".join(done.err.split())
        assert not (tmp_path / "b.gif").exists()


def test_a_loop_begins_where_it_ends(run_cli, words, footage, tmp_path) -> None:
    Image.fromarray(footage[1][0]).save(tmp_path / "p.png")
    made, _ = _made(run_cli, tmp_path, "a", "loop", "a", "--image", tmp_path / "p.png", *words)
    assert made.shape == (16, 64, 64, 3) and np.array_equal(made[0], footage[1][0])
    free, _ = _made(run_cli, tmp_path, "b", "loop", "a wheel turns", *words)
    assert free.shape == (16, 64, 64, 3) and not np.array_equal(free[0], made[0])
    assert run_cli("loop", *words, "-o", tmp_path / "c.gif").code == 2


def test_inpainting_keeps_what_is_black_and_never_sees_what_is_white(run_cli, words, footage, tmp_path) -> None:
    folder, frames = footage
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    made, said = _made(run_cli, tmp_path, "a", "inpaint", folder, "a", "--mask", tmp_path / "m.png", *words)
    black = mask == 0
    assert np.array_equal(made[:, black], frames[:, black]) and "25 % of the pixels" in said
    other = frames.copy()
    other[:, ~black] = 255 - other[:, ~black]
    write_video(f"{tmp_path / 'other'}/", other, 8.0, {}, False)
    again, _ = _made(run_cli, tmp_path, "b", "inpaint", tmp_path / "other", "a", "--mask", tmp_path / "m.png", *words)
    assert np.abs(again.astype(int) - made).max() <= 1
    masks = np.repeat(np.repeat(mask[None], 17, 0)[..., None], 3, -1)
    write_video(f"{tmp_path / 'masks'}/", masks, 8.0, {}, False)
    moving, _ = _made(run_cli, tmp_path, "c", "inpaint", folder, "a", "--mask", tmp_path / "masks", *words)
    assert np.abs(moving.astype(int) - made).max() <= 1


def test_masks_that_do_not_fit(run_cli, words, footage, tmp_path) -> None:
    folder, _ = footage
    Image.new("L", (32, 64), 255).save(tmp_path / "narrow.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    write_video(f"{tmp_path / 'short'}/", np.full((5, 64, 64, 3), 255, np.uint8), 8.0, {}, False)
    for name, message in (("narrow.png", "32 x 64"), ("black.png", "no white place"), ("short", "5 frames"),
                          ("none.png", "none.png")):  # fmt: skip
        done = run_cli("inpaint", folder, "a", "--mask", tmp_path / name, *words, "-o", tmp_path / "x.gif")
        assert done.code == 2 and message in " ".join(done.err.split()), done.err
        assert not (tmp_path / "x.gif").exists()


def test_outpainting_puts_the_video_in_the_middle(run_cli, words, footage, tmp_path) -> None:
    folder, frames = footage
    wide = [*words[:6], "--height", 64, "--width", 128, *words[10:]]
    made, _ = _made(run_cli, tmp_path, "a", "outpaint", folder, "a", *wide)
    assert made.shape == (17, 64, 128, 3)
    assert np.array_equal(made[:, :, 32:96], frames)
    done = run_cli("outpaint", folder, "a", *words, "-o", tmp_path / "x.gif")
    assert done.code == 2 and "nothing lies around" in " ".join(done.err.split())


def test_a_large_video_is_made_smaller() -> None:
    frames = np.full((2, 100, 50, 3), 7, np.uint8)
    smaller = np.stack([np.asarray(shrink_into(Image.fromarray(frame), 64, 64)) for frame in frames])
    assert smaller.shape[1:3] == (64, 32)
    canvas, known = place(smaller, 64, 64)
    assert known.sum() == 32 * 64
    assert (canvas[:, known == 1] == 7).all() and (canvas[:, known == 0] == 0).all()
    with pytest.raises(RequestError, match="nothing lies around"):
        place(frames, 100, 50)


def test_keyframes_of_one_place() -> None:
    check_keyframes(["a.png@3", "a.png@-3"], 9)
    for entries in (["a@0"], ["a@8"], ["a@9"], ["a@3", "b@-6"]):
        with pytest.raises(RequestError, match="use"):
            check_keyframes(entries, 9)
