// The dialog that shows one picture large, with crisp pixels.

import { download } from "./snippets.js";
import { timingText } from "./timing.js";

const $ = (id) => document.getElementById(id);

/**
 * @param describe what a picture shows, in words.
 * @param onUse told the picture to start from; onWalk the one to walk to.
 */
export class Zoom {
  #describe;
  #pictures = [];
  #index = 0;

  constructor({ describe, onUse, onWalk }) {
    this.#describe = describe;
    $("zoom-before").onclick = () => this.#move(-1);
    $("zoom-after").onclick = () => this.#move(1);
    $("zoom-download").onclick = () => download(this.#picture);
    $("zoom-close").onclick = () => $("zoom").close();
    for (const [id, use] of [["zoom-use", onUse], ["zoom-walk", onWalk]]) {
      $(id).onclick = () => {
        $("zoom").close();
        use(this.#picture);
      };
    }
    $("zoom").onclick = (event) => event.target === $("zoom") && $("zoom").close(); // the backdrop
    $("zoom").onkeydown = (event) => {
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    };
    $("zoom").onclose = () => URL.revokeObjectURL($("zoom-image").src);
  }

  /** Show one of some pictures; those that are undefined are passed over. */
  open(pictures, index) {
    this.#pictures = pictures;
    this.#index = index;
    this.#show();
    $("zoom").showModal();
  }

  get #picture() {
    return this.#pictures[this.#index];
  }

  #move(by) {
    let index = this.#index + by;
    while (index in this.#pictures && !this.#pictures[index]) index += by;
    if (!this.#pictures[index]) return;
    this.#index = index;
    this.#show();
  }

  #show() {
    const { asked, blob, model } = this.#picture;
    const what = this.#describe(this.#picture);
    URL.revokeObjectURL($("zoom-image").src);
    $("zoom-image").src = URL.createObjectURL(blob);
    $("zoom-image").alt = what;
    $("zoom-title").textContent = `${what}, seed ${asked.seed}`;
    $("zoom-facts").textContent = `${model} · ${timingText(this.#picture)}`;
    $("zoom-before").hidden = $("zoom-after").hidden = this.#pictures.length < 2;
  }
}
