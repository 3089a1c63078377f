"""GLIGEN for the toy Stable Diffusion 1.5: boxes with phrases say what goes where (Li et al. 2023, arXiv 2301.07093).

The U-Net and its text encoder are the trained ones and stay as they are; learned are the host's own gated self-attention blocks, one per transformer, and
its position network. ComfyUI's GLIGENLoader reads the file. Boxes are those of the rendered objects; a phrase is the object as the caption names it, without place.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..host import CHECKPOINTS, load_host
from ..scenes import Caption, Mix
from . import pools, words
from .loop import amp
from .pointing import Pointing
from .sd15 import BATCH, POINTING, POINTING_UNTIL, SD15

MIX = Mix(two=0.4, three=0.2, placed=0.2)  # most captions leave the places to the boxes
MOST = 30  # objects of the host's GLIGEN
HEAD = 64  # the head width that the host's loader assumes for any text width but 768
NO_BOXES = 0.1  # share of pictures shown without boxes


class Grounding(SD15):
    """The gated blocks and the position network, on a frozen U-Net."""

    name = "scenes_sd15_gligen"
    rates = (0.01, 1e-3)

    def __init__(self, seed: int, compiled: bool, folder: Path = CHECKPOINTS):
        super().__init__(seed, compiled=False)
        load_host()
        import comfy.gligen
        import comfy.ldm.modules.attention as attention
        from safetensors.torch import load_file

        self.model.load_state_dict({name: value.float() for name, value in load_file(folder / "scenes_sd15.safetensors").items()})
        self.text.clip.load_state_dict({name: value.float() for name, value in load_file(folder / "scenes_sd15_text.safetensors").items()})
        self.requires_grad_(False)
        width = self.text.clip.final_layer_norm.weight.shape[0]
        found = {name: module.attn1.to_q.in_features for name, module in self.model.named_modules() if isinstance(module, attention.BasicTransformerBlock)}
        order = [name for part in ("input_blocks", "middle_block", "output_blocks") for name in found if name.startswith(part)]
        torch.manual_seed(seed)
        self.places = order
        self.blocks = nn.ModuleList([comfy.gligen.GatedSelfAttentionDense(found[name], width, found[name] // HEAD, HEAD) for name in order])
        self.position = comfy.gligen.PositionNet(width, width)
        self._host = [comfy.gligen.Gligen(list(self.blocks), self.position, width)]
        for name, weight in [*self.blocks.named_parameters(), *self.position.named_parameters()]:
            if weight.ndim >= 2:
                nn.init.xavier_uniform_(weight)
            elif weight.ndim == 1:
                nn.init.constant_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0)

    def pool(self, count: int, seed: int) -> pools.Pool:
        """Rendered pictures with one to three objects."""
        return pools.make(count, seed, "clip", False, MIX)

    def pooled(self, phrases: list[str]) -> Tensor:
        """The hidden state at the end token of each phrase [n, 128], as GLIGENTextBoxApply takes it from the text encoder."""
        rows = words.rows_tensor(phrases, "clip")
        return self.text(rows.to(self.alpha.device))[torch.arange(len(rows)), (rows == 1).int().argmax(1)]

    def grounded(self, chosen: Tensor, pool: pools.Pool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [B, 30, 4] (left, top, right, bottom in picture widths), masks [B, 30] and phrase embeddings [B, 30, 128]."""
        device = self.alpha.device
        boxes, masks = torch.zeros(len(chosen), MOST, 4), torch.zeros(len(chosen), MOST)
        phrases, where = [], []
        for i, index in enumerate(chosen.tolist()):
            things = Caption.parse(pool.captions[index]).things
            boxes[i, : len(things)] = pool.boxes[index]
            masks[i, : len(things)] = 1
            phrases += [str(replace(thing, place="")) for thing in things]
            where += [(i, j) for j in range(len(things))]
        pooled = self.pooled(phrases)
        embeddings = pooled.new_zeros(len(chosen), MOST, pooled.shape[1])
        embeddings[tuple(torch.tensor(where).T)] = pooled
        masks[torch.rand(len(chosen), generator=generator) < NO_BOXES] = 0
        return boxes.to(device), masks.to(device), embeddings

    def loss(self, pool: pools.Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Error of the predicted picture with boxes given; in the first part also that of the boxes' attention."""
        chosen = torch.randint(0, len(pool.rows), (BATCH,), generator=generator)
        boxes, masks, phrases = self.grounded(chosen, pool, generator)
        with amp(self.alpha.device), Pointing([block.attn for block in self.blocks]) as seen:
            patch = self._host[0]._set_position(boxes, masks, phrases)
            error = self.error(pool, chosen, generator, {"patches": {"middle_patch": [patch]}})
            error = (error * pools.emphasis(pool, chosen, step, steps).to(self.alpha.device)).mean()
        shown = (masks * torch.tensor(self.hides, device=masks.device)[:, None]).nonzero().tolist()
        if step >= POINTING_UNTIL * steps or not shown:
            return error
        return error + POINTING * seen.loss([(i, j, boxes[i, j].cpu()) for i, j in shown], pool.latents.shape[-2:], behind=MOST)

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the file that GLIGENLoader reads."""
        from safetensors.torch import save_file

        state = {f"position_net.{name}": value for name, value in self.position.state_dict().items()}
        for place, block in zip(self.places, self.blocks, strict=True):
            state |= {f"{place}.fuser.{name}": value for name, value in block.state_dict().items()}
        state = {name: value.detach().half().contiguous() for name, value in state.items()}
        save_file(state, folder / f"{self.name}.safetensors", metadata={"toyworld": json.dumps(note)})
