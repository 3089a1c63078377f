// The drawing as data: reading and writing its JSON (docs/track-schema.md), one function per edit, undo. No DOM, no host.
//
// Documents are never changed in place: each edit returns a new one.

import { EASES, boxAt, governing, pathAt, rounded, stretched } from "./track_geometry.js";

export const VERSION = 1;
export const MAX_OBJECTS = 16;
const FAR = 10;
const EDGES = ["x0", "y0", "x1", "y1"];

/** Read the JSON of a track. Throws Error with one sentence where the server would refuse it as well. */
export function readTrack(text, frames, width, height) {
  if (!String(text ?? "").trim()) throw new Error("The track is empty; draw a path.");
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`The track is not JSON: ${error.message}`);
  }
  if (!isRecord(data)) throw new Error("The track is one JSON object with version and objects.");
  known(data, ["version", "frames", "width", "height", "extend", "clip", "objects"], "The track");
  if (data.version !== VERSION) throw new Error(`The track has version ${show(data.version)}; this editor reads version ${VERSION}.`);
  const doc = {
    frames: whole(data.frames ?? frames, "frames of the track", 1),
    width: whole(data.width ?? width, "width of the track", 1),
    height: whole(data.height ?? height, "height of the track", 1),
    extend: data.extend ?? "none",
    clip: data.clip ?? false,
  };
  if (!["none", "hold"].includes(doc.extend)) throw new Error(`extend of the track is ${show(doc.extend)}; choose one of none, hold.`);
  if (typeof doc.clip !== "boolean") throw new Error(`clip of the track is ${show(doc.clip)}; it is true or false.`);
  if (!Array.isArray(data.objects) || !data.objects.length) throw new Error("The track has no objects; draw at least one box.");
  if (data.objects.length > MAX_OBJECTS) throw new Error(`The track has ${data.objects.length} objects; at most ${MAX_OBJECTS} fit.`);
  doc.objects = data.objects.map((item, i) => readObject(item, i + 1, doc));
  const names = doc.objects.map((track) => track.name);
  const twice = names.findIndex((name, i) => names.indexOf(name) < i);
  if (twice >= 0) throw new Error(`objects ${names.indexOf(names[twice]) + 1} and ${twice + 1} are both called "${names[twice]}"; give each its own name.`);
  return doc;
}

function readObject(item, number, doc) {
  if (!isRecord(item)) throw new Error(`object ${number} is ${show(item)}; it is an object with name and keys.`);
  if (typeof item.name !== "string" || !item.name.trim() || [...item.name].length > 80) {
    throw new Error(`object ${number} has the name ${show(item.name)}; give it one of 1 to 80 letters.`);
  }
  const where = `object ${number} "${item.name}"`;
  known(item, ["name", "keys"], where);
  if (!Array.isArray(item.keys) || !item.keys.length) throw new Error(`${where} has no key frames; draw at least one box.`);
  const keys = item.keys.map((key, i) => readKey(key, `${where}, key frame number ${i + 1}`, where, doc));
  keys.slice(1).forEach((key, i) => {
    if (key.frame === keys[i].frame) throw new Error(`${where} has two key frames at ${key.frame}; keep one of them.`);
    if (key.frame < keys[i].frame) throw new Error(`${where} has the key frame at ${key.frame} after the one at ${keys[i].frame}; order them by frame.`);
  });
  if (doc.extend === "none") {
    const last = keys[keys.length - 1].frame;
    if (keys[0].frame > 0) throw new Error(`${where} has its first key frame at ${keys[0].frame} and none at 0; add one there or set "extend": "hold".`);
    if (last < doc.frames - 1) throw new Error(`${where} has its last key frame at ${last} and none at ${doc.frames - 1}; add one there or set "extend": "hold".`);
  }
  return { name: item.name, keys };
}

