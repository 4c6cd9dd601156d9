// The card of an image: its preview, its classes, its neighbors, or why there are none. Text is set as text, never as HTML.

import { Refusal, ask } from "./server.js";
import { describe, draw } from "./preview.js";

const ASKED = 25; // classes
const SHOWN = 5;
const NEIGHBORS = 8;
const RETRIES = 3;

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Return a card that waits, with room for its classes. `onRetry` is called where a person asks for another attempt. */
export function createCard(file, numClasses, onRetry) {
  const card = clone("card");
  card.style.setProperty("--rows", Math.min(SHOWN, numClasses ?? SHOWN));
  const title = card.querySelector("h3");
  title.textContent = title.title = file.name;
  card.querySelector("canvas").ariaLabel = `Preview of ${file.name}`;
  card.querySelector(".problem button").addEventListener("click", () => onRetry(card));
  card.querySelector(".more").addEventListener("click", () => toggle(card));
  return card;
}

/** Draw the preview as the live model sees it. */
export async function showPreview(card, file, live) {
  const seen = card.querySelector(".seen");
  try {
    const size = await draw(card.querySelector("canvas"), file, live?.preprocessing);
    seen.textContent = live ? describe(size, live.preprocessing) : "";
  } catch {
    card.querySelector(".view").classList.add("none");
    card.querySelector(".view").dataset.kind = file.name.includes(".") ? file.name.split(".").pop().slice(0, 8) : "?";
    seen.textContent = "This browser cannot show the file.";
  }
}

/** Ask the model, trying again when the server says so. Throws a Refusal. */
export async function askModel(card, file, maxBytes, task) {
  begin(card);
  await check(file, maxBytes);
  if (task === "segmentation") return askDenseModel(card, file);
  return (await askPatiently(card, `v1/classify?top_k=${ASKED}`, file)).json();
}

/** Lay the mask over the preview, and return the shares of the classes where a classifier has probabilities. */
async function askDenseModel(card, file) {
  const { model, masks } = await (await askPatiently(card, "v1/segment", file)).json();
  const mask = card.querySelector(".mask");
  mask.src = `data:image/png;base64,${masks[0].png}`;
  mask.hidden = false;
  return { model, predictions: [{ classes: masks[0].classes.map(({ name, share }) => ({ name, probability: share })) }] };
}

/** Fill the classes of a card. */
export function showClasses(card, answer, numClasses) {
  const { classes } = answer.predictions[0];
  card.querySelector(".classes ol").replaceChildren(...classes.map(classRow));
  const hidden = Math.max(0, classes.length - SHOWN);
  const more = card.querySelector(".more");
  more.hidden = hidden === 0;
  more.dataset.count = hidden;
  more.textContent = `Show ${hidden} more`;
  const others = (numClasses ?? classes.length) - classes.length;
  const rest = 1 - classes.reduce((sum, { probability }) => sum + probability, 0);
  card.querySelector(".rest").textContent =
    others > 0 ? `${others.toLocaleString("en")} other ${others === 1 ? "class" : "classes"}: ${percent(rest)} together` : "";
  card.querySelector(".rest").hidden = hidden > 0; // shown with the rest of the list
  const { name, version } = answer.model;
  card.querySelector(".answered").textContent = `Answered by ${name}, version ${version}`;
}

/** Fill the neighbors of a card; where the server has no index, its reason is a hint and no error. */
export async function showNeighbors(card, file) {
  const hint = card.querySelector(".neighbors .hint");
  try {
    const answer = await (await ask(`v1/similar?k=${NEIGHBORS}&thumbnails=true`, file)).json();
    card.querySelector(".neighbors ol").replaceChildren(...answer.neighbors[0].map(neighborTile));
    hint.textContent = answer.neighbors[0].length ? "" : "The index is empty.";
  } catch (error) {
    hint.textContent = error.status === 404 ? "This server has no index of training images." : error.message;
  }
  hint.hidden = !hint.textContent;
}

/** Say that nothing is awaited any more. */
export function finish(card) {
  card.ariaBusy = "false";
}

/** Write a probability in percent, so that only certainty reads as 0 or 100. */
export function percent(probability) {
  if (probability > 0 && probability < 0.0005) return "< 0.1 %";
  if (probability < 1 && probability >= 0.9995) return "> 99.9 %";
  return `${(100 * Math.max(0, probability)).toFixed(1)} %`;
}

function begin(card) {
  card.ariaBusy = "true";
  card.classList.remove("failed");
  card.querySelector(".problem").hidden = true;
}

async function check(file, maxBytes) {
  if (maxBytes && file.size > maxBytes) {
    throw new Refusal(`The file has ${megabytes(file.size)}, this server accepts at most ${megabytes(maxBytes)}.`, 413);
  }
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Refusal("The file cannot be read. Is it a folder, or was it moved?");
  });
}

async function askPatiently(card, path, file) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(path, file);
    } catch (error) {
      if (error.status !== 503 || !error.retryAfter || attempt > RETRIES) throw error;
      for (let left = error.retryAfter; left > 0; left--) {
        showProblem(card, error, `Trying again in ${left} s.`);
        await sleep(1);
        if (!card.isConnected) throw error; // removed
      }
      begin(card);
    }
  }
}

/** Say why a card has no answer; a button asks again where that can help. */
export function showProblem(card, error, outlook = "") {
  const problem = card.querySelector(".problem");
  problem.querySelector("p").textContent = `${sentence(error.message)} ${outlook}`.trim();
  problem.querySelector("button").hidden = outlook !== "" || [400, 413, 415, 422].includes(error.status);
  problem.hidden = false;
  problem.classList.toggle("waiting", outlook !== "");
  card.classList.add("failed");
}

function sentence(text) {
  return /[.?!]$/.test(text) ? text : `${text}.`;
}

function classRow({ name, probability }, index) {
  const row = clone("class");
  row.hidden = index >= SHOWN;
  row.querySelector(".name").textContent = row.querySelector(".name").title = name;
  row.querySelector(".share").textContent = percent(probability);
  row.querySelector(".bar span").style.width = `${100 * probability}%`;
  return row;
}

function toggle(card) {
  const more = card.querySelector(".more");
  const isOpen = more.ariaExpanded !== "true";
  more.ariaExpanded = String(isOpen);
  more.textContent = isOpen ? "Show fewer" : `Show ${more.dataset.count} more`;
  card.querySelector(".rest").hidden = !isOpen;
  card.querySelectorAll(".classes li").forEach((row, index) => (row.hidden = !isOpen && index >= SHOWN));
}

function neighborTile({ id, label, similarity, thumbnail }) {
  const tile = clone("neighbor");
  tile.title = id;
  tile.querySelector(".name").textContent = label || id;
  tile.querySelector(".similarity").textContent = similarity.toFixed(3);
  if (thumbnail?.startsWith("data:image/")) {
    const image = new Image();
    image.alt = "";
    image.addEventListener("load", () => image.classList.toggle("coarse", image.naturalWidth < 48));
    image.src = thumbnail;
    tile.querySelector(".thumbnail").append(image);
  }
  return tile;
}

function clone(name) {
  return document.querySelector(`template#${name}`).content.firstElementChild.cloneNode(true);
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
