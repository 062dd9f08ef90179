// A picture to paint a mask over, with the mouse, a finger, a pen or the keyboard.

import { canvasOf, pixelsOf, pngOf } from "./pixels.js";

/** Pixels of the canvas along an edge, about: enough to show the brush between the picture's own pixels. */
const EDGE = 512;
/** Orange, through which the picture can be seen. */
const PAINT = [255, 128, 0, 204];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Easel {
  /** Diameter of the brush, in pixels of the picture. */
  brush = 1;
  isErasing = false;
  /** Called when a stroke is over. */
  onStroke = () => {};
  #canvas = document.createElement("canvas");
  #width;
  #height;
  #scale;
  #picture = null;
  #hidden;
  /** Where the brush is, in pixels of the picture. */
  #at = null;
  /** Whether keys that are held have painted. */
  #hasKeyPainted = false;

  constructor(place, { width, height, help }) {
    this.#width = width;
    this.#height = height;
    this.#scale = Math.max(1, Math.round(EDGE / Math.max(width, height)));
    this.#hidden = new Uint8Array(width * height);
    const canvas = this.#canvas;
    canvas.width = width * this.#scale;
    canvas.height = height * this.#scale;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Picture to paint over");
    canvas.setAttribute("aria-describedby", help);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => event.isPrimary && event.button === 0 && this.onStroke());
    canvas.addEventListener("pointerleave", () => this.#leave());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => this.#keyUp(event));
    canvas.addEventListener("focus", () => this.#focus());
    canvas.addEventListener("blur", () => this.#leave());
    place.append(canvas);
    this.#render();
  }

  /** How many pixels are painted over. */
  get numHidden() {
    return this.#hidden.reduce((sum, value) => sum + value, 0);
  }

  /** Put a picture, a PNG in base64, on the easel; what is painted stays. */
  async put(png) {
    this.#picture = await pixelsOf(png);
    this.#render();
  }

  clear() {
    this.#hidden.fill(0);
    this.#render();
  }

  /** The mask as a PNG in base64, white where it is painted over. */
  mask() {
    const pixels = new ImageData(this.#width, this.#height);
    this.#hidden.forEach((value, place) => pixels.data.set([255 * value, 255 * value, 255 * value, 255], 4 * place));
    return pngOf(pixels);
  }

  #down(event) {
    // A second finger, or a button that opens a menu, paints nothing.
    if (!event.isPrimary || event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#at = this.#placeOf(event);
    this.#dab(this.#at);
  }

  #move(event) {
    if (!event.isPrimary) return;
    if (!(event.buttons & 1)) {
      this.#at = this.#placeOf(event);
      this.#render();
      return;
    }
    // A fast stroke has several places in one event.
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.#stroke(this.#placeOf(each));
  }

  #key(event) {
    const step = STEPS[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    this.#focus();
    const [across, down] = step ?? [0, 0];
    const inside = (value, size) => Math.min(Math.max(value, 0.5), size - 0.5);
    const next = [inside(this.#at[0] + across, this.#width), inside(this.#at[1] + down, this.#height)];
    if (event.key === " " || event.shiftKey) {
      this.#stroke(next);
      this.#hasKeyPainted = true;
    }
    this.#at = next;
    this.#canvas.setAttribute(
      "aria-label",
      `Picture to paint over: column ${Math.ceil(next[0])}, row ${Math.ceil(next[1])}`,
    );
    this.#render();
  }

  /** A stroke is over with the key that paints. */
  #keyUp({ key }) {
    if (!this.#hasKeyPainted || (key !== " " && key !== "Shift")) return;
    this.#hasKeyPainted = false;
    this.onStroke();
  }

  #focus() {
    this.#at ??= [Math.floor(this.#width / 2) + 0.5, Math.floor(this.#height / 2) + 0.5];
    this.#render();
  }

  #leave() {
    if (document.activeElement === this.#canvas && this.#canvas.matches(":focus-visible")) return;
    this.#at = null;
    this.#render();
  }

  #placeOf({ clientX, clientY }) {
    const box = this.#canvas.getBoundingClientRect();
    return [((clientX - box.left) / box.width) * this.#width, ((clientY - box.top) / box.height) * this.#height];
  }

  /** Paint from where the brush was. */
  #stroke(to) {
    const from = this.#at ?? to;
    const count = Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1]));
    for (let step = 1; step <= count; step += 1) {
      const share = step / count;
      this.#dab([from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])], false);
    }
    this.#at = to;
    this.#dab(to);
  }

  #dab([x, y], isShown = true) {
    const radius = this.brush / 2;
    for (let row = Math.floor(y - radius); row <= y + radius; row += 1) {
      for (let column = Math.floor(x - radius); column <= x + radius; column += 1) {
        const isInside = row >= 0 && row < this.#height && column >= 0 && column < this.#width;
        const isNear =
          Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius || (row === Math.floor(y) && column === Math.floor(x));
        if (isInside && isNear) this.#hidden[row * this.#width + column] = this.isErasing ? 0 : 1;
      }
    }
    if (isShown) this.#render();
  }

  #render() {
    const context = this.#canvas.getContext("2d");
    const { width, height } = this.#canvas;
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, width, height);
    if (this.#picture) context.drawImage(canvasOf(this.#picture), 0, 0, width, height);
    const paint = new ImageData(this.#width, this.#height);
    this.#hidden.forEach((value, place) => value && paint.data.set(PAINT, 4 * place));
    context.drawImage(canvasOf(paint), 0, 0, width, height);
    if (!this.#at) return;
    for (const [thickness, stroke] of [
      [6, "#000"],
      [3, "#fff"],
    ]) {
      context.lineWidth = thickness;
      context.strokeStyle = stroke;
      context.beginPath();
      context.arc(this.#at[0] * this.#scale, this.#at[1] * this.#scale, (this.brush / 2) * this.#scale, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
