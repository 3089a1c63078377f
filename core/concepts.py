"""Where the words of a prompt stand in the text context a model reads.

The prompt is tokenised again with the text encoder's own tokeniser, and each phrase is looked for in it. Positions are those of
the finished context: CLIP text in blocks of 77, SD3's CLIP block followed by its T5 block, T5 alone for FLUX, and language-model
encoders less the template tokens their encoder drops in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import LoomError

WORD_STARTS = ("\u2581", "\u0120")
"""How SentencePiece and byte-level vocabularies write the blank before a word."""
WORD_ENDS = "</w>"
"""How CLIP's vocabulary writes the end of a word."""


@dataclass(frozen=True)
class Concept:
    """A phrase and where it stands. tokens: positions in the context; pieces: those tokens as the vocabulary writes them."""

    phrase: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Located:
    """A prompt's phrases. words: positions of all tokens of the prompt, without start, end, padding and template; length: tokens
    of the whole context. prompt: its text, by which a conditioning made from it is known (:func:`tagged`).
    """

    concepts: tuple[Concept, ...]
    words: tuple[int, ...]
    length: int
    prompt: str = ""

    @property
    def text(self) -> str:
        """What was found, for the user to check."""
        lines = [f"{c.phrase}: {' '.join(c.pieces)} (tokens {', '.join(map(str, c.tokens))})" for c in self.concepts]
        return "\n".join([*lines, f"{len(self.words)} tokens of the prompt in a context of {self.length}"])

    def columns(self, text: tuple[int, int], keys: int) -> Tensor | None:
        """fp32 [keys, phrases]: 1 on the tokens of each phrase; None where the text is not the prompt's.

        text: [lo, hi) of the text keys. A U-Net's shorter prompt is repeated up to the longer one's length: every repeat counts.
        """
        lo, hi = text
        if self.length < 1 or (hi - lo) % self.length:
            return None
        found = torch.zeros(keys, len(self.concepts))
        for w, concept in enumerate(self.concepts):
            for start in range(lo, hi, self.length):
                found[[start + t for t in concept.tokens], w] = 1.0
        return found


@dataclass(frozen=True)
class Piece:
    """One token of the prompt. at: its position in the context; token: its id or, for an embedding, None; text: as the vocabulary writes it."""

    at: int
    token: int | None
    text: str


@dataclass(frozen=True)
class Stream:
    """What one tokeniser makes of a prompt. pieces: the prompt's own tokens; length: positions it takes in the context."""

    tokenizer: Any
    pieces: tuple[Piece, ...]
    length: int


def locate(clip: Any, prompt: str, phrases: list[str], length: int | None = None, once: bool = False) -> Located:
    """Find every phrase in the prompt.

    clip: the host's CLIP object; length: tokens of the finished conditioning, needed for encoders that drop a template in front.
    Raises LoomError for a phrase that is not there (with the prompt's tokens), for two phrases on the same tokens, for a
    prompt the model reads only in part and, with ``once``, for a phrase that stands there a second time.
    """
    streams = _streams(clip, prompt, length)
    starts = [sum(s.length for s in streams[:i]) for i in range(len(streams))]
    total = sum(s.length for s in streams)
    if length is not None and total > length:
        raise LoomError(f"the prompt makes {total} tokens and the conditioning has {length}; connect the conditioning that was made from this prompt.")
    concepts = []
    for phrase in phrases:
        found = [(start + p.at, p.text) for stream, start in zip(streams, starts, strict=True) for p in _find(stream, phrase)]
        if not found:
            shown = " ".join(p.text for p in streams[-1].pieces)
            raise LoomError(f"'{phrase}' does not stand in the prompt, whose tokens are: {shown}. Write it as the prompt does.")
        if once and any(_again(stream, phrase) for stream in streams):
            raise LoomError(f"'{phrase}' stands in the prompt more than once; write every concept once, or add a word that tells which is meant.")
        concepts.append(Concept(phrase, tuple(at for at, _ in found), tuple(text for _, text in found)))
    _refuse_twins(concepts)
    words = tuple(start + p.at for stream, start in zip(streams, starts, strict=True) for p in stream.pieces)
    return Located(tuple(concepts), words, total, prompt)


PROMPT = "loom_prompt"
"""Key of a conditioning: the text it was made from."""


def tagged(conditioning: Any, prompt: str) -> Any:
    """A host conditioning that says what text it was made from, so that it is found among several."""
    return [[cond, facts | {PROMPT: prompt}] for cond, facts in conditioning]


def _refuse_twins(concepts: list[Concept]) -> None:
    for i, a in enumerate(concepts):
        for b in concepts[i + 1 :]:
            if set(a.tokens) & set(b.tokens):
                raise LoomError(f"'{a.phrase}' and '{b.phrase}' share tokens of the prompt; name each thing once, by words of its own.")


# --- which tokens become the context --------------------------------------------------------------------------------


def _streams(clip: Any, prompt: str, length: int | None) -> list[Stream]:
    """The tokenisers whose output becomes the context, in its order."""
    tokens = clip.tokenize(prompt, return_word_ids=True)
    encoder = clip.cond_stage_model
    kinds = {c.__name__ for c in type(encoder).__mro__}
    names = list(tokens)
    if "SD3ClipModel" in kinds:
        clips = [n for n in ("l", "g") if getattr(encoder, f"clip_{n}", None) is not None]
        names = clips[:1] + (["t5xxl"] if encoder.t5xxl is not None else [])
    elif "FluxClipModel" in kinds:
        names = ["t5xxl"]
    elif "Kandinsky5TEModel" in kinds:
        names = ["qwen25_7b"]
    elif set(names) <= {"l", "g"}:
        names = names[:1]  # both cut the prompt alike and are joined channel by channel
    if not names or (len(names) > 1 and "SD3ClipModel" not in kinds):
        raise LoomError(
            f"the text encoder {type(encoder).__name__} joins {', '.join(tokens)} in a way this version does not know; use SD 1.5, SDXL, SD3, FLUX, Qwen-Image, Lumina, Kandinsky 5 or Wan."
        )
    return [_stream(clip, name, tokens[name], prompt, length if len(names) == 1 else None) for name in names]


