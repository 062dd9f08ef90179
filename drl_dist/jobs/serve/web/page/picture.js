// Where a picture comes from: a sample, or a file of the visitor's.

import { Refused, ask, watch } from "./api.js";
import { base64Of } from "./pixels.js";

export class PictureSource {
  #place;
  #model;
  #wish;
  #errand;
  #onPicture;

  /**
   * @param place the panel; files may be dropped anywhere on it.
   * @param errand of the panel.
   * @param onPicture called with a PNG of the model's size, in base64, and whether it is a sample.
   */
  constructor(place, { model, wish, errand, onPicture }) {
    this.#place = place;
    this.#model = model;
    this.#wish = wish;
    this.#errand = errand;
    this.#onPicture = onPicture;
    const source = place.querySelector(".source");
    source.append(document.getElementById("source-template").content.cloneNode(true));
    source.querySelector("[name=sampled]").addEventListener("click", () => this.takeSample());
    source.querySelector("[name=source-seed]").addEventListener("change", () => this.takeSample());
    source.querySelector("[type=file]").addEventListener("change", ({ target }) => {
      if (target.files.length) this.takeFile(target.files[0]);
      // The same file may be chosen again.
      target.value = "";
    });
    for (const name of ["dragenter", "dragover"]) place.addEventListener(name, (event) => this.#over(event, true));
    place.addEventListener("dragleave", (event) => this.#over(event, false));
    place.addEventListener("drop", (event) => {
      this.#over(event, false);
      // The page scores what is dropped elsewhere.
      event.stopPropagation();
      const [file] = event.dataTransfer.files;
      if (file) this.takeFile(file);
    });
  }

  /** Take the sample of the seed that is written there. */
  takeSample() {
    const seed = this.#place.querySelector("[name=source-seed]").value;
    const query = new URLSearchParams({ seed, ...this.#wish.fields() });
    return this.#errand.run(async (signal, news) => {
      const { image } = await watch(`api/sample?${query}`, { signal, ...news });
      this.#onPicture(image, true);
    });
  }

  /** Take an image that the page has. */
  take(png) {
    this.#errand.stop();
    this.#onPicture(png, true);
  }

  /** Take a file of the visitor's. */
  takeFile(file) {
    this.#errand.run(async (signal, news) => {
      const limit = this.#model.limits.body_bytes;
      // Base64 has four characters for three bytes; a body that is too large would be cut off without an answer.
      if ((file.size * 4) / 3 + 1000 > limit) {
        const [size, largest] = [file.size, (limit * 3) / 4].map((bytes) => (bytes / 2 ** 20).toFixed(1));
        throw new Refused(`image: got ${size} MiB, expected less than ${largest} MiB; choose a smaller picture.`);
      }
      const { image } = await ask("api/picture", { body: { image: await base64Of(file), fit: true }, signal, ...news });
      this.#onPicture(image, false);
    });
  }

  #over(event, isOver) {
    event.preventDefault();
    this.#place.classList.toggle("over", isOver);
  }
}
