"""Prompts with new words: which tokens they are made of, where the new ones stand, and encoding them so that the new ones can learn.

A new word is one vector per text encoder, put into the list of tokens where the host puts those of ``embedding:name``; so what is learned is read
by the host's own syntax afterwards. Source of the prompts: AttenCraft, arXiv 2405.17965: "a photo of <new1> cat and <new2> dog".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LoomError

NAME = re.compile(r"[A-Za-z0-9][\w-]*")
PLACE = "{}"


@dataclass(frozen=True)
class Concept:
    """name: of the new word; words: that follow it and that it begins with the meaning of ("cat")."""

    name: str
    words: str


def parse(text: str) -> tuple[Concept, ...]:
    """Lines ``name = words``. Raises LoomError naming the line that does not fit.

    >>> parse("mine = cat")
    (Concept(name='mine', words='cat'),)
    """
    found = []
    for line in (x.strip() for x in text.splitlines()):
        if not line:
            continue
        name, sign, words = (part.strip() for part in line.partition("="))
        if not sign or not words or not NAME.fullmatch(name):
            raise LoomError(f"'{line}' is not a concept; write a name of letters, digits, - and _, an equals sign and what it is, for instance: mycat = cat.")
        found.append(Concept(name, words))
    if not 1 <= len(found) <= 8:
        raise LoomError(f"{len(found)} concepts were given; write one to eight, one per line, for instance: mycat = cat.")
    if len({c.name.lower() for c in found}) < len(found):
        raise LoomError("two concepts have the same name; give each its own.")
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Written:
    """One prompt. tokens: as the host's text encoder takes them; identifiers: position of each concept's own token; phrases: positions of all its
    tokens; both by number of the concept.
    """

    tokens: dict[str, list[list[tuple[Any, float]]]]
    identifiers: dict[int, int]
    phrases: dict[int, tuple[int, ...]]


@dataclass(eq=False)
class Prompts:
    """How prompts are written. template: with ``{}`` where the concepts stand; joiner: between them; vectors: stream -> one parameter per concept, empty
    where no new words are learned.
    """

    clip: Any
    concepts: tuple[Concept, ...]
    template: str = "a photo of {}"
    joiner: str = " and "
    vectors: dict[str, list[nn.Parameter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise LoomError(f"the template '{self.template}' must hold {PLACE} once, where the concepts stand; for instance: a photo of {PLACE}.")
        for stream in self.streams:
            if getattr(self.clip.cond_stage_model, f"clip_{stream}", None) is None:
                raise LoomError(f"the text encoder {type(self.clip.cond_stage_model).__name__} takes no new words here; connect the one of SD 1.5, SD 2 or SDXL.")

    @property
    def streams(self) -> list[str]:
        """Names of the text encoders, as the host calls them: l, g, h."""
        return list(self.clip.tokenize(""))

    def begin(self) -> None:
        """New words with the meaning of the words that follow them: the mean of their tokens."""
        for stream in self.streams:
            table = getattr(self.clip.cond_stage_model, f"clip_{stream}").transformer.get_input_embeddings().weight
            rows = [[int(token) for token, _ in self._own(stream, c.words)] for c in self.concepts]
            self.vectors[stream] = [nn.Parameter(torch.stack([table[i].detach().float().clone() for i in ids]).mean(0)) for ids in rows]

    def write(self, order: Sequence[int]) -> Written:
        """The prompt that shows these concepts in this order. Raises LoomError for one that is longer than the encoder's stretch."""
        tokens, places = {}, None
        for stream in self.streams:
            pieces, at = self._pieces(stream, order)
            tokens[stream] = [self._framed(stream, pieces)]
            places = places or at
        assert places is not None
        return Written(tokens, {c: where[0] for c, where in places.items()}, places)

    def plain(self, text: str) -> Written:
        """A prompt without concepts."""
        return Written({stream: [self._framed(stream, self._own(stream, text))] for stream in self.streams}, {}, {})

    def encode(self, written: Written) -> list[list[Any]]:
        """A conditioning. Differentiable in the new words, where autograd is on. The text encoder must be loaded."""
        model = self.clip.cond_stage_model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        cond, pooled = model.encode_token_weights(written.tokens)[:2]
        return [[cond, {"pooled_output": pooled}]]

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser moves."""
        return [p for stream in sorted(self.vectors) for p in self.vectors[stream]]

    def files(self) -> list[dict[str, Tensor]]:
        """What the file of each new word holds, under the names the host looks for."""
        return [{f"clip_{stream}": vectors[i].detach().cpu()[None].clone() for stream, vectors in self.vectors.items()} for i in range(len(self.concepts))]

    def take(self, saved: Mapping[str, Tensor]) -> None:
        """Take on vectors saved as ``stream.number``."""
        for stream, vectors in self.vectors.items():
            for i, vector in enumerate(vectors):
                vector.data.copy_(saved[f"{stream}.{i}"])

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _pieces(self, stream: str, order: Sequence[int]) -> tuple[list[tuple[Any, float]], dict[int, tuple[int, ...]]]:
        """The prompt's own tokens, and where each concept's stand in the finished context."""
        before, after = self.template.split(PLACE)
        pieces, places = self._own(stream, before), {}
        for i, c in enumerate(order):
            if i:
                pieces += self._own(stream, self.joiner)
            start = len(pieces)
            if self.vectors:
                pieces.append((self.vectors[stream][c], 1.0))
            pieces += self._own(stream, self.concepts[c].words)
            places[c] = tuple(range(1 + start, 1 + len(pieces)))
        return pieces + self._own(stream, after), places

    def _own(self, stream: str, text: str) -> list[tuple[Any, float]]:
        """Tokens of a piece of text, without start, end and padding."""
        if not text.strip():
            return []
        return [(entry[0], entry[1]) for batch in self.clip.tokenize(text, return_word_ids=True)[stream] for entry in batch if entry[2] != 0]

    def _framed(self, stream: str, pieces: list[tuple[Any, float]]) -> list[tuple[Any, float]]:
        tokenizer = getattr(self.clip.tokenizer, f"clip_{stream}")
        room = tokenizer.max_length - 2 - len(pieces)
        if room < 0:
            raise LoomError(f"the prompt makes {len(pieces)} tokens and {tokenizer.max_length - 2} fit; shorten the template or the concepts' words.")
        return [(tokenizer.start_token, 1.0), *pieces, (tokenizer.end_token, 1.0), *[(tokenizer.pad_token, 1.0)] * room]
