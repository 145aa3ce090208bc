// The playground: wires the controls to the stage, the walk and the gallery.

import { showAbout } from "./about.js";
import { draw, findClient, listModels } from "./api.js";
import { wireAppearance } from "./appearance.js";
import { ClassList } from "./classes.js";
import { Gallery } from "./gallery.js";
import { correct, visit } from "./history.js";
import { wireKeys } from "./keys.js";
import { showBusy, showError, showNotice } from "./notice.js";
import { asCurl, asPython, copy, download } from "./snippets.js";
import * as states from "./state.js";
import { showTiming } from "./timing.js";
import { Walk } from "./walk.js";
import { Zoom } from "./zoom.js";

const $ = (id) => document.getElementById(id);
const NEEDS_AN_IMAGE = ["stage-zoom", "download", "copy-curl", "copy-python", "share", "play"];
const SETTLE = 120; // milliseconds that a control rests before the gallery is drawn again

const state = states.readState(location.search);
let models = [];
let listed; // name of the model whose classes are listed
let wheel; // address of the client for Python
let shown; // the image on the stage
let gallerySettles = 0;

const gallery = new Gallery($("tiles"), (index) => zoom.open(gallery.images, index));
const classList = new ClassList((label) => change({ class_label: label }));
const walk = new Walk(showStep, showBusy);
const zoom = new Zoom({
  describe,
  onUse: (image) => {
    change({ seed: image.asked.seed, toward: "", step: 0 });
    bringIntoView("desk", "start");
  },
  onWalk: (image) => {
    change({ toward: image.asked.toward ?? image.asked.seed, step: 0 }, { gallery: false });
    setPlaying(true);
    bringIntoView("walk", "end"); // with the image, which stays in view beside or above it
    $("play").focus({ preventScroll: true });
  },
});

/** The state's model; undefined where an address names one that is not there. */
const model = () => models.find(({ name }) => name === state.model);
const defaultModel = () => models.find((one) => one.default) ?? models[0];

function bringIntoView(id, block) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $(id).scrollIntoView({ block, behavior: still ? "instant" : "smooth" });
}

/** What an image shows, in words. */
function describe({ classLabel }) {
  return classLabel === null ? model().name : (model().classes[classLabel] ?? `class ${classLabel}`);
}

// ---- from the controls to the state, and back

/** Take what was chosen, note it in the address, and show it. */
function change(chosen, { gallery: withGallery = true } = {}) {
  const another = { ...state, ...chosen, step: state.step };
  if (JSON.stringify(another) !== JSON.stringify(state)) setPlaying(false);
  Object.assign(state, chosen);
  visit(states.queryOf(state));
  show({ gallery: withGallery });
}

/** Show what the address says, after Back or Forward. */
function goBack() {
  const { toward, step, ...before } = state;
  walk.pause(); // and leave the address alone
  showPlaying();
  Object.assign(state, states.readState(location.search));
  show({ gallery: JSON.stringify({ ...state, ...before }) !== JSON.stringify(state) });
}

/** Show the state in the controls, and draw. */
function show({ gallery: withGallery }) {
  if (!models.length) return; // what they are is still to come
  const gone = states.whatIsGone(state, models);
  if (listed !== state.model) showModels();
  showControls();
  for (const id of NEEDS_AN_IMAGE) $(id).disabled = Boolean(gone);
  if (gone) return showNothing(gone);
  drawStage();
  if (!withGallery) return;
  clearTimeout(gallerySettles);
  gallerySettles = setTimeout(drawGallery, SETTLE);
}

function showControls() {
  $("model").value = state.model;
  classList.choose(state.class_label);
  $("count").value = state.n;
  for (const id of ["seed", "toward"]) {
    if (document.activeElement !== $(id)) $(id).value = state[id];
    $(id).removeAttribute("aria-invalid");
  }
  $("scrubber").value = states.scrubberPlace(state.seed);
  $("scrubber").setAttribute("aria-valuetext", `seed ${state.seed}`);
  $("mix").value = state.step;
  $("mix").disabled = !state.toward;
  if (!state.toward && document.activeElement === $("end")) $("play").focus();
  $("end").hidden = !state.toward;
  const share = `${Math.round((100 * state.step) / states.STEPS)} %`;
  $("mix-shown").textContent = share;
  $("mix").setAttribute("aria-valuetext", share);
}

function showModels() {
  listed = state.model;
  const options = models.map(({ name }) => new Option(name));
  if (!model()) options.unshift(new Option(`${state.model} (not here)`, state.model));
  $("model").replaceChildren(...options);
  classList.show(model() ?? { classes: [] });
  showAbout(model());
}

// ---- the stage: the newest wish wins, and each drawing is finished before the next begins

let stageBusy = false;
let wishes = 0; // how often something else was wanted
let shownWish = 0; // which of them the stage shows: never an older one than before

async function drawStage() {
  wishes += 1;
  const frame = state.toward && walk.frame(state);
  if (frame) {
    showNotice("");
    return showImage(frame, wishes);
  }
  if (stageBusy) return;
  stageBusy = true;
  try {
    let wish;
    do {
      wish = wishes;
      showImage(await draw(states.askedOf(state), { onBusy: showBusy }), wish);
      if (shownWish === wish) showNotice("");
    } while (wish < wishes && shownWish < wishes);
  } catch (error) {
    showError(error, drawStage, start);
  } finally {
    stageBusy = false;
  }
}

