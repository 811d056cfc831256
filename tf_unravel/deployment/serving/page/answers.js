// Draws the answers, and what is said of them.

import {able, effectiveRate, nameById, nameOf, nearest, ready, shown, state, taught, unanswered,
  unsent} from "./state.js";
import {colour, element, find, keyed, many, percent} from "./view.js";

const BARS = 5; // classes of an answer that have a bar
const CLOSE = 0.2; // a lead that is said to be narrow

export function drawAnswers(actions) {
  keyed(find("answers"), state.queries, (picture) => answerCard(picture, actions), updateAnswer);
  const waiting = unanswered().length;
  const missing = Math.max(0, 2 - taught().length);
  find("progress").textContent = state.reading ? `Reading ${many(state.reading, "image")} …`
    : waiting && able() ? `Asking about ${many(waiting, "image")} …`
      : waiting && !able() && missing ? "Answers come once two classes have an image." : "";
  find("rate-hint").textContent = rateHint();
  drawDownloads(waiting);
}

// What is taken along is whole: of all images, and with their last answers.
export function drawDownloads(waiting = unanswered().length) {
  const pending = state.reading > 0 || (!state.model.problem && unsent().length > 0) || (able() && waiting > 0);
  find("csv").disabled = pending || !state.queries.some((picture) => picture.answer);
  find("zip").disabled = pending || state.packing || !able() || Boolean(state.model.classes);
  find("take-wait").textContent = pending ? "Downloads come once every image is read and answered."
    : state.packing ? "The classifier is being made …" : "";
}

function rateHint() {
  const rate = effectiveRate();
  if (!state.rate || !ready() || state.lowestRate === null) return "";
  if (rate === null) return "Unknown images can be told once a class has two images.";
  return `Of images that do belong to a class, about ${percent(rate)} are called unknown too`
    + `${rate > state.rate ? "; with more labelled images it can be rarer" : ""}.`;
}

function answerCard(picture, actions) {
  const remove = element("button", {type: "button", className: "remove", textContent: "×",
    ariaLabel: `Remove ${picture.name}`});
  remove.addEventListener("click", () => actions.remove(null, picture));
  return element("li", {className: "answer"},
    element("img", {className: "asked", src: picture.url, alt: ""}),
    element("div", {className: "said"}, element("p", {className: "file quiet", textContent: picture.name}),
      element("p", {className: "verdict"}), element("p", {className: "why quiet"}), element("ul", {className: "bars"}),
      element("div", {className: "near"}), ...(state.model.classes ? [] : [labelAs(picture, actions)])),
    remove);
}

// A choice that makes an image one of a class's labelled images, such as one that was answered wrongly.
function labelAs(picture, actions) {
  const choice = element("select", {className: "label-as", autocomplete: "off", ariaLabel: `Class of ${picture.name}`});
  choice.addEventListener("change", () => actions.label(picture, Number(choice.value)));
  return choice;
}

function drawLabelAs(card) {
  card.querySelector(".label-as")?.replaceChildren(element("option", {value: "", textContent: "It is …"}),
    ...state.classes.map((one) => element("option", {value: one.id, textContent: nameOf(one)})));
}

function updateAnswer(card, picture) {
  const answer = shown(picture);
  card.classList.toggle("stale", Boolean(answer) && picture.answer.version !== state.version);
  card.classList.toggle("unknown", Boolean(answer?.unknown));
  const drawn = JSON.stringify([answer, picture.answer?.version, picture.held, state.classes.map(nameOf)]);
  if (card.drawn === drawn) return;
  card.drawn = drawn;
  const verdict = picture.held ? "not sent" : !answer ? "…"
    : answer.unknown ? "unknown" : `${answer.name} ${percent(answer.probability)}`;
  card.querySelector(".verdict").textContent = verdict;
  card.querySelector(".why").textContent = answer ? why(answer) : "";
  drawLabelAs(card);
  const rest = (answer?.ranked.length ?? 0) - BARS;
  card.querySelector(".bars").replaceChildren(...(answer?.ranked ?? []).slice(0, BARS).map(bar),
    ...(rest > 0 ? [element("li", {className: "quiet", textContent: `and ${rest} more`})] : []));
  const near = answer && !state.model.classes ? nearest(picture).filter((each) => each.picture.url) : [];
  card.querySelector(".near").replaceChildren(...(near.length ? [element("span", {className: "quiet",
    textContent: "nearest"})] : []), ...near.map(({picture: other, classId}) => element("figure", {},
    element("img", {src: other.url, alt: "", title: other.name}),
    element("figcaption", {textContent: nameById(classId)}))));
}

// What an answer leaves open.
function why({unknown, ranked: [first, second]}) {
  if (unknown) return `Too unlike the labelled images; the closest class is ${first.name}.`;
  return first.probability - second.probability < CLOSE ? `Or ${second.name}: the two are close.` : "";
}

function bar({name, probability, colour: number}) {
  const fill = element("span", {className: "fill"});
  fill.style.setProperty("--part", `${100 * probability}%`);
  fill.style.setProperty("--class", colour(number));
  return element("li", {}, element("span", {className: "label", textContent: name, title: name}),
    element("span", {className: "track", ariaHidden: "true"}, fill),
    element("span", {className: "value", textContent: percent(probability)}));
}
