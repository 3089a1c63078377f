"""Train the tiny Wan text-to-video model of the shapes world, and its words, from a seed.

    python -m attention_loom.toyworld.train --steps 4300

The model is ComfyUI's own `WanModel` (256 channels, 2 heads, 4 blocks). It is trained on the exact linear latent, so no VAE runs here. Word
embeddings are learned jointly: frozen random text gave a model that ignores the caption. Rectified flow, logit-normal times shifted by 3;
optimisers, schedule and resume file are those of `training.loop`. Ends by writing `toy_wan_t2v.safetensors` and `toy_umt5.safetensors`.
"""

import argparse
import json
import random
import resource
from pathlib import Path

import torch

from . import latent, vocabulary, world
from .host import CHECKPOINTS, load_host
from .training.loop import Trainer, amp, run, times

MODEL = dict(model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=768, freq_dim=256, text_dim=4096, num_heads=2, num_layers=4)
# Orbit directions are the last thing the model learns, "still" the first: draw them accordingly.
MOTION_WEIGHT = {motion: 1.6 if motion in world.ORBITS else 0.7 if motion == "still" else 1.0 for motion in world.MOTIONS}
SHIFT = 3.0
EMPTY_PROMPT = 0.1


def build_model(seed: int, sizes: dict = MODEL) -> torch.nn.Module:
    """A fresh `WanModel` of these sizes: Xavier weights, damped residual branches, a zero head."""
    load_host()
    import comfy.ldm.wan.model
    import comfy.ops

    torch.manual_seed(seed)
    model = comfy.ldm.wan.model.WanModel(**sizes, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    for name, weight in model.named_parameters():
        if "modulation" in name:
            weight.data.normal_(0, sizes["dim"] ** -0.5)
        elif weight.ndim >= 2:
            torch.nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        else:
            weight.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    torch.nn.init.normal_(model.text_embedding[0].weight, std=0.02)
    model.head.head.weight.data.zero_()
    for block in model.blocks:
        for branch in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
            branch.weight.data.mul_(0.3)
    return model


def make_pool(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered clips as latents [count, 16, 6, 8, 8] (half precision) and their captions' rows [count, 24]."""
    rng = random.Random(seed)
    latents = torch.empty(count, 16, latent.latent_frames(world.NATIVE_FRAMES), world.SIZE // 8, world.SIZE // 8, dtype=torch.float16)
    rows = torch.empty(count, vocabulary.LENGTH, dtype=torch.long)
    motions = rng.choices(list(MOTION_WEIGHT), list(MOTION_WEIGHT.values()), k=count)
    for i, motion in enumerate(motions):
        scene = world.random_scene(rng, world.random_caption(rng, motion))
        latents[i] = latent.encode(world.render(scene))
        rows[i] = torch.tensor(vocabulary.rows_of(str(scene.caption)))
    return latents, rows


class FirstWorld(torch.nn.Module):
    """The model and its words. A task of `training.loop`; its rates and its rhythm are described there."""

    name = "toy_wan_t2v"
    rates = (0.02, 2e-3)
    batch = 32

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        self.model = build_model(seed)
        self.words = torch.nn.Parameter(torch.randn(len(vocabulary.ROWS), vocabulary.WIDTH))
        # The text MLP runs once per word of the vocabulary instead of once per token of the batch; inside the model it is the identity. The
        # model is not touched again: a changed module would be compiled anew.
        self.text_embedding, self.model.text_embedding = self.model.text_embedding, torch.nn.Identity()
        self._forward = [torch.compile(self.model) if compiled else self.model]

    def loss(self, pool: tuple[torch.Tensor, torch.Tensor], step: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        """Velocity error on a random batch of the pool: latents [N, 16, T, 8, 8] and caption rows [N, 24]."""
        chosen = torch.randint(0, len(pool[0]), (self.batch,), generator=generator)
        clean, rows = pool[0][chosen].float(), pool[1][chosen].clone()
        rows[torch.rand(self.batch, generator=generator) < EMPTY_PROMPT] = torch.tensor(vocabulary.rows_of(""))
        sigma = times(self.batch, SHIFT, generator, shuffled=False)
        noise = torch.randn(clean.shape, generator=generator)
        mix = sigma.view(-1, 1, 1, 1, 1)
        with amp(clean.device):
            context = self.text_embedding(vocabulary.normalised(self.words))[rows]
            velocity = self._forward[0]((1 - mix) * clean + mix * noise, sigma * 1000, context)
        return ((velocity.float() - (noise - clean)) ** 2).mean()

    def export(self, folder: Path, note: dict) -> None:
        """Write the model and its text encoder in the files that ComfyUI loads."""
        from safetensors.torch import save_file

        from . import text_encoder

        weights = self.model.state_dict() | {f"text_embedding.{name}": value for name, value in self.text_embedding.state_dict().items()}
        metadata = {"toyworld": json.dumps({**note, "model": MODEL})}
        save_file({name: value.half().contiguous() for name, value in weights.items()}, folder / f"{self.name}.safetensors", metadata=metadata)
        text_encoder.write(self.words.detach(), folder / "toy_umt5.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=16000, help="rendered clips to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="do not compile the model (slower; needs no C++ compiler)")
    parser.add_argument("--resume", type=Path, default=Path("toy_wan_t2v.resume.pt"), help="written every few minutes, read when it exists")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    torch.set_num_threads(options.threads)
    task = FirstWorld(options.seed, not options.eager)
    task.batch = options.batch
    note = {"seed": options.seed, "steps": options.steps, "batch": options.batch, "pool": options.pool}
    run(Trainer(task, options.seed), make_pool(options.pool, options.seed + 2), options.steps, options.resume, options.out, note)


if __name__ == "__main__":
    main()
