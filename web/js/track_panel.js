// The path editor as one element: buttons, picture and timeline over a document with undo. Knows no host: the owner gives
// the text, the clip's size and a background picture, and hears of every change.

import { EASES, boxAt, placed, stretched } from "./track_geometry.js";
import { History, addObject, keyIndex, neighbourKey, playedOver, readTrack, removeKey, removeObject, renameObject, setClip, setEase, setKey, setVisible, writeTrack } from "./track_document.js";
import { TrackInput } from "./track_input.js";
import { HELP, addStyle, button, el, setIcon, themeOf } from "./track_controls.js";
import { ROW, RULER, colourOf, fitted, paintStage, paintTimeline } from "./track_paint.js";

const FRAMES_PER_SECOND = 16;
const LEAST_STAGE = 200;
const EASE_NAMES = { linear: "linear", ease_in: "ease in", ease_out: "ease out", ease_in_out: "ease in and out", hold: "hold, then jump" };

export class TrackPanel {
  /** onChange(text) is called after each finished edit; view changes (frame, selection) are nobody's business. */
  constructor(onChange) {
    this.onChange = onChange;
    this.clip = { frames: 81, width: 832, height: 480 };
    this.text = "";
    this.history = null;
    this.frame = 0;
    this.selected = 0;
    this.onion = true;
    this.image = null;
    this.view = null;
    this.draft = null;
    this.hover = null;
    this.hoverKey = null;
    this.error = "";
    addStyle();
    this.build();
    this.watchSize();
  }

  // --- what the owner uses ---------------------------------------------------------------------------------------------

  /** Take another text. The same text again changes nothing, so a reload of the value keeps the undo steps. */
  setText(text) {
    if (text === this.text && (this.history || this.error)) return;
    this.text = text;
    this.read();
  }

  /** The text as a drawing with no undo steps. Where it does not say for how many frames it is, it is for the clip's. */
  read() {
    this.history = null;
    this.view = null;
    try {
      this.history = new History(readTrack(this.text, this.clip.frames, this.clip.width, this.clip.height));
      this.sized = JSON.parse(this.text).frames !== undefined;
      this.openSheet(null);
    } catch (error) {
      this.error = error.message;
      this.openSheet("text");
    }
    this.refresh();
  }

  /** Size and length of the clip as the node's other widgets say. */
  setClip(frames, width, height) {
    const { clip } = this;
    if (clip.frames === frames && clip.width === width && clip.height === height) return;
    this.clip = { frames, width, height };
    if (this.history && this.sized) this.refresh();
    else this.read();
  }

  /** A picture behind the boxes: an image element that is loaded, or null. */
  setImage(image) {
    this.image = image;
    this.draw();
  }

  /** A sentence under the timeline, for instance that the drawing is not used; empty for none. */
  setNotice(text) {
    if (this.notice === text) return;
    this.notice = text;
    this.draw();
  }

  /** The least height in which everything is shown: rows of buttons wrap in a narrow node. */
  leastHeight() {
    const rows = [...this.element.children].filter((child) => child !== this.sink && child !== this.stageBox);
    return rows.reduce((sum, row) => sum + row.offsetHeight + 6, LEAST_STAGE);
  }

  focus() {
    this.sink.focus({ preventScroll: true });
  }

  // --- state -----------------------------------------------------------------------------------------------------------

  /**
   * What is shown: the drawing played over the clip's length, as the server does it. The drawing itself stays as it was
   * made until the next edit, so turning the length up and down loses nothing.
   */
  refresh() {
    this.stop();
    this.draft = null;
    if (this.history) {
      const { frames, width, height } = this.clip;
      const before = this.view?.frames ?? frames;
      try {
        this.view = { ...playedOver(this.history.state, frames), width, height };
        this.error = "";
      } catch (error) {
        this.view ??= this.history.state;
        this.error = error.message;
      }
      this.frame = stretched(Math.min(this.frame, before - 1), before, this.view.frames);
    }
    this.clampView();
    this.draw();
  }

  /** The document as shown: with the edit that is being dragged, if there is one. Null while the text cannot be read. */
  get doc() {
    return this.draft ?? this.view;
  }

  get track() {
    return this.doc.objects[this.selected];
  }

  /** A finished edit: one undo step, one new text. */
  commit(doc) {
    this.draft = null;
    if (this.view && writeTrack(doc) === writeTrack(this.view)) {
      this.draw();
      return;
    }
    if (this.history) this.history.push(doc);
    else this.history = new History(doc);
    this.publish();
  }

  publish() {
    this.text = writeTrack(this.history.state);
    this.sized = true;
    this.refresh();
    this.onChange(this.text);
  }

  undo() {
    if (!this.history?.canUndo) return;
    this.history.undo();
    this.publish();
  }

  redo() {
    if (!this.history?.canRedo) return;
    this.history.redo();
    this.publish();
  }

  clampView() {
    if (!this.doc) return;
    this.selected = Math.min(this.selected, this.doc.objects.length - 1);
    this.frame = Math.min(Math.max(0, this.frame), this.doc.frames - 1);
  }

  goTo(frame) {
    this.frame = frame;
    this.clampView();
    this.draw();
  }

