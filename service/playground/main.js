// The playground: wires the controls to the stage, the walk and the gallery.

import { Refused, draw, findClient, forgetKey, listModels, rememberKey } from "./api.js";
import { ClassList } from "./classes.js";
import { Gallery } from "./gallery.js";
import { asCurl, asPython, copy, download } from "./snippets.js";
import * as states from "./state.js";
import { showTiming, shownMilliseconds } from "./timing.js";
import { Walk } from "./walk.js";
import { Zoom } from "./zoom.js";

const $ = (id) => document.getElementById(id);
const SETTLE = 120; // milliseconds that a control rests before the gallery is drawn again

const state = states.readState(location.search);
let models = [];
let wheel; // address of the client for Python
let shown; // the image on the stage
let gallerySettles = 0;

const gallery = new Gallery($("tiles"), (index) => zoom.open(gallery.images, index));
const classList = new ClassList((label) => change({ class_label: label }));
const walk = new Walk(showStep, showBusy);
const zoom = new Zoom({
  describe,
  onUse: (image) => change({ seed: image.asked.seed, toward: "", step: 0 }),
  onWalk: (image) => {
    change({ toward: image.asked.toward ?? image.asked.seed, step: 0 }, { gallery: false });
    setPlaying(true);
  },
});

const model = () =>
  models.find(({ name }) => name === state.model) ?? models.find((one) => one.default) ?? models[0];

/** What an image shows, in words. */
function describe({ classLabel }) {
  return classLabel === null ? model().name : (model().classes[classLabel] ?? `class ${classLabel}`);
}

// ---- from the controls to the state, and back

/** Take what was chosen, show it in controls and address, and draw. */
function change(chosen, { gallery: withGallery = true } = {}) {
  const identity = JSON.stringify({ ...state, step: 0 });
  Object.assign(state, chosen);
  if (JSON.stringify({ ...state, step: 0 }) !== identity) setPlaying(false);
  showControls();
  states.writeState(state);
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
  const share = `${Math.round((100 * state.step) / states.STEPS)} %`;
  $("mix-shown").textContent = share;
  $("mix").setAttribute("aria-valuetext", share);
}

function showModels() {
  const option = (value, text) => new Option(text, value);
  $("model").replaceChildren(...models.map(({ name }) => option(name, name)));
  const { name, classes } = model();
  state.model = name;
  classList.show(model());
  const index = states.classIndex(classes, state.class_label);
  state.class_label = index === -1 ? "" : states.unmistakable(classes, index);
  showAbout();
}

function showAbout() {
  const { description, quality, engine, resolution, licence } = model();
  const teacher = quality?.teacher_evaluations;
  $("tagline").textContent = teacher
    ? `One step of the network draws an image. Its teacher takes ${teacher}.`
    : "One step of the network draws an image.";
  const measured = quality
    ? ` ${quality.distance}: ${quality.generator.toFixed(2)}, the teacher's ${quality.teacher.toFixed(2)}; lower is better.`
    : "";
  $("about").textContent =
    `${description || `${resolution}×${resolution}`}.${measured} Drawn by ${engine}. Licence: ${licence}.`;
}

// ---- the stage: the newest wish wins, and each drawing is finished before the next begins

let stageBusy = false;
let wishes = 0; // how often something else was wanted
let shownWish = 0; // which of them the stage shows: never an older one than before

async function drawStage() {
  wishes += 1;
  const frame = state.toward && walk.frame(state);
  if (frame) return showImage(frame, wishes);
  if (stageBusy) return;
  stageBusy = true;
  try {
    let wish;
    do {
      wish = wishes;
      showImage(await draw(states.askedOf(state), { onBusy: showBusy }), wish);
      showNotice("");
    } while (wish < wishes && shownWish < wishes);
  } catch (error) {
    showError(error, drawStage);
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

// ---- the walk

function showStep(step, image, error) {
  if (error) {
    setPlaying(false);
    showError(error, () => setPlaying(true));
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
    states.writeState(state);
  }
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
  const cached = gallery.images.filter((image) => image?.cached).length;
  const notes = [cached && `${cached} from the browser's cache`, failed && `${failed} not drawn`];
  // Announced at the end and not for each image.
  if (whole) {
    $("summary").textContent = [
      `${done} images in ${shownMilliseconds(milliseconds)} ms, as your browser saw it`,
      ...notes.filter(Boolean),
    ].join("; ");
  }
}

// ---- what went wrong

function showNotice(text, again) {
  const notice = $("notice");
  notice.hidden = !text;
  notice.textContent = text;
  if (!again) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Try again";
  button.onclick = () => {
    showNotice("");
    again();
  };
  notice.append(" ", button);
}

function showBusy(seconds) {
  showNotice(`The server has more to draw than it can take now; trying again in ${seconds} s.`);
}

function showError(error, again) {
  if (error instanceof Refused && error.kind in KEY_QUESTIONS) {
    askForKey(error.kind);
  } else if (error instanceof Refused) {
    showNotice(`Not drawn: ${error.message}.`, again);
  } else {
    showNotice("The server cannot be reached.", again);
  }
}

const KEY_QUESTIONS = {
  "key-required": "This server asks for an API key.",
  "key-unknown": "That API key is wrong: this server does not know it. Type or paste all of it again.",
};

function askForKey(kind) {
  if (kind === "key-unknown") forgetKey();
  if ($("key").open) return;
  $("key-why").textContent = KEY_QUESTIONS[kind];
  $("key-input").setAttribute("aria-invalid", String(kind === "key-unknown"));
  $("key").returnValue = "";
  $("key").onclose = () => {
    if (!$("key").returnValue) return showNotice(KEY_QUESTIONS[kind], start);
    rememberKey($("key-input").value);
    start();
  };
  $("key").showModal();
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
    state.model = $("model").value;
    showModels();
    change({});
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
  $("stage-zoom").onclick = () => shown && zoom.open([shown], 0);
  $("download").onclick = () => shown && download(shown);
  $("copy-curl").onclick = () => copy(asCurl(states.askedOf(state)), $("copy-curl"));
  $("copy-python").onclick = () => copy(asPython(states.askedOf(state), wheel), $("copy-python"));
  $("share").onclick = () => copy(location.href, $("share"));
  $("controls").onsubmit = (event) => event.preventDefault();
  document.addEventListener("keydown", onKey);
  wireTheme();
}

function onKey(event) {
  const itsOwn = event.target.closest("input, select, textarea, dialog, #tiles");
  const pressed = event.key === " " && event.target.closest("button, a");
  if (itsOwn || pressed || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!$("shortcuts").checked) return; // who speaks to the machine may press keys unawares
  const keys = {
    ArrowLeft: () => change({ seed: states.shiftedSeed(state.seed, -1) }),
    ArrowRight: () => change({ seed: states.shiftedSeed(state.seed, 1) }),
    r: () => $("dice").click(),
    z: () => $("stage-zoom").click(),
    " ": () => $("play").click(),
  };
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = localStorage.getItem("theme");
    document.documentElement.dataset.theme = chosen ?? "";
    $("theme").textContent = (chosen ?? (dark.matches ? "dark" : "light")) === "dark" ? "Light" : "Dark";
  };
  $("theme").onclick = () => {
    localStorage.setItem("theme", $("theme").textContent.toLowerCase());
    show();
  };
  dark.addEventListener("change", show);
  show();
}

async function start() {
  try {
    wheel = await findClient();
    $("client").href = wheel;
    models = await listModels();
  } catch (error) {
    showError(error, start);
    return;
  }
  showNotice("");
  showModels();
  change({});
}

wire();
start();
