// From noise to an image, as a film.

import { EnergyChart } from "../charts.js";
import { Film } from "../film.js";
import { randomSeed, signed } from "../words.js";

/** A visitor who asks for nothing yet is shown a film if it takes no longer. */
const UNASKED_SECONDS = 10;

export class SamplePanel {
  #place;
  #model;
  #wish;
  #film;
  #chart;
  #wished = null;
  #hasBegun = false;

  constructor(place, { model, wish, hand }) {
    this.#place = place;
    this.#model = model;
    this.#wish = wish;
    this.#film = new Film(place);
    this.#chart = new EnergyChart(place.querySelector(".plot"));
    this.#film.onShow = ({ level, energy }) => {
      this.#chart.mark(level);
      place.querySelector(".reading").textContent = this.#reading(level, energy);
    };
    this.#film.onFrame = (frame) => {
      if (this.#film.frames[0] === frame) this.#begin();
      this.#chart.draw();
    };
    place.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#play();
    });
    place.querySelector("[name=another]").addEventListener("click", () => {
      this.#seed.value = randomSeed();
      this.#play();
    });
    for (const button of place.querySelectorAll("[data-to]")) {
      button.addEventListener("click", () => hand(button.dataset.to, this.#film.frames.at(-1).image));
    }
  }

  open() {
    if (!this.#hasBegun && this.#model.seconds_per_image <= UNASKED_SECONDS) this.#play();
  }

  wishChanged() {
    if (this.#hasBegun) this.#play();
  }

  async #play() {
    this.#hasBegun = true;
    const onward = this.#place.querySelector(".onward");
    const fields = this.#wish.fields();
    const last = await this.#film.play(`api/sample?${new URLSearchParams({ seed: this.#seed.value, ...fields })}`);
    if (last) onward.hidden = false;
  }

  #reading(level, energy) {
    if (energy === null) return `Level ${level}: noise, before the first chain.`;
    const earlier = this.#chart.earlier(level);
    const beside = earlier && `; earlier seeds ${signed(earlier[0])} to ${signed(earlier[1])}`;
    return `Level ${level}: −log p = ${signed(energy)} + constant${beside ?? ""}.`;
  }

  /** Seeds can be compared that differ in nothing else. */
  #begin() {
    const wished = JSON.stringify(this.#wish.fields());
    this.#chart.begin(this.#film.frames, wished !== this.#wished);
    this.#wished = wished;
  }

  get #seed() {
    return this.#place.querySelector("[name=seed]");
  }
}
