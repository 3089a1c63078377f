"""The tokens of a caption, as the two kinds of text encoder see them.

For a T5 class encoder every word is one token (the file holds its own word-level SentencePiece model). A CLIP class encoder keeps the host's real
byte-pair tokenizer; every word of the grammar is one or two of its tokens.
"""

from functools import cache

import torch

from ..host import load_host
from ..scenes.grammar import LONGEST, WORDS

END = "</s>"
ROWS = (END, *WORDS)  # row order of a trained T5 table; row len(ROWS) means padding
LENGTH = 36  # tokens of a T5 context: words, then </s>, then zeros
CLIP_LENGTH = 77
_ROW = {word: row for row, word in enumerate(ROWS)}
assert LONGEST < LENGTH


def t5_rows(caption: str) -> list[int]:
    """Rows of the embedding table for a caption [LENGTH]; an unknown word is a ValueError."""
    words = caption.split()
    unknown = [word for word in words if word not in _ROW]
    if unknown:
        raise ValueError(f"The second toy world has no word {unknown[0]!r}; its words are: {' '.join(WORDS)}.")
    if len(words) >= LENGTH:
        raise ValueError(f"The caption has {len(words)} words; the toy text encoder takes at most {LENGTH - 1}.")
    return [*(_ROW[word] for word in words), 0, *[len(ROWS)] * (LENGTH - len(words) - 1)]


@cache
def clip_ids(word: str) -> tuple[int, ...]:
    load_host()
    import comfy.sd1_clip

    tokens = comfy.sd1_clip.SDTokenizer(pad_to_max_length=False).tokenize_with_weights(word)[0]
    return tuple(token for token, _ in tokens[1:-1])


@cache
def clip_vocabulary() -> tuple[int, ...]:
    """Ids of the host's CLIP vocabulary that captions use: start, end, then those of the words, ascending."""
    return (49406, 49407, *sorted({token for word in WORDS for token in clip_ids(word)}))


@cache
def _clip_rows() -> dict[int, int]:
    return {token: row for row, token in enumerate(clip_vocabulary())}


def clip_rows(caption: str) -> list[int]:
    """Rows of the compact CLIP table for a caption [77]: start, words, end, and the end token as padding, as SD1.5 pads."""
    unknown = [word for word in caption.split() if word not in WORDS]
    if unknown:
        raise ValueError(f"The second toy world has no word {unknown[0]!r}; its words are: {' '.join(WORDS)}.")
    rows = _clip_rows()
    inner = [rows[token] for word in caption.split() for token in clip_ids(word)]
    if len(inner) > CLIP_LENGTH - 2:
        raise ValueError(f"The caption has {len(inner)} CLIP tokens; at most {CLIP_LENGTH - 2} fit.")
    return [0, *inner, *[1] * (CLIP_LENGTH - 1 - len(inner))]


def rows_tensor(captions: list[str], kind: str) -> torch.Tensor:
    """Rows [n, LENGTH] (kind "t5") or [n, 77] (kind "clip") of captions."""
    return torch.tensor([(t5_rows if kind == "t5" else clip_rows)(caption) for caption in captions])
