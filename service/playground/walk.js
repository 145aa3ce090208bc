// A walk between two seeds, step by step: each step is an image of its own that can be cached.

import { draw } from "./api.js";
import { STEPS, askedOf } from "./state.js";

const STEPS_A_SECOND = 20;
const REST = 10; // steps' time at either end
const AT_A_TIME = 6; // as many connections as browsers make

export class Walk {
  #onStep;
  #onBusy;
  #frames = [];
  #aborter = new AbortController();
  #of = ""; // which walk the frames belong to
  #timer = 0;

  /** @param onStep told the step and its image while the walk is played. */
  constructor(onStep, onBusy) {
    this.#onStep = onStep;
    this.#onBusy = onBusy;
  }

  get playing() {
    return this.#timer !== 0;
  }

  /** The image of a step, if it is there already. */
  frame(state) {
    return this.#of === identity(state) ? this.#frames[state.step] : undefined;
  }

  /** Go to and fro from the state's step, drawing what is not there yet. */
  play(state) {
    this.pause();
    this.#load(state);
    let { step } = state;
    let direction = step === STEPS ? -1 : 1;
    let rest = 0;
    this.#timer = setInterval(() => {
      if (rest > 0) {
        rest -= 1;
        return;
      }
      if (!this.#frames[step + direction]) return; // still being drawn
      step += direction;
      if (step === STEPS || step === 0) {
        direction = -direction;
        rest = REST;
      }
      this.#onStep(step, this.#frames[step]);
    }, 1000 / STEPS_A_SECOND);
  }

  pause() {
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  /** Draw all steps, nearest to where the walk stands first. Errors are the caller's to show. */
  async #load(state) {
    const of = identity(state);
    if (this.#of === of && this.#frames.filter(Boolean).length === STEPS + 1) return;
    this.#aborter.abort();
    const aborter = (this.#aborter = new AbortController());
    if (this.#of !== of) this.#frames = new Array(STEPS + 1);
    this.#of = of;
    const frames = this.#frames;
    const missing = Array.from({ length: STEPS + 1 }, (_, step) => step)
      .filter((step) => !frames[step])
      .sort((a, b) => Math.abs(a - state.step) - Math.abs(b - state.step));
    const worker = async () => {
      while (missing.length && !aborter.signal.aborted) {
        const step = missing.shift();
        const asked = askedOf({ ...state, step });
        frames[step] = await draw(asked, { signal: aborter.signal, onBusy: this.#onBusy });
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_A_TIME }, worker));
    } catch (error) {
      if (aborter.signal.aborted) return;
      this.pause();
      this.#onStep(state.step, undefined, error);
    }
  }
}

const identity = ({ model, class_label, seed, toward }) =>
  [model, class_label, seed, toward].join("\n");
