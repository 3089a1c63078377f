"""Scenes whose captions a checkpoint of the second world was not trained on.

A picture with one object has few possible captions, and a training pool holds a good part of them; so the pool's captions are drawn again from its
seed, without rendering, and left out.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from .bundles import Bundle
from .host import ROOT
from .scenes import Mix, random_scene
from .scenes.grammar import MOTIONS
from .scenes.layout import Scene
from .scoreboard.keys import code_key

KEPT = ROOT / "build" / "toyworld"
"""Captions of the pools, kept between runs."""
POOL_SEED = 2  # added to the seed of a training run: see training.__main__


def scenes(bundle: Bundle, count: int, objects: int, purpose: str, seen: frozenset[str] = frozenset()) -> list[Scene]:
    """Scenes with so many objects and captions not in `seen`. Motions come in turn in clips of one object; every other picture names places.

    purpose: any word; another word gives other scenes, so that settings are not chosen on the scenes of the gate.
    Example: `[str(scene.caption) for scene in scenes(BUNDLES["sd3"], 16, 2, "gate", training_captions("sd3", 0, 24000))]`.
    """
    rng = random.Random(f"{purpose} {'clip' if bundle.moving else 'picture'} {objects}")
    return [_unseen(rng, bundle.moving, _mix(i, objects, bundle.moving), seen) for i in range(count)]


def _mix(index: int, objects: int, moving: bool) -> Mix:
    motions = (MOTIONS[index % len(MOTIONS)],) if moving and objects == 1 else MOTIONS
    return Mix(two=float(objects == 2), three=float(objects == 3), placed=float(index % 2 == 0), motions=motions)


def _unseen(rng: random.Random, moving: bool, mix: Mix, seen: frozenset[str]) -> Scene:
    while True:
        scene = random_scene(rng, moving=moving, mix=mix)
        if str(scene.caption) not in seen:
            return scene


@cache
def training_captions(name: str, seed: int, pool: int) -> frozenset[str]:
    """Captions of the pool that a training run with this seed drew for a bundle; the first call takes half a minute, then they are on disk."""
    mix, moving = _training_mix(name)
    code = "".join(code_key(path) for path in sorted((Path(__file__).parent / "scenes").glob("*.py")))
    path = KEPT / f"captions_{random.Random(f'{mix} {moving} {seed} {pool} {code}').getrandbits(64):016x}.txt"
    if not path.is_file():
        rng = random.Random(seed + POOL_SEED)
        drawn = {str(random_scene(rng, moving=moving, mix=mix).caption) for _ in range(pool)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("\n".join(sorted(drawn)) + "\n", encoding="utf-8")
        partial.replace(path)
    return frozenset(path.read_text(encoding="utf-8").splitlines())


def _training_mix(name: str) -> tuple[Mix, bool]:
    from .training import sd3, sd15, wan

    return {"wan_t2v": (wan.MIX, True), "wan_forcing": (wan.MIX, True), "sd3": (sd3.MIX, False), "sd15": (sd15.MIX, False)}[name]
