"""Train the decoder of the toy Wan VAE on small crops, from a seed.

    python -m attention_loom.toyworld.train_vae --steps 1200

Half of the crops show the shapes world; the other half show things it never shows (two objects, other sizes, speeds and colours, fading,
merging shapes, noisy latents), so that the decoder draws what a failing video model says instead of inventing the nearest clean shape.
Ends by writing `toy_wan_vae.safetensors`. The encoder is written by hand and is not trained (`vae.py`).
"""

import argparse
import json
import math
import random
import resource
import time
from pathlib import Path

import torch

from . import latent, vae, world
from .host import CHECKPOINTS

FRAMES = 13  # frames of a training crop: four latent frames, so that the doubled frames see warm caches as well as cold ones
CROP = 48  # pixels
RATE, RATE_MUON, WARM_UP, DECAY, EMA = 2e-3, 0.01, 100, 0.4, 0.998


def decode_at_once(model: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Decode z [B, 16, T, h, h] in one pass: the same function as `model.decode`, which walks through the latent frames one by one.

    The decoder is causal, so padding with zeros on the left equals its caches; only frame doubling treats the first frame on its own.
    One pass needs a sixth of the calls, which is what makes training on a CPU possible.
    """
    import comfy.ldm.wan.vae as wan

    def layer(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(module, wan.Resample):
            return module(x)
        if module.mode == "upsample3d":
            first, rest = x[:, :, :1], x[:, :, 1:]
            if rest.shape[2]:
                b, c, t, h, w = rest.shape
                rest = module.time_conv(rest).reshape(b, 2, c, t, h, w)
                rest = torch.stack((rest[:, 0], rest[:, 1]), 3).reshape(b, c, 2 * t, h, w)
            x = torch.cat([first, rest], 2)
        b, c, t, h, w = x.shape
        x = module.resample(x.transpose(1, 2).reshape(b * t, c, h, w))
        return x.reshape(b, t, *x.shape[1:]).transpose(1, 2)

    x = model.conv2(z)
    decoder = model.decoder
    for module in (decoder.conv1, *decoder.middle, *decoder.upsamples, *decoder.head):
        x = layer(module, x)
    return x


def _odd_clip(rng: random.Random) -> torch.Tensor:
    """Frames [13, 64, 64, 3] of things outside the world: one or two objects of any size, speed, colour and outline, some of them fading."""
    t = torch.arange(FRAMES, dtype=torch.float32)
    frames = torch.full((FRAMES, world.SIZE, world.SIZE, 3), world.BACKGROUND)
    for _ in range(rng.choice((1, 1, 2))):
        heading, speed, radius = rng.uniform(0, 2 * math.pi), rng.choice((0.0, 1.5, rng.uniform(0, 3))), world.SIZE * rng.uniform(0.05, 0.2)
        x = rng.uniform(8, 56) + math.cos(heading) * speed * t
        y = rng.uniform(8, 56) + math.sin(heading) * speed * t
        size = radius * (1 + rng.choice((0.0, rng.uniform(-0.4, 0.4))) * t / FRAMES)
        cover = world.coverage(rng.choice(world.SHAPES), x, y, size)
        if rng.random() < 0.4:  # two outlines merged or intersected give shapes the world does not have
            other = world.coverage(rng.choice(world.SHAPES), x + rng.uniform(-6, 6), y + rng.uniform(-6, 6), size)
            cover = torch.maximum(cover, other) if rng.random() < 0.6 else torch.minimum(cover, other)
        strength = 1.0 if rng.random() < 0.6 else torch.linspace(rng.random(), rng.random(), FRAMES).view(-1, 1, 1)
        colour = torch.tensor(world.COLOURS[rng.choice(list(world.COLOURS))]) if rng.random() < 0.6 else torch.rand(3, generator=_seeded(rng))
        cover = (cover * strength)[..., None]
        frames = frames * (1 - cover) + cover * colour
    return frames


def _seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(31))


def make_pool(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops as latents [count, 16, 4, 6, 6] and pixels [count, 3, 13, 48, 48] in -1..1, both in half precision."""
    rng = random.Random(seed)
    t, cells = latent.latent_frames(FRAMES), CROP // 8
    latents = torch.empty(count, 16, t, cells, cells, dtype=torch.float16)
    pixels = torch.empty(count, 3, FRAMES, CROP, CROP, dtype=torch.float16)
    for i in range(count):
        frames = world.render(world.random_scene(rng), FRAMES) if i % 2 else _odd_clip(rng)
        # Crop around what is there, on the grid of 8-pixel cells.
        seen = (frames - world.BACKGROUND).abs().amax(-1).sum(0)
        weight = seen.sum().clamp(min=1e-3)
        centre = [float((seen.sum(axis) * torch.arange(world.SIZE)).sum() / weight) for axis in (0, 1)]
        left, top = (8 * min(max(round((c - CROP / 2) / 8), 0), (world.SIZE - CROP) // 8) for c in centre)
        crop = frames[:, top : top + CROP, left : left + CROP]
        latents[i] = latent.encode(crop)
        pixels[i] = (crop * 2 - 1).permute(3, 0, 1, 2)
    return latents, pixels


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration of the Muon optimiser (Jordan 2024): a matrix with the same singular vectors and singular values near one."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class ConvolutionMuon(torch.optim.Optimizer):
    """Muon for convolution kernels, each taken as a matrix of outputs x (inputs and taps). torch's own takes plain matrices only."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonal(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                p.add_(direction.reshape(p.shape), alpha=-group["lr"] * scale)


def rate(step: int, steps: int) -> float:
    """Factor on the learning rates: warm-up, constant, linear decay to 2 % over the last 40 %."""
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (DECAY * steps)))


def loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 + 2 L2, counted three times near edges of the truth: there the shape is decided, and they are few. Both [B, 3, F, Y, X] in -1..1."""
    flat = pixels.mean(1)
    grown = torch.nn.functional.max_pool2d(flat, 5, 1, 2) + torch.nn.functional.max_pool2d(-flat, 5, 1, 2)
    weight = (1 + 2 * (grown > 0.1).float())[:, None]
    error = decoded - pixels
    return (weight * (error.abs() + 2 * error * error)).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pool", type=int, default=3000, help="rendered crops to draw from")
    parser.add_argument("--width", type=int, default=vae.WIDTH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, default=Path("toy_wan_vae.resume.pt"), help="written every few minutes, read when it exists")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    # One forgotten graph on full clips has eaten 23 GB before; better to fail.
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    torch.set_num_threads(options.threads)
    model = vae.build(options.width, options.seed)
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    for module in model.decoder.modules():  # a third faster on a CPU: the channels are few
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            layout = torch.channels_last_3d if module.weight.ndim == 5 else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
    parameters = list(model.decoder.parameters())
    kernels = [p for p in parameters if p.ndim >= 4 and p.shape[0] > 3]  # gammas are [C, 1, 1, 1]: told apart below
    kernels = [p for p in kernels if p.shape[1] > 1]
    chosen = {id(p) for p in kernels}
    optimisers = [
        ConvolutionMuon(kernels, RATE_MUON),
        torch.optim.AdamW([p for p in parameters if id(p) not in chosen], lr=RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(options.seed + 1)
    step, before = 0, 0.0
    if options.resume.exists():
        state = torch.load(options.resume)
        with torch.no_grad():
            for p, value in zip(parameters, state["live"], strict=True):
                p.copy_(value)
        average = state["average"]
        for optimiser, value in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)
        generator.set_state(state["generator"])
        step, before = state["step"], state["minutes"]
        print(f"resumed at step {step}", flush=True)
    import comfy.latent_formats

    host = comfy.latent_formats.Wan21()
    latents, pixels = make_pool(options.pool, options.seed + 2)
    start, saved, losses, minutes = time.time(), time.time(), [], before
    while step < options.steps:
        index = torch.randint(0, len(latents), (options.batch,), generator=generator)
        z, truth = latents[index].float(), pixels[index].float()
        level = 0.12 * torch.rand(options.batch, 1, 1, 1, 1, generator=generator)  # a sampled latent is never exact
        noisy = z + level * torch.randn(z.shape, generator=generator)
        value = loss(decode_at_once(model, host.process_out(noisy).contiguous(memory_format=torch.channels_last_3d)), truth)
        for optimiser, base in zip(optimisers, (RATE_MUON, RATE), strict=True):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = base * rate(step, options.steps)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(EMA, (1 + step) / (10 + step)))
        losses.append(value.item())
        minutes = before + (time.time() - start) / 60
        if step % 100 == 0:
            print(f"step {step} of {options.steps}: loss {sum(losses[-100:]) / len(losses[-100:]):.4f}, {minutes:.1f} min", flush=True)
        if time.time() - saved > 180 or step == options.steps:
            live = [p.detach().clone() for p in parameters]
            state = dict(live=live, average=average, optimisers=[o.state_dict() for o in optimisers], generator=generator.get_state(), step=step, minutes=minutes)
            temporary = options.resume.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(options.resume)
            with torch.no_grad():
                for p, value in zip(parameters, average, strict=True):
                    p.copy_(value)
                note = {"seed": options.seed, "steps": options.steps, "step": step, "batch": options.batch, "pool": options.pool, "minutes": round(minutes, 1)}
                vae.save(model, options.out / "toy_wan_vae.safetensors", {"toyworld": json.dumps(note)})
                for p, value in zip(parameters, live, strict=True):
                    p.copy_(value)
            saved = time.time()


if __name__ == "__main__":
    main()
