// What can be taken along: a file, a command, a program, a link.

import { hasKey, imageUrl } from "./api.js";

const base = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

/** A name for the image's file: dress-7.png, dress-3-toward-8-0.25.png. */
export function fileName(asked) {
  const label = asked.class_label ? `${asked.class_label}-` : "";
  const walk = asked.toward ? `-toward-${asked.toward}-${asked.mix}` : "";
  const name = `${label}${asked.seed}${walk}`.toLowerCase().replaceAll(/[^a-z0-9.]+/g, "-");
  return `${name}.png`;
}

/** The same image by curl, for a Unix shell. */
export function asCurl(asked) {
  const key = hasKey() ? ` -H "X-API-Key: $SID_KEY"` : "";
  const url = `${base()}/${imageUrl(asked)}`.replaceAll("'", "%27");
  return `curl -o ${fileName(asked)}${key} '${url}'`;
}

/** The same image by the client for Python, which pip installs from the address `wheel`. */
export function asPython(asked, wheel) {
  const key = hasKey() ? `, key=os.environ["SID_KEY"]` : "";
  const given = Object.entries(asked)
    .filter(([, value]) => value !== "")
    .map(([name, value]) => `${name}=${["seed", "toward", "mix"].includes(name) ? value : JSON.stringify(value)}`);
  return [
    `# pip install ${wheel}`,
    ...(key ? ["import os", ""] : []),
    "from sid_client import Client",
    "",
    `with Client(${JSON.stringify(base())}${key}) as sid:`,
    `    sid.generate(${given.join(", ")}).save(${JSON.stringify(fileName(asked))})`,
    "",
  ].join("\n");
}

/** Have the browser save an image. */
export function download(image) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(image.blob);
  link.download = fileName(image.asked);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Copy a text and say so on the button; where the browser forbids it, show the text instead. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text); // needs https, or this very machine
  } catch {
    const area = document.getElementById("text-area");
    area.value = text;
    document.getElementById("text").showModal();
    area.select();
    return;
  }
  const said = button.dataset.said ?? button.textContent;
  button.dataset.said = said;
  button.style.width = `${button.getBoundingClientRect().width}px`; // so that its neighbours stay
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = said;
    button.style.width = "";
  }, 1500);
}
