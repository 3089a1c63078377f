"""The toy text encoder: a UMT5 of the real class whose output is exactly the trained word embedding.

One block with zero output projections is the identity, so the encoder returns the RMS-normed embedding of each word. The file holds its own
word-level SentencePiece model. ComfyUI's stock CLIPLoader builds full-size UMT5 encoders only; `comfy_node/` loads this one.
"""

import io
import json
from pathlib import Path

import torch

from . import vocabulary
from .host import load_host

CONFIG = {"d_model": vocabulary.WIDTH, "d_ff": 8, "d_kv": 8, "num_heads": 1, "num_layers": 1}
# ComfyUI tells UMT5-XXL from T5-XXL by this tensor of a 24-block encoder (comfy.sd.detect_te_model): present, not used.
MARKER = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"


def sentencepiece_model() -> bytes:
    """A SentencePiece model in which every word of the vocabulary is one piece."""
    import sentencepiece

    buffer = io.BytesIO()
    # Falling counts fix the order of the pieces, hence the ids, on every machine.
    lines = [" ".join([word] * (len(vocabulary.WORDS) - i + 1)) for i, word in enumerate(vocabulary.WORDS)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, model_type="word", vocab_size=len(vocabulary.WORDS) + 3, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return buffer.getvalue()


def write(table: torch.Tensor, path: Path) -> None:
    """Write the encoder file for an embedding table [len(vocabulary.ROWS), 4096] in the order of `vocabulary.ROWS`."""
    import sentencepiece
    from safetensors.torch import save_file

    proto = sentencepiece_model()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    shared = torch.zeros(pieces.get_piece_size(), vocabulary.WIDTH)  # <pad> and <unk> stay zero: unknown words say nothing
    for row, word in enumerate(vocabulary.ROWS):
        piece = word if word == vocabulary.END else "\u2581" + word
        index = pieces.piece_to_id(piece)
        if index == pieces.unk_id():
            raise ValueError(f"The SentencePiece model lost the word {word!r}.")
        shared[index] = table[row]
    width, inner, feed = CONFIG["d_model"], CONFIG["d_kv"] * CONFIG["num_heads"], CONFIG["d_ff"]
    block = "encoder.block.0.layer."
    state = {
        "shared.weight": shared,
        block + "0.layer_norm.weight": torch.ones(width),
        block + "0.SelfAttention.relative_attention_bias.weight": torch.zeros(32, CONFIG["num_heads"]),
        block + "1.layer_norm.weight": torch.ones(width),
        "encoder.final_layer_norm.weight": torch.ones(width),
        MARKER: torch.zeros(1, width),
    }
    for name in "qkv":
        state[f"{block}0.SelfAttention.{name}.weight"] = torch.zeros(inner, width)
    state[block + "0.SelfAttention.o.weight"] = torch.zeros(width, inner)
    for name in ("wi_0", "wi_1"):
        state[f"{block}1.DenseReluDense.{name}.weight"] = torch.zeros(feed, width)
    state[block + "1.DenseReluDense.wo.weight"] = torch.zeros(width, feed)
    state = {name: value.half().contiguous() for name, value in state.items()}
    state["spiece_model"] = torch.frombuffer(bytearray(proto), dtype=torch.uint8).clone()
    config = {**CONFIG, "vocab_size": pieces.get_piece_size()}
    save_file(state, path, metadata={"te_config": json.dumps(config), "te_length": str(vocabulary.LENGTH)})


def load(path: Path):
    """The CLIP object of ComfyUI for a file written by `write`; a ValueError in one sentence for any other file."""
    load_host()
    from .comfy_node import load_text_encoder

    return load_text_encoder(str(path))
