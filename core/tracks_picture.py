"""Pictures of paths: where each object is, was and will be, over an empty ground or a picture of the user's."""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from .tracks import Box, Track, Tracks

PALETTE = ("#ff9f43", "#4aa3ff", "#5bd08a", "#ff6b81", "#c58cff", "#ffd84d", "#3fd0d4", "#f78fd1")
"""Colours of objects in their order, again from the start after the last; web/js/track_geometry.js has the same."""
GROUND, GRID, INK = (30, 32, 38), (46, 49, 58), (245, 246, 250)
ONION = 9
"""So many boxes between first and last frame are drawn faintly in the picture of the whole path."""
CONTOUR = (0, 0, 0, 150)

Colour = tuple[int, int, int]


def whole_path(tracks: Tracks, background: torch.Tensor | None = None) -> torch.Tensor:
    """One picture [1, H, W, 3] in 0..1: boxes at key frames, faint ones between them, the line of the centres, frame numbers.

    background: [frames, h, w, 3 or more]; its first frame is shown, cut to the clip's shape.
    """
    picture = _ground(tracks, background, 0)
    pen = ImageDraw.Draw(picture, "RGBA")
    boxes = tracks.boxes().tolist()
    for i, track in enumerate(tracks.objects):
        colour = colour_of(i)
        seen: list[Box | None] = [None if math.isnan(box[0]) else tuple(box) for box in boxes[i]]
        step = max(1, (tracks.frames - 1) // (ONION + 1))
        for f in range(0, tracks.frames, step):
            ghost = seen[f]
            if ghost:
                pen.rectangle(_pixels(ghost, tracks), fill=(*colour, 10), outline=(*colour, 80))
        _line(pen, seen, tracks, colour)
        for key in track.keys:
            box = seen[key.frame]
            if box:
                pen.rectangle(_pixels(box, tracks), fill=(*colour, 26), outline=(*colour, 255), width=_stroke(tracks))
        _marks(pen, track, seen, tracks, colour)
        first = next((box for box in seen if box), None)
        if first:
            _label(pen, track.name, first, tracks, colour)
    return _values(picture)[None]


def every_frame(tracks: Tracks, background: torch.Tensor | None = None) -> torch.Tensor:
    """All frames [frames, H, W, 3] in 0..1: the box of the moment on the line of the centres.

    background: [frames, h, w, 3 or more]; where it is shorter than the clip its last frame stays.
    """
    boxes = tracks.boxes().tolist()
    seen: list[list[Box | None]] = [[None if math.isnan(box[0]) else tuple(box) for box in row] for row in boxes]
    font = ImageFont.load_default(_text_size(tracks))
    ground, moving = None, 1 if background is None else len(background)
    out = torch.empty(tracks.frames, tracks.height, tracks.width, 3)
    for f in range(tracks.frames):
        if f < moving or ground is None:  # the ground changes no more: lines are drawn once
            ground = _ground(tracks, background, f)
            lines = ImageDraw.Draw(ground, "RGBA")
            for i in range(len(seen)):
                _line(lines, seen[i], tracks, colour_of(i))
        picture = ground.copy()
        pen = ImageDraw.Draw(picture, "RGBA")
        for i, track in enumerate(tracks.objects):
            box = seen[i][f]
            if box:
                pen.rectangle(_pixels(box, tracks), fill=(*colour_of(i), 40), outline=(*colour_of(i), 255), width=_stroke(tracks) + 1)
                _label(pen, track.name, box, tracks, colour_of(i))
        _text(pen, (tracks.width - 6, tracks.height - 4), f"{f}", INK, font, "rs")
        out[f] = _values(picture)
    return out


def first_picture(tracks: Tracks, background: torch.Tensor) -> torch.Tensor:
    """The background's first frame [1, H, W, 3] in 0..1, cut to the clip's shape: what the editor shows behind the boxes."""
    return _values(_ground(tracks, background, 0))[None]


def colour_of(index: int) -> Colour:
    """RGB of the object at a place."""
    code = PALETTE[index % len(PALETTE)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _ground(tracks: Tracks, background: torch.Tensor | None, frame: int) -> Image.Image:
    """The user's picture scaled to cover the clip and cut at its centre; else a dark ground in thirds."""
    size = (tracks.width, tracks.height)
    if background is not None:
        shown = background[min(frame, len(background) - 1), ..., :3].detach().float().cpu().clamp(0, 1)
        if shown.shape[-1] == 1:
            shown = shown.expand(*shown.shape[:-1], 3)
        picture = Image.fromarray((shown * 255).round().byte().numpy())
        scale = max(size[0] / picture.width, size[1] / picture.height)
        cut_w, cut_h = size[0] / scale, size[1] / scale
        left, top = (picture.width - cut_w) / 2, (picture.height - cut_h) / 2
        return picture.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + cut_w, top + cut_h))
    picture = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(picture)
    for part in (1 / 3, 2 / 3):
        pen.line([(size[0] * part, 0), (size[0] * part, size[1])], GRID)
        pen.line([(0, size[1] * part), (size[0], size[1] * part)], GRID)
    return picture


def _line(pen: ImageDraw.ImageDraw, seen: list[Box | None], tracks: Tracks, colour: Colour) -> None:
    """The centres from frame to frame, broken where the object is absent."""
    run: list[tuple[float, float]] = []
    for box in [*seen, None]:
        if box:
            run.append(_centre(box, tracks))
        elif len(run) > 1:
            pen.line(run, CONTOUR, _stroke(tracks) + 2, joint="curve")
            pen.line(run, (*colour, 255), _stroke(tracks), joint="curve")
        if not box:
            run = []


def _marks(pen: ImageDraw.ImageDraw, track: Track, seen: list[Box | None], tracks: Tracks, colour: Colour) -> None:
    """A diamond and the frame number at each key frame."""
    font, r = ImageFont.load_default(_text_size(tracks)), _stroke(tracks) + 3
    for key in track.keys:
        box = seen[key.frame]
        if box:
            x, y = _centre(box, tracks)
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], (*colour, 255), CONTOUR)
            _text(pen, (x + r + 2, y - r), str(key.frame), INK, font, "ls")


def _label(pen: ImageDraw.ImageDraw, name: str, box: Box, tracks: Tracks, colour: Colour) -> None:
    x0, y0, _, _ = _pixels(box, tracks)
    font = ImageFont.load_default(_text_size(tracks))
    _text(pen, (x0 + 4, y0 + 2), name, colour, font, "la")


def _text(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Colour, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, anchor: str) -> None:
    """Text with a dark contour, so it can be read on any picture."""
    pen.text(at, text, colour, font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _pixels(box: Box, tracks: Tracks) -> Box:
    x0, y0, x1, y1 = box
    return x0 * tracks.width, y0 * tracks.height, x1 * tracks.width - 1, y1 * tracks.height - 1


def _centre(box: Box, tracks: Tracks) -> tuple[float, float]:
    return (box[0] + box[2]) / 2 * tracks.width, (box[1] + box[3]) / 2 * tracks.height


def _stroke(tracks: Tracks) -> int:
    return max(1, min(tracks.width, tracks.height) // 220)


def _text_size(tracks: Tracks) -> int:
    return max(9, min(28, min(tracks.width, tracks.height) // 26))


def _values(picture: Image.Image) -> torch.Tensor:
    """[H, W, 3] float32 in 0..1."""
    return torch.from_numpy(numpy.array(picture)).float().div_(255)
