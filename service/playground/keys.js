// Keys that work anywhere on the page, unless the control that has the focus needs them.

const $ = (id) => document.getElementById(id);

/** @param keys what each key does, by its name; letters in lower case. */
export function wireKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const itsOwn = event.target.closest("input, select, textarea, dialog, #tiles");
    const pressed = event.key === " " && event.target.closest("button, a");
    if (itsOwn || pressed || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!$("shortcuts").checked) return; // who speaks to the machine may press keys unawares
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
