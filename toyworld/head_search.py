"""HeadHunter's search on the toy SD3 model with the world's truth as the goal, on prompts and seeds of its own.

python -m attention_loom.toyworld.head_search            # writes results/scenes_heads.json, which the scoreboard's row reads

The search is the node's: `core.hunt`. A search that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import held_out
from .bundles import BUNDLES, load, load_vae, with_shift
from .held_out import KEPT
from .host import CHECKPOINTS, RESULTS
from .truth_scorer import TruthScorer

FOUND = RESULTS / "scenes_heads.json"
FIRST_SEED = 70_000
PER_ROUND = 3
"""Heads looked for: a third of the model's nine."""


def search(pairs: int, steps: int, out: Path = FOUND, folder: Path = CHECKPOINTS, measure: str = "iou") -> str:
    """Search all heads of all layers, as the paper does, at CFG 1 and u 1; returns the heads found as `heads` of Head Guidance reads them."""
    bundle = BUNDLES["sd3"]
    model, clip = load(bundle, folder)
    from ..core.guidance import Guidance
    from ..core.heads import HeadSet
    from ..core.hunt.bench import Bench, Sampling, fitting, with_prompts
    from ..core.hunt.run import Session
    from ..core.hunt.scorers import as_scorer
    from ..core.hunt.search import Plan
    from ..core.methods.softpag import SoftPAG
    from ..core.schedule import BlockSelection

    captions = [str(scene.caption) for i in range(pairs) for scene in held_out.scenes(bundle, i // 2 + 1, i % 2 + 1, "heads")[-1:]]
    settings = bundle.settings
    with torch.inference_mode():
        prompts = with_prompts(clip, captions, clip.encode_from_tokens_scheduled(clip.tokenize("")))
        latent = {"samples": torch.zeros(1, 16, bundle.size // 8, bundle.size // 8)}
        sampling = Sampling(steps, 1.0, settings.sampler, settings.scheduler)
        push = SoftPAG(HeadSet(), 1.0, guidance=Guidance(3.0))
        shifted = model if settings.shift is None else with_shift(model, settings.shift)
        bench = Bench(shifted, load_vae(bundle, folder), latent, fitting(prompts, None, pairs, FIRST_SEED), sampling, push, as_scorer(TruthScorer(measure)), clip)
        plan = Plan(bench.layers(BlockSelection()), pairs, 1, PER_ROUND, 1.0)
        session = Session(bench, plan, KEPT / "heads" / out.name)
        session.run(lambda s: print(f"{s.hunt.done} of {s.plan.pictures} pictures", flush=True))
    print(session.text())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(session.file(), encoding="utf-8")
    return session.file()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.head_search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=16, help="prompts with a seed each; half have one object, half two")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--out", type=Path, default=FOUND)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    search(options.pairs, options.steps, options.out, options.folder)


if __name__ == "__main__":
    main()
