// The path editor's pure half, in Node: `node --test tests/ui` (tests/ui/test_geometry.py runs it in `make test`).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  EASES, boxAt, boxes, clipped, covering, ease, frameToX, governing, handleAt, HANDLES, hit, moved, pathAt, placed, resized, spanned, stretched, tickStep, xToFrame,
} from "../../web/js/track_geometry.js";
import {
  History, addObject, moveKey, neighbourKey, objectAt, playedOver, readTrack, removeKey, removeObject, renameObject, setClip, setEase, setKey, setVisible, writeTrack,
} from "../../web/js/track_document.js";

const A = [0.1, 0.2, 0.4, 0.6];
const B = [0.5, 0.3, 1, 0.9];
const key = (frame, box = A, more = {}) => ({ frame, box, ...more });
const raw = (keys, more = {}) => ({ version: 1, frames: 9, width: 64, height: 48, objects: [{ name: "cat", keys }], ...more });
const read = (keys, more) => readTrack(JSON.stringify(raw(keys, more)));
const near = (got, wanted) => got.forEach((v, i) => assert.ok(Math.abs(v - wanted[i]) < 1e-5, `${got} is not ${wanted}`));

test("the editor computes exactly the server's boxes", () => {
  const cases = JSON.parse(readFileSync(new URL("../fixtures/track_cases.json", import.meta.url), "utf8"));
  assert.ok(cases.length > 10);
  for (const { why, track, frames, boxes: wanted } of cases) {
    assert.deepEqual(boxes(playedOver(readTrack(JSON.stringify(track)), frames)), wanted, why);
  }
});

test("eases start at 0, never run backwards, and meet in the middle where they should", () => {
  for (const kind of EASES) {
    const values = Array.from({ length: 64 }, (_, i) => ease(kind, i / 64));
    assert.equal(values[0], 0);
    values.slice(1).forEach((v, i) => assert.ok(v >= values[i]));
  }
  assert.deepEqual(EASES.map((kind) => ease(kind, 0.5)), [0.5, 0.25, 0.75, 0.5, 0]);
});

test("a key governs until the next; outside the keys the outer boxes stay", () => {
  const [track] = read([key(2), key(6, B, { visible: false })], { extend: "hold" }).objects;
  assert.deepEqual([0, 2, 5, 6, 8].map((f) => governing(track, f)), [0, 0, 0, 1, 1]);
  assert.deepEqual(boxAt(track, 0), A);
  assert.equal(boxAt(track, 7), null);
  assert.deepEqual(pathAt(track, 7), B);
  near(pathAt(track, 4), [0.3, 0.25, 0.7, 0.75]);
});

test("handles lie where they are drawn and can be hit", () => {
  for (const handle of HANDLES) {
    const [x, y] = handleAt(A, handle);
    assert.equal(hit(A, x, y, 0.02, 0.02), handle);
    assert.equal(hit(A, x + (handle.includes("w") ? -0.015 : handle.includes("e") ? 0.015 : 0), y, 0.02, 0.02), handle, "a little outside still counts");
  }
  assert.equal(hit(A, 0.25, 0.4, 0.02, 0.02), "move");
  assert.equal(hit(A, 0.6, 0.4, 0.02, 0.02), null);
  assert.equal(hit([0.5, 0.5, 0.52, 0.52], 0.51, 0.51, 0.05, 0.05), "move", "a tiny box can be moved by its middle");
});

test("moving keeps the size and stops at the picture's edge", () => {
  near(moved(A, 0.1, -0.1, false), [0.2, 0.1, 0.5, 0.5]);
  near(moved(A, -5, 5, false), [0, 0.6, 0.3, 1]);
  near(moved(A, -5, 0, true), [-1, 0.2, -0.7, 0.6]);
});

