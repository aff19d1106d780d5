"""A small Unigram tokenizer for a T5 encoder, fitted to SpriteWorld's captions; any text can be written with it."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vgen.training.data.sprites.captions import vocabulary_corpus

_SPACE = "▁"
_SPECIAL = ["<pad>", "</s>", "<unk>"]
_CORPUS_CAPTIONS = 20_000


def train_tokenizer(captions: Iterable[str], vocabulary: int = 1024, max_length: int = 64) -> PreTrainedTokenizerFast:
    """Fit a tokenizer of at most `vocabulary` pieces to captions; it truncates to `max_length` tokens if asked to.

    The pieces are the captions' own words by frequency, then Unigram's sub-words, then every printable ASCII character,
    so other English text is split but never unknown. Accents and upper case are dropped; other letters beyond ASCII are
    <unk>. Ids 0, 1, 2 are <pad>, </s>, <unk> and </s> ends a text, as in T5.
    """
    captions = list(captions)
    normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=True)]
    )
    characters = [_SPACE, *(character for character in string.printable if not character.isspace())]
    pieces = _word_scores(captions, normalizer, splitter)
    lowest = min(pieces.values())
    for piece, _ in _unigram_pieces(captions, normalizer, splitter, characters, vocabulary):
        pieces.setdefault(piece, lowest - 2.0 * len(piece) ** 0.5)
    for character in characters:
        pieces.pop(character, None)
    room = vocabulary - len(_SPECIAL) - len(characters)
    kept = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))[:room]
    vocab = [(piece, 0.0) for piece in _SPECIAL] + kept + [(character, lowest - 6.0) for character in characters]
    built = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    built.normalizer = normalizer
    built.pre_tokenizer = splitter
    built.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always", split=True)
    built.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def sprite_tokenizer(
    vocabulary: int = 1024, max_length: int = 64, tiers: Collection[int] = (1, 2)
) -> PreTrainedTokenizerFast:
    """A tokenizer fitted to captions of SpriteWorld, the same in every run on the same tiers: see `train_tokenizer`.

    Captions of tiers 1 and 2 are always among the texts, so a run on either has the embedded model's tokenizer.
    """
    corpus = vocabulary_corpus(_CORPUS_CAPTIONS, tiers=tuple(sorted({1, 2, *tiers})))
    return train_tokenizer(corpus, vocabulary, max_length)


def _word_scores(
    captions: list[str], normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer
) -> dict[str, float]:
    """Log frequency of every word, punctuation taken off."""
    words: Counter[str] = Counter()
    for caption in captions:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
            words[word.rstrip(string.punctuation)] += 1
    words.pop("", None)
    words.pop(_SPACE, None)
    total = sum(words.values())
    return {word: math.log(count / total) for word, count in words.items()}


def _unigram_pieces(
    captions: list[str],
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
    characters: list[str],
    vocabulary: int,
) -> list[tuple[str, float]]:
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizer
    trained.pre_tokenizer = splitter
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        unk_token="<unk>",
        initial_alphabet=characters,
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in pieces if piece not in _SPECIAL]
