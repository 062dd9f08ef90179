// The two charts of the page, drawn by uPlot in the page's colours.

import uPlot from "./vendor/uPlot.esm.js";

const HEIGHT = 300;
const HISTOGRAM_HEIGHT = 96;
const NUM_BINS = 24;
const MAX_POINTS = 60;
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The energies of films over noise levels, the newest in front. */
export class EnergyChart {
  #place;
  #films = [];
  #plot = null;
  #shown = null;
  #isDue = false;

  constructor(place) {
    this.#place = place;
    dark.addEventListener("change", () => this.draw());
    // Also when its tab is opened, before which it has no width.
    new ResizeObserver(() => this.draw()).observe(place);
  }

  /** A film's frames from now on, which may grow; `isOther` if films before are not to be compared with it. */
  begin(frames, isOther) {
    const kept = isOther ? [] : this.#films.slice(-4);
    this.#films = [...kept, frames];
    this.draw();
  }

  /** The least and the largest energy of earlier films at a level; null where there are none. */
  earlier(level) {
    const energies = this.#films.slice(0, -1).flatMap((frames) => frames.filter((frame) => frame.level === level));
    if (!energies.length) return null;
    const values = energies.map(({ energy }) => energy);
    return [Math.min(...values), Math.max(...values)];
  }

  /** Mark the level whose frame is shown. */
  mark(level) {
    this.#shown = level;
    this.draw();
  }

  /** Draw it when the screen next changes, however often this was called. */
  draw() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    const energies = this.#films.map((frames) => new Map(frames.map(({ level, energy }) => [level, energy])));
    const top = this.#films.at(-1)?.[0]?.level;
    this.#plot?.destroy();
    this.#plot = null;
    if (top === undefined || !this.#place.clientWidth) return;
    const levels = Array.from({ length: top }, (_, level) => level);
    const values = energies.map((film) => levels.map((level) => film.get(level) ?? null));
    const isLast = (index) => index === values.length - 1;
    const series = values.map((_, index) => ({
      stroke: isLast(index) ? colour("--energy") : colour("--earlier"),
      width: isLast(index) ? 2 : 1,
      points: { show: isLast(index) && top <= MAX_POINTS, size: 7, fill: colour("--energy") },
    }));
    const options = {
      width: this.#place.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      // From noise, at the left, to the image.
      scales: { x: { time: false, dir: -1, range: [-0.3, top - 0.7] } },
      axes: [
        { ...axis("noise level"), incrs: [1, 2, 5, 10, 20, 50, 100, 200] },
        { ...axis("nats, up to a constant"), size: 62 },
      ],
      series: [{}, ...series],
      hooks: { drawClear: [(plot) => this.#shown !== null && line(plot, this.#shown, colour("--marked"), 6)] },
    };
    this.#plot = new uPlot(options, [levels, ...values], this.#place);
  }
}

/** Where a log-density lies among those of the data, which are sorted. */
export function histogram(place, values, own) {
  const [least, most] = [values[0], values.at(-1)];
  const width = (most - least) / NUM_BINS || 1;
  const counts = new Array(NUM_BINS).fill(0);
  for (const value of values) counts[Math.min(NUM_BINS - 1, Math.floor((value - least) / width))] += 1;
  const ends = [Math.min(least, own), Math.max(most, own)];
  let plot = null;
  const drawn = () => {
    plot?.destroy();
    const options = {
      width: place.clientWidth,
      height: HISTOGRAM_HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [ends[0] - width, ends[1] + width] }, y: { range: [0, Math.max(...counts)] } },
      axes: [{ ...axis(), size: 24, space: 70 }, { show: false }],
      series: [
        {},
        { paths: uPlot.paths.bars({ size: [0.9, 100], align: 1 }), fill: colour("--data"), points: { show: false } },
      ],
      padding: [4, 20, 0, 20],
      hooks: { draw: [(chart) => line(chart, own, colour("--energy"), 3)] },
    };
    plot = new uPlot(options, [counts.map((_, bin) => least + bin * width), counts], place);
  };
  drawn();
  dark.addEventListener("change", () => place.isConnected && drawn());
  new ResizeObserver(
    () => place.clientWidth && plot.setSize({ width: place.clientWidth, height: HISTOGRAM_HEIGHT }),
  ).observe(place);
}

function axis(label) {
  const stroke = colour("--pico-muted-color");
  const grid = { stroke: colour("--grid"), width: 1 };
  const font = "12px system-ui, sans-serif";
  return { stroke, grid, ticks: { ...grid, size: 4 }, font, label, labelFont: font, labelSize: label ? 22 : 0 };
}

/** A vertical line at a place of the horizontal axis. */
function line(plot, place, stroke, width) {
  const { ctx, bbox } = plot;
  const left = plot.valToPos(place, "x", true);
  ctx.save();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = width * devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(left, bbox.top);
  ctx.lineTo(left, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