test("resizing moves only the pulled edges and keeps a smallest size", () => {
  near(resized(A, "se", 0.1, 0.2, 0.05, 0.05, false), [0.1, 0.2, 0.5, 0.8]);
  near(resized(A, "n", 0.3, 0.1, 0.05, 0.05, false), [0.1, 0.3, 0.4, 0.6]);
  near(resized(A, "w", 9, 0, 0.05, 0.05, false), [0.35, 0.2, 0.4, 0.6]);
  near(resized(A, "e", 9, 0, 0.05, 0.05, false), [0.1, 0.2, 1, 0.6]);
  near(resized(A, "e", 9, 0, 0.05, 0.05, true), [0.1, 0.2, 2, 0.6]);
  for (const handle of HANDLES) {
    for (const d of [-3, -0.37, 0.21, 3]) {
      const [x0, y0, x1, y1] = resized(A, handle, d, -d, 0.05, 0.05, false);
      assert.ok(x0 >= 0 && y0 >= 0 && x1 <= 1 && y1 <= 1 && x1 - x0 > 0.0499 && y1 - y0 > 0.0499, handle);
    }
  }
});

test("a drawn box runs between its corners, is never too small and stays inside", () => {
  near(spanned(0.6, 0.7, 0.2, 0.1, 0.05, 0.05, false), [0.2, 0.1, 0.6, 0.7]);
  near(spanned(0.999, 0.5, 1.4, 0.51, 0.05, 0.1, false), [0.95, 0.5, 1, 0.6]);
  near(spanned(0.9, 0.5, 1.4, 0.8, 0.05, 0.1, true), [0.9, 0.5, 1.4, 0.8]);
});

test("clipping cuts, and a box wholly outside is nothing", () => {
  assert.deepEqual(clipped([-0.5, 0.2, 0.5, 1.5]), [0, 0.2, 0.5, 1]);
  assert.equal(clipped([1.1, 0, 1.5, 1]), null);
  assert.equal(clipped([1, 0, 1.5, 1]), null);
});

test("the picture fits its canvas, the background covers the picture", () => {
  assert.deepEqual(placed(220, 120, 200, 100, 10, 0), { x: 10, y: 10, w: 200, h: 100 });
  const roomy = placed(220, 120, 200, 100, 10, 0.5);
  assert.ok(Math.abs(roomy.w - 100) < 1e-9 && Math.abs(roomy.x - 60) < 1e-9);
  assert.deepEqual(covering(400, 100, 200, 100), { x: 100, y: 0, w: 200, h: 100 });
  assert.deepEqual(covering(100, 400, 200, 100), { x: 0, y: 175, w: 100, h: 50 });
});

test("frames and places on the timeline belong together", () => {
  for (const frames of [2, 81, 1000]) {
    for (const f of [0, 1, Math.floor(frames / 2), frames - 1]) assert.equal(xToFrame(frameToX(f, frames, 4000, 10), frames, 4000, 10), f);
  }
  assert.equal(xToFrame(-50, 81, 400, 10), 0);
  assert.equal(xToFrame(999, 81, 400, 10), 80);
  assert.equal(xToFrame(7, 1, 400, 10), 0);
  assert.equal(tickStep(81, 400, 40), 10);
  assert.equal(tickStep(5, 400, 40), 1);
  assert.equal(tickStep(1, 400, 40), 1);
});

test("another number of frames moves key frames in proportion, halves up", () => {
  assert.deepEqual([0, 1, 2, 3, 4].map((f) => stretched(f, 5, 4)), [0, 1, 2, 2, 3]);
  const doc = read([key(0), key(4, B), key(8)]);
  assert.equal(playedOver(doc, 9), doc);
  assert.deepEqual(playedOver(doc, 17).objects[0].keys.map((k) => k.frame), [0, 8, 16]);
  assert.throws(() => playedOver(doc, 2), /drawn for 9 frames, does not fit into 2/);
});

// --- the JSON --------------------------------------------------------------------------------------------------------

