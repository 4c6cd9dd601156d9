// The page: which model is live, and images that come in by drop, picker, camera or clipboard.

import { allowAsking, ask, forgetKey, hasKey } from "./server.js";
import { askModel, createCard, finish, percent, showClasses, showNeighbors, showPreview, showProblem } from "./card.js";

const MOST = 100; // images at once; `grpo-rm embed` is for more
const PATIENCE = 5; // s, until a server without a model is asked again

const one = (selector) => document.querySelector(selector);

let ready = {}; // what /readyz said last
let waiting = Promise.resolve(); // images are asked about one after the other

// The model

let timer = 0;

async function readModel() {
  clearTimeout(timer);
  try {
    ready = await (await ask("readyz")).json();
    showModel(ready.model);
    showNotices([...ready.model.warnings, ...(ready.error ? [`A newer version is not served: ${ready.error}`] : [])]);
  } catch (error) {
    ready = {};
    showModel(null);
    showNotices([error.status === 503 ? `No model is loaded yet: ${error.message}` : error.message]);
    if (error.status !== 401) timer = setTimeout(readModel, 1000 * (error.retryAfter || PATIENCE));
  }
}

function showModel(model) {
  const loaded = model && new Date(model.loaded_at);
  const fields = {
    name: model?.name ?? "none yet",
    version: model?.version ?? "–",
    data_hash: model?.data_hash.slice(0, 12) || "–",
    loaded_at: loaded?.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }) ?? "–",
    input: model ? input(model.preprocessing) : "–",
    classes: model?.num_classes.toLocaleString("en") ?? "–",
  };
  for (const [field, text] of Object.entries(fields)) one(`[data-field=${field}]`).textContent = text;
  one("[data-field=data_hash]").title = model?.data_hash ?? "";
  one("[data-field=loaded_at]").dateTime = model?.loaded_at ?? "";
  const limit = ready.limits?.body_bytes;
  one("#limit").textContent = limit ? `, up to ${Math.floor(limit / 1e6)} MB each` : "";
}

function input({ image_size: size, channels }) {
  return `${size} × ${size}, ${channels === 1 ? "gray" : "color"}`;
}

function showNotices(texts) {
  const notices = texts.map((text) => Object.assign(document.createElement("li"), { className: "notice", textContent: text }));
  one("#notices").replaceChildren(...notices);
}

// Images

function take(list) {
  const files = [...list];
  one("#note").textContent =
    files.length > MOST
      ? `Of ${files.length.toLocaleString("en")} images the first ${MOST} are shown; grpo-rm embed takes whole folders.`
      : "";
  const entries = files.slice(0, MOST).map((file) => ({
    file,
    card: createCard(file, ready.model?.num_classes, (card) => retry({ file, card })),
  }));
  if (!entries.length) return;
  allowAsking();
  one("#cards").prepend(...entries.map(({ card }) => card));
  one("#results").hidden = false;
  entries.forEach(enqueue);
}

function enqueue(entry) {
  waiting = waiting.then(() => present(entry)).catch(console.error);
}

function retry(entry) {
  allowAsking();
  enqueue(entry);
}

async function present({ file, card }) {
  if (!card.isConnected) return; // removed while it waited
  await showPreview(card, file, ready.model);
  try {
    const answer = await askModel(card, file, ready.limits?.body_bytes, ready.model?.task);
    if (!isLive(answer.model)) {
      await readModel();
      await showPreview(card, file, ready.model);
    }
    showClasses(card, answer, ready.model?.num_classes);
    const [best] = answer.predictions[0].classes;
    announce(`${file.name}: ${best.name}, ${percent(best.probability)}`);
    await showNeighbors(card, file);
  } catch (error) {
    showProblem(card, error);
    announce(`${file.name}: ${error.message}`);
  }
  finish(card);
}

function announce(text) {
  one("#announcement").textContent = text;
}

function isLive({ name, version }) {
  return ready.model?.name === name && ready.model.version === version;
}

for (const picker of [one("#pick"), one("#camera")]) {
  picker.addEventListener("change", () => {
    take(picker.files);
    picker.value = ""; // so that the same file may be chosen again
  });
}

document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) take(clipboardData.files);
});

let depth = 0; // dragenter and dragleave come for every element under the pointer

function setDragging(change) {
  depth = change === 0 ? 0 : depth + change;
  document.body.classList.toggle("dragging", depth > 0);
}

document.addEventListener("dragenter", () => setDragging(1));
document.addEventListener("dragleave", () => setDragging(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  setDragging(0);
  take(event.dataTransfer.files);
  if (!event.dataTransfer.files.length) one("#note").textContent = "That is no file. Save the image, and drop the file.";
});

one("#clear").addEventListener("click", () => {
  one("#cards").replaceChildren();
  one("#results").hidden = true;
  one("#pick").focus();
});

one("#forget").addEventListener("click", forgetKey);
one("#forget").hidden = !hasKey();
one("#curl").textContent = `curl --data-binary @image.jpg ${new URL("v1/classify", document.baseURI)}`;
document.addEventListener("visibilitychange", () => document.hidden || readModel());
readModel();
