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
  #noisy = null;

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
    this.#find("[name=add]").addEventListener("change", () => this.#makeNoisy());
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
    // A sample has no noise yet.
    this.#find("[name=add]").checked = isSample;
    await this.#makeNoisy();
    if (this.#model.seconds_per_image <= UNASKED_SECONDS) this.#play();
  }

  async #makeNoisy() {
    this.#say();
    if (this.#picture === null) return;
    this.#noisy = this.#find("[name=add]").checked
      ? await withNoise(this.#picture, this.#noise, this.#model.channels)
      : this.#picture;
    await draw(this.#find(".noisy"), this.#noisy);
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

/** An image, a PNG in base64, with normal noise added, rounded and clipped. */
async function withNoise(png, std, channels) {
  const pixels = await pixelsOf(png);
  for (let place = 0; place < pixels.data.length; place += 4) {
    const same = normal();
    for (let channel = 0; channel < 3; channel += 1) {
      pixels.data[place + channel] += std * (channels === 1 ? same : normal());
    }
  }
  return pngOf(pixels);
}

/** A standard normal number, by Box and Muller. */
function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
