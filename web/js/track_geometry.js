// Geometry of the path editor: no DOM, no host. Boxes are [x0, y0, x1, y1] in parts of the picture.
//
// Interpolation is core/tracks.py again, in the same order of operations, so both come to the same 64-bit numbers;
// tests/fixtures/track_cases.json holds both to it.

export const PALETTE = ["#ff9f43", "#4aa3ff", "#5bd08a", "#ff6b81", "#c58cff", "#ffd84d", "#3fd0d4", "#f78fd1"];
export const EASES = ["linear", "ease_in", "ease_out", "ease_in_out", "hold"];
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];

/** How far towards the next key frame at the part u in [0, 1) of the time between. */
export function ease(kind, u) {
  if (kind === "linear") return u;
  if (kind === "ease_in") return u * u;
  if (kind === "ease_out") return u * (2 - u);
  if (kind === "ease_in_out") return u * u * (3 - 2 * u);
  return 0;
}

/** Place of a frame of a clip of `drawn` frames in one of `frames` frames: ends stay, half rounds up. */
export function stretched(frame, drawn, frames) {
  if (drawn === frames || drawn === 1) return frame;
  return Math.floor((2 * frame * (frames - 1) + (drawn - 1)) / (2 * (drawn - 1)));
}

/** Index of the key frame that governs a frame: the last at or before it, the first before all of them. */
export function governing(track, frame) {
  let i = 0;
  while (i + 1 < track.keys.length && track.keys[i + 1].frame <= frame) i += 1;
  return i;
}

/** Box at a frame whether the object is visible or not; outside the key frames the outer boxes stay. */
export function pathAt(track, frame) {
  const i = governing(track, frame);
  const here = track.keys[i];
  const there = track.keys[i + 1];
  if (!there || frame < here.frame) return here.box;
  const e = ease(here.ease, (frame - here.frame) / (there.frame - here.frame));
  return here.box.map((a, k) => a + (there.box[k] - a) * e);
}

/** Box at a frame as drawn; null where the object is absent. */
export function boxAt(track, frame) {
  return track.keys[governing(track, frame)].visible === false ? null : pathAt(track, frame);
}

/** The part of a box inside the picture; null if there is none. */
export function clipped(box) {
  const [x0, y0, x1, y1] = box.map((v) => Math.min(1, Math.max(0, v)));
  return x0 < x1 && y0 < y1 ? [x0, y0, x1, y1] : null;
}

/** What the server computes: boxes [objects][frames], null where an object is not seen. */
export function boxes(doc) {
  return doc.objects.map((track) =>
    Array.from({ length: doc.frames }, (_, f) => {
      const box = boxAt(track, f);
      return box && doc.clip ? clipped(box) : box;
    }),
  );
}

export function centre(box) {
  return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
}

/** Where a handle of a box lies. */
export function handleAt(box, handle) {
  const x = handle.includes("w") ? box[0] : handle.includes("e") ? box[2] : (box[0] + box[2]) / 2;
  const y = handle.includes("n") ? box[1] : handle.includes("s") ? box[3] : (box[1] + box[3]) / 2;
  return [x, y];
}

/**
 * What of a box lies under a point: a handle, "move" for its inside, or null. reachX, reachY: how far a handle can be
 * grabbed. Corners win over edges, and a box too small for its handles can still be moved by its middle.
 */
export function hit(box, x, y, reachX, reachY) {
  const inside = x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
  const innerX = Math.min(reachX, (box[2] - box[0]) / 4);
  const innerY = Math.min(reachY, (box[3] - box[1]) / 4);
  const nearX = inside ? innerX : reachX;
  const nearY = inside ? innerY : reachY;
  for (const handle of ["nw", "ne", "se", "sw", "n", "e", "s", "w"]) {
    const [hx, hy] = handleAt(box, handle);
    if (Math.abs(x - hx) <= nearX && Math.abs(y - hy) <= nearY) return handle;
  }
  return inside ? "move" : null;
}

