"""What `vgen evaluate` measures, as declarations: one `Measure` says all of one score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vgen.training.evaluate.lines import Line
from vgen.training.evaluate.model import Budget, ScoredModel
from vgen.training.evaluate.resumable import Job, Row

Scores = dict[str, Any]
"""Plain numbers, as the JSON file holds them; a share is {"mean", "low", "high", "count"}, with its 95 % interval."""


@dataclass(frozen=True)
class Series:
    """Clips to make for a measure.

    Attributes:
        count: of clips.
        make: the clips of a range of numbers, as arguments of `Measure.measure`.
        scores: what the rows of all clips come to.
    """

    count: int
    make: Callable[[range], Iterable[Job]]
    scores: Callable[[list[Row]], Scores]


class TierScores(NamedTuple):
    """All scores of a tier, by task; `name` is "tier 1" ..."""

    name: str
    scores: Scores


def per_prompt(budget: Budget) -> int:
    """One clip per prompt."""
    return budget.prompts


def per_seed(budget: Budget) -> int:
    """One clip per prompt and seed."""
    return budget.prompts * budget.seeds


def _no_lines(scores: Scores, tier: TierScores) -> Iterable[Line]:
    return ()


@dataclass(frozen=True)
class Measure:
    """One thing that is measured of a tier. To add one, declare it and name it in `vgen.training.evaluate.measures`.

    Attributes:
        task: what `--tasks` calls it, and the key of its scores in the JSON file.
        name: of the progress line and of what is kept of an evaluation that was killed; "{tier}" is filled in.
        make: prepares the clips.
        measure: of one clip, its row; a function of a module, since other processes may call it.
        part: key of its scores inside those of the task; "" puts them directly under the task.
        count: of clips, as far as the budget tells; only the time left depends on it.
        cost: of one clip, a usual one being 1; only the time left depends on it.
        lines: what the page and the screen show of its scores and those of the whole tier.
        basic: `--tasks basic` includes it.
    """

    task: str
    name: str
    make: Callable[[ScoredModel], Series]
    measure: Callable[..., Row]
    part: str = ""
    count: Callable[[Budget], int] = per_seed
    cost: float = 1.0
    lines: Callable[[Scores, TierScores], Iterable[Line]] = _no_lines
    basic: bool = False

    def title(self, tier: int) -> str:
        """The name for a tier."""
        return self.name.format(tier=tier)

    def run(self, model: ScoredModel) -> Scores:
        """Make and measure the clips that have not been measured yet; returns the scores of all.

        Raises:
            OutputError: what is measured cannot be kept.
        """
        series = self.make(model)
        rows = model.kept.rows(self.title(model.tier), series.count, model.budget.batch, series.make, self.measure)
        return series.scores(rows)

    def scores_of(self, tier: Scores) -> Scores | None:
        """Its own scores among those of a tier; None where it was not measured."""
        scores: Scores | None = tier.get(self.task)
        return scores.get(self.part) if scores is not None and self.part else scores
