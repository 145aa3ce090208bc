// The list of classes: radio buttons, each with a small image of what its class looks like.

import { draw } from "./api.js";
import { OPENING_SEED, foldedName, unmistakable } from "./state.js";

const LINGER = 150; // milliseconds that an entry is in view before its image is asked for
const MANY = 20; // classes, above which one wants to search

const $ = (id) => document.getElementById(id);

/**
 * Native radio buttons, for keyboards and screen readers know those. An image is drawn when its
 * entry comes into view: a model of a thousand classes costs no more than one of twenty.
 */
export class ClassList {
  #onChoose;
  #model;
  #entries = []; // {item, input, name}: "any" first, then by index
  #waiting = new Map(); // item -> what ends its waiting or its drawing
  #urls = [];
  #observer = new IntersectionObserver((seen) => seen.forEach((one) => this.#seen(one)), {
    rootMargin: "200px",
  });

  /** @param onChoose told the class as an address names it, "" for any. */
  constructor(onChoose) {
    this.#onChoose = onChoose;
    $("class-search").oninput = () => this.#search($("class-search").value);
  }

  /** Show the classes of a model (a card of GET /models) in place of those of another. */
  show(model) {
    this.#observer.disconnect();
    this.#waiting.forEach((end) => end());
    this.#waiting.clear();
    this.#urls.splice(0).forEach(URL.revokeObjectURL);
    this.#model = model;
    const { classes } = model;
    $("classes").hidden = !classes.length;
    const any = this.#entry("Any, by seed", "");
    any.item.prepend($("class-any").content.cloneNode(true));
    const named = classes.map((name, index) => this.#entry(name, unmistakable(classes, index)));
    this.#entries = [any, ...named];
    $("class-list").replaceChildren(...this.#entries.map(({ item }) => item));
    for (const { item } of named) {
      const place = document.createElement("span");
      place.className = "place";
      item.prepend(place);
      this.#observer.observe(item);
    }
    $("class-search").value = "";
    $("class-search").hidden = classes.length <= MANY;
    this.#search("");
  }

  /** Mark a class as the chosen one, none where there is none such, and bring it into view. */
  choose(label) {
    const entry = this.#entries.find(({ input }) => input.value === label);
    if (entry?.input.checked) return;
    for (const { input } of this.#entries) input.checked = input === entry?.input;
    if (!entry) return;
    const list = $("class-list");
    const { offsetTop, offsetLeft, offsetHeight, offsetWidth } = entry.item;
    list.scrollTo({ // and not scrollIntoView, which moves the page as well
      top: offsetTop - (list.clientHeight - offsetHeight) / 2,
      left: offsetLeft - (list.clientWidth - offsetWidth) / 2,
    });
  }

  #entry(name, label) {
    const item = document.createElement("label");
    const input = document.createElement("input");
    const text = document.createElement("span");
    input.type = "radio";
    input.name = "class_label";
    input.value = label;
    input.onchange = () => this.#onChoose(label);
    text.textContent = name;
    item.title = name; // long names are cut
    item.append(input, text);
    return { item, input, name };
  }

  #search(text) {
    const wanted = foldedName(text);
    let found = 0;
    for (const { item, input, name } of this.#entries) {
      item.hidden = input.value !== "" && !foldedName(name).includes(wanted);
      found += item.hidden || input.value === "" ? 0 : 1;
    }
    $("class-found").textContent = wanted ? `${found} of ${this.#entries.length - 1} classes` : "";
  }

  #seen({ target: item, isIntersecting }) {
    this.#waiting.get(item)?.();
    this.#waiting.delete(item);
    if (!isIntersecting) return;
    const aborter = new AbortController();
    const timer = setTimeout(() => this.#draw(item, aborter.signal), LINGER);
    this.#waiting.set(item, () => {
      clearTimeout(timer);
      aborter.abort();
    });
  }

  /** Draw an entry's image. One that fails is tried again when its entry comes into view again. */
  async #draw(item, signal) {
    const asked = {
      model: this.#model.tag, // so that the browser may keep it for ever
      class_label: item.querySelector("input").value,
      seed: OPENING_SEED,
    };
    try {
      const { blob } = await draw(asked, { signal });
      const img = document.createElement("img");
      img.src = URL.createObjectURL(blob);
      img.alt = ""; // the name beside it says it
      this.#urls.push(img.src);
      item.querySelector(".place").replaceChildren(img);
      this.#observer.unobserve(item);
    } catch {
      // The stage asks for the same kind of thing, and tells what is wrong.
    }
  }
}
