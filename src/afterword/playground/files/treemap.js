/** The map of all branches, drawn on a canvas: drag to pan, turn the wheel to zoom, click to go. */

import { cleared, eachFrame, find } from "./dom.js";
import { beginning } from "./excerpt.js";
import { t } from "./i18n.js";
import { layout } from "./layout.js";
import { pathOf, ROOT } from "./tree.js";

const COLUMN = 208;
const ROW = 48;
const WIDTH = 176;
const HEIGHT = 36;
const PAD = 10;
const MOST_ZOOM = 1.5;
const LEAST_ZOOM = 0.08;
/** Words smaller than this cannot be read, so they are not drawn. */
const WORDS_ZOOM = 0.45;
/** A map that does not fit is shown at this size, around the current node. */
const READ_ZOOM = 0.8;
const DRAG_PX = 4;

export class TreeMap {
  #canvas = find("#map-canvas");
  #session;
  #stage;
  #places = new Map();
  #zoom = 1;
  #shift = { x: 40, y: 40 };
  #pointers = new Map();
  #moved = false;
  #draw = eachFrame(() => this.#paint());

  /**
   * @param {import("./session.js").Session} session
   * @param {import("./stage.js").Stage} stage
   */
  constructor(session, stage) {
    this.#session = session;
    this.#stage = stage;
    const canvas = this.#canvas;
    new ResizeObserver(this.#draw).observe(canvas);
    session.addEventListener("tree", () => {
      if (this.#isOpen) this.#refresh();
    });
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("pointerup", (event) => this.#release(event));
    canvas.addEventListener("pointercancel", (event) => this.#pointers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => this.#turn(event), { passive: false });
    find("#map-in").addEventListener("click", () => this.#zoomBy(1.3));
    find("#map-out").addEventListener("click", () => this.#zoomBy(1 / 1.3));
    find("#map-fit").addEventListener("click", () => this.fit());
  }

  open() {
    this.#session.keep();
    this.#stage.show(find("#map"), t("map.title"));
    this.#places = layout(this.#session.tree);
    this.fit();
  }

  /** Draw again after colours or words have changed. */
  redraw() {
    if (this.#isOpen) this.#draw();
  }

  /** Show the whole tree, or as much of it as can be read, around the current node. */
  fit() {
    const { width, height } = this.#size;
    const all = [...this.#places.values()];
    const across = (Math.max(...all.map(({ column }) => column)) + 1) * COLUMN;
    const down = (Math.max(...all.map(({ row }) => row)) + 1) * ROW;
    const whole = Math.min(1, (width - 80) / across, (height - 80) / down);
    this.#zoom = Math.max(READ_ZOOM, whole);
    this.#shift = { x: (width - across * this.#zoom) / 2, y: (height - down * this.#zoom) / 2 };
    if (whole < READ_ZOOM) this.#center();
    this.#draw();
  }

  get #isOpen() {
    return this.#stage.shown === find("#map");
  }

  get #size() {
    return { width: this.#canvas.clientWidth, height: this.#canvas.clientHeight };
  }

  #refresh() {
    this.#places = layout(this.#session.tree);
    const { x, y } = this.#boxOf(this.#session.at);
    const { width, height } = this.#size;
    const inView = x > 0 && y > 0 && x + WIDTH * this.#zoom < width && y + HEIGHT * this.#zoom < height;
    if (!inView) this.#center();
    this.#draw();
  }

  #center() {
    const { column, row } = this.#places.get(this.#session.at);
    const { width, height } = this.#size;
    this.#shift = {
      x: width / 2 - (column * COLUMN + WIDTH / 2) * this.#zoom,
      y: height / 2 - (row * ROW + HEIGHT / 2) * this.#zoom,
    };
  }

  /** Returns the corner of a node's box on the canvas. */
  #boxOf(id) {
    const { column, row } = this.#places.get(id);
    return { x: this.#shift.x + column * COLUMN * this.#zoom, y: this.#shift.y + row * ROW * this.#zoom };
  }

  #press(event) {
    this.#canvas.setPointerCapture(event.pointerId);
    if (this.#pointers.size === 0) this.#moved = false;
    this.#pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  }

  #drag(event) {
    const before = this.#pointers.get(event.pointerId);
    if (before === undefined) {
      this.#canvas.style.cursor = this.#idAt(event.offsetX, event.offsetY) === null ? "grab" : "pointer";
      return;
    }
    const now = { x: event.offsetX, y: event.offsetY };
    if (!this.#moved && Math.hypot(now.x - before.x, now.y - before.y) < DRAG_PX) return;
    this.#moved = true;
    const others = [...this.#pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    if (others.length === 0) {
      this.#shift.x += now.x - before.x;
      this.#shift.y += now.y - before.y;
    } else {
      // Two fingers: the distance between them is the zoom.
      const [still] = others;
      const grown = Math.hypot(now.x - still.x, now.y - still.y) / Math.hypot(before.x - still.x, before.y - still.y);
      this.#zoomBy(grown, still);
    }
    this.#pointers.set(event.pointerId, now);
    this.#draw();
  }

  #release(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#moved) return;
    const id = this.#idAt(event.offsetX, event.offsetY);
    if (id !== null) this.#session.go(id);
  }

  #turn(event) {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      this.#zoomBy(Math.exp(-event.deltaY / 300), { x: event.offsetX, y: event.offsetY });
      return;
    }
    this.#shift.x -= event.deltaX;
    this.#shift.y -= event.deltaY;
    this.#draw();
  }

  /** Zoom around a point of the canvas, by default its middle. */
  #zoomBy(factor, at = { x: this.#size.width / 2, y: this.#size.height / 2 }) {
    const zoom = Math.max(LEAST_ZOOM, Math.min(MOST_ZOOM, this.#zoom * factor));
    const grown = zoom / this.#zoom;
    this.#shift = { x: at.x - (at.x - this.#shift.x) * grown, y: at.y - (at.y - this.#shift.y) * grown };
    this.#zoom = zoom;
    this.#draw();
  }

  #idAt(x, y) {
    for (const id of this.#places.keys()) {
      const box = this.#boxOf(id);
      const inside = x >= box.x && x <= box.x + WIDTH * this.#zoom && y >= box.y && y <= box.y + HEIGHT * this.#zoom;
      if (inside) return id;
    }
    return null;
  }

  #paint() {
    const { pen, width, height } = cleared(this.#canvas);
    if (width === 0 || this.#places.size === 0) return;
    const { tree, at } = this.#session;
    const style = getComputedStyle(this.#canvas);
    const colours = Object.fromEntries(["ink", "ink-2", "line", "line-strong", "accent", "accent-soft", "raised"]
      .map((name) => [name, style.getPropertyValue(`--${name}`)]));
    const face = style.fontFamily;
    const onPath = new Set(pathOf(tree, at).map(({ id }) => id));
    const seen = ({ x, y }) => x < width && y < height && x > -COLUMN * this.#zoom && y > -ROW * this.#zoom;
    for (const id of this.#places.keys()) {
      const { parent } = tree.get(id);
      if (parent === null) continue;
      const [from, to] = [this.#boxOf(parent), this.#boxOf(id)];
      if (Math.max(from.x, to.x) < -COLUMN || from.x > width) continue;
      if (Math.max(from.y, to.y) < -ROW || Math.min(from.y, to.y) > height) continue;
      this.#edge(pen, from, to, onPath.has(id) ? colours.accent : colours["line-strong"], onPath.has(id));
    }
    for (const id of this.#places.keys()) {
      const box = this.#boxOf(id);
      if (seen(box)) this.#node(pen, tree.get(id), box, { colours, face, isAt: id === at, onPath: onPath.has(id) });
    }
  }

  #edge(pen, from, to, colour, strong) {
    const half = (HEIGHT * this.#zoom) / 2;
    const [left, right] = [from.x + WIDTH * this.#zoom, to.x];
    const middle = (left + right) / 2;
    pen.beginPath();
    pen.moveTo(left, from.y + half);
    pen.bezierCurveTo(middle, from.y + half, middle, to.y + half, right, to.y + half);
    pen.strokeStyle = colour;
    pen.lineWidth = strong ? 2 : 1;
    pen.stroke();
  }

  #node(pen, node, { x, y }, { colours, face, isAt, onPath }) {
    const [width, height] = [WIDTH * this.#zoom, HEIGHT * this.#zoom];
    pen.beginPath();
    // Round: the reader wrote it. Square: the model wrote it.
    pen.roundRect(x, y, width, height, node.by === "you" ? height / 2 : 5 * this.#zoom);
    pen.fillStyle = isAt ? colours.accent : colours.raised;
    pen.fill();
    pen.strokeStyle = onPath ? colours.accent : colours["line-strong"];
    pen.lineWidth = onPath ? 2 : 1;
    pen.stroke();
    if (this.#zoom < WORDS_ZOOM) return;
    pen.font = `${node.name === "" ? 400 : 600} ${13 * this.#zoom}px ${face}`;
    pen.fillStyle = isAt ? colours.raised : onPath ? colours.ink : colours["ink-2"];
    pen.textBaseline = "middle";
    const room = width - 2.4 * PAD * this.#zoom;
    pen.fillText(fitted(pen, wordsOf(node), room), x + PAD * this.#zoom * 1.2, y + height / 2);
  }
}

/** Returns the beginning of words that has room, with an ellipsis if it is not all. */
function fitted(pen, words, room) {
  if (pen.measureText(words).width <= room) return words;
  let [low, high] = [0, words.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${beginning(words, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return `${beginning(words, low).trimEnd()}…`;
}

/** Returns the words of a node in one line. */
function wordsOf({ id, name, text, tail, mark }) {
  const own = beginning(text, Math.min(80, text.length - tail)).trim().replace(/\s+/g, " ");
  const words = name || own || t(id === ROOT ? "branches.root" : "branches.blank");
  return mark ? `★ ${words}` : words;
}
