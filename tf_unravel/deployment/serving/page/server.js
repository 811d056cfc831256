// Asks the server. A server that is away is asked again until it is back; what it refuses is thrown as `Refused`.

import {state} from "./state.js";

const WAIT = 1000; // milliseconds before it is asked again
const AWAY = new Set([502, 503, 504]); // busy, or a proxy in front of one that is not there

export class Refused extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

// told(true) when the server is away, told(false) once it answers again.
let told = () => {};
export const onAway = (listener) => { told = listener; };

async function fetched(path, options) {
  for (let away = false; ; away = true) {
    let answer = null;
    try {
      answer = await fetch(path, options);
    } catch {
      answer = null; // nobody listens there
    }
    if (answer && !AWAY.has(answer.status)) {
      if (away) told(false);
      return answer;
    }
    told(true);
    await new Promise((resolve) => setTimeout(resolve, WAIT));
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, said.error ?? `the server answered ${answer.status}`);
}

export const model = async () => (await checked(await fetched("/page/model"))).json();

export async function post(path, values) {
  const body = JSON.stringify(values), limit = state.model.max_bytes;
  if (body.length > limit) { // sent, it would be broken off, which looks as if nobody were there
    throw new Refused(413, `These images are more than the server takes at a time (${body.length} of ${limit} bytes); `
      + "start it with a larger --max_mib.");
  }
  return checked(await fetched(path, {method: "POST", headers: {"Content-Type": "application/json"}, body}));
}

export async function base64(blob) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

export const vectorOf = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
