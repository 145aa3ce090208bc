// The grid of images: seeds that follow one another, each tile filled as its image arrives.

import { draw } from "./api.js";
import { shiftedSeed } from "./state.js";
import { serverTime, shownMilliseconds, timingText } from "./timing.js";

export class Gallery {
  #list;
  #onOpen;
  #aborter = new AbortController();
  #urls = [];
  images = []; // by tile; undefined until drawn

  /** @param onOpen told the index of the tile that was chosen. */
  constructor(list, onOpen) {
    this.#list = list;
    this.#onOpen = onOpen;
  }

  /**
   * Draw the n seeds after the state's in place of what is shown, whose drawing is given up.
   *
   * @param state model, class_label, seed and n.
   * @param describe what an image shows: its class, in words.
   * @param onChange told {done, failed, total, milliseconds} after each image.
   * @param onBusy told the seconds that an overloaded server asks to wait.
   */
  async draw({ model, class_label, seed, n }, { describe, onChange, onBusy }) {
    const tiles = Array.from({ length: n }, (_, i) => this.#tile(i, shiftedSeed(seed, i + 1)));
    const aborter = this.#show(tiles);
    const started = performance.now();
    let done = 0;
    let failed = 0;
    const fill = async (tile, i) => {
      const asked = { model, class_label, seed: shiftedSeed(seed, i + 1) };
      tile.waiting();
      try {
        const image = await draw(asked, { signal: aborter.signal, onBusy });
        this.images[i] = image;
        tile.show(image, describe(image), this.#keep(image.blob));
        done += 1;
      } catch (error) {
        if (aborter.signal.aborted) return;
        failed += 1;
        tile.fail(error, () => {
          failed -= 1;
          fill(tile, i);
        });
      }
      onChange({ done, failed, total: n, milliseconds: performance.now() - started });
    };
    await Promise.all(tiles.map(fill));
  }

  /** What came of the drawing, as a sentence. */
  summary({ done, failed, milliseconds }) {
    const cached = this.images.filter((image) => image?.cached).length;
    const notes = [cached && `${cached} from the browser's cache`, failed && `${failed} not drawn`];
    return [
      `${done} images in ${shownMilliseconds(milliseconds)} ms, as your browser saw it`,
      ...notes.filter(Boolean),
    ].join("; ");
  }

  /** Show no images, and give up those that are being drawn. */
  clear() {
    this.#show([]);
  }

  #show(tiles) {
    this.#aborter.abort();
    this.#aborter = new AbortController();
    const old = this.#urls.splice(0);
    this.images = new Array(tiles.length);
    this.#list.replaceChildren(...tiles.map((tile) => tile.item));
    old.forEach(URL.revokeObjectURL);
    return this.#aborter;
  }

  #keep(blob) {
    const url = URL.createObjectURL(blob);
    this.#urls.push(url);
    return url;
  }

  #tile(index, seed) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const caption = document.createElement("p");
    const number = document.createElement("span");
    const took = document.createElement("span");
    button.type = "button";
    button.className = "frame";
    caption.className = "caption";
    number.className = "seed";
    number.textContent = seed;
    took.className = "took";
    caption.append(number, " ", took);
    item.append(button, caption);
    return {
      item,
      waiting: () => {
        button.disabled = true;
        button.replaceChildren();
        button.setAttribute("aria-label", `Seed ${seed}, being drawn`);
        item.className = "waiting";
        took.textContent = "…";
      },
      show: (image, what, url) => {
        const img = document.createElement("img");
        img.alt = "";
        img.src = url;
        item.className = "";
        button.disabled = false;
        button.setAttribute("aria-label", `${what}, seed ${seed}: zoom`);
        button.replaceChildren(img);
        button.onclick = () => this.#onOpen(index);
        took.textContent = image.cached
          ? "from cache"
          : `${shownMilliseconds(serverTime(image))} ms`;
        took.title = timingText(image);
      },
      fail: (error, again) => {
        item.className = "failed";
        button.disabled = false;
        button.textContent = "Try again";
        button.setAttribute("aria-label", `Seed ${seed} was not drawn. Try again`);
        button.onclick = again;
        took.textContent = "not drawn";
        took.title = error.message;
      },
    };
  }
}
