// Buttons, menus and the style sheet of the path editor. Plain DOM, no host.

const ICONS = {
  play: "M5 3l9 5-9 5z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  previous: "M3 3h2v10H3zM13 3v10L6 8z",
  next: "M11 3h2v10h-2zM3 3l7 5-7 5z",
  key: "M8 2l6 6-6 6-6-6z",
  plus: "M7 3h2v4h4v2H9v4H7V9H3V7h4z",
  trash: "M6 2h4l1 1h3v2H2V3h3zM3 6h10l-1 8H4z",
  undo: "M6 3v3h3a4 4 0 010 8H5v-2h4a2 2 0 000-4H6v3L2 7z",
  redo: "M10 3v3H7a4 4 0 000 8h4v-2H7a2 2 0 010-4h3v3l4-4z",
  eye: "M8 4c3.5 0 6 2.6 7 4-1 1.400-3.500 4-7 4S2 9.400 1 8c1-1.400 3.500-4 7-4zm0 1.500A2.500 2.500 0 108 10.500 2.500 2.500 0 008 5.500z",
  hidden: "M2.500 2l11.500 11.500-1 1-2.600-2.600A7.600 7.600 0 018 12c-3.500 0-6-2.600-7-4 .6-.9 1.700-2.200 3.200-3.100L1.500 3zM8 4c3.500 0 6 2.600 7 4-.5.7-1.300 1.700-2.400 2.500L10.400 8.300A2.500 2.500 0 007.700 5.600L6.200 4.200C6.800 4.100 7.400 4 8 4z",
  onion: "M2 5h8v8H2zm1.500 1.500v5h5v-5zM6 2h8v8h-2.500V8.500h1V3.500h-5v1H6z",
  leave: "M2 3h7v2H4v6h5v2H2zM10 5l4 3-4 3V9H6V7h4z",
  code: "M6 3L2 8l4 5 1.500-1L4.500 8l3-4zM10 3l4 5-4 5-1.500-1 3-4-3-4z",
  help: "M8 1.500a6.500 6.500 0 110 13 6.500 6.500 0 010-13zM7.200 11h1.600v1.600H7.200zM8 3.600c-1.700 0-2.700 1-2.700 2.500h1.500c0-.7.4-1.200 1.200-1.200.7 0 1.200.4 1.200 1 0 .5-.3.8-.9 1.200-.8.5-1.100 1-1.100 2.100v.6h1.500v-.4c0-.6.2-.8.8-1.200.8-.5 1.300-1.200 1.300-2.200 0-1.500-1.100-2.400-2.800-2.400z",
};

const STYLE = `
.loom-track { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; min-height: max-content; box-sizing: border-box;
  color: var(--input-text, #ddd); font: 12px Inter, system-ui, sans-serif; position: relative; contain: inline-size; user-select: none; -webkit-user-select: none; }
.loom-track * { box-sizing: border-box; }
.loom-track .row { display: flex; align-items: center; gap: 4px; flex-wrap: wrap; flex: none; }
.loom-track .grow { flex: 1; min-width: 0; }
.loom-track button, .loom-track select { height: 30px; min-width: 30px; padding: 0 6px; border-radius: 6px; border: 1px solid var(--border-color, #444);
  background: var(--comfy-input-bg, #222); color: inherit; font: inherit; cursor: pointer; display: inline-flex; align-items: center; justify-content: center; gap: 5px; margin: 0; }
.loom-track select { min-width: 104px; }
.loom-track button:hover:not(:disabled), .loom-track select:hover { border-color: var(--descrip-text, #999); color: var(--fg-color, #fff); }
.loom-track button:disabled { opacity: 0.35; cursor: default; }
.loom-track button.on { background: var(--fg-color, #eee); color: var(--bg-color, #222); border-color: var(--fg-color, #eee); }
.loom-track button svg { width: 15px; height: 15px; fill: currentColor; display: block; }
.loom-track .chip { max-width: 150px; }
.loom-track .chip i { width: 10px; height: 10px; border-radius: 50%; flex: none; }
.loom-track .chip span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.loom-track .chip.on { background: var(--comfy-menu-bg, #353535); color: var(--fg-color, #fff); border-color: currentColor; }
.loom-track .chip input { width: 100px; height: 20px; border: 0; outline: 0; background: transparent; color: inherit; font: inherit; user-select: text; -webkit-user-select: text; }
.loom-track .chips { max-height: 62px; overflow-y: auto; }
.loom-track .stage { flex: 1; min-height: 200px; position: relative; border-radius: 8px; background: var(--comfy-input-bg, #222); overflow: hidden; }
.loom-track .lines { flex: none; max-height: 108px; overflow-y: auto; border-radius: 8px; background: var(--comfy-input-bg, #222); }
.loom-track canvas { display: block; touch-action: none; }
.loom-track .stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.loom-track.focus .stage { box-shadow: inset 0 0 0 1px var(--fg-color, #fff); }
.loom-track .sink { position: absolute; left: 0; top: 0; width: 1px; height: 1px; opacity: 0; border: 0; padding: 0; pointer-events: none; }
.loom-track .status { flex: none; min-height: 16px; line-height: 16px; color: var(--descrip-text, #999); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.loom-track .status.bad { color: var(--error-text, #ff6666); white-space: normal; }
.loom-track .sheet { position: absolute; inset: 0; display: flex; flex-direction: column; gap: 6px; padding: 8px; background: var(--comfy-menu-bg, #2a2a2a); }
.loom-track .sheet textarea { flex: 1; resize: none; border: 1px solid var(--border-color, #444); border-radius: 6px; padding: 6px; background: var(--comfy-input-bg, #222);
  color: inherit; font: 11px/1.4 ui-monospace, monospace; white-space: pre; user-select: text; -webkit-user-select: text; }
.loom-track .sheet .text { flex: 1; overflow: auto; line-height: 1.55; color: var(--input-text, #ddd); }
.loom-track .sheet kbd { display: inline-block; min-width: 20px; padding: 0 5px; border-radius: 4px; border: 1px solid var(--border-color, #555); background: var(--comfy-input-bg, #222); font: 11px ui-monospace, monospace; text-align: center; }
.loom-track.blank > .row button:not(.always), .loom-track.blank > .row select { pointer-events: none; opacity: 0.35; }
.loom-track [hidden] { display: none !important; }
`;

