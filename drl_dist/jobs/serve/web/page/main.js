// The page: its tabs, the model's facts, and what happens on each tab.

import { ask } from "./api.js";
import { BetweenPanel } from "./panels/between.js";
import { DenoisePanel } from "./panels/denoise.js";
import { FillPanel } from "./panels/fill.js";
import { SamplePanel } from "./panels/sample.js";
import { ScorePanel } from "./panels/score.js";
import { Wish } from "./wish.js";
import { about } from "./words.js";

const PANELS = {
  sample: SamplePanel,
  fill: FillPanel,
  between: BetweenPanel,
  denoise: DenoisePanel,
  score: ScorePanel,
};
const tabs = [...document.querySelectorAll("[role=tab]")];
const panels = {};

function open(name) {
  for (const tab of tabs) {
    const isChosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  // Log-densities of the data are those without a label.
  document.getElementById("wish").hidden = name === "score";
  history.replaceState(null, "", `#${name}`);
  panels[name]?.open();
}

function chosen() {
  return tabs.find((tab) => tab.getAttribute("aria-selected") === "true").getAttribute("aria-controls");
}

function moveAmongTabs(event) {
  const place = tabs.indexOf(event.target);
  const last = tabs.length - 1;
  const places = {
    ArrowRight: place === last ? 0 : place + 1,
    ArrowLeft: place === 0 ? last : place - 1,
    Home: 0,
    End: last,
  };
  if (!(event.key in places)) return;
  event.preventDefault();
  const next = tabs[places[event.key]];
  next.focus();
  open(next.getAttribute("aria-controls"));
}

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", moveAmongTabs);
}

// A browser would show a picture that is dropped anywhere, instead of the page.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (!file || !panels.score) return;
  panels.score.takeFile(file);
  open("score");
});

async function begin() {
  const facts = document.getElementById("model-facts");
  const say = (sentence) => {
    facts.textContent = sentence;
  };
  try {
    const model = await ask("api/model", { onPause: say });
    document.title = `${model.name} – drl_dist`;
    document.getElementById("model-name").textContent = model.name;
    const colours = model.channels === 1 ? "grey" : "colour";
    say(
      `${model.width} × ${model.height} pixels, ${colours}; ${model.num_levels} noise levels, ` +
        `${model.num_gradients} gradients an image; ${model.step} training steps. ` +
        `An image takes ${about(model.seconds_per_image)}.`,
    );
    const wish = new Wish(document.getElementById("wish"), model);
    const hand = (name, png) => {
      panels[name].take(png);
      open(name);
      document.getElementById(`tab-${name}`).focus();
    };
    for (const [name, Panel] of Object.entries(PANELS)) {
      panels[name] = new Panel(document.getElementById(name), { model, wish, hand });
    }
    wish.onChange = () => panels[chosen()].wishChanged?.();
  } catch (error) {
    say("");
    document.getElementById("problem").textContent = error.message;
    throw error;
  }
  const asked = location.hash.slice(1);
  open(asked in PANELS ? asked : "sample");
}

begin();
