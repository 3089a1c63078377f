"""Command line of the training; see the package."""

import argparse
import resource
from pathlib import Path

import torch

from ..host import CHECKPOINTS, load_host
from .loop import Trainer, run

STEPS = {"wan": 4200, "forcing": 600, "sd3": 2400, "sd15": 2600, "grounding": 700}


def build(name: str, seed: int, compiled: bool) -> torch.nn.Module:
    """The task of a name."""
    from . import grounding, sd3, sd15, wan

    return {"wan": wan.Wan, "forcing": wan.Forcing, "sd3": sd3.SD3, "sd15": sd15.SD15, "grounding": grounding.Grounding}[name](seed, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.training", description="Train a checkpoint of the second toy world from a seed.")
    parser.add_argument("model", choices=list(STEPS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pool", type=int, default=24000, help="rendered scenes to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop after this long; the resume file goes on from there")
    parser.add_argument("--eager", action="store_true", help="do not compile the model (slower; needs no C++ compiler)")
    parser.add_argument("--start", type=Path, help="resume file of another run to take the weights of (forcing: that of wan)")
    parser.add_argument("--resume", type=Path, help="written every few minutes, read when it exists (default MODEL.resume.pt)")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    torch.set_num_threads(options.threads)
    load_host(("--cpu", "--use-pytorch-cross-attention"))  # the host's other attentions re-compile at every call
    task = build(options.model, options.seed, not options.eager)
    trainer = Trainer(task, options.seed, options.device)
    if options.start:
        with torch.no_grad():
            for p, kept, value in zip(trainer.live, trainer.average, torch.load(options.start, map_location=options.device)["average"], strict=True):
                p.copy_(value)
                kept.copy_(value)
    steps = options.steps or STEPS[options.model]
    note = {"seed": options.seed, "steps": steps, "pool": options.pool}
    options.out.mkdir(parents=True, exist_ok=True)
    run(trainer, task.pool(options.pool, options.seed + 2), steps, options.resume or Path(f"{options.model}.resume.pt"), options.out, note, options.minutes)


if __name__ == "__main__":
    main()
