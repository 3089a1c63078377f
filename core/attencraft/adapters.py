"""What is trained of the model: additions to the weights that make keys and values of the text, worn for a while and taken off again.

Source: AttenCraft, arXiv 2405.17965 (full additions, as in Custom Diffusion); low-rank ones are the host's own. Names and shapes of what is saved
are those the host's LoRA loader reads: ``<layer>.diff``, or ``<layer>.lora_up.weight``, ``.lora_down.weight`` and ``.alpha``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import LoomError

KINDS = ("full", "lora")
Kind = Literal["full", "lora"]
PREFIX = "diffusion_model."
PARTS = {"k": ".attn2.to_k", "v": ".attn2.to_v"}
PLAIN = (torch.float32, torch.float16, torch.bfloat16)


class Full(nn.Module):
    """``w + diff``: an addition of the weight's own shape, zero at first."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(weight.shape, dtype=torch.float32, device=weight.device))

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight as the layer is to use it."""
        return (weight + self.diff.to(weight.device)).to(weight.dtype)


Adapters = dict[str, nn.Module]
"""Path of a layer below the diffusion model -> its addition."""


def layers(diffusion: nn.Module, keys: bool, values: bool) -> dict[str, nn.Module]:
    """The layers that make keys, values or both of the text in cross-attention, in order. Raises LoomError where there are none."""
    ends = tuple(PARTS[part] for part, wanted in (("k", keys), ("v", values)) if wanted)
    found = {name: module for name, module in diffusion.named_modules() if ends and name.endswith(ends)}
    if ends and not found:
        raise LoomError(f"{type(diffusion).__name__} has no cross-attention to train; connect a U-Net: SD 1.5, SD 2 or SDXL.")
    return found


def made(diffusion: nn.Module, kind: Kind, rank: int, keys: bool, values: bool, device: torch.device, seed: int) -> Adapters:
    """Additions that change nothing yet. Raises LoomError for quantised weights with "full"."""
    from comfy.weight_adapter import adapter_maps

    found: Adapters = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers(diffusion, keys, values).items():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            if kind == "full" and (weight.dtype not in PLAIN or type(weight) not in (Tensor, nn.Parameter)):
                raise LoomError(
                    f"the weights of this model are {str(weight.dtype).removeprefix('torch.')}, which a full addition cannot be merged into; choose lora, or load the model in fp16 or bf16."
                )
            like = torch.empty(weight.shape, dtype=torch.float32)
            found[name] = (Full(like) if kind == "full" else adapter_maps["LoRA"].create_train(like, rank=rank, alpha=float(rank))).to(device)
    return found


def parameters(adapters: Adapters) -> list[nn.Parameter]:
    """What an optimiser moves."""
    return [p for adapter in adapters.values() for p in adapter.parameters() if p.requires_grad]


@contextmanager
def worn(diffusion: nn.Module, adapters: Adapters) -> Iterator[None]:
    """The host's layers use the additions meanwhile; afterwards they are exactly as before, whatever happened."""
    kept: list[tuple[Any, bool, list[Any]]] = []
    try:
        for name, adapter in adapters.items():
            layer: Any = diffusion.get_submodule(name)
            kept.append((layer, "weight_function" in vars(layer), layer.weight_function))
            layer.weight_function = [*layer.weight_function, adapter]
        yield
    finally:
        for layer, own, functions in kept:
            if own:
                layer.weight_function = functions
            else:
                del layer.weight_function


def state(adapters: Adapters) -> dict[str, Tensor]:
    """Copies on the CPU under the host's names: a LORA_MODEL."""
    return {f"{PREFIX}{name}.{part}": value.detach().cpu().clone().contiguous() for name, adapter in adapters.items() for part, value in adapter.state_dict().items()}


def load(adapters: Adapters, saved: Mapping[str, Tensor]) -> None:
    """Take on what :func:`state` gave. Raises LoomError where names or shapes differ."""
    for name, adapter in adapters.items():
        own = {part: saved.get(f"{PREFIX}{name}.{part}") for part in adapter.state_dict()}
        if any(v is None or v.shape != adapter.state_dict()[part].shape for part, v in own.items()):
            raise LoomError(f"the saved training does not fit this model at {name}; choose another name, or start over.")
        adapter.load_state_dict(own)
