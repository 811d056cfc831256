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
    scrollToNew();
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
  teachFolders(found) {
    for (const folder of new Set(found.map((each) => each.folder))) {
      const one = state.classes.find((each) => nameOf(each) === folder)
        ?? state.classes.find((each) => !each.name.trim() && !each.pictures.length) ?? newClass();
      one.name = folder;
      actions.teach(one, found.filter((each) => each.folder === folder).map(({file}) => file));
    }
  },
  camera: (one) => openCamera(nameOf(one), (file) => actions.teach(one, [file])),
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
    const lost = `Remove ${nameOf(one)} and its ${many(one.pictures.length, "image")}?`;
    if (one.pictures.length && !window.confirm(lost)) return;
    state.classes.splice(state.classes.indexOf(one), 1);
    one.pictures.forEach(forget);
    changeSupport();
  },
  label(picture, id) {
    const one = state.classes.find((each) => each.id === id);
    if (!one) return; // “It is …” itself
    state.queries.splice(state.queries.indexOf(picture), 1);
    one.pictures.push(Object.assign(picture, {answer: null}));
    changeSupport();
  },
  move(one, other, picture) {
    one.pictures.splice(one.pictures.indexOf(picture), 1);
    other.pictures.push(picture);
    changeSupport();
  },
};
let scrollTo = null; // the first of the images that were added last, until its answer has been shown
function ask(files) {
  let first = null;
  take(files, (picture) => {
    state.queries.push(picture);
    first ??= scrollTo = picture;
    if (state.model.transductive) supportChanged(); // the answers to the others depend on it
  });
}

function scrollToNew() {
  const card = scrollTo?.answer && find("answers").querySelector(`[data-id="${scrollTo.id}"]`);
  if (!card) return;
  card.scrollIntoView({block: "nearest"});
  scrollTo = null;
}

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
  const zoneOf = (event) => (state.model.classes ? find("ask") : event.target.closest?.(".class, #ask, #teach"));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // a file that misses would take the page's place
      document.querySelectorAll(".over").forEach((zone) => zone.classList.remove("over"));
      if (kind === "dragover") zoneOf(event)?.classList.add("over");
    });
  }
  document.addEventListener("drop", async (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    const zone = zoneOf(event), found = await droppedFiles(event.dataTransfer, showProblem);
    const one = state.classes.find(({id}) => id === Number(zone?.dataset.id)), files = found.map(({file}) => file);
    const inFolders = found.length && found.every(({folder}) => folder);
    if (!files.length) showProblem("Nothing was taken: there are no files in what was dropped.");
    else if (zone === find("ask")) ask(files);
    else if (inFolders && (zone === find("teach") || (one && !one.name.trim()))) actions.teachFolders(found);
    else if (one) actions.teach(one, files);
    else {
      showProblem(`Not taken: ${many(files.length, "file")}. `
        + "Drop images on a class, or on “Images to recognise”.");
    }
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
  find("ask-zone").append(dropZone(ask, () => openCamera("images to recognise", (file) => ask([file]))));
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