function readKey(item, unnamed, owner, doc) {
  if (!isRecord(item)) throw new Error(`${unnamed} is ${show(item)}; it is an object with frame and box.`);
  const frame = whole(item.frame, `${unnamed}: frame`, 0, doc.frames - 1);
  const where = `${owner}, key frame at ${frame}`;
  known(item, ["frame", "box", "ease", "visible"], where);
  const kind = item.ease ?? "linear";
  const visible = item.visible ?? true;
  if (!EASES.includes(kind)) throw new Error(`${where}: ease is ${show(kind)}; choose one of ${EASES.join(", ")}.`);
  if (typeof visible !== "boolean") throw new Error(`${where}: visible is ${show(visible)}; it is true or false.`);
  const box = item.box;
  if (!Array.isArray(box) || box.length !== 4 || box.some((v) => typeof v !== "number")) {
    throw new Error(`${where}: box is ${show(box)}; it is four numbers [x0, y0, x1, y1] in parts of the picture.`);
  }
  const [low, high] = doc.clip ? [-FAR, 1 + FAR] : [0, 1];
  box.forEach((v, i) => {
    if (!Number.isFinite(v)) throw new Error(`${where}: ${EDGES[i]} is ${v}, which is not a finite number.`);
    if (v < low || v > high) throw new Error(`${where}: ${EDGES[i]} is ${v}; keep it between ${low} and ${high}${doc.clip ? "" : ', or set "clip": true to let the box leave the picture'}.`);
  });
  if (box[2] <= box[0]) throw new Error(`${where}: x1 ${box[2]} is not right of x0 ${box[0]}.`);
  if (box[3] <= box[1]) throw new Error(`${where}: y1 ${box[3]} is not below y0 ${box[1]}.`);
  return { frame, box: box.map((v) => v + 0), ease: kind, visible };
}

/** The JSON of a document, one key frame per line. */
export function writeTrack(doc) {
  const head = `"version": ${VERSION}, "frames": ${doc.frames}, "width": ${doc.width}, "height": ${doc.height}, "extend": "${doc.extend}", "clip": ${doc.clip}`;
  const objects = doc.objects.map((track) => {
    const keys = track.keys.map((key) => `      {"frame": ${key.frame}, "box": [${key.box.join(", ")}], "ease": "${key.ease}"${key.visible === false ? ', "visible": false' : ""}}`);
    return `    {"name": ${JSON.stringify(track.name)}, "keys": [\n${keys.join(",\n")}\n    ]}`;
  });
  return `{\n  ${head},\n  "objects": [\n${objects.join(",\n")}\n  ]\n}`;
}

/** The document played over another number of frames, as the server does it. Throws where two key frames would meet. */
export function playedOver(doc, frames) {
  if (frames === doc.frames) return doc;
  const objects = doc.objects.map((track, n) => {
    const keys = track.keys.map((key) => ({ ...key, frame: stretched(key.frame, doc.frames, frames) }));
    const meet = keys.findIndex((key, i) => i > 0 && key.frame === keys[i - 1].frame);
    if (meet > 0) {
      throw new Error(
        `object ${n + 1} "${track.name}", drawn for ${doc.frames} frames, does not fit into ${frames}: two key frames fall on frame ${keys[meet].frame}; use more frames or fewer key frames.`,
      );
    }
    return { ...track, keys };
  });
  return { ...doc, frames, objects };
}

// --- edits -----------------------------------------------------------------------------------------------------------

/** Index of the key frame exactly at a frame, or -1. */
export function keyIndex(track, frame) {
  return track.keys.findIndex((key) => key.frame === frame);
}

/** The key frame at a frame with some of its fields changed; made there if there is none, on the path as it was. */
export function setKey(doc, object, frame, fields) {
  return changed(doc, object, (track) => {
    const at = keyIndex(track, frame);
    const before = track.keys[governing(track, frame)];
    const key = at >= 0 ? track.keys[at] : { frame, box: rounded(pathAt(track, frame)), ease: before.ease, visible: before.visible };
    const keys = track.keys.filter((k) => k.frame !== frame);
    keys.push({ ...key, ...fields });
    keys.sort((a, b) => a.frame - b.frame);
    return { ...track, keys };
  });
}

/** Without the key frame at a frame; the last one of an object stays. */
export function removeKey(doc, object, frame) {
  return changed(doc, object, (track) => (track.keys.length < 2 ? track : { ...track, keys: track.keys.filter((key) => key.frame !== frame) }));
}

/** A key frame moved in time, stopped beside its neighbours. */
export function moveKey(doc, object, from, to) {
  return changed(doc, object, (track) => {
    const at = keyIndex(track, from);
    const low = at > 0 ? track.keys[at - 1].frame + 1 : 0;
    const high = at + 1 < track.keys.length ? track.keys[at + 1].frame - 1 : doc.frames - 1;
    const frame = Math.min(high, Math.max(low, to));
    return { ...track, keys: track.keys.map((key, i) => (i === at ? { ...key, frame } : key)) };
  });
}

