"""Files of the trained text encoders.

Both are written compactly: the T5 in its trained width (the loader widens it with zeros to 4096, which changes nothing but a factor in its norms), the CLIP
with the few dozen rows of its vocabulary that captions use. The toy world's custom node loads them into the host's own classes.
"""

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from . import text, words

CONTEXT = 4096  # width of a T5-XXL context, which the loaders of Wan and SD3 take for granted


def widen(weight: Tensor) -> Tensor:
    """A projection [out, 256] of the narrow context as one [out, 4096] of the wide context, whose further channels are zero."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], CONTEXT - weight.shape[1])], 1)


def sentencepiece_model(vocabulary: tuple[str, ...]) -> bytes:
    """A SentencePiece model in which every word is one piece; equal words give equal ids on every machine."""
    import sentencepiece

    buffer = io.BytesIO()
    lines = [" ".join([word] * (len(vocabulary) - i + 1)) for i, word in enumerate(vocabulary)]  # falling counts fix the order
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, model_type="word", vocab_size=len(vocabulary) + 3, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return buffer.getvalue()


def write_t5(tower: text.T5Tower, path: Path) -> None:
    """Write a trained T5 tower: its weights in half precision, its words, its sizes."""
    import sentencepiece
    from safetensors.torch import save_file

    proto = sentencepiece_model(words.WORDS)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    state = dict(tower.t5.state_dict())
    table = state.pop("shared.weight").cpu()
    shared = torch.zeros(pieces.get_piece_size(), table.shape[1])  # <pad> and <unk> stay zero: unknown words say nothing
    for row, word in enumerate(words.ROWS):
        index = pieces.piece_to_id(word if word == words.END else "\u2581" + word)
        if index == pieces.unk_id():
            raise ValueError(f"The SentencePiece model lost the word {word!r}.")
        shared[index] = table[row]
    state["shared.weight"] = shared
    state = {name: value.half().cpu().contiguous() for name, value in state.items()}
    state["spiece_model"] = torch.frombuffer(bytearray(proto), dtype=torch.uint8).clone()
    config = {**text.T5, "vocab_size": pieces.get_piece_size()}
    save_file(state, path, metadata={"toy_text": json.dumps({"kind": "t5", "config": config, "length": words.LENGTH})})


def read_t5(path: Path) -> dict[str, Tensor]:
    """The state of a `T5Tower` from a file of `write_t5`."""
    import sentencepiece
    from safetensors.torch import load_file

    stored = load_file(path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=stored.pop("spiece_model").numpy().tobytes())
    index = [pieces.piece_to_id(word if word == words.END else "\u2581" + word) for word in words.ROWS]
    return {f"t5.{name}": (value[index] if name == "shared.weight" else value).float() for name, value in stored.items()}


def write_clip(tower: text.ClipTower, path: Path) -> None:
    """Write a trained CLIP tower: its weights in half precision and which tokens its table holds."""
    from safetensors.torch import save_file

    state = {name: value.half().cpu().contiguous() for name, value in tower.clip.state_dict().items()}
    save_file(state, path, metadata={"toy_text": json.dumps({"kind": "clip", "config": text.CLIP, "tokens": words.clip_vocabulary()})})
