// The server's HTTP API, as the playground uses it: the catalogue, and one image at a time.

const ATTEMPTS = 6;
const KEY = "sid-key"; // in sessionStorage: gone with the tab

/** An answer that is no image; `kind` is the problem's, `detail` the server's own sentence. */
export class Refused extends Error {
  constructor(status, kind, detail) {
    super(detail);
    this.status = status;
    this.kind = kind;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const rememberKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

// The browser notes 250 requests, and then no more.
performance.addEventListener("resourcetimingbufferfull", () => performance.clearResourceTimings());

/** The cards of all models (GET /models). */
export async function listModels() {
  return (await (await ask("models")).json()).models;
}

/** The address of the client for Python, for pip: its name has a version, which the server tells. */
export async function findClient() {
  return (await fetch("client", { method: "HEAD" })).url;
}

/** The address of an image, relative to the page; parameters that are "" are left out. */
export function imageUrl(asked) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    if (value !== "" && value !== undefined) query.set(name, value);
  }
  return `generate?${query}`;
}

/**
 * Draw one image.
 *
 * @param asked the parameters of GET /generate.
 * @param signal aborts it; the server then drops what is still queued.
 * @param onBusy told the seconds that an overloaded server asks to wait.
 * @returns asked, blob, model (name:version:digest:graph), classLabel (index or null), timings
 *   (milliseconds by stage), took (milliseconds, with the network), cached (the browser had it).
 */
export async function draw(asked, { signal, onBusy = () => {} } = {}) {
  const url = imageUrl(asked);
  const started = performance.now();
  const answer = await ask(url, { signal, onBusy, accept: "image/png" });
  const blob = await answer.blob();
  const took = performance.now() - started;
  const label = answer.headers.get("x-class-label");
  return {
    asked,
    blob,
    took,
    cached: wasCached(url),
    model: answer.headers.get("x-model"),
    classLabel: label === null ? null : Number(label),
    timings: parseTimings(answer.headers.get("server-timing") ?? ""),
  };
}

/** `queue;dur=0.1, engine;dur=2` as {queue: 0.1, engine: 2}: milliseconds. */
export function parseTimings(header) {
  const found = header.matchAll(/(\w+);dur=([0-9.]+)/g);
  return Object.fromEntries(Array.from(found, ([, name, value]) => [name, Number(value)]));
}

async function ask(url, { signal, onBusy = () => {}, accept = "application/json" } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const headers = { Accept: accept };
    if (hasKey()) headers["X-API-Key"] = sessionStorage.getItem(KEY);
    const answer = await fetch(url, { signal, headers });
    if (answer.ok) return answer;
    const busy = answer.status === 429 || answer.status === 503;
    if (!busy || attempt === ATTEMPTS) throw await refusal(answer);
    const seconds = Number(answer.headers.get("retry-after")) || 1;
    onBusy(seconds);
    // Later by up to half, so that those who wait do not all come back at once.
    await pause(seconds * 1000 * (1 + Math.random() / 2), signal);
  }
}

async function refusal(answer) {
  try {
    const { type, detail } = await answer.json();
    return new Refused(answer.status, type.split(":").at(-1), detail);
  } catch {
    return new Refused(answer.status, "", `the server answered ${answer.status}`);
  }
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

function wasCached(url) {
  const entry = performance.getEntriesByName(new URL(url, document.baseURI).href).at(-1);
  return entry !== undefined && entry.transferSize === 0;
}
