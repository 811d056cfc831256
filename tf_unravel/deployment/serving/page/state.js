// What is on the page; the server keeps none of it.

export const state = {
  model: null,      // what /page/model says
  classes: [],      // {id, name, pictures, colour}
  queries: [],      // pictures
  rate: 0.05,       // false alarms accepted for `unknown`; 0 for never
  version: 1,       // of the labelled images: an answer of an earlier one is stale
  checked: 0,       // the version that the check below is of
  leftOut: null,    // picture id -> {classId, probability}; null where the head gives none
  lowestRate: null, // at which the labelled images can tell an unknown one
  refused: null,    // what the server says against the labelled images of this version; a line
  reading: 0,       // files that are being read
  packing: false,   // whether the classifier is being made
};

let lastId = 0, lastColour = -1;
export const newId = () => ++lastId;

export function newClass(name = "") {
  const made = {id: newId(), name, pictures: [], colour: ++lastColour};
  state.classes.push(made);
  return made;
}

export const nameOf = (one) => one.name.trim() || `class ${state.classes.indexOf(one) + 1}`;

// The classes in the order of the labels: those with an image whose features are there.
export const taught = () => state.classes.filter((one) => one.pictures.some((picture) => picture.vector));

// Names in the order of the labels.
export const classNames = () => state.model.classes ?? taught().map(nameOf);

// What a class is called now.
export function nameById(id) {
  const one = state.classes.find((each) => each.id === id);
  return one ? nameOf(one) : "a class that is gone";
}

export const ready = () => Boolean(state.model && !state.model.problem && (state.model.classes || taught().length > 1));

// Whether the server can be asked about other images.
export const able = () => ready() && !state.refused;

// The labelled images as {picture, label, classId}.
export function support() {
  const of = (one, label) => one.pictures.filter((picture) => picture.vector)
    .map((picture) => ({picture, label, classId: one.id}));
  return taught().flatMap(of);
}

export const allPictures = () => [...state.classes.flatMap((one) => one.pictures), ...state.queries];

// Those that are yet to be sent, and those that were not taken.
export const unsent = () => allPictures().filter((picture) => !picture.vector && !picture.held);
export const held = () => allPictures().filter((picture) => picture.held);

// Those to recognise whose answer, of these labelled images, is yet to come.
export const unanswered = () => state.queries.filter((picture) => !picture.held
  && picture.answer?.version !== state.version);

export function supportChanged() {
  state.version += 1;
  state.refused = null;
}

// What is wrong with a class's name, or "".
export function nameProblem(one) {
  const name = nameOf(one).normalize();
  if (name.toLowerCase() === "unknown") return "“unknown” is an answer of its own; choose another name.";
  return state.classes.some((other) => other !== one && nameOf(other).normalize() === name)
    ? "Another class has this name." : "";
}

// The rate at which `unknown` is answered, null for never: what was chosen, or the lowest that there can be.
export function effectiveRate(lowest = state.lowestRate) {
  return state.rate === 0 || lowest === null || lowest >= 0.5 ? null : Math.max(state.rate, lowest);
}

// An answer as it is shown: {name, probability, unknown, pKnown, ranked: [{name, probability, place, colour}]}; null
// without one.
export function shown(picture) {
  if (!picture.answer) return null;
  const {probabilities, pKnown, classIds, lowestRate} = picture.answer;
  const names = classIds?.map(nameById) ?? state.model.classes;
  const colourOf = (id) => state.classes.find((each) => each.id === id)?.colour ?? 0;
  const ranked = probabilities.map((probability, place) => ({name: names[place], probability, place,
    colour: classIds ? colourOf(classIds[place]) : place}));
  ranked.sort((a, b) => b.probability - a.probability || a.place - b.place);
  const rate = effectiveRate(lowestRate); // of the labelled images that the answer is of
  const unknown = rate !== null && pKnown !== null && pKnown <= rate * (1 + 1e-6);
  return {name: unknown ? "unknown" : ranked[0].name, probability: ranked[0].probability, unknown, ranked, pKnown};
}

// The labelled images nearest to a picture in feature space, of the answer that it has: [{picture, classId, distance}].
export function nearest(picture, count = 3) {
  if (picture.answer.near) return picture.answer.near;
  const distance = (a, b) => Math.sqrt(a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0));
  picture.answer.near = support().map((each) => ({...each, distance: distance(picture.vector, each.picture.vector)}))
    .sort((a, b) => a.distance - b.distance).slice(0, count);
  return picture.answer.near;
}
