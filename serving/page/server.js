// Asks the server. What it refuses becomes a Refusal, whose message is a sentence for a person.

const KEY = "grpo-rm.key";
const KEY_NEEDED = "This server answers only with an API key.";
const PATIENCE = 180_000; // ms; a phone may send for long

let key = sessionStorage.getItem(KEY);
let asking = null; // the open dialog, which all requests share
let isDeclined = false; // by the person, who is not asked again for every image that waits

export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // s
  }
}

/** GET a path, or POST an image to it. Relative, so that the page works below any path of a proxy. */
export async function ask(path, image = null) {
  for (;;) {
    const sent = key;
    const response = await send(path, image, sent);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (sent !== key) continue; // another request has got one in the meantime
    if (isDeclined) throw new Refusal(KEY_NEEDED, 401);
    asking ??= askForKey(sent !== null).finally(() => (asking = null));
    isDeclined = !(await asking);
    if (isDeclined) throw new Refusal(KEY_NEEDED, 401);
  }
}

async function send(path, image, key) {
  try {
    return await fetch(path, {
      method: image ? "POST" : "GET",
      body: image,
      cache: "no-store",
      credentials: "same-origin",
      headers: {
        ...(image && { "Content-Type": "application/octet-stream" }),
        ...(key && { Authorization: `Bearer ${key}` }),
      },
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal(`The server has not answered in ${PATIENCE / 1000} s.`);
    throw new Refusal("The server does not answer. Is it running, and this computer online?");
  }
}

async function refusal(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  return new Refusal(await reason(response), response.status, retryAfter);
}

async function reason(response) {
  const content = await response.json().catch(() => null); // a proxy's error is HTML
  const detail = content?.detail ?? content?.error;
  if (typeof detail === "string" && detail) return detail;
  if (response.status === 413) return "The image is larger than this server accepts.";
  return `The server refused with status ${response.status}, and did not say why.`;
}

function askForKey(isRefused) {
  const dialog = document.querySelector("#key");
  const input = dialog.querySelector("input");
  dialog.querySelector("#key-reason").textContent = isRefused
    ? "The server does not know this key. Is it complete?"
    : KEY_NEEDED;
  dialog.returnValue = "cancel"; // also for Escape
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const isGiven = dialog.returnValue === "use";
        if (isGiven) remember(input.value);
        input.value = "";
        resolve(isGiven);
      },
      { once: true },
    );
  });
}

function remember(text) {
  key = text;
  sessionStorage.setItem(KEY, text);
  document.querySelector("#forget").hidden = false;
}

/** Let the dialog open again after it was declined. */
export function allowAsking() {
  isDeclined = false;
}

export function hasKey() {
  return key !== null;
}

export function forgetKey() {
  key = null;
  sessionStorage.removeItem(KEY);
  document.querySelector("#forget").hidden = true;
}
