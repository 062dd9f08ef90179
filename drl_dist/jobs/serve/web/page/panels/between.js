// Images between two generated ones.

import { watch } from "../api.js";
import { Errand } from "../errand.js";
import { draw } from "../pixels.js";
import { randomSeed } from "../words.js";

/** After the last movement of the slider, before an image is asked for. */
const DEBOUNCE_MS = 120;

export class BetweenPanel {
  #place;
  #wish;
  #errand;
  #timer = null;
  /** Images that were had before, by what was asked for. */
  #known = new Map();
  #hasBegun = false;

  constructor(place, { wish }) {
    this.#place = place;
    this.#wish = wish;
    this.#errand = new Errand(place.querySelector(".errand"));
    for (const canvas of place.querySelectorAll("canvas")) canvas.setAttribute("role", "img");
    this.#input("weight").addEventListener("input", () => this.#soon());
    for (const name of ["first", "second"]) this.#input(name).addEventListener("change", () => this.#all());
    place.querySelector("[name=another]").addEventListener("click", () => {
      this.#input("first").value = randomSeed();
      this.#input("second").value = randomSeed();
      this.#all();
    });
    this.#say();
  }

  open() {
    if (!this.#hasBegun) this.#all();
  }

  wishChanged() {
    this.#all();
  }

  #all() {
    this.#hasBegun = true;
    clearTimeout(this.#timer);
    this.#errand.run(async (signal, news) => {
      const [first, second] = [this.#input("first").value, this.#input("second").value];
      await this.#show("first", `api/sample?${this.#query({ seed: first })}`, signal, news);
      await this.#show("second", `api/sample?${this.#query({ seed: second })}`, signal, news);
      await this.#middle(signal, news);
    });
  }

  #soon() {
    this.#say();
    clearTimeout(this.#timer);
    // What was asked for a moment ago is no longer wanted.
    this.#errand.stop();
    this.#timer = setTimeout(() => this.#errand.run((signal, news) => this.#middle(signal, news)), DEBOUNCE_MS);
  }

  #middle(signal, news) {
    const [first, second] = [this.#input("first").value, this.#input("second").value];
    const asked = { seed: first, second_seed: second, first: 0, second: 0, weight: this.#input("weight").value };
    // One seed twice is a way of no length.
    const path =
      first === second ? `api/sample?${this.#query({ seed: first })}` : `api/interpolate?${this.#query(asked)}`;
    return this.#show("middle", path, signal, news);
  }

  async #show(end, path, signal, news) {
    if (!this.#known.has(path)) this.#known.set(path, (await watch(path, { signal, ...news })).image);
    signal.throwIfAborted();
    const canvas = this.#place.querySelector(`[data-end=${end}]`);
    canvas.setAttribute("aria-label", end === "middle" ? "The image between" : `The ${end} image`);
    await draw(canvas, this.#known.get(path));
    canvas.dataset.shows = path;
  }

  #query(fields) {
    return new URLSearchParams({ ...fields, ...this.#wish.fields() });
  }

  #say() {
    const share = Math.round(100 * this.#input("weight").value);
    this.#place.querySelector(".value").textContent = `${share} %`;
  }

  #input(name) {
    return this.#place.querySelector(`input[name=${name}]`);
  }
}
