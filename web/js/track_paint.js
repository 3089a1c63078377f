// What the path editor looks like: two canvases drawn from a view, nothing else. All sizes in CSS pixels.

import { HANDLES, PALETTE, boxAt, centre, covering, frameToX, handleAt, pathAt, tickStep } from "./track_geometry.js";
import { keyIndex } from "./track_document.js";

export const ROW = 22;
export const RULER = 18;
export const PAD = 14;
const ONION = 9;
const FONT = "12px Inter, system-ui, sans-serif";

export function colourOf(index) {
  return PALETTE[index % PALETTE.length];
}

/**
 * The picture with its boxes. view: {doc, frame, selected, onion, image, place, theme, hover}; place as of placed().
 */
export function paintStage(ctx, width, height, view) {
  const { doc, frame, selected, place, theme } = view;
  ctx.clearRect(0, 0, width, height);
  paintGround(ctx, place, view.image, doc, theme);
  doc.objects.forEach((track, i) => {
    if (i !== selected) paintOther(ctx, place, track, frame, colourOf(i));
  });
  const track = doc.objects[selected];
  const colour = colourOf(selected);
  if (view.onion) paintOnion(ctx, place, track, doc.frames, colour);
  paintPath(ctx, place, track, doc.frames, colour);
  paintKeyMarks(ctx, place, track, frame, colour);
  const box = boxAt(track, frame);
  if (box) paintSelected(ctx, place, track, frame, box, colour, view.hover);
  else paintAbsent(ctx, place, track, frame, theme);
}

function paintGround(ctx, place, image, doc, theme) {
  ctx.fillStyle = theme.picture;
  ctx.fillRect(place.x, place.y, place.w, place.h);
  if (image) {
    const cut = covering(image.naturalWidth || image.width, image.naturalHeight || image.height, doc.width, doc.height);
    ctx.drawImage(image, cut.x, cut.y, cut.w, cut.h, place.x, place.y, place.w, place.h);
  } else {
    ctx.strokeStyle = theme.grid;
    ctx.lineWidth = 1;
    for (const part of [1 / 3, 2 / 3]) {
      line(ctx, place.x + place.w * part, place.y, place.x + place.w * part, place.y + place.h);
      line(ctx, place.x, place.y + place.h * part, place.x + place.w, place.y + place.h * part);
    }
  }
  ctx.strokeStyle = theme.border;
  ctx.lineWidth = 1;
  ctx.strokeRect(place.x - 0.5, place.y - 0.5, place.w + 1, place.h + 1);
}

function paintOther(ctx, place, track, frame, colour) {
  const box = boxAt(track, frame);
  if (!box) return;
  const [x, y, w, h] = pixels(place, box);
  ctx.fillStyle = `${colour}14`;
  ctx.fillRect(x, y, w, h);
  outline(ctx, x, y, w, h, `${colour}b0`, 1.5, []);
  label(ctx, track.name, x + 5, y + 5, `${colour}d0`);
}

function paintOnion(ctx, place, track, frames, colour) {
  const step = Math.max(1, Math.floor((frames - 1) / (ONION + 1)));
  ctx.lineWidth = 1;
  for (let f = 0; f < frames; f += step) {
    const box = boxAt(track, f);
    if (!box) continue;
    const [x, y, w, h] = pixels(place, box);
    ctx.fillStyle = `${colour}08`;
    ctx.fillRect(x, y, w, h);
    ctx.strokeStyle = `${colour}38`;
    ctx.strokeRect(x, y, w, h);
  }
}

function paintPath(ctx, place, track, frames, colour) {
  for (const [style, thick] of [["#000000a0", 4], [colour, 2]]) {
    ctx.beginPath();
    let open = false;
    const step = Math.max(1, Math.floor(frames / 400));
    for (let f = 0; f < frames; f += f + step < frames ? step : Math.max(1, frames - 1 - f)) {
      const box = boxAt(track, f);
      if (!box) {
        open = false;
        continue;
      }
      const [x, y] = point(place, centre(box));
      if (open) ctx.lineTo(x, y);
      else ctx.moveTo(x, y);
      open = true;
    }
    ctx.strokeStyle = style;
    ctx.lineWidth = thick;
    ctx.lineJoin = "round";
    ctx.stroke();
  }
}

function paintKeyMarks(ctx, place, track, frame, colour) {
  for (const key of track.keys) {
    if (key.visible === false) continue;
    const [x, y] = point(place, centre(key.box));
    diamond(ctx, x, y, key.frame === frame ? 7 : 5, key.frame === frame ? "#ffffff" : colour, "#000000c0");
    label(ctx, String(key.frame), x + 9, y - 16, "#ffffff");
  }
}

function paintSelected(ctx, place, track, frame, box, colour, hover) {
  const [x, y, w, h] = pixels(place, box);
  ctx.fillStyle = `${colour}30`;
  ctx.fillRect(x, y, w, h);
  outline(ctx, x, y, w, h, colour, 2, keyIndex(track, frame) >= 0 ? [] : [7, 5]);
  label(ctx, track.name, x + 6, y + 6, colour);
  for (const handle of HANDLES) {
    const [hx, hy] = point(place, handleAt(box, handle));
    const size = handle === hover ? 7 : 5;
    ctx.fillStyle = handle === hover ? "#ffffff" : colour;
    ctx.strokeStyle = "#000000c0";
    ctx.lineWidth = 1.5;
    ctx.beginPath();
    ctx.rect(hx - size, hy - size, 2 * size, 2 * size);
    ctx.fill();
    ctx.stroke();
  }
}

function paintAbsent(ctx, place, track, frame, theme) {
  const [x, y, w, h] = pixels(place, pathAt(track, frame));
  outline(ctx, x, y, w, h, theme.muted, 1, [2, 6]);
  label(ctx, `${track.name}: not in the picture at frame ${frame}`, x + 6, y + 6, theme.ink);
}

