"""What a user asks of a drag, read into a scene: the object's mask, where it goes by numbers, a target or a drawn path, and the other objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blob import Blob, Edges, Shape
from .drag import Drag, Scene
from .errors import LoomError
from .regions import Box, Disc, parse
from .tracks import Tracks

TARGET = "write x, y or left, top, right, bottom, all from 0 to 1"


def mask_of(mask: Any) -> Tensor | None:
    """One mask [height, width] in 0..1 on the CPU. Raises LoomError for several."""
    if mask is None:
        return None
    found = mask.detach().float().cpu()
    if found.ndim < 2 or found.numel() != found.shape[-1] * found.shape[-2]:
        raise LoomError(f"the mask has the shape {tuple(found.shape)}; connect one mask, of the object that shall move.")
    return found.reshape(found.shape[-2:])


def fits(frame: tuple[int, int], height: int, width: int) -> None:
    """Whether a mask lies over a latent of this size. Raises LoomError."""
    h, w = frame
    if abs(h / w * width - height) > 1 and abs(w / h * height - width) > 1:
        raise LoomError(f"the mask is {w} x {h} pixels and the latent {width} x {height} cells, which is another shape; make the mask as the picture is.")


def scene_of(
    mask: Tensor | None, shape: Shape, dx: float, dy: float, scale: float, target: str, track: Tracks | None, caption: str, others: str, masks: Any, radius: float
) -> Scene:
    """The dragged object with its drag, and the others ("caption @ place" per line). Raises LoomError.

    target: where its centre goes, or its box; track: a path whose first box is where it is and whose last box where it goes. Each of them takes the place
    of dx, dy (pixels of the mask) and, a box, of scale.
    """
    if target.strip() and track is not None:
        raise LoomError("a target and a track were given; both say where the object goes, so give one of them.")
    if mask is None and track is None:
        raise LoomError("no mask is connected; paint over the object that shall move, or draw its old and new box with Draw Path.")
    frame = (int(mask.shape[0]), int(mask.shape[1])) if mask is not None else (track.height, track.width)  # type: ignore[union-attr]
    drawn = None if track is None else _ends(track, frame)
    blob = Blob.of_mask(mask, shape) if mask is not None else Blob.of_edges(drawn[0], frame, shape)  # type: ignore[index]
    drag = _to(target, blob) if target.strip() else Drag(dx, dy, scale) if drawn is None else _between(*drawn, blob)
    found = parse(others, masks, radius) if others.strip() else ()
    blobs = tuple(Blob.of_place(region.place, frame, shape) for region in found)
    return Scene((blob, *blobs), (caption.strip() or "the object", *(region.text for region in found)), drag)


def _ends(track: Tracks, frame: tuple[int, int]) -> tuple[Edges, Edges]:
    """The first and the last box of a path of one object, in pixels."""
    if len(track.objects) != 1:
        raise LoomError(f"the track has {len(track.objects)} objects; draw the path of the one that shall move.")
    boxes = track.boxes()[0]
    seen = boxes[~boxes[:, 0].isnan()]
    if len(seen) < 2:
        raise LoomError("the track shows the object in fewer than two frames; draw where it is in the first and where it goes in the last.")
    size = torch.tensor([frame[1], frame[0]] * 2, dtype=torch.float64)
    first, last = (tuple(float(v) for v in box * size) for box in (seen[0], seen[-1]))
    return first, last  # type: ignore[return-value]


def _between(old: Edges, new: Edges, blob: Blob) -> Drag:
    """From one box to another; the sides grow by the mean of both where width and height differ. The object is scaled about its own centre."""
    sides = [(new[i + 2] - new[i]) / (old[i + 2] - old[i]) for i in (0, 1)]
    scale = 1.0 if sides == [1.0, 1.0] else (sides[0] * sides[1]) ** 0.5
    dx, dy = ((new[i] + new[i + 2]) / 2 - (c + scale * ((old[i] + old[i + 2]) / 2 - c)) for i, c in ((0, blob.x), (1, blob.y)))
    return Drag(dx, dy, scale)


def _to(target: str, blob: Blob) -> Drag:
    try:
        (region,) = parse(f"target @ {target.strip()}", None, 0.25)
    except (LoomError, ValueError) as error:
        raise LoomError(f"'{target.strip()}' is no target; {TARGET}.") from error
    height, width = blob.frame
    place = region.place
    if isinstance(place, Disc):
        return Drag(place.x * width - blob.x, place.y * height - blob.y)
    if not isinstance(place, Box):
        raise LoomError(f"'{target.strip()}' is no target; {TARGET}.")
    return _between(blob.edges, (place.left * width, place.top * height, place.right * width, place.bottom * height), blob)


def picture_of(latent: Any, generated: bool) -> Tensor:
    """The one latent [1, C, (1,) h, w] that is edited. Raises LoomError for several, for an empty one, and for one with a noise mask."""
    samples: Tensor = latent["samples"]
    if samples.shape[0] != 1:
        raise LoomError(f"the latent holds {samples.shape[0]} pictures; connect one, with Latent From Batch in between.")
    if "noise_mask" in latent:
        raise LoomError("the latent has a noise mask already; connect the plain picture from VAE Encode, what is drawn anew is worked out here.")
    if not generated and not bool(samples.any()):
        raise LoomError("the latent is empty; connect the picture from VAE Encode, or set source to 'generated beside'.")
    return samples


def doubled(latent: Any, samples: Tensor) -> Any:
    """The latent of picture and result in one batch, which begin with the same noise."""
    first = (latent.get("batch_index") or [0])[0]
    return latent | {"samples": torch.cat([samples, samples]), "batch_index": [first, first]}