/** The ease of the segment that a frame lies in. */
export function setEase(doc, object, frame, kind) {
  return changed(doc, object, (track) => {
    const at = governing(track, frame);
    return { ...track, keys: track.keys.map((key, i) => (i === at ? { ...key, ease: kind } : key)) };
  });
}

/** Present or absent from a frame on, until the next key frame. */
export function setVisible(doc, object, frame, visible) {
  return setKey(doc, object, frame, { visible });
}

/** One more object with a box at a frame; it stays there until it gets more key frames. */
export function addObject(doc, frame, box) {
  if (doc.objects.length >= MAX_OBJECTS) return doc;
  return { ...doc, extend: "hold", objects: [...doc.objects, { name: freshName(doc), keys: [{ frame, box: rounded(box), ease: "linear", visible: true }] }] };
}

/** Without an object; the last one stays. */
export function removeObject(doc, object) {
  return doc.objects.length < 2 ? doc : { ...doc, objects: doc.objects.filter((_, i) => i !== object) };
}

/** Another name, if no other object has it; trimmed, at most 80 letters. */
export function renameObject(doc, object, name) {
  const clean = [...name.trim()].slice(0, 80).join("");
  if (!clean || doc.objects.some((track, i) => i !== object && track.name === clean)) return doc;
  return { ...doc, objects: doc.objects.map((track, i) => (i === object ? { ...track, name: clean } : track)) };
}

/** Whether boxes may leave the picture. Switched off, all boxes are brought back inside, as much of them as there is. */
export function setClip(doc, clip) {
  if (clip) return { ...doc, clip };
  const inside = (box) => {
    const fit = (a, b) => {
      const length = Math.min(1, b - a);
      const start = Math.min(1 - length, Math.max(0, a));
      return [start, start + length];
    };
    const [x0, x1] = fit(box[0], box[2]);
    const [y0, y1] = fit(box[1], box[3]);
    return rounded([x0, y0, x1, y1]);
  };
  return { ...doc, clip, objects: doc.objects.map((track) => ({ ...track, keys: track.keys.map((key) => ({ ...key, box: inside(key.box) })) })) };
}

/** The next or previous frame with a key frame of an object (direction 1 or -1), or the given one if there is none. */
export function neighbourKey(track, frame, direction) {
  const frames = track.keys.map((key) => key.frame).filter((f) => (direction > 0 ? f > frame : f < frame));
  return frames.length ? (direction > 0 ? Math.min(...frames) : Math.max(...frames)) : frame;
}

/** The topmost object but `except` whose box at a frame holds a point, or -1. */
export function objectAt(doc, frame, x, y, except) {
  for (let i = doc.objects.length - 1; i >= 0; i -= 1) {
    const box = i === except ? null : boxAt(doc.objects[i], frame);
    if (box && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]) return i;
  }
  return -1;
}

/** Undo and redo over documents. The newest `limit` steps are kept. */
export class History {
  constructor(state, limit = 200) {
    this.states = [state];
    this.at = 0;
    this.limit = limit;
  }

  get state() {
    return this.states[this.at];
  }

  /** A new state after the present one; what was undone before it is gone. */
  push(state) {
    this.states = [...this.states.slice(0, this.at + 1), state].slice(-this.limit);
    this.at = this.states.length - 1;
  }

  undo() {
    if (this.at > 0) this.at -= 1;
    return this.state;
  }

  redo() {
    if (this.at + 1 < this.states.length) this.at += 1;
    return this.state;
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at + 1 < this.states.length;
  }
}

function changed(doc, object, edit) {
  // outer boxes stay where key frames do not reach the ends: every edit leaves a track the server takes
  return { ...doc, extend: "hold", objects: doc.objects.map((track, i) => (i === object ? edit(track) : track)) };
}

function freshName(doc) {
  for (let n = doc.objects.length + 1; ; n += 1) {
    if (!doc.objects.some((track) => track.name === `object ${n}`)) return `object ${n}`;
  }
}

function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function known(data, names, where) {
  const other = Object.keys(data).find((name) => !names.includes(name));
  if (other !== undefined) throw new Error(`${where} has the field "${other}", which is not known here; known are ${names.join(", ")}.`);
}

function whole(value, what, low, high = 16384) {
  if (!Number.isInteger(value) || value < low || value > high) throw new Error(`${what} is ${show(value)}; it is a whole number from ${low} to ${high}.`);
  return value;
}

function show(value) {
  const text = JSON.stringify(value) ?? "missing";
  return text.length <= 60 ? text : `${text.slice(0, 57)}…`;
}