test("what is written is read back exactly", () => {
  const doc = read([key(0, [1 / 3, 0.1, 0.4, 0.1 + 0.2], { ease: "ease_out" }), key(8, B, { visible: false })], { extend: "hold" });
  doc.objects[0].name = 'a "cat" 猫';
  assert.deepEqual(readTrack(writeTrack(doc)), doc);
  assert.equal(writeTrack(readTrack(writeTrack(doc))), writeTrack(doc));
});

test("what the server refuses is refused here with the same reason", () => {
  const refused = [
    ["", /is empty/],
    ["{", /not JSON/],
    ["[1]", /one JSON object/],
    [raw([key(0), key(8)], { version: 2 }), /version 2/],
    [raw([key(0), key(8)], { fps: 16 }), /field "fps"/],
    [raw([key(0), key(8)], { extend: "loop" }), /extend of the track is "loop"/],
    [raw([key(0), key(8)], { clip: 1 }), /clip of the track is 1/],
    [raw([key(0), key(8)], { objects: [] }), /no objects/],
    [raw([key(0), key(8)], { frames: 0 }), /frames of the track is 0/],
    [raw([]), /no key frames/],
    [raw([key(1), key(8)]), /first key frame at 1/],
    [raw([key(0), key(7)]), /last key frame at 7/],
    [raw([key(0), key(3), key(3), key(8)]), /two key frames at 3/],
    [raw([key(0), key(5), key(3), key(8)]), /key frame at 3 after the one at 5/],
    [raw([key(0), key(9)]), /key frame number 2: frame is 9/],
    [raw([key(0), key(2.5), key(8)]), /frame is 2.5/],
    [raw([key(0), key(8, [0.45, 0, 0.3, 1])]), /object 1 "cat", key frame at 8: x1 0.3 is not right of x0 0.45/],
    [raw([key(0), key(8, [0, 0, 0.3, 0])]), /y1 0 is not below y0 0/],
    [raw([key(0), key(8, [0, 0, 1.5, 1])]), /x1 is 1.5; keep it between 0 and 1/],
    [raw([key(0), key(8, [0, 0, "1", 1])]), /four numbers/],
    [raw([key(0, A, { ease: "bounce" }), key(8)]), /ease is "bounce"/],
    [raw([key(0, A, { visible: 1 }), key(8)]), /visible is 1/],
    [raw([key(0, A, { color: 1 }), key(8)]), /field "color"/],
    [{ ...raw([key(0), key(8)]), objects: [raw([key(0), key(8)]).objects[0], raw([key(0), key(8)]).objects[0]] }, /both called "cat"/],
  ];
  for (const [data, words] of refused) assert.throws(() => readTrack(typeof data === "string" ? data : JSON.stringify(data)), words);
  assert.equal(readTrack(JSON.stringify({ version: 1, extend: "hold", objects: raw([key(0)]).objects }), 33, 64, 48).frames, 33);
});

// --- edits -----------------------------------------------------------------------------------------------------------

test("an edit leaves the document before it as it was, and a track the server takes", () => {
  const doc = read([key(0), key(8, B)]);
  const text = writeTrack(doc);
  let now = setKey(doc, 0, 4, { box: [0, 0, 0.5, 0.5] });
  now = removeKey(setEase(now, 0, 2, "ease_in"), 0, 8);
  now = addObject(setVisible(now, 0, 6, false), 3, [0.4, 0.4, 0.6, 0.6]);
  now = renameObject(now, 1, "  dog ");
  assert.equal(writeTrack(doc), text);
  const again = readTrack(writeTrack(now));
  assert.deepEqual(again.objects.map((t) => [t.name, t.keys.map((k) => k.frame)]), [["cat", [0, 4, 6]], ["dog", [3]]]);
  assert.equal(again.objects[0].keys[0].ease, "ease_in");
  assert.equal(boxAt(again.objects[0], 7), null);
});

