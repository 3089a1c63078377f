"""The words of the toy text encoder, and how a caption becomes a context.

Word level: every word is one token, so a token of the context *is* a word and attention maps per word have a meaning. The words after the
first group are spare: they have random embeddings that no checkpoint has been trained on, and exist so that a later world with more than one
object keeps the same vocabulary file.
"""

import torch

from .world import COLOURS, MOTIONS, SHAPES

WIDTH = 4096  # channels of the Wan text context
LENGTH = 24  # tokens of a context: words, then </s>, then zeros
END = "</s>"
GRAMMAR = ("a", *COLOURS, *SHAPES, "moving", "standing", "orbiting", *MOTIONS)
SPARE = ("small", "big", "and", "on", "of", "above", "below", "beside", "the", "one", "two", "three", "striped", "dotted", "grey", "black", "background")
WORDS = (*GRAMMAR, *SPARE)
ROWS = (END, *WORDS)  # row order of the trained embedding table; index len(ROWS) means "zero vector"
_ROW = {word: row for row, word in enumerate(ROWS)}


def rows_of(caption: str) -> list[int]:
    """Rows of the embedding table for a caption, padded to LENGTH by the index of the zero vector. Unknown words: ValueError."""
    words = caption.split()
    unknown = [word for word in words if word not in _ROW]
    if unknown:
        raise ValueError(f"The toy world has no word {unknown[0]!r}; its words are: {' '.join(WORDS)}.")
    if len(words) >= LENGTH:
        raise ValueError(f"The caption has {len(words)} words; the toy text encoder takes at most {LENGTH - 1}.")
    return [*(_ROW[word] for word in words), _ROW[END], *[len(ROWS)] * (LENGTH - len(words) - 1)]


def normalised(table: torch.Tensor) -> torch.Tensor:
    """Embedding rows [V, 4096] as they leave the encoder's final norm (RMS 1), plus a last row of zeros: [V + 1, 4096].

    ComfyUI's Wan text encoder multiplies everything after </s> by zero, so the padding a model sees is the zero vector.
    """
    table = table * torch.rsqrt(table.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.cat([table, table.new_zeros(1, table.shape[1])])