/** Five decimals: finer than a pixel of any picture, short in the JSON. */
export function rounded(box) {
  return box.map((v) => Math.round(v * 1e5) / 1e5 + 0);
}

/** Limits of edges: the picture, or one picture around it where objects may leave. */
export function limits(clip) {
  return clip ? [-1, 2] : [0, 1];
}

/** A box moved by (dx, dy), stopped at the limits without changing its size. */
export function moved(box, dx, dy, clip) {
  const [low, high] = limits(clip);
  const fit = (a, b, d) => Math.min(Math.max(d, low - a), high - b);
  const x = fit(box[0], box[2], dx);
  const y = fit(box[1], box[3], dy);
  return rounded([box[0] + x, box[1] + y, box[2] + x, box[3] + y]);
}

/** A box with a handle pulled by (dx, dy), never smaller than minW x minH and never beyond the limits. */
export function resized(box, handle, dx, dy, minW, minH, clip) {
  const [low, high] = limits(clip);
  let [x0, y0, x1, y1] = box;
  if (handle.includes("w")) x0 = Math.min(Math.max(low, x0 + dx), x1 - minW);
  if (handle.includes("e")) x1 = Math.max(Math.min(high, x1 + dx), x0 + minW);
  if (handle.includes("n")) y0 = Math.min(Math.max(low, y0 + dy), y1 - minH);
  if (handle.includes("s")) y1 = Math.max(Math.min(high, y1 + dy), y0 + minH);
  return rounded([x0, y0, x1, y1]);
}

/** The box between two corners, at least minW x minH, inside the limits. */
export function spanned(ax, ay, bx, by, minW, minH, clip) {
  const [low, high] = limits(clip);
  const stop = (v) => Math.min(high, Math.max(low, v));
  const span = (a, b, least) => {
    const [p, q] = [stop(Math.min(a, b)), stop(Math.max(a, b))];
    return q - p >= least ? [p, q] : p + least <= high ? [p, p + least] : [high - least, high];
  };
  const [x0, x1] = span(ax, bx, minW);
  const [y0, y1] = span(ay, by, minH);
  return rounded([x0, y0, x1, y1]);
}

/** Where a picture of a shape lies in a canvas: {x, y, w, h} as large as fits with a margin (a part of the picture) left. */
export function placed(canvasW, canvasH, pictureW, pictureH, marginPx, marginPart) {
  const room = 1 + 2 * marginPart;
  const scale = Math.max(1e-6, Math.min((canvasW - 2 * marginPx) / (pictureW * room), (canvasH - 2 * marginPx) / (pictureH * room)));
  const w = pictureW * scale;
  const h = pictureH * scale;
  return { x: (canvasW - w) / 2, y: (canvasH - h) / 2, w, h };
}

/** The part of an image {x, y, w, h} that covers a shape, cut at its centre: as the server cuts the background. */
export function covering(imageW, imageH, pictureW, pictureH) {
  const scale = Math.max(pictureW / imageW, pictureH / imageH);
  const w = pictureW / scale;
  const h = pictureH / scale;
  return { x: (imageW - w) / 2, y: (imageH - h) / 2, w, h };
}

/** Timeline: frame to x and back, over `width` pixels with `pad` at both ends. */
export function frameToX(frame, frames, width, pad) {
  return frames === 1 ? width / 2 : pad + (frame / (frames - 1)) * (width - 2 * pad);
}

export function xToFrame(x, frames, width, pad) {
  if (frames === 1) return 0;
  return Math.min(frames - 1, Math.max(0, Math.round(((x - pad) / (width - 2 * pad)) * (frames - 1))));
}

/** Distance of frame numbers on the timeline so that they do not touch: 1, 2, 5, 10, 20, 50, ... */
export function tickStep(frames, width, apart) {
  for (let ten = 1; ; ten *= 10) {
    for (const step of [ten, 2 * ten, 5 * ten]) {
      if ((step / Math.max(1, frames - 1)) * width >= apart || step >= frames) return step;
    }
  }
}