/** The timeline: a ruler, a row per object, key frames, the playhead. view: {doc, frame, selected, hoverKey, theme}. */
export function paintTimeline(ctx, width, height, view) {
  const { doc, frame, selected, theme } = view;
  ctx.clearRect(0, 0, width, height);
  ctx.font = "11px Inter, system-ui, sans-serif";
  ctx.textBaseline = "middle";
  ctx.textAlign = "center";
  const step = tickStep(doc.frames, width - 2 * PAD, 42);
  const head = frameToX(frame, doc.frames, width, PAD);
  const end = frameToX(doc.frames - 1, doc.frames, width, PAD);
  for (let f = 0; f < doc.frames; f += f + step < doc.frames ? step : Math.max(1, doc.frames - 1 - f)) {
    const x = frameToX(f, doc.frames, width, PAD);
    ctx.strokeStyle = theme.grid;
    ctx.lineWidth = 1;
    line(ctx, x, RULER - 2, x, height);
    // numbers make room for the last frame's and for the playhead's
    const covered = Math.abs(x - head) < 24 || (x < end && end - x < 30);
    ctx.fillStyle = theme.muted;
    if (!covered) ctx.fillText(String(f), x, RULER / 2);
  }
  doc.objects.forEach((track, i) => paintRow(ctx, width, track, i, doc.frames, i === selected, view));
  ctx.strokeStyle = theme.ink;
  ctx.lineWidth = 1.5;
  line(ctx, head, RULER - 3, head, height);
  const text = String(frame);
  const half = ctx.measureText(text).width / 2 + 5;
  ctx.fillStyle = theme.ink;
  ctx.beginPath();
  ctx.roundRect(Math.min(width - 2 * half, Math.max(0, head - half)), 1, 2 * half, RULER - 4, 4);
  ctx.fill();
  ctx.fillStyle = theme.paper;
  ctx.fillText(text, Math.min(width - half, Math.max(half, head)), RULER / 2);
}

function paintRow(ctx, width, track, index, frames, isSelected, view) {
  const y = RULER + index * ROW + ROW / 2;
  const colour = colourOf(index);
  const xOf = (f) => frameToX(f, frames, width, PAD);
  if (isSelected) {
    ctx.fillStyle = `${colour}22`;
    ctx.beginPath();
    ctx.roundRect(2, y - ROW / 2 + 1, width - 4, ROW - 2, 5);
    ctx.fill();
  }
  const spans = track.keys.map((key, i) => [i === 0 ? 0 : key.frame, track.keys[i + 1]?.frame ?? frames - 1, key]);
  for (const [from, to, key] of spans) {
    ctx.strokeStyle = key.visible === false ? view.theme.grid : `${colour}${isSelected ? "c0" : "70"}`;
    ctx.lineWidth = key.visible === false ? 1 : 3;
    ctx.setLineDash(key.ease === "hold" && key.visible !== false && to > key.frame ? [2, 4] : []);
    line(ctx, xOf(from), y, xOf(to), y);
  }
  ctx.setLineDash([]);
  for (const key of track.keys) {
    const here = isSelected && key.frame === view.frame;
    const over = view.hoverKey && view.hoverKey[0] === index && view.hoverKey[1] === key.frame;
    const fill = key.visible === false ? view.theme.paper : here ? "#ffffff" : colour;
    diamond(ctx, xOf(key.frame), y, here || over ? 7.5 : 6, fill, key.visible === false ? colour : "#000000c0");
  }
}

function pixels(place, [x0, y0, x1, y1]) {
  return [place.x + x0 * place.w, place.y + y0 * place.h, (x1 - x0) * place.w, (y1 - y0) * place.h];
}

function point(place, [x, y]) {
  return [place.x + x * place.w, place.y + y * place.h];
}

function line(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

/** A rectangle with a dark line under the coloured one, so it shows on any picture. */
function outline(ctx, x, y, w, h, colour, thick, dash) {
  ctx.setLineDash(dash);
  ctx.strokeStyle = "#000000a0";
  ctx.lineWidth = thick + 2;
  ctx.strokeRect(x, y, w, h);
  ctx.strokeStyle = colour;
  ctx.lineWidth = thick;
  ctx.strokeRect(x, y, w, h);
  ctx.setLineDash([]);
}

function diamond(ctx, x, y, r, fill, edge) {
  ctx.beginPath();
  ctx.moveTo(x, y - r);
  ctx.lineTo(x + r, y);
  ctx.lineTo(x, y + r);
  ctx.lineTo(x - r, y);
  ctx.closePath();
  ctx.fillStyle = fill;
  ctx.fill();
  ctx.strokeStyle = edge;
  ctx.lineWidth = 1.5;
  ctx.stroke();
}

function label(ctx, text, x, y, colour) {
  ctx.font = FONT;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  ctx.lineJoin = "round";
  ctx.lineWidth = 3;
  ctx.strokeStyle = "#000000c0";
  ctx.strokeText(text, x, y);
  ctx.fillStyle = colour;
  ctx.fillText(text, x, y);
}

/** Make a canvas of this size as sharp as the screen shows it, and give its context: the graph's zoom counts as much as the display's density. */
export function fitted(canvas, width, height) {
  const zoom = (canvas.getBoundingClientRect().width || width) / (canvas.offsetWidth || width || 1);
  const density = Math.min(4, Math.max(1, Math.ceil(zoom * (window.devicePixelRatio || 1) * 2) / 2));
  const [w, h] = [Math.max(1, Math.round(width * density)), Math.max(1, Math.round(height * density))];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.setTransform(density, 0, 0, density, 0, 0);
  return { ctx, width, height };
}
