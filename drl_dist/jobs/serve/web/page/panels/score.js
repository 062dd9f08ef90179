// What the model thinks of a picture, level by level.

import { ask } from "../api.js";
import { histogram } from "../charts.js";
import { Errand } from "../errand.js";
import { PictureSource } from "../picture.js";
import { draw } from "../pixels.js";
import { grey, signed } from "../words.js";

export class ScorePanel {
  #place;
  #errand;
  #source;
  #hasPicture = false;

  constructor(place, { model, wish }) {
    this.#place = place;
    this.#errand = new Errand(place.querySelector(".errand"));
    this.#source = new PictureSource(place, {
      model,
      wish,
      errand: this.#errand,
      onPicture: (png) => this.#score(png),
    });
    const seen = place.querySelector("[data-end=seen]");
    seen.setAttribute("role", "img");
    seen.setAttribute("aria-label", "The picture as the model sees it");
  }

  open() {
    if (!this.#hasPicture) this.#source.takeSample();
  }

  take(png) {
    this.#source.take(png);
  }

  takeFile(file) {
    this.#hasPicture = true;
    this.#source.takeFile(file);
  }

  async #score(png) {
    this.#hasPicture = true;
    await draw(this.#place.querySelector("[data-end=seen]"), png);
    await this.#errand.run(async (signal, { onPause }) => {
      const options = { signal, onPause };
      const found = await ask("api/log_density", { body: { image: png }, ...options });
      const { log_densities: data } = await ask("api/reference", options);
      this.#place.querySelector(".verdict").textContent = verdict(found.levels);
      this.#place.querySelector(".warnings").replaceChildren(...found.warnings.map((text) => element("li", text)));
      const rows = found.levels.map(row);
      this.#place.querySelector(".levels").replaceChildren(...rows);
      found.levels.forEach((level, place) => {
        draw(rows[place].querySelector("canvas"), level.gradient);
        // The histogram needs the width that it has on the page.
        if (data !== null) histogram(rows[place].querySelector(".histogram"), data[place], level.log_density);
      });
    });
  }
}

function row(level) {
  const item = document.createElement("li");
  const gradient = element("canvas");
  gradient.className = "pixels";
  gradient.setAttribute("role", "img");
  gradient.setAttribute("aria-label", `Gradient at noise level ${level.level}`);
  const heading = element("h3", `Level ${level.level}`);
  heading.append(element("small", ` noise ${grey(level.noise_std)} grey levels`));
  const words = element("p", `log p = ${signed(level.log_density)} + constant`);
  if (level.share_below !== null)
    words.append(document.createElement("br"), element("strong", rank(level.share_below)));
  const scale = element("small", `strongest colour: ${level.gradient_scale.toPrecision(2)} nats a grey level`);
  const chart = element("div");
  chart.className = "histogram";
  const text = element("div");
  text.append(heading, words, chart, scale);
  item.append(gradient, text);
  return item;
}

function rank(share) {
  return `more probable than ${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} % of the data`;
}

function verdict(levels) {
  if (levels[0].share_below === null) {
    return "No data were given to the server, so there is nothing to compare these log-densities with.";
  }
  const unusual = levels.filter((level) => level.share_below < 0.01).length;
  if (!unusual) return "At no level is it among the least probable hundredth of the data.";
  return `At ${unusual} of ${levels.length} levels it is less probable than 99 % of the data.`;
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}
