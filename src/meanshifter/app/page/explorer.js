// The page: controls, the image with its maps, and what is asked of the server in which order.

import {Side, json, numbers, picture} from "./side.js";
import {Panel} from "./panel.js";

const $ = id => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
const VIEWS = {labels: "Labels", confidence: "Confidence", truth: "Ground truth", errors: "Errors", modes: "Modes",
  similarity: "Similarity", weights: "Averaged with"};
const state = {image: null, view: "labels", step: null, opacity: 0.6, split: 0.5, only: null, truth: null};
let models = [], images = [], panels = [], bitmap = null, opening = 0, reading = new AbortController();

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// Runs an asynchronous task; `body.dataset.busy` counts those that are not done.
async function doing(task) {
  document.body.dataset.busy = Number(document.body.dataset.busy ?? 0) + 1;
  try {
    return await task();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return undefined;
  } finally {
    document.body.dataset.busy = Number(document.body.dataset.busy) - 1;
  }
}

// --- the picture ---

function draw() {
  if (bitmap === null) return;
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const middle = Math.round(state.split * canvas.width);
  panels.forEach((panel, k) => {
    if (panel.overlay === null) return;
    const [from, to] = panels.length < 2 ? [0, canvas.width] : k === 0 ? [0, middle] : [middle, canvas.width];
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, canvas.height);
    context.clip();
    context.globalAlpha = state.opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(panel.overlay, ...panel.box);
    drawMarks(panel);
    context.restore();
  });
}

// The chosen patch, and the frame of the tokens' window if it is a part of the image.
function drawMarks(panel) {
  const {tokens, stride, size} = panel.side;
  if (tokens === null) return;
  context.globalAlpha = 1;
  const [left, top, right, bottom] = tokens.region.map(side => side / stride), unit = Math.max(canvas.width / 500, 1);
  if (tokens.region[2] - tokens.region[0] < size[1] - 1 || tokens.region[3] - tokens.region[1] < size[0] - 1) {
    context.setLineDash([6 * unit, 4 * unit]);
    strokeTwice(left, top, right - left, bottom - top, unit);
    context.setLineDash([]);
  }
  if (panel.selected !== null) {
    const [y, x] = panel.side.middle(panel.selected), [height, width] = tokens.patch.map(side => side / stride);
    strokeTwice(x / stride - width / 2, y / stride - height / 2, width, height, 1.5 * unit);
  }
}

function strokeTwice(x, y, width, height, unit) {
  for (const [ink, thick] of [["#fff", 3 * unit], ["#000", unit]]) {
    context.strokeStyle = ink;
    context.lineWidth = thick;
    context.strokeRect(x, y, width, height);
  }
}

// --- what follows from a change ---

async function refresh() {
  writeControls();
  await doing(() => Promise.all(panels.map(async panel => {
    if (await panel.refresh(state)) draw();
  })));
}

