// How the page looks, which the browser keeps: light or dark, crisp pixels or smooth ones.

const $ = (id) => document.getElementById(id);
const page = document.documentElement;

export function wireAppearance() {
  wireTheme();
  wireSmooth();
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = localStorage.getItem("theme");
    page.dataset.theme = chosen ?? "";
    $("theme").textContent = (chosen ?? (dark.matches ? "dark" : "light")) === "dark" ? "Light" : "Dark";
  };
  $("theme").onclick = () => {
    localStorage.setItem("theme", $("theme").textContent.toLowerCase());
    show();
  };
  dark.addEventListener("change", show);
  show();
}

function wireSmooth() {
  const show = () => {
    const smooth = localStorage.getItem("pixels") === "smooth";
    $("smooth").checked = smooth;
    page.dataset.pixels = smooth ? "smooth" : "crisp";
  };
  $("smooth").onchange = () => {
    localStorage.setItem("pixels", $("smooth").checked ? "smooth" : "crisp");
    show();
  };
  show();
}
