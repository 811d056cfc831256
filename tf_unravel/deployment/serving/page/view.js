// What the page is drawn with; only texts and pictures are put in, never markup.

import {held, state} from "./state.js";

const COLOURS = 8; // in style.css
const LINES = 5; // of problems
const NAMED = 16; // images that were not taken
export const find = (id) => document.getElementById(id);
export const colour = (place) => `var(--class-${Math.max(0, place) % COLOURS})`;
export const percent = (p) => (p > 0.995 && p < 1 ? ">\u00a099\u00a0%" : `${Math.round(100 * p)}\u00a0%`);
export const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const FIRST = "button, input";

// Puts the elements of some things into a list, each made once. What has the focus keeps it; if it goes, a neighbour
// has it then, or `home`, by default the first button of what the list is in.
export function keyed(list, things, make, update, home = null) {
  const before = [...list.children], focused = list.contains(document.activeElement) ? document.activeElement : null;
  const there = new Map(before.map((child) => [Number(child.dataset.id), child]));
  const now = things.map((thing) => there.get(thing.id) ?? make(thing)), staying = new Set(now);
  const at = before.findIndex((child) => child.contains(focused));
  before.filter((child) => !staying.has(child)).forEach((child) => child.remove());
  now.forEach((child, place) => {
    child.dataset.id = things[place].id;
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] ?? null);
    update(child, things[place], place);
  });
  if (!focused || document.activeElement !== document.body) return;
  const stays = (child) => staying.has(child);
  const next = before.slice(at).find(stays) ?? before.slice(0, at).findLast(stays);
  const heir = next?.querySelector(FIRST) ?? home ?? list.closest("article, section").querySelector(FIRST);
  (focused.isConnected ? focused : heir).focus(); // what is moved in the document loses it too
}

export function dropZone(onFiles, onCamera) {
  const input = element("input", {type: "file", multiple: true, accept: "image/*", className: "visually-hidden"});
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  const words = element("span", {}, element("span", {className: "fine"}, element("strong", {textContent: "Drop images"}),
    " or choose files"), element("strong", {className: "coarse", textContent: "Choose photos"}));
  const camera = element("button", {type: "button", className: "camera", textContent: "Camera"});
  camera.addEventListener("click", onCamera);
  return element("div", {className: "zone"}, element("label", {className: "drop"}, input, words), camera);
}

export function drawModel() {
  const {name, head, size} = state.model;
  find("model").textContent = `${name}: images of ${size[0]} × ${size[1]} pixels, ${head}`;
}

// What was not taken, as by a proxy in front of the server, stays on the page and is sent again when somebody asks.
export function drawHeld() {
  const pictures = held(), more = pictures.length - NAMED;
  find("held").hidden = !pictures.length;
  if (!pictures.length) return;
  const names = pictures.slice(0, NAMED).map(({name}) => name).join(", ");
  find("held-line").textContent = `Not sent (${pictures[0].held.replace(/\.$/, "")}), and kept here: ${names}`
    + `${more > 0 ? ` and ${more} more` : ""}.`;
}

// A line that stays until it is closed; of many, the last few and how many more.
export function showProblem(line) {
  const list = find("problems");
  const close = element("button", {type: "button", textContent: "×", ariaLabel: "Close this message"});
  const shownLine = element("p", {}, element("span", {textContent: line}), close);
  close.addEventListener("click", () => {
    const next = shownLine.nextElementSibling ?? shownLine.previousElementSibling;
    shownLine.remove();
    (next?.querySelector("button") ?? find("teach-title")).focus();
  });
  list.append(shownLine);
  while (list.children.length > LINES) list.firstElementChild.remove();
}
