"""The toy worlds' text encoders, as CLIP objects of the host's own classes.

The host's CLIPLoader builds full-size encoders only. Here the host's loader function gets the sizes that the file states, and the
weights in the layout it expects:

- first world (`te_config`): a UMT5 of the full width, loaded as it is; unknown words say nothing.
- second world, kind "t5": trained 256 wide and widened with zeros to the 4096 channels of a UMT5-XXL (`widen_t5`). For Wan and SD3.
- second world, kind "clip": the rows of a few dozen tokens, put at their places in the host's table of 49,408 (`spread_clip`). For SD1.5.

The encoders of the second world refuse words they have not learned.
"""

import re
from types import MethodType

from . import files

WHAT = "a toy text encoder"
CONTEXT = 4096  # channels of a UMT5-XXL context
# ComfyUI tells UMT5-XXL from smaller T5s by this tensor of a 24-block encoder (comfy.sd.detect_te_model; some releases look at its
# columns, some at its rows): present, not used.
MARKER = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
MARKER_ROWS = 10240
EXAMPLE = "a small red circle on the left and a striped blue square on the right on a green dotted background"


def load_text_encoder(path: str, embeddings: list[str] | None = None):
    """The CLIP object for a text encoder file of either toy world; a ValueError in one sentence for any other file.

    embeddings: folders in which `embedding:name` is looked for, for an encoder of kind "clip".
    """
    metadata, tensors = files.read_any(path, WHAT)
    if "te_config" in metadata:
        return _load_first_world(path, metadata, tensors)
    if "toy_text" not in metadata:
        hint = ", it is a toy model (a text encoder's name ends in _text)" if "toyworld" in metadata else ""
        raise ValueError(f"{path} is not {WHAT}{hint}: its metadata has neither 'toy_text' nor 'te_config'.")
    stated = files.parse(path, metadata, "toy_text", WHAT)
    kind, config = stated.get("kind"), stated.get("config")
    if kind not in ("t5", "clip") or not isinstance(config, dict):
        raise ValueError(f"{path} is not {WHAT}: it states the kind {kind!r}; this node knows 't5' and 'clip'.")
    try:
        return _load_t5(path, tensors, config, int(stated["length"])) if kind == "t5" else _load_clip(path, tensors, config, list(stated["tokens"]), embeddings)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not {WHAT}: its sizes are incomplete ({error!r}).") from error


def widen_t5(state: dict, width: int) -> dict:
    """Weights of a T5 of `width` channels as those of one of 4096 channels that computes the same in its first `width` channels.

    The further channels stay zero in every block: embeddings and outputs are padded with zero rows, inputs with zero columns. A root mean
    square over 4096 channels is smaller by sqrt(4096 / width), so norm weights are divided by that. The norms' epsilon (1e-6) weighs
    more by its square, 16 for 256 channels, which is 1.6e-5 of a signal of variance one.
    """
    import torch

    factor = (CONTEXT / width) ** 0.5
    wide = {}
    for name, weight in state.items():
        if name == "spiece_model" or "relative_attention_bias" in name:
            wide[name] = weight
        elif "layer_norm" in name:
            wide[name] = torch.nn.functional.pad(weight / factor, (0, CONTEXT - width))
        elif name.endswith((".o.weight", ".wo.weight")):
            wide[name] = torch.nn.functional.pad(weight, (0, 0, 0, CONTEXT - width))
        else:  # q, k, v, wi_0, wi_1 and the embedding table: channels come last
            wide[name] = torch.nn.functional.pad(weight, (0, CONTEXT - width))
    return wide


def spread_clip(state: dict, tokens: list[int], rows: int) -> dict:
    """Weights of a compact CLIP text model in the host's layout: the embedding of tokens[i] is row i of the compact table, all others are zero.

    The host's class also has a projection of its pooled output, which SD1.5 does not use; it becomes the identity.
    """
    import torch

    spread = {f"text_model.{name}": weight for name, weight in state.items()}
    name = "text_model.embeddings.token_embedding.weight"
    compact = spread[name]
    spread[name] = compact.new_zeros(rows, compact.shape[1]).index_copy(0, torch.tensor(tokens), compact)
    spread["text_projection.weight"] = torch.eye(compact.shape[1], dtype=compact.dtype)
    return spread


