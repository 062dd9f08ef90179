// Numbers as the page writes them.

/** From here on seconds are told in steps of five, lest a screen reader reads every one. */
const COARSE_SECONDS = 10;

/** A seed that nobody has asked for before, short enough to be written down. */
export function randomSeed() {
  return Math.floor(Math.random() * 1e6);
}

/** A number with one decimal and a minus sign of its width. */
export function signed(value) {
  return value.toFixed(1).replace("-", "−");
}

/** A standard deviation in grey levels, with three digits. */
export function grey(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

/** A span of time, in words. */
export function about(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds >= 90) return `about ${Math.round(seconds / 60)} minutes`;
  const rounded = seconds < COARSE_SECONDS ? Math.ceil(seconds) : 5 * Math.ceil(seconds / 5);
  return `about ${rounded} second${rounded === 1 ? "" : "s"}`;
}
