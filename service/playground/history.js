// The browser's history: one entry for each thing done, however many steps it took. A slider that
// is dragged, a seed that is typed and a key that is held are one each.

const TYPED = "input:not([type='range'], [type='radio'], [type='checkbox'])";

let anew = false; // whether what comes next is something new
let held = false; // a key that repeats: what it does again is nothing new

function notice({ type, target, repeat }) {
  if (type === "keydown") held = repeat;
  const typing = type === "keydown" && target.matches(TYPED);
  if (!held && !typing) anew = true;
}

for (const type of ["click", "change", "focusin", "keydown"]) {
  document.addEventListener(type, notice, true); // before the control itself hears of it
}
document.addEventListener("keyup", () => (held = false), true);

/** Take an address down, as a new entry where the visitor did something new. */
export function visit(query) {
  if (query === location.search) return;
  if (anew) history.pushState(null, "", query);
  else correct(query);
  anew = false;
}

/** Take an address down in the place of the one that stands there. */
export function correct(query) {
  history.replaceState(null, "", query);
}
