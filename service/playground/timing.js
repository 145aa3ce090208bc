// Where an image's time went, as a sentence and as a bar.

const STAGES = { queue: "queue", latents: "noise", engine: "engine", encode: "file" };

export const shownMilliseconds = (value) =>
  value < 9.95 ? value.toFixed(1) : String(Math.round(value));

/** The milliseconds that the server spent, all stages together. */
export const serverTime = ({ timings }) =>
  Object.keys(STAGES).reduce((sum, stage) => sum + (timings[stage] ?? 0), 0);

/** "queue 0.1 + noise 0.1 + engine 2.0 + file 0.1 ms" */
export function timingText({ timings }) {
  const parts = Object.entries(STAGES).map(
    ([stage, name]) => `${name} ${shownMilliseconds(timings[stage] ?? 0)}`,
  );
  return `${parts.join(" + ")} ms`;
}

/** Fill an element with the bar and its legend. */
export function showTiming(element, image) {
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true"); // the legend says it all
  const legend = document.createElement("ul");
  for (const [stage, name] of Object.entries(STAGES)) {
    const part = document.createElement("span");
    part.className = stage;
    part.style.flexGrow = image.timings[stage] ?? 0;
    bar.append(part);
    const entry = document.createElement("li");
    entry.className = stage;
    entry.textContent = `${name} ${shownMilliseconds(image.timings[stage] ?? 0)} ms`;
    legend.append(entry);
  }
  element.replaceChildren(bar, legend);
}
