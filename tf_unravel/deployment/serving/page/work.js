// What is to be asked of the server, one request after the other, until everything on the page has its answer.

import {able, allPictures, state, support, supportChanged, taught, unanswered, unsent} from "./state.js";
import {Refused, base64, model, post, vectorOf} from "./server.js";
import {forget} from "./pictures.js";

const ANSWERS_AT_ONCE = 64; // few enough for answers to be seen soon

let featuresAtOnce = 16;
let working = false;
let changed = () => {};
let problem = () => {};
export function onChange(whenChanged, whenProblem) {
  changed = whenChanged;
  problem = whenProblem;
}

export async function work() {
  if (working) return;
  working = true;
  try {
    for (let step = next(); step; step = next()) {
      const {version} = state; // that is asked about; it may be another one when the answer comes
      await step().catch((error) => refused(error, version));
      changed();
    }
  } finally {
    working = false;
  }
}

async function refused(error, version) {
  if (!(error instanceof Refused)) throw error;
  if (error.status !== 409) {
    if (version !== state.version) return; // of labelled images that have changed meanwhile
    state.refused = error.message;
    if (state.model.classes) problem(error.message); // of the others it stands below the classes
    return;
  }
  state.model = await model(); // another one: the images are still here, its features are not
  for (const picture of allPictures()) Object.assign(picture, {vector: null, features: null, held: null});
  Object.assign(state, {checked: 0, leftOut: null});
  supportChanged();
}

function next() {
  if (!state.model || state.model.problem) return null;
  const raw = unsent();
  if (raw.length) return () => features(raw);
  if (!able()) return null;
  if (!state.model.classes && state.checked !== state.version) return check;
  return unanswered().length ? answers : null;
}

// As many of the pictures as a request takes, one at least.
function fitting(pictures, sizeOf, room, most) {
  let size = 0;
  const count = pictures.findIndex((picture, i) => {
    size += sizeOf(picture);
    return i === most || (i > 0 && size > room);
  });
  return count < 0 ? pictures : pictures.slice(0, count);
}

const room = () => 0.9 * state.model.max_bytes;

async function features(raw) {
  const most = Math.min(featuresAtOnce, state.model.max_images);
  const sent = fitting(raw, (picture) => 1.4 * picture.file.size, room(), most);
  const images = await Promise.all(sent.map(async (picture) => ({b64: await base64(picture.file)})));
  let answer;
  try {
    answer = await (await post("/page/features", {model: state.model.id, images})).json();
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 409) throw error;
    // A proxy may take less at a time than the server.
    if (error.status === 413 && sent.length > 1) featuresAtOnce = sent.length >> 1;
    else sent.forEach((picture) => { picture.held = error.message; });
    return;
  }
  answer.images.forEach((found, i) => {
    if (found.error) leaveOut(sent[i], found.error);
    else Object.assign(sent[i], {features: found.features, vector: vectorOf(found.features)});
  });
  if (state.classes.some((one) => one.pictures.some((picture) => sent.includes(picture)))) supportChanged();
}

function leaveOut(picture, why) {
  const list = [state.queries, ...state.classes.map((one) => one.pictures)].find((each) => each.includes(picture));
  if (!list) return; // removed meanwhile
  problem(`${picture.name} cannot be used: ${why.replace(/\.$/, "")}; it was left out.`);
  list.splice(list.indexOf(picture), 1);
  forget(picture);
}

// A picture as the model's head reads it.
const asRead = async (picture) => (
  {b64: state.model.reads === "features" ? picture.features : await base64(picture.file)});

export async function supportRequest() {
  const known = support();
  return {model: state.model.id, support: await Promise.all(known.map(({picture}) => asRead(picture))),
    labels: known.map(({label}) => label)};
}

async function check() {
  const {version} = state, known = support();
  const found = await (await post("/page/check", await supportRequest())).json();
  if (version !== state.version) return; // the labelled images have changed meanwhile
  const classOf = new Map(known.map(({label, classId}) => [label, classId]));
  state.leftOut = found.left_out && new Map(found.left_out.map((each, i) => [known[i].picture.id,
    each && {classId: classOf.get(each.label), probability: each.probability}]));
  Object.assign(state, {checked: version, lowestRate: found.lowest_rate});
}

async function answers() {
  const {version, lowestRate} = state, classIds = state.model.classes ? null : taught().map((one) => one.id);
  const given = state.model.classes ? {model: state.model.id} : await supportRequest();
  const read = (picture) => (state.model.reads === "features" ? picture.features.length : 1.4 * picture.file.size);
  const taken = (given.support ?? []).reduce((sum, each) => sum + each.b64.length + 10, 0);
  const files = state.model.reads === "features" ? Infinity : state.model.max_images - (given.support ?? []).length;
  const most = state.model.transductive ? Infinity : Math.max(1, Math.min(ANSWERS_AT_ONCE, files));
  const asked = fitting(unanswered().filter((picture) => picture.vector), read, room() - taken, most);
  if (!asked.length) return; // removed while their files were read
  const query = await Promise.all(asked.map(asRead));
  const found = await (await post("/page/answers", {...given, query})).json();
  asked.forEach((picture, i) => {
    picture.answer = {version, classIds, lowestRate, probabilities: found.probabilities[i],
      pKnown: found.p_known?.[i] ?? null};
  });
}