def _load_first_world(path: str, metadata: dict[str, str], tensors: dict):
    import comfy.sd

    config = files.parse(path, metadata, "te_config", WHAT)
    try:
        length = int(metadata["te_length"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not {WHAT}: its metadata lacks the length of a context, 'te_length' ({error!r}).") from error
    clip = _build(path, tensors, comfy.sd.CLIPType.WAN, {"umt5xxl_model_config": config})
    # Wan pads prompts to 512 tokens of zeros; this world was trained with a few.
    clip.set_tokenizer_option("umt5xxl_min_length", length)
    return clip


def _load_t5(path: str, tensors: dict, config: dict, length: int):
    import comfy.sd

    width = config["d_model"]
    if "spiece_model" not in tensors:
        raise ValueError(f"{path} is not {WHAT}: it lacks its words, the tensor spiece_model.")
    if not 0 < width <= CONTEXT or tensors["shared.weight"].shape[1] != width:
        raise ValueError(f"{path} is not {WHAT} of the sizes it states: its table has {tensors['shared.weight'].shape[1]} channels instead of {width}.")
    clip = _build(path, widen_t5(tensors, width), comfy.sd.CLIPType.WAN, {"umt5xxl_model_config": {**config, "d_model": CONTEXT}})
    clip.set_tokenizer_option("umt5xxl_min_length", length)
    # 0 and 1 are padding and </s>, 2 is <unk>.
    _refuse_unknown(clip.tokenizer, {0, 1, *range(3, config["vocab_size"])}, length)
    return clip


def _load_clip(path: str, tensors: dict, config: dict, tokens: list[int], embeddings: list[str] | None):
    import comfy.sd

    table = tensors["embeddings.token_embedding.weight"]
    rows = 49408  # comfy.clip_model.CLIPEmbeddings
    if len(table) != len(tokens) or not all(isinstance(token, int) and 0 <= token < rows for token in tokens):
        raise ValueError(f"{path} is not {WHAT} of the sizes it states: {len(tokens)} tokens of CLIP's {rows} do not fit a table of {len(table)} rows.")
    # The host reads `model_config` for any file with a position table (comfy.text_encoders.long_clipl) and the other key otherwise.
    clip = _build(path, spread_clip(tensors, tokens, rows), comfy.sd.CLIPType.STABLE_DIFFUSION, {"model_config": config, "clip_l_model_config": config}, embeddings)
    _refuse_unknown(clip.tokenizer, set(tokens), config["max_position_embeddings"])
    return clip


def _build(path: str, state: dict, kind, options: dict, embeddings: list[str] | None = None):
    """The host's CLIP object; a ValueError if the tensors do not fit the sizes."""
    import comfy.sd
    import torch

    if kind == comfy.sd.CLIPType.WAN:
        state = {**state, MARKER: torch.zeros(1, 1).expand(MARKER_ROWS, CONTEXT)}  # one number in memory
    try:
        clip = comfy.sd.load_text_encoder_state_dicts([state], embedding_directory=embeddings, clip_type=kind, model_options=options)
    except (RuntimeError, AttributeError, TypeError) as error:  # shapes that differ; an encoder that the host takes for another
        raise ValueError(f"{path} is not {WHAT} of the sizes it states ({' '.join(str(error).split())[:200]}).") from error
    model = clip.cond_stage_model
    files.check_tensors(path, WHAT, state, getattr(model, model.clip).transformer.state_dict())
    return clip


def _refuse_unknown(tokenizer, known: set[int], length: int) -> None:
    """Make a tokenizer object refuse words and lengths that the encoder has not learned; they would silently mean nothing."""
    inner, original = getattr(tokenizer, tokenizer.clip), tokenizer.tokenize_with_weights

    def checked(self, text: str, *args, **kwargs):
        result = original(text, *args, **kwargs)
        batches = next(iter(result.values()))
        if any(isinstance(pair[0], int) and pair[0] not in known for batch in batches for pair in batch):
            words = re.sub(r":[\d.]+\)", " ", text).replace("(", " ").replace(")", " ").split()
            strange = [word for word in words if not known.issuperset(_ids(inner, word))]
            raise ValueError(f"The second toy world has no word {(strange or [text])[0]!r} (in the prompt {text!r}); write for example {EXAMPLE!r}.")
        if len(batches) > 1 or len(batches[0]) > length:
            raise ValueError(f"The prompt {text!r} is too long: the toy text encoder has learned {length} tokens at most, its end mark included.")
        return result

    tokenizer.tokenize_with_weights = MethodType(checked, tokenizer)


def _ids(inner, word: str) -> list[int]:
    """Tokens of one word, without start and end."""
    found = inner.tokenizer(word)["input_ids"]
    return found[inner.tokens_start : -1]
