"""Which anchoring schedule drags best? Rendered pictures whose object is moved, by every setting in turn; the default of Drag Object was chosen here.

python -m attention_loom.toyworld.drag_study sd15 --count 24       # prints a table, writes results/drag_study.json and .md

A picture is rendered, so its object's outline is known exactly and is the mask. Prompts and seeds are those of no scoreboard, gate or other study. Baselines: both
places inpainted with the prompt saying where the object is wanted, and the object's pixels pasted there with its old place inpainted as ground.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch

from .bundles import BUNDLES, Bundle, load, load_vae
from .gates import stated
from .host import CHECKPOINTS, RESULTS
from .on_drag import COLUMNS, measure_drag, moved
from .readings import read, widen
from .sampling import noise_of
from .scenes import Caption, random_caption, random_scene, render
from .scenes.grammar import Ground
from .statistics import interval, paired_gain

FIRST_SEED, DRAW = 91_000, 20261127
SHIFT = 0.5
"""Picture widths to the right: whole tokens in every layer."""
PIXELS = 8
"""By which inpainting masks are widened, about what Drag Object adds here."""
BASES = ("inpaint", "paste")
SETTINGS: dict[str, dict[str, Any]] = {
    "layout first": {},
    "source first": {"anchor_schedule": "source first"},
    "constant": {"anchor_schedule": "constant"},
    "everywhere": {"anchor_scope": "all"},
    "outside": {"anchor_scope": "outside moved regions"},
    "outside, source first": {"anchor_scope": "outside moved regions", "anchor_schedule": "source first"},
    "own noise": {"fresh_noise": False},
    "no anchoring": {"anchor_schedule": "constant", "anchor_level": 0.0},
    "no copying": {"copy_blend": 0.0},
    "no sharing": {"share_end": 0.0},
    "no captions": {"grounding": "off"},
    "boxes": {"boxes": True},
    "boxes, outside": {"boxes": True, "anchor_scope": "outside moved regions"},
    "boxes, exchange not masked": {"boxes": True, "masked_exchange": False},
}
"""The schedules, and layout first with one part changed or left out; "boxes" are GLIGEN's, in the place of captions."""
GLIGEN = "scenes_sd15_gligen.safetensors"


@dataclass(frozen=True)
class Case:
    """One picture: frame [1, S, S, 3], the outline of its object [S, S], and the words for it."""

    caption: Caption
    seed: int
    frame: torch.Tensor
    mask: torch.Tensor

    def words(self, place: str = "") -> str:
        """The caption with the object in a place."""
        return str(replace(self.caption, things=(replace(self.caption.things[0], place=place),)))

    @property
    def object(self) -> str:
        """The object alone."""
        return self.words().split(" on a ")[0]


def cases(count: int, size: int) -> list[Case]:
    """Patterned objects of middle size on the left, on plain grounds."""
    rng, found = random.Random(DRAW), []
    for i in range(count):
        given = random_caption(rng, False, count=1)
        thing = replace(given.things[0], texture=("striped", "dotted")[i % 2], size="", place="left")
        caption = Caption((thing,), Ground(given.ground.colour))
        frame = render(random_scene(random.Random(FIRST_SEED + i), caption), 1, size)
        found.append(Case(caption, FIRST_SEED + i, frame, read(frame, caption).masks[0, 0]))
    return found


