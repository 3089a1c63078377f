"""Train the tiny Wan text-to-video model of the shapes world, and its words, from a seed.

    python -m attention_loom.toyworld.train --steps 4300

The model is ComfyUI's own `WanModel` (256 channels, 2 heads, 4 blocks). It is trained on the exact linear latent, so no VAE runs here. Word
embeddings are learned jointly: frozen random text gave a model that ignores the caption. Rectified flow, logit-normal times shifted by 3;
Muon for the matrices of the blocks, AdamW for everything else; constant rate, then a linear decay over the last 30 % of the steps, so a run
can be resumed with a larger `--steps` as long as its decay has not begun. Ends by writing `toy_wan_t2v.safetensors` and `toy_umt5.safetensors`.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path

import torch

from . import latent, vocabulary, world
from .host import CHECKPOINTS, load_host

MODEL = dict(model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=768, freq_dim=256, text_dim=4096, num_heads=2, num_layers=4)
# Orbit directions are the last thing the model learns, "still" the first: draw them accordingly.
MOTION_WEIGHT = {motion: 1.6 if motion in world.ORBITS else 0.7 if motion == "still" else 1.0 for motion in world.MOTIONS}
SHIFT = 3.0
RATE_MUON, RATE_ADAM, WARM_UP, DECAY = 0.02, 2e-3, 100, 0.3
EMPTY_PROMPT = 0.1
EMA = 0.998


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


def times(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels [batch] in 0..1: a logit-normal (width 1.2), one draw per equal-probability stratum, shifted by 3."""
    share = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    u = torch.sigmoid(1.2 * 2**0.5 * torch.erfinv((2 * share - 1).clamp(-0.9999, 0.9999)))
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def rate(step: int, steps: int) -> float:
    """Factor on the learning rates: warm-up, constant, linear decay to 2 % over the last 30 %."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP, max(0.02, left))


class Trainer:
    """Model, words, optimisers, their running average and the random state: everything that a resume file holds."""

    def __init__(self, seed: int, compiled: bool):
        self.model = build_model(seed)
        self.words = torch.nn.Parameter(torch.randn(len(vocabulary.ROWS), vocabulary.WIDTH))
        matrices = [p for n, p in self.model.named_parameters() if n.startswith("blocks") and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        self.others = [p for p in self.model.parameters() if id(p) not in chosen] + [self.words]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=RATE_MUON, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(self.others, lr=RATE_ADAM, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.names = [name for name, _ in self.model.named_parameters()]
        self.live = [*self.model.parameters(), self.words]
        self.average = [p.detach().clone() for p in self.live]
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.step = 0
        self.minutes = 0.0
        # The text MLP runs once per word of the vocabulary instead of once per token of the batch; inside the model it is the identity. The
        # model is not touched again: a changed module would be compiled anew.
        self.text_embedding, self.model.text_embedding = self.model.text_embedding, torch.nn.Identity()
        self.forward = torch.compile(self.model) if compiled else self.model

    def loss(self, clean: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Velocity error on a batch of latents [B, 16, T, 8, 8] with caption rows [B, 24]."""
        sigma = times(len(clean), self.generator)
        noise = torch.randn(clean.shape, generator=self.generator)
        mix = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text_embedding(vocabulary.normalised(self.words))[rows]
            velocity = self.forward((1 - mix) * clean + mix * noise, sigma * 1000, context)
        return ((velocity.float() - (noise - clean)) ** 2).mean()

    def advance(self, pool: tuple[torch.Tensor, torch.Tensor], batch: int, steps: int) -> float:
        """One optimiser step on a random batch of the pool; returns the loss."""
        chosen = torch.randint(0, len(pool[0]), (batch,), generator=self.generator)
        clean, rows = pool[0][chosen].float(), pool[1][chosen].clone()
        rows[torch.rand(batch, generator=self.generator) < EMPTY_PROMPT] = torch.tensor(vocabulary.rows_of(""))
        loss = self.loss(clean, rows)
        for optimiser, base in zip(self.optimisers, (RATE_MUON, RATE_ADAM), strict=True):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = base * rate(self.step, steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.live], 1 - min(EMA, (1 + self.step) / (10 + self.step)))
        return loss.item()

    def state(self) -> dict:
        """Everything needed to go on."""
        return dict(
            live=[p.detach() for p in self.live], average=self.average, optimisers=[o.state_dict() for o in self.optimisers],
            generator=self.generator.get_state(), step=self.step, minutes=self.minutes,
        )  # fmt: skip

    def restore(self, state: dict) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            for p, value in zip(self.live, state["live"], strict=True):
                p.copy_(value)
        self.average = [value.clone() for value in state["average"]]
        for optimiser, value in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        self.generator.set_state(state["generator"])
        self.step, self.minutes = state["step"], state["minutes"]

    def export(self, folder: Path, note: dict) -> None:
        """Write the averaged model and its text encoder in the files that ComfyUI loads."""
        from safetensors.torch import save_file

        from . import text_encoder

        weights = dict(zip(self.names, self.average[:-1], strict=True))
        metadata = {"toyworld": json.dumps({**note, "step": self.step, "minutes": round(self.minutes, 1), "model": MODEL})}
        save_file({name: value.half().contiguous() for name, value in weights.items()}, folder / "toy_wan_t2v.safetensors", metadata=metadata)
        text_encoder.write(self.average[-1], folder / "toy_umt5.safetensors")


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
    trainer = Trainer(options.seed, not options.eager)
    if options.resume.exists():
        trainer.restore(torch.load(options.resume))
        print(f"resumed at step {trainer.step}", flush=True)
    pool = make_pool(options.pool, options.seed + 2)
    note = {"seed": options.seed, "steps": options.steps, "batch": options.batch, "pool": options.pool}
    start, before, saved, losses = time.time(), trainer.minutes, time.time(), []
    while trainer.step < options.steps:
        losses.append(trainer.advance(pool, options.batch, options.steps))
        trainer.minutes = before + (time.time() - start) / 60
        if trainer.step % 100 == 0:
            print(f"step {trainer.step} of {options.steps}: loss {sum(losses[-100:]) / len(losses[-100:]):.4f}, {trainer.minutes:.1f} min", flush=True)
        if time.time() - saved > 240 or trainer.step == options.steps:
            temporary = options.resume.with_suffix(".tmp")
            torch.save(trainer.state(), temporary)
            temporary.replace(options.resume)
            trainer.export(options.out, note)
            saved = time.time()


if __name__ == "__main__":
    main()