def _stream(clip: Any, name: str, batches: list[list[tuple[Any, ...]]], prompt: str, length: int | None) -> Stream:
    tokenizer = _tokenizer(clip.tokenizer, name)
    flat = [entry for batch in batches for entry in batch]
    if any(len(entry) < 3 for entry in flat):
        raise LoomError(f"the text encoder's tokeniser {type(clip.tokenizer).__name__} does not tell which tokens are the prompt's, so words cannot be found in it.")
    own = [i for i, entry in enumerate(flat) if entry[2] != 0]
    if getattr(clip.tokenizer, "llama_template", None):
        own = _inside_template(clip, name, flat, prompt)
    # an encoder that drops its template leaves a context shorter than its tokens
    dropped = max(0, len(flat) - length) if length is not None and len(batches) == 1 else 0
    if any(i < dropped for i in own):
        raise LoomError(f"the prompt makes {len(flat)} tokens and the conditioning has {length}; connect the conditioning that was made from this prompt.")
    pieces = tuple(Piece(i - dropped, _number(flat[i][0]), _written(tokenizer, flat[i][0])) for i in own)
    return Stream(tokenizer, pieces, len(flat) - dropped)


def _tokenizer(parent: Any, name: str) -> Any:
    """The host keeps one tokeniser per name as an attribute: clip_l, t5xxl, qwen25_7b."""
    for attribute in (name, f"clip_{name}"):
        found = getattr(parent, attribute, None)
        if found is not None:
            return found
    raise LoomError(f"the text encoder's tokeniser {type(parent).__name__} keeps no '{name}'; this version cannot read its tokens.")


def _inside_template(clip: Any, name: str, flat: list[tuple[Any, ...]], prompt: str) -> list[int]:
    """Positions of the prompt within the template the encoder writes around it."""
    bare = [_number(entry[0]) for batch in clip.tokenize(prompt, return_word_ids=True, llama_template="{}")[name] for entry in batch if entry[2] != 0]
    whole = [_number(entry[0]) for entry in flat]
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    if not bare or not starts:
        raise LoomError("the prompt could not be found inside the text encoder's template; remove leading or trailing blanks and special marks from the prompt.")
    return list(range(starts[-1], starts[-1] + len(bare)))


def _number(token: Any) -> int | None:
    return int(token) if isinstance(token, int) else None


def _written(tokenizer: Any, token: Any) -> str:
    number = _number(token)
    return "[embedding]" if number is None else str(tokenizer.inv_vocab.get(number, number))


# --- a phrase among tokens ------------------------------------------------------------------------------------------


def _find(stream: Stream, phrase: str) -> list[Piece]:
    """The first run of tokens that writes the phrase in whole words, whatever its case and blanks; nothing if there is none."""
    wanted = "".join(phrase.casefold().split())
    bare = [_bare(p.text).casefold() for p in stream.pieces]
    for first in range(len(bare)):
        if not _begins(stream.pieces, first):
            continue
        text = ""
        for last in range(first, len(bare)):
            text += bare[last]
            if text == wanted and _ends(stream.pieces, last):
                return list(stream.pieces[first : last + 1])
            if not wanted.startswith(text):
                break
    return _same_tokens(stream, phrase)


def _again(stream: Stream, phrase: str) -> bool:
    """Whether the phrase stands there once more behind the first time."""
    first = _find(stream, phrase)
    return bool(first) and bool(_find(replace(stream, pieces=stream.pieces[stream.pieces.index(first[-1]) + 1 :]), phrase))


def _same_tokens(stream: Stream, phrase: str) -> list[Piece]:
    """For scripts whose letters a byte-level vocabulary does not spell out: the phrase's own tokens, with and without a blank before it."""
    encode = stream.tokenizer.tokenizer
    end = -1 if getattr(stream.tokenizer, "tokenizer_adds_end_token", False) else None
    numbers = [p.token for p in stream.pieces]
    for text in (phrase, " " + phrase):
        run = list(encode(text)["input_ids"][stream.tokenizer.tokens_start : end])
        for first in range(len(numbers) - len(run) + 1):
            if run and numbers[first : first + len(run)] == run:
                return list(stream.pieces[first : first + len(run)])
    return []


def _bare(text: str) -> str:
    """A piece without the marks of its vocabulary."""
    return text.removesuffix(WORD_ENDS).lstrip("".join(WORD_STARTS)).strip()


def _begins(pieces: tuple[Piece, ...], i: int) -> bool:
    """Whether a word can begin at this piece."""
    text, before = pieces[i].text, pieces[i - 1].text if i else ""
    return i == 0 or text.startswith(WORD_STARTS) or before.endswith(WORD_ENDS) or not _bare(before)[-1:].isalnum()


def _ends(pieces: tuple[Piece, ...], i: int) -> bool:
    """Whether a word can end with this piece."""
    if i + 1 == len(pieces) or pieces[i].text.endswith(WORD_ENDS):
        return True
    after = pieces[i + 1].text
    return after.startswith(WORD_STARTS) or not _bare(after)[:1].isalnum()
