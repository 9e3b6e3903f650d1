// One model on one image: what the server has computed of it, fetched once and kept.

async function ask(path, parameters, options = {}) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(parameters)}`, options);
  if (!answer.ok) {
    const text = await answer.text();
    let said = text;
    try { said = JSON.parse(text).error ?? text; } catch { /* not JSON: the text itself */ }
    throw new Error(said);
  }
  return answer;
}

export const json = async (path, parameters = {}, options = {}) => (await ask(path, parameters, options)).json();
export const picture = async parameters => createImageBitmap(await (await ask("picture", parameters)).blob());

// The numbers in a PNG, one per pixel: gray values, or red + 256 · green.
export async function numbers(path, parameters, wide) {
  const blob = await (await ask(path, parameters)).blob();
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  const found = wide ? new Uint16Array(data.length / 4) : new Uint8Array(data.length / 4);
  for (let i = 0; i < found.length; i++) found[i] = data[4 * i] + (wide ? 256 * data[4 * i + 1] : 0);
  return found;
}

export class Side {
  constructor(model, image) {
    [this.model, this.image] = [model, image];
    this.query = {model: model.name, image: image.id};
    this.wide = model.classes.length > 255;
    this.kept = new Map();
    this.tokens = null;
    this.point = {};
  }

  // Resolves once there are label maps; `progress` is called with the share that is done. To abort `signal` stops it.
  async open(progress, signal) {
    const answer = await ask("read", this.query, {method: "POST", signal});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      text += value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        const said = JSON.parse(line);
        if (said.error) throw new Error(said.error);
        if (said.share !== undefined) progress(said.share);
        else Object.assign(this, {size: said.size, shown: said.shown, stride: said.stride, steps: said.steps, limited: said.limited});
      }
    }
    if (!this.steps) throw new Error("The server stopped.");
  }

  // The number of steps that this model shows when the slider is at `step`; null is what it was trained with.
  step(step) {
    if (step === null) return this.model.trained;
    return this.steps.includes(step) ? step : this.steps.reduce((a, b) => Math.abs(b - step) < Math.abs(a - step) ? b : a);
  }

  keep(key, make) {
    if (!this.kept.has(key)) {
      const made = make();
      made.catch(() => this.kept.delete(key));
      this.kept.set(key, made);
    }
    return this.kept.get(key);
  }

  labels(step) {
    return this.keep(`labels ${step}`, () => numbers("labels", {...this.query, step}, this.wide));
  }

  confidence(step) {
    return this.keep(`confidence ${step}`, () => numbers("confidence", {...this.query, step}, false));
  }

  // The tokens of the image, or of its window around a point, in pixels of the image.
  async openTokens(point = null) {
    this.point = point === null ? {} : {y: point[0], x: point[1]};
    const query = {...this.query, ...this.point};
    const [about, plane] = await Promise.all([json("tokens", query), ask("plane", query).then(answer => answer.arrayBuffer())]);
    for (const key of this.kept.keys()) if (key.startsWith("modes")) this.kept.delete(key);
    this.tokens = {...about, plane: new Float32Array(plane), count: about.grid[0] * about.grid[1]};
  }

  modes(step) {
    return this.keep(`modes ${step}`, async () =>
      new Uint16Array(await (await ask("modes", {...this.query, ...this.point, step})).arrayBuffer()));
  }

  async patch(token, step) {
    const answer = await ask("patch", {...this.query, ...this.point, token, step});
    const values = new Float32Array(await answer.arrayBuffer()), N = this.tokens.count;
    return {similarity: values.subarray(0, N), weights: values.length > N ? values.subarray(N) : null};
  }

  // The token at a pixel of the image; null outside of the region of the tokens.
  tokenAt(y, x) {
    const {region: [left, top, right, bottom], patch: [height, width], grid: [h, w]} = this.tokens;
    if (x < left || x >= right || y < top || y >= bottom) return null;
    return Math.min(Math.floor((y - top) / height), h - 1) * w + Math.min(Math.floor((x - left) / width), w - 1);
  }

  // The middle of a token's patch, in pixels of the image.
  middle(token) {
    const {region: [left, top, right, bottom], patch: [height, width], grid: [, w]} = this.tokens;
    return [Math.min(top + (Math.floor(token / w) + 0.5) * height, bottom - 1e-3),
            Math.min(left + (token % w + 0.5) * width, right - 1e-3)];
  }
}
