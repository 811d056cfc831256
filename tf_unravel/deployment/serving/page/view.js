// What the page is drawn with; only texts and pictures are put in, never markup.

import {state} from "./state.js";

const COLOURS = 8; // in style.css
const LINES = 5; // of problems
export const find = (id) => document.getElementById(id);
export const colour = (place) => `var(--class-${Math.max(0, place) % COLOURS})`;
export const percent = (p) => (p > 0.995 && p < 1 ? "> 99\u00a0%" : `${Math.round(100 * p)}\u00a0%`);
export const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Puts the elements of some things into a list, each made once. What has the focus keeps it; if it goes, a neighbour
// has it then.
export function keyed(list, things, make, update) {
  const there = new Map([...list.children].map((child) => [Number(child.dataset.id), child]));
  things.forEach((thing, place) => {
    const child = there.get(thing.id) ?? make(thing);
    child.dataset.id = thing.id;
    there.delete(thing.id);
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] ?? null);
    update(child, thing, place);
  });
  for (const gone of there.values()) {
    const next = gone.nextElementSibling ?? gone.previousElementSibling ?? list.closest("article, section");
    const moved = gone.contains(document.activeElement) && next?.querySelector("button, input");
    gone.remove();
    if (moved) moved.focus();
  }
}

export function dropZone(text, onFiles, onCamera) {
  const input = element("input", {type: "file", multiple: true, accept: "image/*", className: "visually-hidden"});
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  const words = element("span", {}, element("strong", {textContent: text}), " or choose files");
  const camera = element("button", {type: "button", className: "camera", textContent: "Camera"});
  camera.addEventListener("click", onCamera);
  return element("div", {className: "zone"}, element("label", {className: "drop"}, input, words), camera);
}

export function drawModel() {
  const {name, head, size} = state.model;
  find("model").textContent = `${name}: images of ${size[0]} × ${size[1]} pixels, ${head}`;
}

// A line that stays until it is closed; of many, the last few and how many more.
export function showProblem(line) {
  const list = find("problems");
  const close = element("button", {type: "button", textContent: "×", ariaLabel: "Close this message"});
  const shownLine = element("p", {}, element("span", {textContent: line}), close);
  close.addEventListener("click", () => shownLine.remove());
  list.append(shownLine);
  while (list.children.length > LINES) list.firstElementChild.remove();
}