export const HELP = `
<b>Mouse or finger</b><br>
Drag in the box to move it, drag its corners and edges to resize it, drag beside it to draw it anew. Each change makes a key frame at the shown frame.
Drag a diamond on the timeline to another time; double click a row for a new key frame. Double click a name to change it.<br>
<b>Keys</b> (click the picture first)<br>
<kbd>arrows</kbd> move by a pixel, with <kbd>Shift</kbd> by ten, with <kbd>Alt</kbd> resize<br>
<kbd>[</kbd> <kbd>]</kbd> key frame before, after &nbsp; <kbd>,</kbd> <kbd>.</kbd> frame before, after &nbsp; <kbd>Home</kbd> <kbd>End</kbd><br>
<kbd>K</kbd> new key frame &nbsp; <kbd>Delete</kbd> remove it &nbsp; <kbd>E</kbd> next ease &nbsp; <kbd>V</kbd> in the picture or not<br>
<kbd>Tab</kbd> next object &nbsp; <kbd>N</kbd> new object &nbsp; <kbd>Shift</kbd>+<kbd>Delete</kbd> remove it<br>
<kbd>Space</kbd> play &nbsp; <kbd>Ctrl</kbd>+<kbd>Z</kbd> undo &nbsp; <kbd>Ctrl</kbd>+<kbd>Y</kbd> redo &nbsp; <kbd>O</kbd> onion skin &nbsp; <kbd>Esc</kbd> leave`;

/** An element: el("div", {class: "row", title: "..."}, child, ...). Functions become listeners. */
export function el(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A button with an icon. Not a tab stop: Tab is "next object" here, and every button has a key. */
export function button(icon, title, click) {
  const made = el("button", { type: "button", title, "aria-label": title, tabindex: "-1", click });
  setIcon(made, icon);
  return made;
}

export function setIcon(target, icon) {
  target.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path fill-rule="evenodd" d="${ICONS[icon]}"/></svg>`;
}

/** The style sheet, once per page. */
export function addStyle() {
  if (document.getElementById("loom-track-style")) return;
  document.head.append(el("style", { id: "loom-track-style" }, STYLE));
}

/** Colours of the host's theme where the canvas is drawn. */
export function themeOf(element) {
  const style = getComputedStyle(element);
  const of = (name, other) => style.getPropertyValue(name).trim() || other;
  return {
    ink: of("--fg-color", "#ffffff"),
    paper: of("--comfy-input-bg", "#222222"),
    muted: of("--descrip-text", "#999999"),
    border: of("--border-color", "#4e4e4e"),
    grid: "rgba(140, 146, 160, 0.22)",
    picture: "#1b1d22",
  };
}
