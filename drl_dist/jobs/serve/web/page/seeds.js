/** A seed that nobody has asked for before, short enough to be written down. */
export function randomSeed() {
  return Math.floor(Math.random() * 1e6);
}