test("each single edit of a track without held ends can be read back", () => {
  const doc = read([key(0), key(4, B), key(8)]);
  for (const edit of [removeKey(doc, 0, 8), removeKey(doc, 0, 0), moveKey(doc, 0, 8, 6), addObject(doc, 3, A), setVisible(doc, 0, 2, false)]) readTrack(writeTrack(edit));
});

test("a new key frame lies on the path as it was and keeps its ease", () => {
  const doc = read([key(0, A, { ease: "hold" }), key(8, B)]);
  const now = setKey(doc, 0, 4, {});
  assert.deepEqual(now.objects[0].keys[1], { frame: 4, box: A, ease: "hold", visible: true });
});

test("a key frame moves in time between its neighbours only", () => {
  const doc = read([key(0), key(4, B), key(8)]);
  const frames = (d) => d.objects[0].keys.map((k) => k.frame);
  assert.deepEqual(frames(moveKey(doc, 0, 4, 6)), [0, 6, 8]);
  assert.deepEqual(frames(moveKey(doc, 0, 4, 99)), [0, 7, 8]);
  assert.deepEqual(frames(moveKey(doc, 0, 4, -5)), [0, 1, 8]);
  assert.deepEqual(frames(moveKey(doc, 0, 8, 99)), [0, 4, 8]);
});

test("the last key frame and the last object stay", () => {
  const doc = read([key(0)], { extend: "hold" });
  assert.equal(removeKey(doc, 0, 0).objects[0].keys.length, 1);
  assert.equal(removeObject(doc, 0), doc);
  assert.equal(removeObject(addObject(doc, 0, B), 0).objects[0].name, "object 2");
});

test("names stay different, and a full document takes no more objects", () => {
  let doc = addObject(read([key(0), key(8)]), 0, A);
  assert.equal(renameObject(doc, 1, "cat"), doc);
  assert.equal(renameObject(doc, 1, "  "), doc);
  doc = renameObject(doc, 1, "object 3");
  assert.equal(addObject(doc, 0, A).objects[2].name, "object 4");
  for (let i = 0; i < 20; i += 1) doc = addObject(doc, 0, A);
  assert.equal(doc.objects.length, 16);
  assert.equal(new Set(doc.objects.map((t) => t.name)).size, 16);
});

test("switching off 'may leave' brings every box back inside", () => {
  let doc = setClip(read([key(0), key(8)]), true);
  doc = setKey(doc, 0, 8, { box: [0.9, -0.5, 1.4, 0.3] });
  const [, last] = setClip(doc, false).objects[0].keys;
  near(last.box, [0.5, 0, 1, 0.8]);
  readTrack(writeTrack(setClip(doc, false)));
});

test("key frames and objects are found from where one stands", () => {
  const doc = addObject(read([key(0), key(4, B), key(8)]), 0, [0.2, 0.3, 0.6, 0.8]);
  const [cat] = doc.objects;
  assert.deepEqual([neighbourKey(cat, 4, 1), neighbourKey(cat, 5, -1), neighbourKey(cat, 8, 1), neighbourKey(cat, 0, -1)], [8, 4, 8, 0]);
  assert.equal(objectAt(doc, 0, 0.3, 0.4, -1), 1, "the one drawn last lies on top");
  assert.equal(objectAt(doc, 0, 0.3, 0.4, 1), 0);
  assert.equal(objectAt(doc, 0, 0.95, 0.95, -1), -1);
});

test("undo and redo walk through what was done; a new step forgets what was undone", () => {
  const history = new History("a", 4);
  assert.ok(!history.canUndo && !history.canRedo);
  for (const state of ["b", "c", "d", "e"]) history.push(state);
  assert.deepEqual([history.undo(), history.undo(), history.redo()], ["d", "c", "d"]);
  history.push("x");
  assert.ok(!history.canRedo);
  assert.deepEqual([history.undo(), history.undo(), history.undo(), history.undo()], ["d", "c", "b", "b"], "the oldest step fell off");
});
