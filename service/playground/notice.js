// What went wrong, said above the image, with a way on; and the question for an API key.

import { Refused, forgetKey, rememberKey } from "./api.js";

const $ = (id) => document.getElementById(id);

const KEY_QUESTIONS = {
  "key-required": "This server asks for an API key.",
  "key-unknown": "That API key is wrong: this server does not know it. Type or paste all of it again.",
};

/** Say a sentence, "" to take it back; with a button that does `act` where that is given. */
export function showNotice(text, act, label = "Try again") {
  const notice = $("notice");
  notice.hidden = !text;
  notice.textContent = text;
  if (!act) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.onclick = () => {
    showNotice("");
    act();
  };
  notice.append(" ", button);
}

export function showBusy(seconds) {
  showNotice(`The server has more to draw than it can take now; trying again in ${seconds} s.`);
}

/**
 * Say why something was not drawn.
 *
 * @param again does it once more; start begins the page once more, with the key that was given.
 */
export function showError(error, again, start) {
  if (error instanceof Refused && error.kind in KEY_QUESTIONS) {
    askForKey(error.kind, start);
  } else if (error instanceof Refused) {
    showNotice(`Not drawn: ${error.message}.`, again);
  } else {
    showNotice("The server cannot be reached.", again);
  }
}

function askForKey(kind, start) {
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
