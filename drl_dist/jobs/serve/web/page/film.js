// The frames of a chain, shown one after the other as they come, and again afterwards.

import { watch } from "./api.js";
import { Errand } from "./errand.js";
import { draw } from "./pixels.js";

/** A film lasts about this long if the chain is faster; a frame of it between the other two. */
const FILM_MS = 2000;
const SLOWEST_MS = 180;
const FASTEST_MS = 16;
const MAX_THUMBNAILS = 13;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Shows frames on a canvas at an even pace. `onShow(index)` is called with each that is shown. */
export class Reel {
  frames = [];
  /** Place of the frame on the canvas; -1 before the first. */
  shown = -1;
  #canvas;
  #onShow;
  #timer = null;
  #drawing = Promise.resolve();

  constructor(canvas, onShow = () => {}) {
    this.#canvas = canvas;
    this.#onShow = onShow;
  }

  /** How many frames there will be: T + 1 of a chain from level T. */
  get length() {
    return this.frames.length ? this.frames[0].level + 1 : 0;
  }

  /** Forget all frames; the last one stays on the canvas until others come. */
  clear() {
    this.pause();
    this.frames = [];
    this.shown = -1;
  }

  /** Add a frame; those before it are shown first. Without motion only the last one is shown. */
  add(frame) {
    this.frames.push(frame);
    if (still.matches) {
      if (frame.level === 0) this.show(this.frames.length - 1);
    } else {
      this.play();
    }
  }

  /** Go on from the frame that is shown; at the last one there is, wait for more. */
  play() {
    if (this.#timer === null) this.#next();
  }

  pause() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  show(index) {
    this.shown = index;
    const frame = this.frames[index];
    // In order, however long each takes to decode.
    this.#drawing = this.#drawing.then(async () => {
      await draw(this.#canvas, frame.image);
      this.#canvas.setAttribute("aria-label", frame.level === 0 ? "The image" : `Noise level ${frame.level}`);
    });
    this.#onShow(index);
  }

  #next() {
    this.#timer = null;
    const last = this.frames.length - 1;
    if (this.shown >= last) return;
    // Of a thousand levels a screen cannot show every one.
    const stride = Math.ceil((FASTEST_MS * this.length) / FILM_MS);
    this.show(Math.min(this.shown + stride, last));
    const pace = Math.max(FASTEST_MS, Math.min(SLOWEST_MS, FILM_MS / this.length));
    this.#timer = setTimeout(() => this.#next(), pace);
  }
}

/** A reel with its controls, in the element .film of a panel, and copies of its frames in .strip. */
export class Film {
  /** Called with each frame as it comes. */
  onFrame = () => {};
  /** Called with the frame that is shown. */
  onShow = () => {};
  #place;
  #strip;
  #reel;
  #errand;

  constructor(panel) {
    const place = panel.querySelector(".film");
    this.#place = place;
    this.#strip = panel.querySelector(".strip");
    place.append(document.getElementById("film-template").content.cloneNode(true));
    const canvas = place.querySelector("canvas");
    canvas.setAttribute("role", "img");
    this.#reel = new Reel(canvas, (index) => this.#note(index));
    this.#errand = new Errand(place.querySelector(".errand"));
    this.#scrubber.addEventListener("input", () => this.seek(Number(this.#scrubber.value)));
    this.#replay.addEventListener("click", () => this.#again());
  }

  get frames() {
    return this.#reel.frames;
  }

  /** Show the frames of a request; the last one, or null where there is none. */
  async play(path, body) {
    let last = null;
    await this.#errand.run(async (signal, news) => {
      let isFirst = true;
      const onFrame = (frame) => {
        // Only now: until something new comes, the film before stays.
        if (isFirst) this.#begin(frame);
        isFirst = false;
        this.#reel.add(frame);
        this.#thumbnail(frame);
        this.onFrame(frame);
        this.#enable();
      };
      last = await watch(path, { body, signal, onFrame, ...news });
    });
    return last;
  }

  /** Show a frame, and stop there. */
  seek(index) {
    this.#reel.pause();
    this.#reel.show(Math.min(index, this.frames.length - 1));
  }

  #begin(first) {
    this.#reel.clear();
    this.#scrubber.max = first.level;
    this.#strip.replaceChildren();
    this.#place.dataset.frames = first.level + 1;
  }

  #again() {
    this.#reel.pause();
    this.#reel.shown = -1;
    this.#reel.play();
  }

  #enable() {
    this.#scrubber.disabled = false;
    this.#replay.disabled = false;
  }

  #note(index) {
    const { level } = this.frames[index];
    this.#scrubber.value = index;
    this.#scrubber.setAttribute("aria-valuetext", `level ${level} of ${this.#reel.length - 1}`);
    this.#place.querySelector(".value").textContent = level;
    for (const thumbnail of this.#strip.children) {
      thumbnail.classList.toggle("shown", Number(thumbnail.dataset.level) === level);
    }
    this.onShow(this.frames[index]);
  }

  /** A small copy of some of the frames: all, or as many as there is room for. */
  #thumbnail({ level, image }) {
    const total = this.#reel.length;
    const count = Math.min(total, MAX_THUMBNAILS);
    const index = total - 1 - level;
    const place = Math.round((index * (count - 1)) / (total - 1));
    if (Math.round((place * (total - 1)) / (count - 1)) !== index) return;
    const canvas = document.createElement("canvas");
    canvas.className = "pixels";
    canvas.dataset.level = level;
    canvas.addEventListener("click", () => this.seek(index));
    this.#strip.append(canvas);
    draw(canvas, image);
  }

  get #scrubber() {
    return this.#place.querySelector("input[type=range]");
  }

  get #replay() {
    return this.#place.querySelector("[name=replay]");
  }
}
