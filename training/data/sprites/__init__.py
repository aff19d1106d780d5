"""SpriteWorld: captioned clips with an answer key; see `world.py`."""

from vgen.training.data.sprites.captions import caption, vocabulary_corpus
from vgen.training.data.sprites.keys import AnswerKey, Background, ObjectKey, is_withheld
from vgen.training.data.sprites.world import Event, SpriteClip, SpriteWorld, Tracks, answer_prompts

__all__ = [
    "AnswerKey",
    "Background",
    "Event",
    "ObjectKey",
    "SpriteClip",
    "SpriteWorld",
    "Tracks",
    "answer_prompts",
    "caption",
    "is_withheld",
    "vocabulary_corpus",
]
