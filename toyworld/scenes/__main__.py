"""A sheet of random scenes with their captions: `python -m attention_loom.toyworld.scenes OUT.png [--seed N] [--pictures N] [--clips N]`.

A clip is shown by five frames of its native length, a picture at 128 pixels.
"""

import argparse
import random
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from .draws import Mix
from .layout import random_scene
from .render import render

CELL, GAP, LINE, SHOWN = 128, 6, 12, 5


def sheet(seed: int = 0, clips: int = 8, pictures: int = 10) -> Image.Image:
    """A row of frames for each clip, then rows of pictures; every one under its caption."""
    rng = random.Random(seed)
    mix = Mix(two=0.4, three=0.3)
    rows = [_clip_row(rng, mix) for _ in range(clips)]
    cells = [_picture(rng, mix) for _ in range(pictures)]
    rows += [_beside(cells[start : start + SHOWN]) for start in range(0, pictures, SHOWN)]
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def _clip_row(rng: random.Random, mix: Mix) -> Image.Image:
    scene = random_scene(rng, mix=mix)
    frames = render(scene)
    chosen = torch.linspace(0, len(frames) - 1, SHOWN).round().long().tolist()
    return _titled(_beside([_image(frames[index]) for index in chosen]), str(scene.caption), 2)


def _picture(rng: random.Random, mix: Mix) -> Image.Image:
    scene = random_scene(rng, moving=False, mix=mix)
    return _titled(_image(render(scene, size=CELL)[0]), str(scene.caption), 8)


def _image(frame: torch.Tensor) -> Image.Image:
    return Image.fromarray((frame * 255).round().byte().numpy()).resize((CELL, CELL), Image.Resampling.NEAREST)


def _beside(images: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(image.width + GAP for image in images), max(image.height for image in images)), "white")
    for index, image in enumerate(images):
        row.paste(image, (index * (image.width + GAP), 0))
    return row


def _titled(image: Image.Image, title: str, lines: int) -> Image.Image:
    whole = Image.new("RGB", (image.width, image.height + lines * LINE + GAP), "white")
    ImageDraw.Draw(whole).multiline_text((2, 1), "\n".join(textwrap.wrap(title, image.width // 6)), fill="black", spacing=1, font_size=10)
    whole.paste(image, (0, lines * LINE))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=10)
    options = parser.parse_args()
    sheet(options.seed, options.clips, options.pictures).save(options.out)


if __name__ == "__main__":
    main()
