// Draws the page from `state`; only texts and pictures are put in, never markup.

import {effectiveRate, nameById, nameOf, nameProblem, nearest, ready, shown, state, support, taught} from "./state.js";

const COLOURS = 8; // in style.css
const BARS = 5; // classes of an answer that have a bar
const SUSPECTS = 4; // labelled images that are named as looking wrong
export const find = (id) => document.getElementById(id);
export const percent = (p) => (p > 0.995 && p < 1 ? "> 99\u00a0%" : `${Math.round(100 * p)}\u00a0%`);
const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Puts the elements of some things into a list, each made once. What has the focus keeps it; if it goes, a neighbour
// has it then.
function keyed(list, things, make, update) {
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

export function drawClasses(actions) {
  for (const id of ["add-class", "zip", "take-hint"]) find(id).hidden = Boolean(state.model.classes);
  if (state.model.classes) return drawBuiltIn();
  keyed(find("classes"), state.classes, (one) => classCard(one, actions), (card, one, place) => {
    card.style.setProperty("--class", `var(--class-${place % COLOURS})`);
    const input = card.querySelector("input[type=text]"), problem = nameProblem(one);
    input.placeholder = `class ${place + 1}`;
    input.setAttribute("aria-invalid", Boolean(problem));
    card.querySelector(".name-problem").textContent = problem;
    card.querySelector(".count").textContent = many(one.pictures.length, "image");
    card.querySelector(".remove-class").setAttribute("aria-label", `Remove ${nameOf(one)}`);
    card.querySelector("input[type=file]").setAttribute("aria-label", `Images of ${nameOf(one)}`);
    card.querySelector(".camera").setAttribute("aria-label", `Camera for ${nameOf(one)}`);
    keyed(card.querySelector(".thumbs"), one.pictures, (picture) => thumb(picture, () => actions.remove(one, picture)),
      (item, picture) => item.classList.toggle("suspect", Boolean(suspicion(one, picture))));
  });
}

function drawBuiltIn() {
  find("teach-lead").textContent = `This model has its classes built in: ${state.model.classes.join(", ")}.`;
}

function classCard(one, actions) {
  const name = element("input", {type: "text", value: one.name, maxLength: 60, autocomplete: "off",
    ariaLabel: "Name of the class"});
  name.addEventListener("input", () => actions.rename(one, name.value));
  const remove = element("button", {type: "button", className: "remove-class", textContent: "×",
    title: "Remove class"});
  remove.addEventListener("click", () => actions.removeClass(one));
  return element("article", {className: "class"},
    element("div", {className: "head"}, name, element("span", {className: "count quiet"}), remove),
    element("p", {className: "name-problem", role: "status"}),
    dropZone("Drop images", (files) => actions.teach(one, files), () => actions.camera(one)),
    element("ul", {className: "thumbs", ariaLabel: "Labelled images"}));
}

function thumb(picture, remove) {
  const button = element("button", {type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}`});
  button.addEventListener("click", remove);
  return element("li", {}, element("img", {src: picture.url, alt: picture.name, title: picture.name}), button);
}

// What a labelled image looks like by a fit without it, if that is another class.
function suspicion(one, picture) {
  const found = state.checked === state.version ? state.leftOut?.get(picture.id) : null;
  return found && found.classId !== one.id ? found : null;
}

export function drawCheck(actions) {
  const judged = [...(state.leftOut ?? new Map()).values()].filter(Boolean).length;
  const current = !state.model.classes && ready() && state.checked === state.version;
  find("check").hidden = !current && !(state.refused && !state.model.classes);
  if (find("check").hidden) return;
  const doubts = state.classes.flatMap((one) => one.pictures.map((picture) => ({one, picture,
    looks: suspicion(one, picture)}))).filter(({looks}) => looks)
    .sort((a, b) => b.looks.probability - a.looks.probability);
  find("check-line").textContent = state.refused?.line ?? checkLine(judged, judged - doubts.length);
  const more = doubts.length - SUSPECTS;
  find("more-suspects").textContent = more > 0 ? `and ${more} more, framed above` : "";
  const named = doubts.slice(0, SUSPECTS).map((doubt) => ({...doubt, id: doubt.picture.id}));
  keyed(find("suspects"), named, suspect, (item, doubt) => updateSuspect(item, doubt, actions));
}

function checkLine(judged, right) {
  if (state.leftOut === null) return "This head adapts the network, and labelled images are not checked.";
  if (!judged) return "Give a class a second image, and the labelled images are checked against each other.";
  return `${right} of ${judged} labelled images (${percent(right / judged)}) are recognised by the others.`;
}

function suspect({picture}) {
  const remove = element("button", {type: "button", className: "remove-suspect", textContent: "Remove",
    ariaLabel: `Remove ${picture.name}`});
  return element("li", {}, element("img", {src: picture.url, alt: ""}), element("span"), element("span",
    {className: "buttons"}, element("button", {type: "button", className: "move"}), remove));
}

function updateSuspect(item, {one, picture, looks}, actions) {
  const other = state.classes.find(({id}) => id === looks.classId);
  const line = `${picture.name} in ${nameOf(one)} looks like ${nameOf(other)} (${percent(looks.probability)})`;
  item.querySelector("span").textContent = line;
  const move = item.querySelector(".move");
  move.textContent = `Move to ${nameOf(other)}`;
  move.onclick = () => actions.move(one, other, picture);
  item.querySelector(".remove-suspect").onclick = () => actions.remove(one, picture);
}

export function drawAnswers(actions) {
  keyed(find("answers"), state.queries, (picture) => answerCard(picture, actions), updateAnswer);
  const waiting = state.queries.filter((picture) => picture.answer?.version !== state.version).length;
  const able = ready() && !(state.refused?.version === state.version);
  const missing = Math.max(0, 2 - taught().length);
  find("progress").textContent = state.reading ? `Reading ${many(state.reading, "image")} …`
    : waiting && able ? `Asking about ${many(waiting, "image")} …`
      : waiting && !able && missing ? "Answers come once two classes have an image." : "";
  find("rate-hint").textContent = rateHint();
  find("csv").disabled = !state.queries.some((picture) => picture.answer);
  find("zip").disabled = !able || Boolean(state.model.classes);
}

function rateHint() {
  const rate = effectiveRate();
  if (!state.rate || !ready() || state.lowestRate === null) return "";
  if (rate === null) return "Unknown images can be told once a class has two images.";
  if (rate <= state.rate) return "";
  return `With ${many(support().length, "labelled image")} it is also said of ${percent(rate)} of known images; `
    + "more labelled images make it rarer.";
}

function answerCard(picture, actions) {
  const remove = element("button", {type: "button", className: "remove", textContent: "×",
    ariaLabel: `Remove ${picture.name}`});
  remove.addEventListener("click", () => actions.remove(null, picture));
  return element("li", {className: "answer"},
    element("img", {className: "asked", src: picture.url, alt: ""}),
    element("div", {className: "said"}, element("p", {className: "file quiet", textContent: picture.name}),
      element("p", {className: "verdict"}), element("ul", {className: "bars"}),
      element("div", {className: "near"})),
    remove);
}

function updateAnswer(card, picture) {
  const answer = shown(picture);
  card.classList.toggle("stale", Boolean(answer) && picture.answer.version !== state.version);
  card.classList.toggle("unknown", Boolean(answer?.unknown));
  const drawn = JSON.stringify([answer, picture.answer?.version, state.classes.map(nameOf)]);
  if (card.drawn === drawn) return;
  card.drawn = drawn;
  const verdict = !answer ? "…" : answer.unknown ? "unknown" : `${answer.name} ${percent(answer.probability)}`;
  card.querySelector(".verdict").textContent = verdict;
  const rest = (answer?.ranked.length ?? 0) - BARS;
  card.querySelector(".bars").replaceChildren(...(answer?.ranked ?? []).slice(0, BARS).map(bar),
    ...(rest > 0 ? [element("li", {className: "quiet", textContent: `and ${rest} more`})] : []));
  const near = answer && !state.model.classes ? nearest(picture) : [];
  card.querySelector(".near").replaceChildren(...(near.length ? [element("span", {className: "quiet",
    textContent: "nearest"})] : []), ...near.map(({picture: other, classId}) => element("figure", {},
    element("img", {src: other.url, alt: "", title: other.name}),
    element("figcaption", {textContent: nameById(classId)}))));
}

function bar({name, probability, place}) {
  const fill = element("span", {className: "fill"});
  const colour = state.model.classes ? place : state.classes.indexOf(taught()[place]);
  fill.style.setProperty("--part", `${100 * probability}%`);
  fill.style.setProperty("--class", `var(--class-${Math.max(0, colour) % COLOURS})`);
  return element("li", {}, element("span", {className: "label", textContent: name}),
    element("span", {className: "track", ariaHidden: "true"}, fill),
    element("span", {className: "value", textContent: percent(probability)}));
}

const LINES = 5;

// A line that stays until it is closed; of many, the last few and how many more.
export function showProblem(line) {
  const list = find("problems");
  const close = element("button", {type: "button", textContent: "×", ariaLabel: "Close this message"});
  const shownLine = element("p", {}, element("span", {textContent: line}), close);
  close.addEventListener("click", () => shownLine.remove());
  list.append(shownLine);
  while (list.children.length > LINES) list.firstElementChild.remove();
}
