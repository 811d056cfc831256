// Files become pictures: {id, name, file, url, vector, features, answer, held}, `file` what is sent, `url` a small one
// and `held` why it was not taken.

import {newId, state} from "./state.js";

const THUMBNAIL = 192;
const MOST_BYTES = 1 << 20, MOST_PIXELS = 4e6; // larger files are reduced here
const FORMATS = [[0xff, 0xd8, 0xff], [0x89, 0x50, 0x4e, 0x47], [0x42, 0x4d]]; // JPEG, PNG, BMP

let last = Promise.resolve();

// Reads files one after the other: a photograph of 60 megapixels takes a quarter of a GiB while it is decoded.
export function readAll(files, add, problem, done) {
  state.reading += files.length;
  for (const file of files) {
    last = last.then(() => read(file)).then(add, (error) => problem(error.message)).then(() => {
      state.reading -= 1;
      done();
    });
  }
}

async function read(file) {
  const start = new Uint8Array(await file.slice(0, 12).arrayBuffer().catch(() => {
    throw new Error(`${file.name} cannot be read; it was left out.`);
  }));
  const known = FORMATS.some((magic) => magic.every((byte, i) => start[i] === byte));
  if (!known && !file.type.startsWith("image/")) throw new Error(`${file.name} is not an image; it was left out.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is damaged, or no image that this browser can read; it was left out.`);
  }
  try {
    const limit = Math.min(MOST_BYTES, state.model.max_bytes / 2);
    // In memory: the file may be gone when it is sent.
    const small = file.size <= limit && bitmap.width * bitmap.height <= MOST_PIXELS;
    const sent = known && small ? new Blob([await file.arrayBuffer()])
      : await reduced(bitmap, file.type, limit);
    const url = URL.createObjectURL(await drawn(bitmap, THUMBNAIL, "image/png"));
    return {id: newId(), name: file.name, file: sent, url, vector: null, features: null, answer: null,
      held: null};
  } finally {
    bitmap.close();
  }
}

// Frees what shows a picture that has left the page.
export function forget(picture) {
  URL.revokeObjectURL(picture.url);
  picture.url = null;
}

// An image as a file that may be sent: no smaller than the model's own images, unless the limit is.
async function reduced(bitmap, type, limit) {
  let side = Math.max(1024, 2 * Math.max(...state.model.size));
  let sent = await drawn(bitmap, side, type === "image/jpeg" ? type : "image/png");
  for (; sent.size > limit && side > 16; side /= 2) sent = await drawn(bitmap, side, "image/jpeg");
  return sent;
}

function drawn(bitmap, side, type) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (type === "image/jpeg") {
    context.fillStyle = "white"; // behind transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob(
    (blob) => (blob ? resolve(blob) : reject(new Error("an image cannot be drawn; it was left out."))), type, 0.93));
}

// What is dropped, in folders or not: [{file, folder}], `folder` the name of the one that a file is in, or "".
export async function droppedFiles(transfer, problem) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({file, folder: ""}));
  const below = (entry) => filesBelow(entry, below).catch(() => {
    problem(`${entry.name} cannot be read; it was left out.`);
    return [];
  });
  return (await Promise.all(entries.map(below))).flat();
}

async function filesBelow(entry, below) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{file, folder: entry.fullPath.split("/").at(-2) ?? ""}];
  }
  const reader = entry.createReader(), found = [];
  for (;;) { // it gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  const visible = found.filter((each) => !each.name.startsWith("."));
  return (await Promise.all(visible.map(below))).flat();
}
