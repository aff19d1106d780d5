"""Windows of a long clip: every frame once, nothing too long, overlaps that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgen.errors import RequestError
from vgen.request.windows import check_overlap, plan_windows


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    stride=st.sampled_from([4, 8]),
    window=st.integers(1, 6),
    overlap=st.integers(0, 4),
    start=st.integers(0, 30),
)
def test_windows_make_every_frame_once(lengths, stride, window, overlap, start) -> None:
    window, overlap = window * stride + 1, min(overlap, window - 1) * stride + 1
    windows = plan_windows(lengths, window, overlap, stride, start)
    position = start
    for each in windows:
        assert each.start == position and each.new >= 1
        if position:
            assert 1 <= each.known <= min(overlap, position) and (each.known - 1) % stride == 0
        else:
            assert each.known == 0
        assert each.known + each.new <= each.num_frames <= window
        assert (each.num_frames - 1) % stride == 0 and each.num_frames < each.known + each.new + stride
        position += each.new
    for segment, length in enumerate(lengths):
        mine = [each.new for each in windows if each.segment == segment]
        assert sum(mine) == length


@pytest.mark.parametrize(("window", "overlap", "use"), [(17, 17, 13), (17, 4, 1), (17, 0, 1), (1, 1, 5), (5, 6, 1)])
def test_overlaps_that_do_not_fit(window, overlap, use) -> None:
    with pytest.raises(RequestError, match=f"use {use}( or more)?\\."):
        check_overlap(window, overlap, 4)
