// What the page says about one model: its map over the image, legend, plane of the tokens, and the chosen patch.

import {UNLABELED, Plane, modeColor, paintErrors, paintHeat, paintLabels, paintModes} from "./drawing.js";

const percent = share => share >= 0.0995 || share === 0 ? `${Math.round(100 * share)} %` : `${(100 * share).toFixed(1)} %`;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Panel {
  constructor(side, choose, isolate) {
    [this.side, this.labels, this.overlay, this.box] = [side, null, null, null];
    [this.selected, this.patch, this.modes, this.ticket, this.drawnStep] = [null, null, null, 0, 0];
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.plane = new Plane(this.find(".plane"));
    this.find("h2").textContent = side.model.name;
    this.isolate = isolate;
    this.plane.canvas.addEventListener("click", event => {
      const {left, top, width, height} = this.plane.canvas.getBoundingClientRect(), {canvas} = this.plane;
      const x = (event.clientX - left) * canvas.width / width, y = (event.clientY - top) * canvas.height / height;
      if (this.plane.points) choose(this, this.plane.nearest(x, y, this.drawnStep));
    });
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  // Computes what `state` asks for; false if another call has overtaken this one.
  async refresh(state) {
    const {side} = this, ticket = ++this.ticket, step = side.step(state.step), [h, w] = side.shown;
    const labels = await side.labels(step);
    const moved = side.tokens === null ? 0 : Math.min(step, side.tokens.layers);
    const needsModes = state.view === "modes" && side.tokens !== null;
    const [modes, patch, confidence] = await Promise.all([
      needsModes ? side.modes(moved) : null,
      this.selected === null || side.tokens === null ? null : side.patch(this.selected, moved),
      state.view === "confidence" ? side.confidence(step) : null,
    ]);
    if (ticket !== this.ticket) return false;
    Object.assign(this, {labels, patch, modes, shownStep: step});
    [this.overlay, this.box] = this.paint(state, {labels, modes, patch, confidence, h, w});
    this.writeNote(state);
    this.writeLegend(state, labels, state.truth);
    this.writeTokens(state, moved);
    this.moveTokens(state, moved);
    return true;
  }

  // The map over the image, and where it lies: left, top, width, height in pixels that are shown.
  paint({view, only, truth}, {labels, modes, patch, confidence, h, w}) {
    const {model, tokens} = this.side, whole = [0, 0, w, h];
    if (view === "labels") return [paintLabels(labels, h, w, model.palette, only), whole];
    if (view === "confidence") return [paintHeat(confidence, h, w, 0, 255), whole];
    if (truth !== null && !model.no_truth) {
      if (view === "truth") return [paintLabels(truth, h, w, model.palette, only), whole];
      if (view === "errors") return [paintErrors(labels, truth, h, w, model.classes.length), whole];
    }
    if (tokens === null) return [null, whole];
    const [rows, cols] = tokens.grid;
    if (view === "modes") return [paintModes(modes, rows, cols), this.tokenBox()];
    if (view === "similarity" && patch) {
      const low = patch.similarity.reduce((a, b) => Math.min(a, b), 1);
      return [paintHeat(patch.similarity, rows, cols, low, 1), this.tokenBox()];
    }
    if (view === "weights" && patch?.weights) {
      const high = patch.weights.subarray(0, tokens.count).reduce((a, b) => Math.max(a, b), 0);
      return [paintHeat(patch.weights, rows, cols, 0, high), this.tokenBox()];
    }
    return [null, whole];
  }

  // Patches cover what the model padded, too, which lies outside of the image.
  tokenBox() {
    const {region: [left, top], patch: [height, width], grid: [rows, cols]} = this.side.tokens, s = this.side.stride;
    return [left / s, top / s, cols * width / s, rows * height / s];
  }

  writeNote({view}) {
    const {model, limited, stride} = this.side, said = [];
    if (model.no_tokens) said.push(model.no_tokens);
    else if (model.no_steps) said.push(model.no_steps);
    if ((view === "similarity" || view === "weights") && this.patch === null) said.push("Click a patch of the image.");
    if (limited) said.push("Too many patches to keep the logits of all steps: only the trained number is shown.");
    if (stride > 1) said.push(`One pixel of ${stride} × ${stride} is shown, and counted below.`);
    if (model.no_truth && (view === "truth" || view === "errors")) said.push(`No ground truth: ${model.no_truth}`);
    this.find(".note").textContent = said.join(" ");
  }

  writeLegend(state, labels, truth) {
    const {model} = this.side, K = model.classes.length, counts = new Float64Array(K);
    for (const label of labels) counts[label]++;
    const order = [...counts.keys()].filter(k => counts[k] > 0).sort((a, b) => counts[b] - counts[a]);
    this.find("tbody").replaceChildren(...order.map(k => {
      const row = document.createElement("tr"), name = document.createElement("td"), area = document.createElement("td");
      const swatch = document.createElement("span"), toggle = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${model.palette[k].join(",")})`;
      toggle.textContent = model.classes[k];
      name.append(swatch, toggle);
      area.textContent = percent(counts[k] / labels.length);
      row.append(name, area);
      row.classList.toggle("only", state.only === k);
      row.title = "Show this class alone";
      row.addEventListener("click", () => this.isolate(k));
      return row;
    }));
    this.find(".score").textContent = truth === null || model.no_truth ? "" : this.score(labels, truth, K);
  }

  score(labels, truth, K) {
    let wrong = 0, known = 0;
    for (let i = 0; i < truth.length; i++) {
      if (truth[i] >= K) continue;
      known++;
      if (labels[i] !== truth[i]) wrong++;
    }
    return known ? `${(100 * wrong / known).toFixed(1)} % of the labeled pixels are wrong.` : "The mask labels no pixel.";
  }

  writeTokens({view}, moved) {
    const {tokens} = this.side;
    this.find(".tokens").hidden = tokens === null;
    if (tokens === null) return;
    const {explained: [first, second]} = tokens;
    this.find(".explained").textContent =
      `First two principal components before the first step: ${percent(first)} and ${percent(second)} of the variance. ` +
      (view === "modes" ? "Colored by mode." : "Colored by class.");
    this.writeModes(moved);
    if (this.selected === null || this.patch === null) {
      this.find(".patch").textContent = "Click a patch of the image, or a point here.";
      return;
    }
    const {weights, similarity} = this.patch;
    const similar = `cosine similarity from ${Math.min(...similarity).toFixed(2)} (dark) to 1 (yellow)`;
    const place = `Row ${Math.floor(this.selected / tokens.grid[1])}, column ${this.selected % tokens.grid[1]}`;
    if (weights === null) {
      this.find(".patch").textContent = `${place}; ${similar}.`;
      return;
    }
    let entropy = 0, ofClasses = 0;
    weights.forEach((weight, i) => {
      if (weight > 0) entropy -= weight * Math.log(weight);
      if (i >= tokens.count) ofClasses += weight;
    });
    this.find(".patch").textContent = `${place}; ${similar}. The next step averages it with ` +
      `${Math.exp(entropy).toFixed(1)} patches (effective number), at most ${percent(Math.max(...weights))} of one` +
      (weights.length > tokens.count ? `, ${percent(ofClasses)} of class embeddings.` : ".");
  }

  writeModes(moved) {
    const {side} = this, after = `after ${moved} ${moved === 1 ? "step" : "steps"}`;
    const write = text => { if (this.modesOf === moved) this.find(".modes").textContent = text; };
    this.modesOf = moved;
    write(`… modes of ${side.tokens.count} patches ${after}`);
    side.modes(moved).then(modes => {
      const count = modes.reduce((a, b) => Math.max(a, b), 0) + 1;
      write(`${count} ${count === 1 ? "mode" : "modes"} of ${side.tokens.count} patches ${after}`);
    }, error => write(error.message));
  }

  moveTokens(state, moved) {
    const {tokens} = this.side;
    if (tokens === null) return;
    if (this.plane.points !== tokens.plane) {
      this.plane.set(tokens.plane, tokens.layers, tokens.count);
      this.drawnStep = moved;
    }
    const colors = this.tokenColors(state), from = this.drawnStep, start = performance.now();
    cancelAnimationFrame(this.frame);
    const draw = now => {
      const part = still.matches ? 1 : Math.min(Math.max((now - start) / 250, 0), 1);
      this.drawnStep = from + part * (moved - from);
      this.plane.draw(this.drawnStep, token => colors[token], this.selected);
      if (part < 1) this.frame = requestAnimationFrame(draw);
    };
    draw(start);
  }

  // Of the mode, or of the class in the middle of the patch.
  tokenColors({view}) {
    const {side, labels, modes} = this, [, w] = side.shown, {palette} = side.model;
    return Array.from({length: side.tokens.count}, (_, token) => {
      if (view === "modes" && modes) return modeColor(modes[token]);
      const [y, x] = side.middle(token), at = this.shownAt(y, x);
      return palette[labels[at[0] * w + at[1]]] ?? UNLABELED;
    });
  }

  shownAt(y, x) {
    const {shown: [h, w], stride} = this.side;
    return [Math.min(Math.floor(y / stride), h - 1), Math.min(Math.floor(x / stride), w - 1)];
  }

  // What is under the cursor, at a pixel that is shown.
  describe(place, confidence, truth) {
    const {model} = this.side, label = this.labels?.[place];
    if (label === undefined) return "";
    const sure = confidence === null ? "" : ` ${Math.round(confidence[place] / 2.55)} %`;
    const right = truth === null || model.no_truth ? "" : ` (mask: ${model.classes[truth[place]] ?? "not labeled"})`;
    return `${model.classes[label] ?? "ignored"}${sure}${right}`;
  }
}

