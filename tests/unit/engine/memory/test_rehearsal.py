"""A rehearsal counts the bytes that are alive at the same time."""

from __future__ import annotations

import sys

import torch

from vgen.engine.memory.rehearsal import LiveBytes


def test_live_bytes_counts_what_is_alive_at_once() -> None:
    with LiveBytes() as live:
        first = torch.empty(1000, device="meta")
        view = first[:10]
        del first
        second = torch.empty(500, device="meta")
        del view, second
        torch.empty(200, device="meta")
    assert live.peak == 6000


def test_no_python_code_runs_when_a_tensor_dies() -> None:
    # An interrupt in a weak reference's callback is printed and forgotten: Ctrl-C would not stop what is going on.
    ours, ran = LiveBytes.now.__code__.co_filename, set()
    with LiveBytes() as live:
        kept = torch.empty(1000, device="meta")
        sys.setprofile(lambda frame, event, _: ran.add(frame.f_code.co_filename) if event == "call" else None)
        try:
            del kept
        finally:
            sys.setprofile(None)
        assert live.now() == 0
    assert ours not in ran
