"""A take keeps what was appended, goes on with the same plan, and begins anew with another."""

from __future__ import annotations

import numpy as np

from vgen.io.media.take import Take, take_folder

SHAPE = (9, 4, 6)


def _frames(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), np.uint8)


def test_it_goes_on(tmp_path) -> None:
    take = Take(tmp_path / "t", {"a": 1}, SHAPE, 5)
    first, second = _frames(3, 0), _frames(4, 1)
    take.append(first)
    take.append(second)
    assert np.array_equal(take.last(5), np.concatenate([first, second])[-5:])
    again = Take(tmp_path / "t", {"a": 1}, SHAPE, 6)
    assert (again.frames_done, again.windows_done, again.seed) == (7, 2, 5)
    again.append(_frames(2, 2))
    assert np.array_equal(list(again.frames), np.concatenate([first, second, _frames(2, 2)]))
    again.remove()
    assert not (tmp_path / "t").exists()


def test_another_plan_or_a_damaged_state_begins_anew(tmp_path) -> None:
    Take(tmp_path / "t", {"a": 1}, SHAPE, 5).append(_frames(3, 0))
    assert Take(tmp_path / "t", {"a": 2}, SHAPE, 6).frames_done == 0
    Take(tmp_path / "t", {"a": 1}, SHAPE, 5).append(_frames(3, 0))
    assert Take(tmp_path / "t", {"a": 1}, (8, 4, 6), 6).frames_done == 0
    for damage in ('{"plan"', "[]", "{}", ""):
        Take(tmp_path / "t", {"a": 1}, SHAPE, 5).append(_frames(3, 0))
        (tmp_path / "t" / "state.json").write_text(damage)
        assert Take(tmp_path / "t", {"a": 1}, SHAPE, 6).frames_done == 0
    Take(tmp_path / "t", {"a": 1}, SHAPE, 5).append(_frames(3, 0))
    (tmp_path / "t" / "frames.rgb").write_bytes(b"short")
    assert Take(tmp_path / "t", {"a": 1}, SHAPE, 6).frames_done == 0


def test_its_place_is_beside_the_output(tmp_path) -> None:
    assert take_folder(tmp_path / "a.mp4") == tmp_path / ".a.mp4.take"
    assert take_folder(f"{tmp_path}/a/") == tmp_path / ".a.take"
