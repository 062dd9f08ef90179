// Hidden pixels, painted over and filled in by the model.

import { Refused, watch } from "../api.js";
import { Easel } from "../easel.js";
import { Errand } from "../errand.js";
import { Reel } from "../film.js";
import { PictureSource } from "../picture.js";

/** Strokes are answered unasked if that takes no longer. */
const UNASKED_SECONDS = 4;

export class FillPanel {
  #place;
  #wish;
  #easel;
  #errand;
  #source;
  #picture = null;

  constructor(place, { model, wish }) {
    this.#place = place;
    this.#wish = wish;
    const { width, height } = model;
    this.#easel = new Easel(place.querySelector(".easel"), { width, height, help: "easel-help" });
    this.#errand = new Errand(place.querySelector(".errand"));
    const onPicture = (png) => this.#put(png);
    this.#source = new PictureSource(place, { model, wish, errand: this.#errand, onPicture });
    const brush = this.#find("[name=brush]");
    brush.max = Math.ceil(Math.max(width, height) / 2);
    brush.value = Math.max(1, Math.round(Math.max(width, height) / 5));
    this.#find("[name=rounds]").max = model.limits.num_rounds;
    brush.addEventListener("input", () => this.#setBrush());
    this.#setBrush();
    const atOnce = this.#find("[name=at-once]");
    atOnce.checked = 4 * model.seconds_per_image <= UNASKED_SECONDS;
    this.#easel.onStroke = () => atOnce.checked && this.#easel.numHidden && this.#fill();
    this.#find("[name=eraser]").addEventListener("change", ({ target }) => {
      this.#easel.isErasing = target.checked;
    });
    this.#find("[name=clear]").addEventListener("click", () => this.#easel.clear());
    place.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#fill();
    });
  }

  open() {
    if (this.#picture === null) this.#source.takeSample();
  }

  take(png) {
    this.#source.take(png);
  }

  #put(png) {
    this.#picture = png;
    this.#easel.put(png);
  }

  #setBrush() {
    const { value } = this.#find("[name=brush]");
    this.#easel.brush = Number(value);
    this.#find(".value").textContent = `${value} pixel${value === "1" ? "" : "s"}`;
  }

  /** Completions of several seeds, at the same time. */
  #fill() {
    const first = this.#find("[name=seed]").value;
    const count = Number(this.#find("[name=count]").value);
    this.#errand.run(async (signal, news) => {
      if (this.#picture === null) throw new Refused("image: got none, expected one; take a sample or choose a file.");
      if (!this.#easel.numHidden)
        throw new Refused("mask: got nothing painted, expected pixels to fill in; paint over some of the picture.");
      const common = { image: this.#picture, mask: await this.#easel.mask(), ...this.#wish.fields() };
      const seeds = seedsFrom(first, count);
      const canvases = seeds.map(figure);
      this.#find(".completions").replaceChildren(...canvases.map((canvas) => canvas.parentElement));
      const own = new AbortController();
      const both = AbortSignal.any([signal, own.signal]);
      const asked = seeds.map((seed, place) => {
        const reel = new Reel(canvases[place]);
        const body = { ...common, seed, num_rounds: this.#find("[name=rounds]").value };
        return watch("api/inpaint", { body, signal: both, onFrame: (frame) => reel.add(frame), ...news });
      });
      try {
        await Promise.all(asked);
      } finally {
        // Where one fails, the others are not wanted either.
        own.abort();
      }
    });
  }

  #find(selector) {
    return this.#place.querySelector(selector);
  }
}

function seedsFrom(first, count) {
  // Seeds may have more digits than numbers of JavaScript; what is no number is for the server to refuse.
  if (!/^\d+$/.test(first)) return [first];
  return Array.from({ length: count }, (_, place) => String(BigInt(first) + BigInt(place)));
}

function figure(seed) {
  const parent = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.className = "pixels";
  canvas.setAttribute("role", "img");
  const caption = document.createElement("figcaption");
  caption.textContent = `seed ${seed}`;
  parent.append(canvas, caption);
  return canvas;
}
