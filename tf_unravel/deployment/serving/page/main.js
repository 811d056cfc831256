// Wires the page: what is done on it changes `state`, is drawn, and asked of the server.

import {held, newClass, nameOf, nameProblem, shown, state, supportChanged} from "./state.js";
import {droppedFiles, forget, readAll} from "./pictures.js";
import {model, onAway} from "./server.js";
import {onChange, work} from "./work.js";
import {drawHeld, drawModel, dropZone, find, many, percent, showProblem} from "./view.js";
import {drawCheck, drawClasses} from "./classes.js";
import {drawAnswers, drawDownloads} from "./answers.js";
import {openCamera} from "./camera.js";
import {classifier, csvText, save} from "./downloads.js";

let frame = 0;
function draw() {
  cancelAnimationFrame(frame); // of many changes, one drawing
  frame = requestAnimationFrame(() => {
    drawModel();
    drawClasses(actions);
    drawCheck(actions);
    drawAnswers(actions);
    drawHeld();
    announce();
  });
}

function change() {
  draw();
  work();
}

function changeSupport() {
  supportChanged();
  change();
}

function take(files, add) {
  const isHere = (picture) => {
    add(picture);
    change();
  };
  readAll(files, isHere, showProblem, () => {
    if (!state.reading) state.refused = null; // with other images it may be another answer
    change();
  });
  draw();
}

function tryAgain() {
  held().forEach((picture) => { picture.held = null; });
  state.refused = null;
  find("progress").focus(); // the button goes
  change();
}

const actions = {
  teach: (one, files) => take(files, (picture) => {
    if (state.classes.includes(one)) one.pictures.push(picture);
    else forget(picture);
  }),
  camera: (one) => openCamera((file) => actions.teach(one, [file])),
  rename(one, name) {
    one.name = name;
    draw();
  },
  remove(one, picture) {
    const list = one ? one.pictures : state.queries;
    const place = list.indexOf(picture);
    if (place < 0) return; // left out meanwhile
    list.splice(place, 1);
    forget(picture);
    if (one || state.model.transductive) changeSupport();
    else change();
  },
  removeClass(one) {
    state.classes.splice(state.classes.indexOf(one), 1);
    one.pictures.forEach(forget);
    changeSupport();
  },
  move(one, other, picture) {
    one.pictures.splice(one.pictures.indexOf(picture), 1);
    other.pictures.push(picture);
    changeSupport();
  },
};
const ask = (files) => take(files, (picture) => {
  state.queries.push(picture);
  if (state.model.transductive) supportChanged(); // the answers to the others depend on it
});

// Says new answers to those who listen: each of a few, of many how many there are.
const announced = new WeakMap();
function announce() {
  const fresh = state.queries.filter((picture) => picture.answer && announced.get(picture) !== shown(picture).name);
  if (!fresh.length) return;
  const said = fresh.map((picture) => ({picture, answer: shown(picture)}));
  said.forEach(({picture, answer}) => announced.set(picture, answer.name));
  const each = ({picture, answer}) => `${picture.name}: ${answer.name}`
    + (answer.unknown ? "" : `, ${percent(answer.probability)}`);
  const unknown = said.filter(({answer}) => answer.unknown).length;
  find("said").textContent = said.length < 4 ? said.map(each).join(". ")
    : `${said.length} images answered, ${unknown} of them unknown.`;
}

function takeDrops() {
  const zoneOf = (event) => event.target.closest?.(".class, #ask") ?? (state.model.classes && find("ask"));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // a file that misses would take the page's place
      document.querySelectorAll(".over").forEach((zone) => zone.classList.remove("over"));
      if (kind === "dragover") zoneOf(event)?.classList.add("over");
    });
  }
  document.addEventListener("drop", async (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    const zone = zoneOf(event), files = await droppedFiles(event.dataTransfer, showProblem);
    const one = state.classes.find(({id}) => id === Number(zone?.dataset.id));
    if (!files.length) showProblem("Nothing was taken: there are no files in what was dropped.");
    else if (one) actions.teach(one, files);
    else if (zone === find("ask")) ask(files);
    else showProblem(`Not taken: ${many(files.length, "file")}. Drop images on a class, or on “Images to recognise”.`);
  });
}

async function saveClassifier() {
  const wrong = state.classes.find((one) => one.pictures.length && nameProblem(one));
  if (wrong) return showProblem(`The classifier was not made: ${nameOf(wrong)}: ${nameProblem(wrong)}`);
  state.packing = true;
  drawDownloads();
  try {
    save(await classifier(), `${state.model.name}.zip`);
  } catch (error) {
    showProblem(`The classifier was not made: ${error.message}`);
  } finally {
    state.packing = false;
    drawDownloads();
    if (document.activeElement === document.body) find("zip").focus(); // which it lost when it was disabled
  }
}

function showAway(away) {
  const notice = find("notice");
  notice.hidden = !away;
  notice.textContent = away
    ? "The server does not answer. All images are still here; it is asked again until it does." : "";
}

async function start() {
  window.addEventListener("unhandledrejection", ({reason}) => showProblem(`The page failed: ${reason.message}.`));
  onAway(showAway);
  onChange(draw, showProblem);
  state.model = await model();
  newClass();
  newClass();
  find("ask-zone").append(dropZone("Drop images", ask, () => openCamera((file) => ask([file]))));
  find("ask-zone").querySelector("input").setAttribute("aria-label", "Images to recognise");
  find("add-class").addEventListener("click", () => {
    newClass();
    drawClasses(actions); // now: its name has the focus before anything else is typed
    find("classes").lastElementChild.querySelector("input").focus();
  });
  find("rate").addEventListener("change", (event) => {
    state.rate = Number(event.target.value);
    draw();
  });
  find("csv").addEventListener("click", () => save(new Blob([csvText()], {type: "text/csv"}), "answers.csv"));
  find("zip").addEventListener("click", saveClassifier);
  find("again").addEventListener("click", tryAgain);
  window.addEventListener("beforeunload", (event) => {
    if (state.queries.length || state.classes.some((one) => one.pictures.length)) event.preventDefault();
  });
  takeDrops();
  document.querySelector("main").hidden = false; // before, nothing on it would have worked
  if (state.model.classes) Object.assign(state, {classes: [], lowestRate: state.model.lowest_rate});
  if (state.model.problem) showProblem(state.model.problem);
  change();
}

start();
