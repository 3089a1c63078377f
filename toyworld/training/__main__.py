"""Command line of the training; see the package."""

import argparse
import resource
from pathlib import Path

import torch

from ..host import CHECKPOINTS, load_host
from .loop import Trainer, run

STEPS = {"wan": 8500, "forcing": 1100, "sd3": 11500, "sd15": 9800, "grounding": 2200, "picture_vae": 600, "wan_vae": 1300}
POOL, POOLS = 24000, {"picture_vae": 1200, "wan_vae": 1200}  # decoders draw from crops, which are many a scene


def build(name: str, seed: int, compiled: bool, start: Path = CHECKPOINTS) -> torch.nn.Module:
    """The task of a name; some start from checkpoints of the folder `start`."""
    from . import decoders, grounding, sd3, sd15, wan

    if name in ("wan", "forcing", "grounding"):
        return {"wan": wan.Wan, "forcing": wan.Forcing, "grounding": grounding.Grounding}[name](seed, compiled, start)
    return {"sd3": sd3.SD3, "sd15": sd15.SD15, "picture_vae": decoders.PictureVAE, "wan_vae": decoders.WanVAE}[name](seed, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.training", description="Train a checkpoint of the second toy world from a seed.")
    parser.add_argument("model", choices=list(STEPS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pool", type=int, help=f"rendered scenes (decoders: crops) to draw from; {POOL} unless given, for {POOLS} as listed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop after this long; the resume file goes on from there")
    parser.add_argument("--eager", action="store_true", help="do not compile the model (slower; needs no C++ compiler)")
    parser.add_argument("--start", type=Path, default=CHECKPOINTS, help="folder with the checkpoints that wan, forcing and grounding start from")
    parser.add_argument("--resume", type=Path, help="written every few minutes, read when it exists (default MODEL.resume.pt)")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    torch.set_num_threads(options.threads)
    load_host(("--cpu", "--use-pytorch-cross-attention"))  # the host's other attentions re-compile at every call
    task = build(options.model, options.seed, not options.eager, options.start)
    trainer = Trainer(task, options.seed, options.device)
    steps = options.steps or STEPS[options.model]
    count = options.pool or POOLS.get(options.model, POOL)
    note = {"seed": options.seed, "steps": steps, "pool": count}
    options.out.mkdir(parents=True, exist_ok=True)
    run(trainer, task.pool(count, options.seed + 2), steps, options.resume or Path(f"{options.model}.resume.pt"), options.out, note, options.minutes)


if __name__ == "__main__":
    main()