  select(object) {
    this.selected = object;
    this.clampView();
    this.draw();
  }

  // --- elements --------------------------------------------------------------------------------------------------------

  build() {
    this.sink = el("input", { class: "sink", readonly: true, inputmode: "none", "aria-label": "Path editor; press ? for its keys" });
    this.chips = el("div", { class: "row chips grow" });
    this.addButton = button("plus", "New object (N)", () => this.newObject());
    this.dropButton = button("trash", "Remove this object (Shift+Delete)", () => this.commit(removeObject(this.doc, this.selected)));
    this.stage = el("canvas", { class: "picture" });
    this.sheet = el("div", { class: "sheet", hidden: true });
    this.playButton = button("play", "Play (Space)", () => this.toggle());
    this.keyButton = button("key", "", () => this.toggleKey());
    this.easeMenu = el("select", { title: "How the box moves from this key frame to the next (E)", tabindex: "-1", change: () => this.commit(setEase(this.doc, this.selected, this.frame, this.easeMenu.value)) },
      ...EASES.map((kind) => el("option", { value: kind }, EASE_NAMES[kind])));
    this.eyeButton = button("eye", "", () => this.toggleVisible());
    this.undoButton = button("undo", "Undo (Ctrl+Z)", () => this.undo());
    this.redoButton = button("redo", "Redo (Ctrl+Y)", () => this.redo());
    this.onionButton = button("onion", "Show the boxes of other frames (O)", () => this.toggleOnion());
    this.leaveButton = button("leave", "", () => this.commit(setClip(this.doc, !this.doc.clip)));
    this.codeButton = button("code", "Show and edit the JSON", () => this.openSheet(this.sheetKind === "text" ? null : "text"));
    this.helpButton = button("help", "Keys and mouse (?)", () => this.openSheet(this.sheetKind === "help" ? null : "help"));
    for (const always of [this.codeButton, this.helpButton]) always.classList.add("always");
    this.lines = el("canvas", { class: "timeline" });
    this.status = el("div", { class: "status", role: "status" });
    this.stageBox = el("div", { class: "stage" }, this.stage, this.sheet);
    this.element = el("div", { class: "loom-track widget-expands", title: "" },
      this.sink,
      el("div", { class: "row" }, this.chips, this.addButton, this.dropButton, this.codeButton, this.helpButton),
      this.stageBox,
      el("div", { class: "row" },
        button("previous", "Key frame before ([)", () => this.goTo(neighbourKey(this.track, this.frame, -1))), this.playButton,
        button("next", "Next key frame (])", () => this.goTo(neighbourKey(this.track, this.frame, 1))), this.keyButton, this.easeMenu, this.eyeButton,
        el("span", { class: "grow" }), this.undoButton, this.redoButton, this.onionButton, this.leaveButton),
      el("div", { class: "lines" }, this.lines), this.status);
    this.input = new TrackInput(this);
    // the way in for tests and scripts on the page
    this.element.trackPanel = this;
  }

