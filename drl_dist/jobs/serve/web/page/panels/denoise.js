// A noisy image, and draws of what it may have been.

import { Film } from "../film.js";
import { Errand } from "../errand.js";
import { PictureSource } from "../picture.js";
import { draw, pixelsOf, pngOf } from "../pixels.js";
import { grey } from "../words.js";

const START_STD = 60;
/** A picture is denoised unasked if that takes no longer. */
const UNASKED_SECONDS = 10;

export class DenoisePanel {
  #place;
  #wish;
  #film;
  #source;
  #model;
  #picture = null;
  /** Standard normal numbers for the picture's pixels, the same wherever the slider is. */
  #normals;
  #noisy = null;
  #wanted;

  constructor(place, { model, wish }) {
    this.#place = place;
    this.#wish = wish;
    this.#model = model;
    this.#film = new Film(place);
    const waiting = place.querySelector(".source-errand");
    this.#source = new PictureSource(place, {
      model,
      wish,
      errand: new Errand(waiting),
      onPicture: (png, isSample) => this.#put(png, isSample),
    });
    this.#find("[name=noise]").value = this.#positionOf(START_STD);
    this.#find("[name=noise]").addEventListener("input", () => this.#makeNoisy());
    for (const name of ["noise", "add"]) {
      this.#find(`[name=${name}]`).addEventListener("change", () => this.#makeAndDenoise());
    }
    this.#find(".noisy").setAttribute("role", "img");
    this.#find(".noisy").setAttribute("aria-label", "The noisy image");
    this.#say();
    place.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#play();
    });
  }

  open() {
    if (this.#picture === null) this.#source.takeSample();
  }

  take(png) {
    this.#source.take(png);
  }

  async #put(png, isSample) {
    this.#picture = png;
    const { channels, height, width } = this.#model;
    this.#normals = normals(3 * height * width, channels === 1 ? 3 : 1);
    // A sample has no noise yet.
    this.#find("[name=add]").checked = isSample;
    await this.#makeAndDenoise();
  }

  async #makeAndDenoise() {
    await this.#makeNoisy();
    if (this.#model.seconds_per_image <= UNASKED_SECONDS) this.#play();
  }

  async #makeNoisy() {
    this.#say();
    if (this.#picture === null) return;
    const wanted = {};
    this.#wanted = wanted;
    const isAdded = this.#find("[name=add]").checked;
    const noisy = isAdded ? await withNoise(this.#picture, this.#noise, this.#normals) : this.#picture;
    // The slider may have moved on meanwhile.
    if (this.#wanted !== wanted) return;
    this.#noisy = noisy;
    await draw(this.#find(".noisy"), noisy);
  }

  async #play() {
    if (this.#noisy === null) return;
    const body = {
      image: this.#noisy,
      noise_std: this.#noise,
      seed: this.#find("[name=seed]").value,
      ...this.#wish.fields(),
    };
    await this.#film.play("api/denoise", body);
  }

  #say() {
    const words = `${grey(this.#noise)} grey levels of 255`;
    this.#find(".value").textContent = words;
    this.#find("[name=noise]").setAttribute("aria-valuetext", words);
  }

  /** Standard deviation in grey levels; equal movements of the slider are equal ratios. */
  get #noise() {
    const { value, max } = this.#find("[name=noise]");
    const [least, most] = this.#range;
    return Math.min(least * (most / least) ** (value / max), most);
  }

  #positionOf(std) {
    const [least, most] = this.#range;
    return (this.#find("[name=noise]").max * Math.log(std / least)) / Math.log(most / least);
  }

  /** A model that can denoise nothing says so when it is asked. */
  get #range() {
    return [this.#model.min_noise_std ?? 1, this.#model.max_noise_std ?? 255];
  }

  #find(selector) {
    return this.#place.querySelector(selector);
  }
}

/** An image, a PNG in base64, with noise added, rounded and clipped. */
async function withNoise(png, std, noise) {
  const pixels = await pixelsOf(png);
  for (let place = 0; place < noise.length; place += 1) {
    // Of four values a pixel, the last is its opacity.
    pixels.data[place + Math.floor(place / 3)] += std * noise[place];
  }
  return pngOf(pixels);
}

/** Standard normal numbers by Box and Muller, each of them `repeats` times in a row. */
function normals(count, repeats) {
  const found = new Float32Array(count);
  for (let place = 0; place < count; place += repeats) {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    found.fill(radius * Math.cos(2 * Math.PI * Math.random()), place, place + repeats);
  }
  return found;
}
