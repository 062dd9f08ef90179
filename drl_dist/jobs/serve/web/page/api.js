// Requests to the server: refusals as sentences, and new attempts where the connection breaks.

/** Attempts in a row that may bring nothing new, before the request is given up. */
const MAX_FAILURES = 20;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
/** Without a word, after which a connection counts as broken; the server speaks twice a second. */
const SILENCE_MS = 30_000;
/** Statuses of a server, or of a proxy before it, that will answer later. */
const LATER = [502, 503, 504];

/** Why there is no answer, in a sentence. */
export class Refused extends Error {}

/** No answer now, maybe one later. */
class Unreachable extends Error {
  constructor(message = "The connection to the server is broken.", waitMs = 0) {
    super(message);
    this.waitMs = waitMs;
  }
}

/** An answer in JSON. A `body` makes it a POST; `onPause(sentence)` is told when the connection breaks. */
export function ask(path, { body, signal, onPause } = {}) {
  const attempt = async () => (await answerTo(path, body, "application/json", signal)).json().catch(broken);
  return persist(attempt, signal, onPause);
}

/**
 * An image on its way; the promise's value is the frame of level 0.
 *
 * `onFrame({level, energy, image})`, `onOutlook({ahead, seconds})` and `onPause(sentence)` are called with what comes.
 * A level comes once, however often the connection breaks.
 */
export async function watch(path, { body, signal, onFrame, onOutlook, onPause } = {}) {
  const seen = new Set();
  let last;
  const attempt = async (progressed) => {
    for await (const { name, data } of eventsOf(path, body, signal)) {
      if (name === "error") throw new Refused(data.error);
      if (name === "done") return;
      if (name === "outlook") onOutlook?.(data);
      if (name === "again")
        onPause?.("The process that made this image was lost. A pause, not a failure: another goes on.");
      if (name === "frame" && !seen.has(data.level)) {
        seen.add(data.level);
        progressed();
        last = data;
        onFrame?.(data);
      }
    }
    throw new Unreachable();
  };
  await persist(attempt, signal, onPause);
  return last;
}

/** The value of `attempt`, made again where the connection breaks; it calls its argument whenever it got on. */
async function persist(attempt, signal, onPause) {
  let failures = 0;
  for (;;) {
    try {
      return await attempt(() => {
        failures = 0;
      });
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof Unreachable)) throw error;
      failures += 1;
      if (failures > MAX_FAILURES) {
        throw new Refused(`${error.message} ${MAX_FAILURES} attempts brought nothing; look whether the server runs.`);
      }
      onPause?.(`${error.message} A pause, not a failure: this goes on by itself.`);
      await pause(error.waitMs || Math.min(FIRST_WAIT_MS * 2 ** (failures - 1), LONGEST_WAIT_MS), signal);
    }
  }
}

async function answerTo(path, body, accept, signal) {
  const options = { headers: { Accept: accept }, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options).catch(broken);
  if (answer.ok) return answer;
  const sentence = await answer.json().then(
    (refusal) => refusal.error,
    () => `server: got status ${answer.status}, expected an answer; try again.`,
  );
  if (!LATER.includes(answer.status)) throw new Refused(sentence);
  throw new Unreachable(sentence, 1000 * Number(answer.headers.get("Retry-After")));
}

/**
 * The server-sent events of an answer, each as {name, data} with its JSON parsed.
 *
 * The browser's EventSource can send no body. Whoever stops listening closes the connection, and the server then gives
 * up the image.
 */
async function* eventsOf(path, body, signal) {
  const silence = new AbortController();
  let timer;
  const listen = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new Unreachable()), SILENCE_MS);
  };
  listen();
  let reader;
  try {
    const stop = AbortSignal.any([silence.signal, ...(signal ? [signal] : [])]);
    const answer = await answerTo(path, body, "text/event-stream", stop);
    reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read().catch(broken);
      if (done) return;
      listen();
      text += value;
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) yield parsed(text.slice(0, end));
    }
  } finally {
    clearTimeout(timer);
    // A stream that broke has nothing to close.
    reader?.cancel().catch(() => {});
  }
}

function parsed(block) {
  const fields = block.split("\n").map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 1).trim()];
  });
  const { event, data } = Object.fromEntries(fields);
  return { name: event, data: JSON.parse(data) };
}

function broken(error) {
  // fetch, and whoever reads its body, throw a TypeError where the connection breaks.
  throw error instanceof TypeError ? new Unreachable() : error;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
