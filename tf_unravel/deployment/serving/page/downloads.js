// What can be taken along: the answers as CSV, and the classifier as a zip.

import {classNames, shown, state, taught} from "./state.js";
import {post} from "./server.js";
import {supportRequest} from "./work.js";
import {element} from "./view.js";

export function csvText() {
  // By class and not by name, which two classes may have in common.
  const columns = state.model.classes ? [...state.model.classes.keys()] : taught().map((one) => one.id);
  const rows = [["file", "class", "probability", "margin", "p_known", ...classNames().map(text)]];
  for (const picture of state.queries) {
    const answer = shown(picture);
    if (!answer) continue;
    const [first, second] = answer.ranked;
    const {classIds} = picture.answer;
    const of = new Map(answer.ranked.map(({place, probability}) => [classIds?.[place] ?? place, probability.toFixed(6)]));
    rows.push([text(picture.name), text(answer.name), first.probability.toFixed(6),
      (first.probability - second.probability).toFixed(6), answer.pKnown?.toFixed(6) ?? "",
      ...columns.map((column) => of.get(column) ?? "")]);
  }
  return `\ufeff${rows.map((row) => `${row.map(cell).join(",")}\n`).join("")}`; // Excel asks for the mark of UTF-8
}

// What begins like a formula a spreadsheet would compute; after an apostrophe it is shown.
const text = (words) => (/^[=+\-@\t\r]/.test(words) ? `'${words}` : words);
const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export function save(blob, name) {
  const link = element("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export async function classifier() {
  const names = classNames(); // of the same moment as the labels
  const answer = await post("/page/classifier", {...await supportRequest(), class_names: names});
  return answer.blob();
}
