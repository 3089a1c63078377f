// Mouse, pen, finger and keys of the path editor. What they do to the drawing is a panel's business (track_panel.js).

import { EASES, boxAt, centre, frameToX, hit, moved, pathAt, resized, spanned, xToFrame } from "./track_geometry.js";
import { keyIndex, moveKey, neighbourKey, objectAt, removeKey, removeObject, setEase, setKey } from "./track_document.js";
import { PAD, ROW, RULER } from "./track_paint.js";

const REACH = { mouse: 9, pen: 12, touch: 22 };
const CURSORS = { nw: "nwse-resize", se: "nwse-resize", ne: "nesw-resize", sw: "nesw-resize", n: "ns-resize", s: "ns-resize", e: "ew-resize", w: "ew-resize", move: "move" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SMALLEST = 16;

export class TrackInput {
  constructor(panel) {
    this.panel = panel;
    this.drag = null;
    const on = (target, handlers) => Object.entries(handlers).forEach(([name, handler]) => target.addEventListener(name, handler));
    const both = { pointerup: (e) => this.onUp(e), pointercancel: () => this.cancelDrag(), pointerleave: () => this.setHover(null, null) };
    on(panel.stage, { ...both, pointerdown: (e) => this.onStageDown(e), pointermove: (e) => this.onStageMove(e) });
    on(panel.lines, { ...both, pointerdown: (e) => this.onLinesDown(e), pointermove: (e) => this.onLinesMove(e), dblclick: (e) => this.onLinesDouble(e) });
    on(panel.sink, { keydown: (e) => this.onKey(e), focus: () => panel.element.classList.add("focus"), blur: () => panel.element.classList.remove("focus") });
    // after a button the keys shall go on working; a field to write in keeps them
    panel.element.addEventListener("click", (e) => {
      if (!e.target.closest("input, textarea, select")) panel.focus();
    });
    panel.easeMenu.addEventListener("change", () => panel.focus());
  }

  /** Where an event lies on a canvas, in the canvas's own CSS pixels whatever the graph's zoom. */
  local(event, canvas) {
    const rect = canvas.getBoundingClientRect();
    return [((event.clientX - rect.left) / rect.width) * canvas.offsetWidth, ((event.clientY - rect.top) / rect.height) * canvas.offsetHeight];
  }

  onPicture(event) {
    const { panel } = this;
    const [x, y] = this.local(event, panel.stage);
    return [(x - panel.place.x) / panel.place.w, (y - panel.place.y) / panel.place.h];
  }

  least() {
    const { panel } = this;
    return [Math.min(0.5, SMALLEST / panel.clip.width), Math.min(0.5, SMALLEST / panel.clip.height)];
  }

  /** What lies under a point of the picture: {part, object} with part a handle, "move", "key" or "draw". */
  under(event) {
    const { panel } = this;
    const [x, y] = this.onPicture(event);
    const reach = REACH[event.pointerType] ?? REACH.mouse;
    const [rx, ry] = [reach / panel.place.w, reach / panel.place.h];
    const box = boxAt(panel.track, panel.frame);
    const part = box && hit(box, x, y, rx, ry);
    if (part) return { part, object: panel.selected };
    const key = panel.track.keys.find((k) => k.visible !== false && Math.abs(centre(k.box)[0] - x) <= rx && Math.abs(centre(k.box)[1] - y) <= ry);
    if (key) return { part: "key", object: panel.selected, frame: key.frame };
    const other = objectAt(panel.doc, panel.frame, x, y, panel.selected);
    return other >= 0 ? { part: "move", object: other } : { part: "draw", object: panel.selected };
  }

  onStageDown(event) {
    const { panel } = this;
    if (event.button !== 0 || !panel.doc || panel.sheetKind || !panel.place) return;
    panel.stop();
    const found = this.under(event);
    if (found.object !== panel.selected) panel.select(found.object);
    if (found.part === "key") panel.goTo(found.frame);
    const [x, y] = this.onPicture(event);
    const part = found.part === "key" ? "move" : found.part;
    this.drag = { on: "stage", part, x, y, from: part === "draw" ? null : boxAt(panel.track, panel.frame), base: panel.doc, id: event.pointerId };
    this.grab(event, panel.stage);
  }

  onStageMove(event) {
    const { panel } = this;
    if (this.drag?.on === "stage" && this.drag.id === event.pointerId) return this.dragBox(event);
    if (this.drag || !panel.place || !panel.doc) return;
    const { part } = this.under(event);
    panel.stage.style.cursor = part === "draw" ? "crosshair" : part === "key" ? "pointer" : CURSORS[part];
    this.setHover(CURSORS[part] && part !== "move" ? part : null, null);
  }

  dragBox(event) {
    const { panel } = this;
    const { part, x, y, from, base } = this.drag;
    const [px, py] = this.onPicture(event);
    const far = Math.hypot((px - x) * panel.place.w, (py - y) * panel.place.h);
    if (!this.drag.begun && far < (part === "draw" ? 8 : 3)) return;
    this.drag.begun = true;
    const { clip } = base;
    const [w, h] = this.least();
    const [dx, dy] = [px - x, py - y];
    const box = part === "draw" ? spanned(x, y, px, py, w, h, clip) : part === "move" ? moved(from, dx, dy, clip) : resized(from, part, dx, dy, w, h, clip);
    panel.draft = setKey(base, panel.selected, panel.frame, { box, visible: true });
    panel.draw();
  }

  onUp(event) {
    const { panel } = this;
    if (!this.drag || this.drag.id !== event.pointerId) return;
    this.drag = null;
    if (panel.draft) panel.commit(panel.draft);
    panel.focus();
  }

  cancelDrag() {
    const { panel } = this;
    this.drag = null;
    panel.draft = null;
    panel.draw();
  }

  grab(event, canvas) {
    try {
      canvas.setPointerCapture(event.pointerId);
    } catch {
      // an event made by a script has no pointer to capture
    }
  }

  setHover(handle, key) {
    const { panel } = this;
    if (panel.hover === handle && String(panel.hoverKey) === String(key)) return;
    panel.hover = handle;
    panel.hoverKey = key;
    panel.draw();
  }

  /** The row and key frame under a point of the timeline. */
  onTimeline(event) {
    const { panel } = this;
    const [x, y] = this.local(event, panel.lines);
    const width = panel.lines.offsetWidth;
    const row = Math.floor((y - RULER) / ROW);
    const object = row >= 0 && row < panel.doc.objects.length ? row : -1;
    const reach = (REACH[event.pointerType] ?? REACH.mouse) * 0.9;
    const near = object < 0 ? [] : panel.doc.objects[object].keys.map((key) => [Math.abs(frameToX(key.frame, panel.doc.frames, width, PAD) - x), key.frame]).filter(([d]) => d <= reach);
    near.sort((a, b) => a[0] - b[0]);
    return { object, key: near.length ? near[0][1] : null, frame: xToFrame(x, panel.doc.frames, width, PAD) };
  }

  onLinesDown(event) {
    const { panel } = this;
    if (event.button !== 0 || !panel.doc) return;
    panel.stop();
    const { object, key, frame } = this.onTimeline(event);
    if (object >= 0) panel.select(object);
    panel.goTo(key ?? frame);
    this.drag = { on: "lines", key, from: key, base: panel.doc, id: event.pointerId, x: event.clientX };
    this.grab(event, panel.lines);
  }

  onLinesMove(event) {
    const { panel } = this;
    if (!panel.doc) return;
    const { object, key, frame } = this.onTimeline(event);
    if (!this.drag) {
      panel.lines.style.cursor = key === null ? "pointer" : "ew-resize";
      return this.setHover(null, key === null ? null : [object, key]);
    }
    if (this.drag.on !== "lines" || this.drag.id !== event.pointerId) return;
    if (this.drag.key === null) return panel.goTo(frame);
    if (!this.drag.begun && Math.abs(event.clientX - this.drag.x) < 4) return;
    this.drag.begun = true;
    panel.draft = moveKey(this.drag.base, panel.selected, this.drag.from, frame);
    const at = keyIndex(this.drag.base.objects[panel.selected], this.drag.from);
    panel.goTo(panel.track.keys[at].frame);
  }

  onLinesDouble(event) {
    const { panel } = this;
    const { object, key, frame } = this.onTimeline(event);
    if (object < 0 || key !== null) return;
    panel.select(object);
    panel.frame = frame;
    panel.commit(setKey(panel.doc, object, frame, {}));
  }

  // --- keys ------------------------------------------------------------------------------------------------------------

  onKey(event) {
    const { panel } = this;
    if (event.key === "Escape") {
      event.stopPropagation();
      if (this.drag) this.cancelDrag();
      else if (panel.sheetKind) panel.openSheet(null);
      else panel.sink.blur();
      return;
    }
    if (!panel.doc || this.drag || !this.keyAction(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Do what a key stands for; false if it stands for nothing here, so the host may have it. */
  keyAction(event) {
    const { panel } = this;
    const { key } = event;
    if (event.ctrlKey || event.metaKey) {
      const low = key.toLowerCase();
      if (low === "z" && !event.shiftKey) panel.undo();
      else if (low === "y" || low === "z") panel.redo();
      else return false;
      return true;
    }
    if (ARROWS[key]) return this.nudge(...ARROWS[key], event.shiftKey ? 10 : 1, event.altKey);
    if (event.altKey) return false;
    const { doc, frame, selected } = panel;
    const count = doc.objects.length;
    const actions = {
      Delete: () => (event.shiftKey ? panel.commit(removeObject(doc, selected)) : keyIndex(panel.track, frame) >= 0 && panel.commit(removeKey(doc, selected, frame))),
      Tab: () => panel.select((selected + (event.shiftKey ? count - 1 : 1)) % count),
      "[": () => panel.goTo(neighbourKey(panel.track, frame, -1)),
      "]": () => panel.goTo(neighbourKey(panel.track, frame, 1)),
      ",": () => panel.goTo(frame - 1),
      ".": () => panel.goTo(frame + 1),
      Home: () => panel.goTo(0),
      End: () => panel.goTo(doc.frames - 1),
      " ": () => panel.toggle(),
      k: () => keyIndex(panel.track, frame) < 0 && panel.toggleKey(),
      e: () => panel.commit(setEase(doc, selected, frame, EASES[(EASES.indexOf(panel.easeMenu.value) + 1) % EASES.length])),
      v: () => panel.toggleVisible(),
      n: () => panel.newObject(),
      o: () => panel.toggleOnion(),
      "?": () => panel.openSheet(panel.sheetKind === "help" ? null : "help"),
    };
    actions.Backspace = actions.Delete;
    const action = actions[key] ?? actions[key.toLowerCase()];
    if (!action) return false;
    action();
    return true;
  }

  /** Move the box by whole pixels of the clip, or pull its lower right corner. */
  nudge(dx, dy, pixels, resize) {
    const { panel } = this;
    const { doc, frame, selected } = panel;
    const [sx, sy] = [(dx * pixels) / panel.clip.width, (dy * pixels) / panel.clip.height];
    const [w, h] = this.least();
    const box = pathAt(panel.track, frame);
    panel.commit(setKey(doc, selected, frame, { box: resize ? resized(box, "se", sx, sy, w, h, doc.clip) : moved(box, sx, sy, doc.clip), visible: true }));
    return true;
  }
}
