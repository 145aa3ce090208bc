// The dialog that shows one image large, with crisp pixels.

import { download } from "./snippets.js";
import { timingText } from "./timing.js";

const $ = (id) => document.getElementById(id);

/**
 * @param describe what an image shows, in words.
 * @param onUse told the image to start from; onWalk the one to walk to.
 */
export class Zoom {
  #describe;
  #images = [];
  #index = 0;

  constructor({ describe, onUse, onWalk }) {
    this.#describe = describe;
    $("zoom-before").onclick = () => this.#move(-1);
    $("zoom-after").onclick = () => this.#move(1);
    $("zoom-download").onclick = () => download(this.#image);
    $("zoom-close").onclick = () => $("zoom").close();
    for (const [id, use] of [["zoom-use", onUse], ["zoom-walk", onWalk]]) {
      $(id).onclick = () => {
        $("zoom").close();
        use(this.#image);
      };
    }
    $("zoom").onclick = (event) => event.target === $("zoom") && $("zoom").close(); // the backdrop
    $("zoom").onkeydown = (event) => {
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    };
    $("zoom").onclose = () => URL.revokeObjectURL($("zoom-image").src);
  }

  /** Show one of some images; those that are undefined are passed over. */
  open(images, index) {
    this.#images = images;
    this.#index = index;
    this.#show();
    $("zoom").showModal();
  }

  get #image() {
    return this.#images[this.#index];
  }

  #move(by) {
    let index = this.#index + by;
    while (index in this.#images && !this.#images[index]) index += by;
    if (!this.#images[index]) return;
    this.#index = index;
    this.#show();
  }

  #show() {
    const { asked, blob, model } = this.#image;
    const what = this.#describe(this.#image);
    URL.revokeObjectURL($("zoom-image").src);
    $("zoom-image").src = URL.createObjectURL(blob);
    $("zoom-image").alt = what;
    $("zoom-title").textContent = `${what}, seed ${asked.seed}`;
    $("zoom-facts").textContent = `${model} · ${timingText(this.#image)}`;
    $("zoom-before").hidden = $("zoom-after").hidden = this.#images.length < 2;
  }
}
