"""What `vgen evaluate` can measure of a tier, in the order of its page."""

from __future__ import annotations

from typing import Final

from vgen.errors import RequestError
from vgen.training.evaluate.measure import Measure
from vgen.training.evaluate.model import GIVEN_FRAMES
from vgen.training.evaluate.scores import IMAGE_TO_VIDEO, IMAGES, UNTRAINED, VAE, text_to_video
from vgen.training.evaluate.story_scores import CLIPS_OF_STORIES, LENGTHS, STORIES, of_length
from vgen.training.evaluate.task_scores import COMPLETION, INTERPOLATION, prediction

MEASURES: Final[tuple[Measure, ...]] = (
    VAE,
    text_to_video("seen"),
    text_to_video("withheld"),
    IMAGE_TO_VIDEO,
    IMAGES,
    UNTRAINED,
    *(prediction(given) for given in GIVEN_FRAMES),
    INTERPOLATION,
    COMPLETION,
    STORIES,
    CLIPS_OF_STORIES,
    *(of_length(length) for length in LENGTHS),
)


def read_measures(tasks: str) -> tuple[Measure, ...]:
    """The measures of "basic", "all" or a comma-separated list of tasks, in the order of `MEASURES`.

    Args:
        tasks: as a user writes them.
    Raises:
        RequestError: one of them is not known, or there is none.
    """
    known = list(dict.fromkeys(measure.task for measure in MEASURES))
    if tasks in ("basic", "all"):
        return tuple(measure for measure in MEASURES if measure.basic or tasks == "all")
    asked = [name.strip().replace("-", "_") for name in tasks.split(",") if name.strip()]
    if not asked or any(name not in known for name in asked):
        raise RequestError(f"tasks={tasks!r} is not known: use basic, all, or some of {', '.join(known)}.")
    return tuple(measure for measure in MEASURES if measure.task in asked)
