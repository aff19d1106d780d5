"""Steps of several calls as one sequence, and how long the rest takes."""

from __future__ import annotations

from vgen.events import Encoding, Event, Preview, Step
from vgen.jobs.steps import StepSequence


class Watched:
    """A sequence with a clock of its own, and what it has handed on."""

    def __init__(self, expected: list[int | None]) -> None:
        self.now, self.seen = 100.0, list[Event]()
        self.steps = StepSequence(self.seen.append, expected, lambda: self.now)

    def run(self, first: int, last: int, num_steps: int, seconds: float) -> Step:
        """Steps of the call, from `first` to `last`; the last event."""
        for step in range(first, last + 1):
            self.now += seconds if step else 0
            self.steps(Step(step, num_steps))
        event = self.seen[-1]
        assert isinstance(event, Step)
        return event


def test_a_call_alone_keeps_its_numbers() -> None:
    watched = Watched([None])
    assert watched.run(0, 0, 4, 2.0) == Step(0, 4, None)
    assert watched.run(1, 3, 4, 2.0) == Step(3, 4, 2.0)


def test_a_second_pass_that_is_slower_is_believed() -> None:
    watched = Watched([None])
    watched.run(0, 20, 30, 1.0)
    watched.steps(Encoding())
    assert watched.run(20, 26, 30, 8.0) == Step(26, 30, 32.0)


def test_expected_calls_count_and_a_call_corrects_its_own() -> None:
    watched = Watched([3, 3, 3])
    assert watched.run(0, 7, 7, 1.0) == Step(7, 13, 6.0)
    watched.steps.next_call()
    assert watched.run(0, 1, 3, 1.0) == Step(8, 13, 5.0)
    watched.steps(Preview(2, 3, None))
    assert watched.seen[-1] == Preview(9, 13, None)
    watched.run(2, 3, 3, 1.0)
    watched.steps.next_call()
    assert watched.run(0, 3, 3, 1.0) == Step(13, 13, 0.0)


def test_calls_of_unknown_length_are_taken_to_be_alike() -> None:
    watched = Watched([None, None])
    assert watched.run(0, 0, 5, 1.0).num_steps == 10
    watched.steps.next_call()
    assert watched.run(0, 5, 5, 1.0) == Step(10, 10, 0.0)
