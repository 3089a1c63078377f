"""What nodes that need the words of a prompt share: encoding it, and finding phrases among its tokens."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.concepts import Located, locate
from ..core.errors import LoomError


def prompt_inputs(name: str, tooltip: str) -> list[Any]:
    """clip, prompt, and the lines to look for under the name ``name``."""
    return [
        io.Clip.Input("clip", tooltip="The text encoder that goes with the model: it tells where the words of the prompt stand."),
        io.String.Input("prompt", multiline=True, default="", dynamic_prompts=True,
                        tooltip="The positive prompt. It is encoded here; connect the output 'positive' to the sampler."),
        io.String.Input(name, multiline=True, default="", tooltip=tooltip),
    ]  # fmt: skip


def positive_input() -> io.Conditioning.Input:
    """A conditioning made elsewhere."""
    return io.Conditioning.Input(
        "positive", optional=True, tooltip="The conditioning made from exactly this prompt, if you encode it elsewhere (with ControlNet, for instance). Empty: encoded here."
    )


def encode(clip: Any, prompt: str) -> Any:
    """As the host's text encode node."""
    if clip is None:
        raise LoomError("no text encoder is connected; this checkpoint holds none: load one and connect it to clip.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def find(clip: Any, prompt: str, lines: str, positive: Any, what: str = "concept") -> Located:
    """The phrases, one per line, in the prompt. Raises LoomError."""
    phrases = [line.strip() for line in lines.splitlines() if line.strip()]
    if not phrases:
        raise LoomError(f"no {what} was given; write the things to keep one per line, in the words of the prompt.")
    if clip is None:
        raise LoomError("no text encoder is connected; connect the one the prompt was encoded with to clip.")
    return locate(clip, prompt, phrases, int(positive[0][0].shape[1]))