class Studio:
    """A model with what an edit needs. ``edit`` gives a picture [1, S, S, 3]."""

    def __init__(self, bundle: Bundle, folder: Path = CHECKPOINTS) -> None:
        self.bundle, (self.model, self.clip), self.vae = bundle, load(bundle, folder), load_vae(bundle, folder)
        self.folder = folder

    @cached_property
    def gligen(self) -> Any:
        """The host's GLIGEN, as GLIGENLoader makes it."""
        import comfy.sd

        return comfy.sd.load_gligen(str(self.folder / GLIGEN))

    def box(self, case: Case) -> tuple[Any, ...]:
        """The object's phrase and box in latent cells, as GLIGENTextBoxApply puts them down."""
        _, pooled = self.clip.encode_from_tokens(self.clip.tokenize(case.object), return_pooled="unprojected")
        rows, columns = case.mask.any(1).nonzero()[:, 0], case.mask.any(0).nonzero()[:, 0]
        return pooled, (len(rows) + 7) // 8, (len(columns) + 7) // 8, int(rows[0]) // 8, int(columns[0]) // 8

    def text(self, words: str) -> Any:
        """A prompt."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(words))

    def sample(self, model: Any, positive: Any, latent: torch.Tensor, mask: torch.Tensor, seed: int) -> torch.Tensor:
        """KSampler from pure noise inside the mask, decoded."""
        import comfy.sample

        told = self.bundle.settings
        drawn = comfy.sample.sample(
            model, noise_of(seed, None, self.bundle.size), told.steps, told.cfg, told.sampler, told.scheduler, positive, self.text(""), latent, disable_pbar=True, seed=seed, noise_mask=mask
        )  # fmt: skip
        return self.vae.decode(drawn).reshape(1, self.bundle.size, self.bundle.size, 3).float()

    def edit(self, case: Case, how: str, **settings: Any) -> torch.Tensor:
        """The case with its object dragged."""
        there = moved(case.mask, round(SHIFT * len(case.mask)), 0)
        if how == "inpaint":
            hole = widen((case.mask | there).float(), 2 * PIXELS + 1) > 0
            return self.sample(self.model, self.text(case.words("right")), self.vae.encode(case.frame), hole[None].float(), case.seed)
        if how == "paste":
            frame = torch.where(there[..., None], case.frame[0].roll(round(SHIFT * len(case.mask)), 1), case.frame[0])[None]
            hole = (widen(case.mask.float(), 2 * PIXELS + 1) > 0) & ~(widen(there.float(), 3) > 0)
            return self.sample(self.model, self.text(str(case.caption.ground)), self.vae.encode(frame), hole[None].float(), case.seed)
        from ..nodes.diffuhaul import dragged

        latent, positive = {"samples": self.vae.encode(case.frame)}, self.text(case.words())
        if settings.pop("boxes", False):
            positive = [[positive[0][0], positive[0][1] | {"gligen": ("position", self.gligen, [self.box(case)])}]]
        model, drawn, positive, _ = dragged(
            self.model,
            positive,
            latent,
            case.mask[None].float(),
            dx=round(SHIFT * len(case.mask)),
            caption=case.object,
            clip=self.clip,
            seed=case.seed,
            redraw_cells=1.0,
            **settings,
        )
        return self.sample(model, positive, drawn["samples"], drawn["noise_mask"], case.seed)


def measured(studio: Studio, count: int, names: list[str], found: dict[str, list[dict[str, float]]], keep: Callable[[], None]) -> None:
    """Measures of every case by every way, picture by picture, into ``found``; what is there already is not drawn again. keep() after each."""
    with torch.inference_mode():
        for number, case in enumerate(cases(count, studio.bundle.size)):
            before = read(case.frame, case.words())
            for name in names:
                if len(found.setdefault(name, [])) <= number:
                    made = studio.edit(case, name) if name in BASES else studio.edit(case, "drag", **SETTINGS[name])
                    found[name].append(measure_drag(before, read(made, case.words()), SHIFT, 0.0))
                    keep()
            print(f"{number + 1}/{count} " + "  ".join(f"{name} {numpy.mean([r['drag_arrived'] for r in found[name]]):.2f}" for name in names), flush=True)


def table(rows: dict[str, list[dict[str, float]]], base: str = "layout first") -> str:
    """Means with 95 % intervals, and what each gains over ``base`` in arriving."""
    names = list(COLUMNS)
    lines = ["| | pictures | " + " | ".join(n.removeprefix("drag_") for n in names) + f" | arrived, minus {base} |", "|---" * (len(names) + 3) + "|"]
    for name, found in rows.items():
        columns = {n: numpy.array([r[n] for r in found], dtype=float) for n in names}
        cells = []
        for values in columns.values():
            mean, low, high = interval(values[~numpy.isnan(values)])
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        gain = None
        if base in rows and name != base:
            n = min(len(found), len(rows[base]))
            gain = paired_gain(columns["drag_arrived"][:n], numpy.array([r["drag_arrived"] for r in rows[base][:n]]))
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + f" | {gain or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.drag_study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=("sd15", "sd3"))
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--only", nargs="*", default=[*BASES, *(name for name in SETTINGS if "boxes" not in name)])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundle, path = BUNDLES[options.name], options.out / "drag_study.json"
    data = json.loads(path.read_text()) if path.is_file() else {}
    made = stated(bundle, options.folder)
    if data.get(options.name, {}).get("checkpoint") != made:
        data[options.name] = {"checkpoint": made, "rows": {}}
    rows = data[options.name]["rows"]

    def keep() -> None:
        path.write_text(json.dumps(data, indent=1) + "\n")

    measured(Studio(bundle, options.folder), options.count, options.only, rows, keep)
    (options.out / "drag_study.md").write_text("\n".join(f"## {name}\n\n{table(found['rows'])}" for name, found in data.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
