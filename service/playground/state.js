// What is shown, as one object that stands in the page's address: a link shares all of it.

export const STEPS = 32; // of a walk: mix is a multiple of 1/32
// What a page without an address draws, and the image of each class: chosen by eye among the first
// 400, for what it draws of any class and of each one is plain to see in both shipped models.
export const OPENING_SEED = "276";
const SEED_MAX = 2n ** 64n - 1n;
const COUNTS = [12, 24, 48, 96];

/**
 * @returns model, class_label ("" for any), seed, toward ("" for no walk): strings, as seeds may
 *   be larger than a JavaScript number; step: 0 to STEPS; n.
 */
export function readState(search) {
  const query = new URLSearchParams(search);
  const mix = Number(query.get("mix"));
  const n = Number(query.get("n"));
  return {
    model: query.get("model") ?? "",
    class_label: query.get("class_label") ?? "",
    seed: checkedSeed(query.get("seed")) ?? OPENING_SEED,
    toward: checkedSeed(query.get("toward")) ?? "",
    step: mix > 0 && mix <= 1 ? Math.round(mix * STEPS) : 0,
    n: COUNTS.includes(n) ? n : 24,
  };
}

/** The state as the query of the page's address. */
export function queryOf(state) {
  const query = new URLSearchParams();
  if (state.model) query.set("model", state.model);
  if (state.class_label) query.set("class_label", state.class_label);
  query.set("seed", state.seed);
  if (state.toward) {
    query.set("toward", state.toward);
    query.set("mix", state.step / STEPS);
  }
  query.set("n", state.n);
  return `?${query}`;
}

/** What GET /generate is asked for the image on the stage. */
export function askedOf({ model, class_label, seed, toward, step }) {
  const walk = toward ? { toward, mix: step / STEPS } : {};
  return { model, class_label, seed, ...walk };
}

/** What two spellings of one class name share. */
export const foldedName = (name) => name.normalize("NFC").trim().toLowerCase();
const nameIndex = (classes, wanted) =>
  classes.findIndex((name) => foldedName(name) === foldedName(wanted));

/** The index of a class that an address names, or -1: read as the server reads it. */
export function classIndex(classes, label) {
  const text = label.trim();
  const number = /^[0-9]{1,9}$/.test(text) ? Number(text) : -1;
  if (text === String(number) && number < classes.length) return number;
  const named = text ? nameIndex(classes, text) : -1;
  return named === -1 && number < classes.length ? number : named;
}

/** A class as an address names it: by its name, or by its index where that means another class. */
export function unmistakable(classes, index) {
  return classIndex(classes, classes[index]) === index ? classes[index] : String(index);
}

/** A class as `classes` name it, or null where they have none such; "", for any, stays "". */
export function labelIn(classes, label) {
  if (!label) return "";
  const index = classIndex(classes, label);
  return index === -1 ? null : unmistakable(classes, index);
}

/** Which model or class of an address the server no longer has, as a sentence; "" for neither. */
export function whatIsGone({ model, class_label }, models) {
  const found = models.find(({ name }) => name === model);
  if (!found) return `This server has no model “${model}”, so there is nothing to show.`;
  if (labelIn(found.classes, class_label) !== null) return "";
  return `The model ${model} has no class “${class_label}”, so there is nothing to show.`;
}

/** A seed in digits, or null for what is none. */
export function checkedSeed(text) {
  if (!/^[0-9]{1,20}$/.test(text?.trim() ?? "")) return null;
  const seed = BigInt(text.trim());
  return seed <= SEED_MAX ? String(seed) : null;
}

/** The seed that is `steps` further; after the last comes the first. */
export const shiftedSeed = (seed, steps) => String(BigInt.asUintN(64, BigInt(seed) + BigInt(steps)));

/** A random seed below 2^32: larger ones only repeat the same images. */
export const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

/** Where the scrubber stands for a seed, and the seed for a place of the scrubber. */
export const scrubberPlace = (seed) => Number(BigInt(seed) % 1000n);
export const scrubbedSeed = (seed, place) => shiftedSeed(seed, place - scrubberPlace(seed));