function showImage(image, wish) {
  if (wish < shownWish) return;
  shownWish = wish;
  shown = image;
  const img = $("stage-image");
  const before = img.src;
  img.src = URL.createObjectURL(image.blob);
  img.alt = `${describe(image)}, seed ${image.asked.seed}`;
  img.hidden = false;
  URL.revokeObjectURL(before);
  const { seed, toward, mix } = image.asked;
  const way = toward ? `, ${Math.round(mix * 100)} % of the way to ${toward}` : "";
  $("stage-caption").textContent = `${describe(image)}, seed ${seed}${way}`;
  showTiming($("stage-timing"), image);
}

/** Show no image, for what the address names is gone; say so, and offer what there is. */
function showNothing(gone) {
  wishes += 1;
  shownWish = wishes; // whatever is still being drawn comes too late
  clearTimeout(gallerySettles);
  shown = undefined;
  URL.revokeObjectURL($("stage-image").src);
  $("stage-image").removeAttribute("src");
  $("stage-image").hidden = true;
  $("stage-caption").textContent = "No image";
  $("stage-timing").replaceChildren();
  gallery.clear();
  $("gallery").removeAttribute("aria-busy");
  $("summary").textContent = "";
  const instead = model() ?? defaultModel();
  showNotice(
    gone,
    () => change({ model: instead.name, class_label: "" }),
    model() ? "Draw any class" : `Draw with ${instead.name}`,
  );
}

// ---- the walk

function showStep(step, image, error) {
  if (error) {
    setPlaying(false);
    showError(error, () => setPlaying(true), start);
    return;
  }
  state.step = step;
  wishes += 1;
  showControls();
  showImage(image, wishes);
}

function setPlaying(wanted) {
  if (wanted && !state.toward) {
    change({ toward: states.randomSeed(), step: 0 }, { gallery: false });
  }
  if (wanted) walk.play({ ...state });
  else if (walk.playing) {
    walk.pause();
    correct(states.queryOf(state));
  }
  showPlaying();
}

function showPlaying() {
  $("play").textContent = walk.playing ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(walk.playing));
}

// ---- the gallery

async function drawGallery() {
  $("gallery").setAttribute("aria-busy", "true");
  await gallery.draw(state, { describe, onChange: showProgress, onBusy: showBusy });
}

function showProgress({ done, failed, total, milliseconds }) {
  const whole = done + failed === total;
  if (whole) $("gallery").removeAttribute("aria-busy");
  if (whole && !failed) showNotice("");
  // Announced at the end and not for each image.
  if (whole) $("summary").textContent = gallery.summary({ done, failed, milliseconds });
}

// ---- wiring

function wire() {
  const typed = (id, name, { optional } = {}) => {
    $(id).oninput = () => {
      const seed = states.checkedSeed($(id).value) ?? (optional && !$(id).value.trim() ? "" : null);
      if (seed !== null) return change({ [name]: seed, step: 0 }, { gallery: name === "seed" });
      $(id).setAttribute("aria-invalid", "true");
      showNotice(`A seed is a whole number from 0 to ${2n ** 64n - 1n}.`);
    };
    $(id).onblur = () => {
      if ($(id).hasAttribute("aria-invalid")) showNotice("");
      showControls();
    };
  };
  typed("seed", "seed");
  typed("toward", "toward", { optional: true });
  $("model").onchange = () => {
    const { name, classes } = models.find(({ name }) => name === $("model").value);
    change({ model: name, class_label: states.labelIn(classes, state.class_label) ?? "" });
  };
  $("count").onchange = () => change({ n: Number($("count").value) });
  $("dice").onclick = () => change({ seed: states.randomSeed() });
  $("scrubber").oninput = () =>
    change({ seed: states.scrubbedSeed(state.seed, $("scrubber").valueAsNumber) });
  $("mix").oninput = () => {
    setPlaying(false);
    change({ step: $("mix").valueAsNumber }, { gallery: false });
  };
  $("play").onclick = () => setPlaying(!walk.playing);
  $("end").onclick = () => change({ toward: "", step: 0 }, { gallery: false });
  $("stage-zoom").onclick = () => shown && zoom.open([shown], 0);
  $("download").onclick = () => shown && download(shown);
  $("copy-curl").onclick = () => copy(asCurl(states.askedOf(state)), $("copy-curl"));
  $("copy-python").onclick = () => copy(asPython(states.askedOf(state), wheel), $("copy-python"));
  $("share").onclick = () => copy(location.href, $("share"));
  $("controls").onsubmit = (event) => event.preventDefault();
  wireKeys({
    ArrowLeft: () => change({ seed: states.shiftedSeed(state.seed, -1) }),
    ArrowRight: () => change({ seed: states.shiftedSeed(state.seed, 1) }),
    r: () => $("dice").click(),
    z: () => $("stage-zoom").click(),
    " ": () => $("play").click(),
  });
  addEventListener("popstate", goBack);
  wireAppearance();
}

async function start() {
  try {
    wheel = await findClient();
    $("client").href = wheel;
    models = await listModels();
  } catch (error) {
    showError(error, start, start);
    return;
  }
  showNotice("");
  state.model ||= defaultModel().name;
  state.class_label = states.labelIn(model()?.classes ?? [], state.class_label) ?? state.class_label;
  correct(states.queryOf(state));
  listed = undefined; // the catalogue is new
  show({ gallery: true });
}

wire();
start();
