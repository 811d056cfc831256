// Draws the classes, their labelled images, and the check of these.

import {nameOf, nameProblem, ready, state} from "./state.js";
import {colour, dropZone, element, find, keyed, many, percent} from "./view.js";

const SUSPECTS = 4; // labelled images that are named as looking wrong

export function drawClasses(actions) {
  for (const id of ["add-class", "zip", "take-hint"]) find(id).hidden = Boolean(state.model.classes);
  if (state.model.classes) return drawBuiltIn();
  keyed(find("classes"), state.classes, (one) => classCard(one, actions), (card, one, place) => {
    card.style.setProperty("--class", colour(one.colour));
    const input = card.querySelector("input[type=text]"), problem = nameProblem(one);
    if (input.value !== one.name) input.value = one.name; // a folder gave it
    input.placeholder = `class ${place + 1}`;
    input.setAttribute("aria-label", `Name of class ${place + 1}`);
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
  const name = element("input", {type: "text", value: one.name, maxLength: 60, autocomplete: "off"});
  name.addEventListener("input", () => actions.rename(one, name.value));
  const remove = element("button", {type: "button", className: "remove-class", textContent: "×",
    title: "Remove class"});
  remove.addEventListener("click", () => actions.removeClass(one));
  return element("article", {className: "class"},
    element("div", {className: "head"}, name, element("span", {className: "count quiet"})),
    element("p", {className: "name-problem", role: "status"}),
    dropZone((files) => actions.teach(one, files), () => actions.camera(one)),
    element("ul", {className: "thumbs", ariaLabel: "Labelled images"}),
    remove); // the last by keyboard, at the top by style: after a name come its images
}

function thumb(picture, remove) {
  const button = element("button", {type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}`});
  button.addEventListener("click", remove);
  return element("li", {}, element("img", {src: picture.url, alt: picture.name, title: picture.name}), button);
}

// What a labelled image looks like by a fit without it, if that is another class. While the images are checked again,
// what the last check said stays.
function suspicion(one, picture) {
  const found = state.refused && state.checked !== state.version ? null : state.leftOut?.get(picture.id);
  if (!found || found.classId === one.id) return null;
  return state.classes.some(({id}) => id === found.classId) ? found : null;
}

export function drawCheck(actions) {
  const box = find("check"), judged = [...(state.leftOut ?? new Map()).values()].filter(Boolean).length;
  const focused = box.contains(document.activeElement);
  box.hidden = Boolean(state.model.classes) || !(state.refused || (ready() && state.checked));
  if (box.hidden && focused) find("teach-title").focus();
  if (box.hidden) return;
  const doubts = state.classes.flatMap((one) => one.pictures.map((picture) => ({one, picture,
    looks: suspicion(one, picture)}))).filter(({looks}) => looks)
    .sort((a, b) => b.looks.probability - a.looks.probability);
  find("check-line").textContent = state.refused ?? checkLine(judged, judged - doubts.length);
  const more = doubts.length - SUSPECTS;
  find("more-suspects").textContent = more > 0 ? `and ${more} more, framed below` : "";
  const named = doubts.slice(0, SUSPECTS).map((doubt) => ({...doubt, id: doubt.picture.id}));
  keyed(find("suspects"), named, suspect, (item, doubt) => updateSuspect(item, doubt, actions), find("check-line"));
}

function checkLine(judged, right) {
  if (state.checked !== state.version) return "Checking the labelled images …";
  if (state.leftOut === null) return "This head adapts the network, and labelled images are not checked.";
  if (!judged) return "Give a class a second image, and the labelled images are checked against each other.";
  return `Self-check: ${right} of ${judged} labelled images (${percent(right / judged)}) are given their own class `
    + "when left out.";
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