  watchSize() {
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.stageBox);
  }

  // --- drawing ---------------------------------------------------------------------------------------------------------

  /** Draw on the next frame of the browser, once, however often it was asked for. */
  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.drawNow();
    });
  }

  drawNow() {
    if (!this.element.isConnected) return;
    this.showState();
    if (!this.doc) return;
    const theme = themeOf(this.element);
    const stage = fitted(this.stage, this.stageBox.clientWidth, this.stageBox.clientHeight);
    this.place = placed(stage.width, stage.height, this.clip.width, this.clip.height, 12, this.doc.clip ? 0.18 : 0);
    const { doc, frame, selected, onion, image, place, hover, hoverKey } = this;
    paintStage(stage.ctx, stage.width, stage.height, { doc, frame, selected, onion, image, place, hover, theme });
    const lines = fitted(this.lines, this.lines.parentElement.clientWidth, RULER + ROW * doc.objects.length + 4);
    paintTimeline(lines.ctx, lines.width, lines.height, { doc, frame, selected, hoverKey, theme });
  }

  showState() {
    const bad = this.error || "";
    this.status.classList.toggle("bad", Boolean(bad));
    this.element.classList.toggle("blank", !this.doc);
    if (!this.doc) {
      this.status.textContent = bad;
      return;
    }
    const { doc, track, frame } = this;
    this.showChips();
    const here = keyIndex(track, frame) >= 0;
    const box = boxAt(track, frame);
    this.status.textContent = bad || this.notice || `frame ${frame} / ${doc.frames - 1} · ${box ? this.inPixels(box) : "not in the picture"}${here ? " · key frame" : ""}`;
    this.keyButton.classList.toggle("on", here);
    this.keyButton.title = here ? "Remove this key frame (Delete)" : "New key frame here (K)";
    this.keyButton.disabled = here && track.keys.length < 2;
    setIcon(this.eyeButton, box ? "eye" : "hidden");
    this.eyeButton.title = box ? "Take the object out of the picture from here to the next key frame (V)" : "Bring the object back here (V)";
    this.easeMenu.value = track.keys.reduce((kind, key) => (key.frame <= frame ? key.ease : kind), track.keys[0].ease);
    this.undoButton.disabled = !this.history.canUndo;
    this.redoButton.disabled = !this.history.canRedo;
    this.dropButton.disabled = doc.objects.length < 2;
    this.onionButton.classList.toggle("on", this.onion);
    this.leaveButton.classList.toggle("on", doc.clip);
    this.leaveButton.title = doc.clip ? "Boxes may leave the picture. Click to keep them inside" : "Let boxes leave the picture";
    this.codeButton.classList.toggle("on", this.sheetKind === "text");
    this.helpButton.classList.toggle("on", this.sheetKind === "help");
  }

  /** One button per object. They are only made anew when names change: a double click needs the same button twice. */
  showChips() {
    const names = JSON.stringify(this.doc.objects.map((t) => t.name));
    if (names !== this.shownNames && !this.chips.querySelector("input")) {
      this.shownNames = names;
      this.chips.replaceChildren(...this.doc.objects.map((track, i) => this.chip(track, i)));
    }
    [...this.chips.children].forEach((chip, i) => chip.classList.toggle("on", i === this.selected));
  }

  chip(track, index) {
    const dot = el("i");
    dot.style.background = colourOf(index);
    const title = `${track.name} (Tab: next object, double click: another name)`;
    const fields = { type: "button", class: "chip", tabindex: "-1", title, pointerdown: () => this.select(index), dblclick: (e) => this.rename(index, e.currentTarget) };
    return el("button", fields, dot, el("span", {}, track.name));
  }

  inPixels([x0, y0, x1, y1]) {
    const { width, height } = this.clip;
    return `x ${Math.round(x0 * width)} y ${Math.round(y0 * height)} · ${Math.round((x1 - x0) * width)} × ${Math.round((y1 - y0) * height)} px`;
  }

  rename(index, chip) {
    const field = el("input", { value: this.doc.objects[index].name, maxlength: "80" });
    const done = (take) => {
      field.onblur = null;
      const name = field.value;
      field.remove();
      this.shownNames = "";
      if (take) this.commit(renameObject(this.doc, index, name));
      this.draw();
    };
    field.onblur = () => done(true);
    field.onkeydown = (e) => {
      e.stopPropagation();
      if (e.key !== "Enter" && e.key !== "Escape") return;
      done(e.key === "Enter");
      this.focus();
    };
    chip.replaceChildren(field);
    field.focus();
    field.select();
  }

  /** Cover the picture with the JSON ("text"), the list of keys ("help"), or nothing (null). */
  openSheet(kind) {
    this.sheetKind = kind;
    this.sheet.hidden = !kind;
    if (kind === "help") {
      const text = el("div", { class: "text" });
      text.innerHTML = HELP;
      this.sheet.replaceChildren(text);
    }
    if (kind === "text") {
      const field = el("textarea", { spellcheck: "false", keydown: (e) => e.stopPropagation() });
      field.value = this.text;
      const take = el("button", { type: "button", click: () => this.takeText(field.value) }, "Use this JSON");
      this.sheet.replaceChildren(field, el("div", { class: "row" }, take, el("button", { type: "button", click: () => this.openSheet(null) }, "Close")));
    }
    this.draw();
  }

  takeText(text) {
    try {
      const { frames, width, height } = this.clip;
      const doc = readTrack(text, frames, width, height);
      playedOver(doc, frames);
      this.openSheet(null);
      this.commit(doc);
    } catch (error) {
      this.error = error.message;
      this.draw();
    }
  }

  // --- actions ---------------------------------------------------------------------------------------------------------

  newObject() {
    const n = this.doc.objects.length;
    const at = 0.3 + 0.04 * (n % 6);
    const doc = addObject(this.doc, this.frame, [at, at, at + 0.25, at + 0.3]);
    this.selected = doc.objects.length - 1;
    this.commit(doc);
  }

  toggleKey() {
    const has = keyIndex(this.track, this.frame) >= 0;
    this.commit((has ? removeKey : (d, o, f) => setKey(d, o, f, {}))(this.doc, this.selected, this.frame));
  }

  toggleVisible() {
    this.commit(setVisible(this.doc, this.selected, this.frame, !boxAt(this.track, this.frame)));
  }

  toggleOnion() {
    this.onion = !this.onion;
    this.draw();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.doc.frames < 2) return;
    if (this.frame >= this.doc.frames - 1) this.frame = 0;
    const [start, first] = [performance.now(), this.frame];
    const step = (now) => {
      const frame = first + Math.floor(((now - start) / 1000) * FRAMES_PER_SECOND);
      if (!this.element.isConnected) return this.stop();
      if (frame >= this.doc.frames) {
        this.goTo(this.doc.frames - 1);
        return this.stop();
      }
      if (frame !== this.frame) this.goTo(frame);
      this.playing = requestAnimationFrame(step);
    };
    this.playing = requestAnimationFrame(step);
    setIcon(this.playButton, "pause");
  }

  stop() {
    if (this.playing) cancelAnimationFrame(this.playing);
    this.playing = 0;
    if (this.playButton) setIcon(this.playButton, "play");
  }
}