function writeControls() {
  $("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
  const steps = panels.flatMap(panel => panel.side.steps), most = Math.max(0, ...steps);
  for (const element of document.querySelectorAll(".steps")) element.hidden = most === Math.min(...steps, most);
  $("step").max = most;
  const trained = [...new Set(panels.map(panel => panel.side.model.trained))];
  $("step").value = state.step ?? trained[0];
  $("step-text").textContent = state.step ?? trained.join(" and ");
  $("trained").disabled = state.step === null || (trained.length === 1 && state.step === trained[0]);
  $("divider").hidden = panels.length < 2;
  $("divider").style.left = `${100 * state.split}%`;
  $("divider").setAttribute("aria-valuenow", Math.round(100 * state.split));
  document.querySelector("main").classList.toggle("two", panels.length > 1);
  const tokens = panels.some(panel => !panel.side.model.no_tokens);
  const moving = panels.some(panel => !panel.side.model.no_tokens && !panel.side.model.no_steps);
  const there = {truth: state.image?.truth, errors: state.image?.truth, modes: tokens, similarity: tokens, weights: moving};
  if (there[state.view] === false) state.view = "labels";
  for (const button of $("views").children) {
    button.hidden = there[button.value] === false;
    button.setAttribute("aria-checked", button.value === state.view);
  }
}

async function openImage(image) {
  const ticket = ++opening;
  reading.abort();
  Object.assign(state, {image, truth: null, only: null, step: null});
  $("image").value = image.id;
  say(`Reading ${image.name} …`);
  await doing(async () => {
    const found = await picture({image: image.id});
    if (ticket !== opening) return;
    bitmap = found;
    panels = [];
    $("stage").classList.remove("empty");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const width = Math.max(bitmap.width, Math.min(4 * bitmap.width, 900));  // small images are enlarged
    canvas.style.width = `min(${width}px, ${85 * bitmap.width / bitmap.height}vh)`;
    draw();
    await openModels(ticket);
  });
}

async function openModels(ticket = ++opening) {
  const chosen = [$("model-0"), $("model-1")].map(select => models.find(model => model.name === select.value)).filter(Boolean);
  const former = panels.map(panel => panel.side), chosenPatches = new Map(panels.map(panel => [panel.side, panel.selected]));
  const progress = $("progress");
  $("readout").textContent = "\u00a0";
  reading.abort();
  const {signal} = reading = new AbortController();
  await doing(async () => {
    if (state.image.truth && state.truth === null) {
      const usable = chosen.find(model => !model.no_truth);
      if (usable) state.truth = await numbers("truth", {image: state.image.id}, usable.classes.length > 255);
    }
    const next = [];
    for (const model of chosen) {
      const side = former.find(side => side.model === model && side.image === state.image) ?? new Side(model, state.image);
      if (!side.steps) {
        progress.hidden = false;
        say(`${model.name}: labeling ${state.image.name} …`);
        try { await side.open(share => { progress.value = share; }, signal); } finally { progress.hidden = true; }
      }
      if (ticket !== opening) return;
      next.push(new Panel(side, choose, isolate));
      next.at(-1).selected = chosenPatches.get(side) ?? null;
      panels = [...next];
      $("panels").replaceChildren(...panels.map(panel => panel.element));
      await refresh();
    }
    say("");
    for (const {side} of panels.filter(panel => !panel.side.model.no_tokens)) {
      if (side.tokens === null) await side.openTokens();
      if (ticket !== opening) return;
    }
    await refresh();
  });
  prefetch(ticket);
}

// The other steps, so that the slider does not wait.
async function prefetch(ticket) {
  for (const {side} of panels) {
    for (const step of side.steps) {
      if (ticket !== opening) return;
      await side.labels(step).catch(() => {});
    }
    for (let step = 0; side.tokens !== null && step <= side.tokens.layers; step++) {
      if (ticket !== opening) return;
      await side.modes(step).catch(() => {});
    }
  }
}

function choose(panel, token) {
  const [y, x] = panel.side.middle(token);
  ask(y, x);
}

// Choose the patch at a pixel of the image, of all models that have patches to ask about.
async function ask(y, x) {
  const able = panels.filter(panel => !panel.side.model.no_tokens);
  if (able.length === 0) return;
  await doing(async () => {
    for (const panel of able) {
      if (panel.side.tokens === null || panel.side.tokenAt(y, x) === null) await panel.side.openTokens([y, x]);
      panel.selected = panel.side.tokenAt(y, x);
    }
    if (state.view !== "weights" && state.view !== "modes") state.view = "similarity";
    await refresh();
  });
}

function isolate(k) {
  state.only = state.only === k ? null : k;
  state.view = state.view === "truth" ? "truth" : "labels";
  refresh();
}

async function upload(file) {
  await doing(async () => {
    say(`Reading ${file.name} …`);
    const image = await json("images", {name: file.name || "pasted.png"}, {method: "POST", body: file});
    images.unshift(image);
    listImages();
    await openImage(image);
  });
}

// --- events ---

function place(event) {  // in pixels that are shown
  const {left, top, width, height} = canvas.getBoundingClientRect();
  const within = (value, most) => Math.min(Math.max(Math.floor(value), 0), most - 1);
  return [within((event.clientY - top) * canvas.height / height, canvas.height),
          within((event.clientX - left) * canvas.width / width, canvas.width)];
}

async function hover(event) {
  const at = place(event), ticket = ++hover.ticket;
  const write = maps => {
    if (ticket !== hover.ticket || panels.length === 0) return;
    const s = panels[0].side.stride, index = at[0] * canvas.width + at[1];
    const said = panels.map((panel, k) => `${panels.length > 1 ? `${panel.side.model.name}: ` : ""}${panel.describe(index, maps[k], state.truth)}`);
    $("readout").textContent = `x ${at[1] * s}, y ${at[0] * s} · ${said.join(" · ")}`;
  };
  if (panels.some(panel => panel.labels === null)) return;
  write(panels.map(() => null));
  try { write(await Promise.all(panels.map(panel => panel.side.confidence(panel.shownStep)))); } catch { /* without it */ }
}
hover.ticket = 0;

function listImages() {
  $("image").replaceChildren(...images.map(image => new Option(image.name, image.id)));
  if (state.image) $("image").value = state.image.id;
  for (const id of ["previous", "next"]) $(id).disabled = images.length < 2;
}

function turn(by) {
  const index = images.findIndex(image => image === state.image);
  if (images.length) openImage(images[(index + by + images.length) % images.length]);
}

function listen() {
  $("model-0").addEventListener("change", () => state.image && openModels());
  $("model-1").addEventListener("change", () => state.image && openModels());
  $("image").addEventListener("change", () => openImage(images.find(image => image.id === $("image").value)));
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("file").addEventListener("change", () => { if ($("file").files.length) upload($("file").files[0]); $("file").value = ""; });
  $("opacity").addEventListener("input", () => { state.opacity = $("opacity").valueAsNumber; writeControls(); draw(); });
  $("step").addEventListener("input", () => { state.step = $("step").valueAsNumber; refresh(); });
  $("trained").addEventListener("click", () => { state.step = null; refresh(); });
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("click", event => {
    const [y, x] = place(event), s = panels[0]?.side.stride ?? 1;
    ask((y + 0.5) * s, (x + 0.5) * s);
  });
  listenToDrops();
  listenToDivider();
}

function listenToDrops() {
  document.addEventListener("dragover", event => { event.preventDefault(); $("stage").classList.add("dropping"); });
  document.addEventListener("dragleave", event => { if (event.relatedTarget === null) $("stage").classList.remove("dropping"); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("stage").classList.remove("dropping");
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", event => { if (event.clipboardData.files.length) upload(event.clipboardData.files[0]); });
}

function listenToDivider() {
  const divider = $("divider");
  const set = split => { state.split = Math.min(Math.max(split, 0), 1); writeControls(); draw(); };
  divider.addEventListener("pointerdown", event => divider.setPointerCapture(event.pointerId));
  divider.addEventListener("pointermove", event => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const {left, width} = canvas.getBoundingClientRect();
    set((event.clientX - left) / width);
  });
  divider.addEventListener("keydown", event => {
    const by = {ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1}[event.key];
    if (by === undefined) return;
    event.preventDefault();
    set(state.split + by);
  });
}

async function start() {
  for (const [value, text] of Object.entries(VIEWS)) {
    const button = Object.assign(document.createElement("button"), {type: "button", value, textContent: text});
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => { state.view = value; refresh(); });
    $("views").append(button);
  }
  $("stage").classList.add("empty");
  ({models, images} = await json("state"));
  $("model-0").replaceChildren(...models.map(model => new Option(model.name)));
  $("model-1").replaceChildren(new Option("none", ""), ...models.map(model => new Option(model.name)));
  if (models.length > 1) $("model-1").value = models[1].name;
  listImages();
  listen();
  if (images.length) await openImage(images[0]);
}

doing(start);
