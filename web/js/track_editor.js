// The path editor in ComfyUI: the widget of LoomTrackEditor's input "track". Its value is the JSON and nothing else, so
// saving, loading, copying, subgraphs and the host's own undo treat it like any text.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { TrackPanel } from "./track_panel.js";

const WIDGET = "LOOM_TRACK_CANVAS";
const LOOK_AGAIN_MS = 250;
const MIN_SIZE = [500, 640];

app.registerExtension({
  name: "AttentionLoom.TrackEditor",
  getCustomWidgets() {
    return {
      [WIDGET]: (node, name, spec) => ({ widget: addEditor(node, name, spec[1]?.default ?? ""), minWidth: MIN_SIZE[0], minHeight: MIN_SIZE[1] }),
    };
  },
});

function addEditor(node, name, start) {
  let value = start;
  const panel = new TrackPanel((text) => {
    keep(text);
    widget.callback?.(text);
    node.graph?.setDirtyCanvas(true, true);
    // an edit by keys ends with no mouse event that would tell the host
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  });
  const widget = node.addDOMWidget(name, "loom_track", panel.element, {
    getValue: () => value,
    setValue(text) {
      keep(typeof text === "string" ? text : JSON.stringify(text));
      panel.setText(value);
    },
    getMinHeight: () => panel.leastHeight() + 20,
    hideOnZoom: false,
  });
  /** Some frontends (1.43) keep a copy of every value, which a subgraph reads in place of the widget's own. */
  function keep(text) {
    value = text;
    if (widget._state) widget._state.value = text;
  }
  panel.setText(value);
  letGraphHaveItsGestures(panel.element);
  followNode(node, panel);
  return widget;
}

/** Wheel and middle button stay the graph's, as on the host's own text fields; the rest must not move the node. */
function letGraphHaveItsGestures(element) {
  const inVueNode = () => element.closest(".lg-node");
  const forward = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [type, method] of Object.entries(forward)) {
    element.addEventListener(type, (event) => {
      const middle = type === "pointermove" ? (event.buttons & 4) === 4 : event.button === 1;
      if (!middle) event.stopPropagation();
      else if (!inVueNode()) app.canvas[method](event);
    });
  }
  element.addEventListener("wheel", (event) => {
    const scroll = event.target.closest(".lines, .chips, textarea, .text");
    if (scroll && scroll.scrollHeight > scroll.clientHeight && !event.ctrlKey) {
      event.stopPropagation();
      return;
    }
    if (inVueNode()) return;
    event.preventDefault();
    event.stopPropagation();
    app.canvas.processMouseWheel(event);
  }, { passive: false });
  element.addEventListener("contextmenu", (event) => {
    if (event.target.closest("canvas")) event.preventDefault();
  });
}

/**
 * Keep up with what the node's other inputs say. They may be widgets, links to other nodes or unknown until the graph ran,
 * and both renderers of the host change them without one common event, so they are read a few times a second.
 */
function followNode(node, panel) {
  const state = { zoom: 0, address: "", ran: null, connected: false };
  const look = () => {
    if (!panel.element.isConnected) return;
    panel.setClip(number(node, "frames", 81, state.ran), number(node, "width", 832, state.ran), number(node, "height", 480, state.ran));
    panel.setNotice(isLinked(node, "track") || state.connected ? "What is connected takes the place of this drawing." : "");
    showBackground(node, panel, state);
    const zoom = panel.element.getBoundingClientRect().width;
    if (zoom !== state.zoom) {
      state.zoom = zoom;
      panel.draw();
    }
  };
  let timer = setInterval(look, LOOK_AGAIN_MS);
  const { onExecuted, onRemoved, onAdded } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    state.ran = readRan(output);
    state.connected = output?.loom_source?.[0] === "connected";
    look();
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    clearInterval(timer);
    panel.stop();
  };
  // a node moved into a subgraph is removed and added again
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    clearInterval(timer);
    timer = setInterval(look, LOOK_AGAIN_MS);
  };
}

function slotOf(node, name) {
  return node.inputs?.findIndex((input) => input.name === name) ?? -1;
}

function isLinked(node, name) {
  return node.inputs?.[slotOf(node, name)]?.link != null;
}

/** What the server used in the last run: sizes, and the background it was given. */
function readRan(output) {
  try {
    const { frames, width, height } = JSON.parse(output.loom_track[0]);
    return { frames, width, height, background: output.loom_background?.[0] ?? null };
  } catch {
    return null;
  }
}

/** A number input: the widget, the widget of the node linked to it, or what the last run had. */
function number(node, name, other, ran) {
  const own = node.widgets?.find((w) => w.name === name)?.value;
  const given = isLinked(node, name) ? (numberOf(node.getInputNode?.(slotOf(node, name))) ?? ran?.[name] ?? own) : own;
  return Number.isInteger(given) && given > 0 ? given : other;
}

function numberOf(source) {
  const widgets = (source?.widgets ?? []).filter((w) => Number.isInteger(w.value));
  return (widgets.find((w) => w.name === "value") ?? (widgets.length === 1 ? widgets[0] : undefined))?.value;
}

/** The picture of the node linked to "background", before a run where it can be known, else the server's. */
function showBackground(node, panel, state) {
  const source = node.getInputNode?.(slotOf(node, "background"));
  const address = isLinked(node, "background") ? (addressOf(source) ?? viewOf(state.ran?.background)) : "";
  if (address === state.address || address === null) return;
  state.address = address;
  if (!address) {
    panel.setImage(null);
    return;
  }
  const image = new Image();
  image.onload = () => state.address === address && panel.setImage(image);
  image.onerror = () => state.address === address && panel.setImage(null);
  image.src = address;
}

function addressOf(source) {
  if (!source) return null;
  const chosen = source.widgets?.find((w) => w.name === "image")?.value;
  if (source.comfyClass?.startsWith("LoadImage") && typeof chosen === "string") {
    const [, path, kind] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(chosen);
    const cut = path.lastIndexOf("/");
    return viewOf({ filename: path.slice(cut + 1), subfolder: cut < 0 ? "" : path.slice(0, cut), type: kind ?? "input" });
  }
  return source.imgs?.[0]?.src ?? null;
}

function viewOf(file) {
  return file ? api.apiURL(`/view?${new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "", type: file.type })}`) : null;
}
