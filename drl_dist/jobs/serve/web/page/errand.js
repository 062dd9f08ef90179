// One thing at a time that a part of the page waits for: how long it takes, how to stop it, and why it failed.

import { Refused } from "./api.js";
import { about } from "./words.js";

/** Shows in `place` what is being waited for; a new errand ends the one before. */
export class Errand {
  #place;
  #running = null;

  constructor(place) {
    this.#place = place;
    place.append(document.getElementById("errand-template").content.cloneNode(true));
    this.#find("[name=stop]").addEventListener("click", () => this.stop("Stopped."));
  }

  /** End what is being waited for. */
  stop(words = "") {
    this.#running?.abort();
    this.#running = null;
    this.#show(false, words);
  }

  /**
   * Do `work(signal, news)`; whether it was done, and not ended by another. `news` are the callbacks onOutlook and
   * onPause of api.js. An error becomes a sentence where the errand is.
   */
  async run(work) {
    this.stop();
    const own = new AbortController();
    this.#running = own;
    this.#fail("");
    this.#show(true, "Asked for …");
    const tell = (words) => {
      if (this.#running === own) this.#show(true, words);
    };
    try {
      await work(own.signal, { onOutlook: (outlook) => tell(wordsOf(outlook)), onPause: tell });
      if (this.#running !== own) return false;
      this.stop();
      return true;
    } catch (error) {
      if (own.signal.aborted) return false;
      this.stop();
      this.#fail(error.message);
      // Anything else is a fault of the page, and belongs in the console too.
      if (!(error instanceof Refused)) throw error;
      return false;
    }
  }

  #show(isBusy, words) {
    this.#find(".working").hidden = !isBusy;
    const status = this.#find("[role=status]");
    if (status.textContent !== words) status.textContent = words;
  }

  #fail(sentence) {
    this.#find("[role=alert]").textContent = sentence;
  }

  #find(selector) {
    return this.#place.querySelector(selector);
  }
}

/** "2 wait before you; about 40 seconds". */
function wordsOf({ ahead, seconds }) {
  const queue = ahead > 0 ? `${ahead} before you in the queue; ` : "";
  return seconds === null ? `${queue}the first call of the network …` : `${queue}${about(seconds)} left`;
}
