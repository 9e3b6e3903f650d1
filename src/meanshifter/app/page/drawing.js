// Arrays of numbers to colored pixels, and the plane of the tokens. Nothing here knows the server or the page.

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
export const WRONG = [230, 30, 40], UNLABELED = [128, 128, 128];

export function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((channel, k) => channel + (place - low) * (VIRIDIS[low + 1][k] - channel));
}

// Colors of modes: hues in golden-ratio steps, so that the largest ones differ most.
export function modeColor(mode) {
  const hue = (mode * 0.618033988749895) % 1 * 6, light = [0.55, 0.4, 0.7][mode % 3];
  const chroma = 0.75 * (1 - Math.abs(2 * light - 1)), x = chroma * (1 - Math.abs(hue % 2 - 1)), m = light - chroma / 2;
  const rgb = [[chroma, x, 0], [x, chroma, 0], [0, chroma, x], [0, x, chroma], [x, 0, chroma], [chroma, 0, x]][Math.floor(hue)];
  return rgb.map(channel => Math.round(255 * (channel + m)));
}

function word([red, green, blue], alpha = 255) {  // as a Uint32Array over ImageData has it, on little-endian machines
  return (alpha << 24 | blue << 16 | green << 8 | red) >>> 0;
}

// A canvas of h × w pixels, where pixel i has the 32-bit color of(i).
export function paint(h, w, of) {
  const canvas = document.createElement("canvas");
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d"), data = context.createImageData(w, h), pixels = new Uint32Array(data.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = of(i);
  context.putImageData(data, 0, 0);
  return canvas;
}

export function paintLabels(labels, h, w, palette, only) {
  const colors = palette.map((color, k) => only === null || only === k ? word(color) : 0);
  return paint(h, w, i => colors[labels[i]] ?? 0);
}

export function paintErrors(labels, truth, h, w, classes) {
  const wrong = word(WRONG), unlabeled = word(UNLABELED);
  return paint(h, w, i => truth[i] >= classes ? unlabeled : labels[i] === truth[i] ? 0 : wrong);
}

export function paintHeat(values, h, w, low = 0, high = 1) {
  const colors = Array.from({length: 256}, (_, k) => word(heat(k / 255)));
  const scale = high > low ? 255 / (high - low) : 0;
  return paint(h, w, i => colors[Math.min(Math.max(Math.round((values[i] - low) * scale), 0), 255)]);
}

export function paintModes(modes, h, w) {
  const colors = new Map();
  return paint(h, w, i => {
    if (!colors.has(modes[i])) colors.set(modes[i], word(modeColor(modes[i])));
    return colors.get(modes[i]);
  });
}

// The tokens in the plane, between two whole steps if `step` is not one.
export class Plane {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = null;
  }

  set(points, layers, count) {
    [this.points, this.layers, this.count] = [points, layers, count];
    const bounds = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < points.length; i += 2) {
      bounds[0] = Math.min(bounds[0], points[i]);
      bounds[1] = Math.max(bounds[1], points[i]);
      bounds[2] = Math.min(bounds[2], points[i + 1]);
      bounds[3] = Math.max(bounds[3], points[i + 1]);
    }
    const {width, height} = this.canvas, margin = 16;
    const scale = Math.min((width - 2 * margin) / (bounds[1] - bounds[0] || 1), (height - 2 * margin) / (bounds[3] - bounds[2] || 1));
    this.scale = scale;
    this.left = (width - scale * (bounds[0] + bounds[1])) / 2;
    this.top = (height + scale * (bounds[2] + bounds[3])) / 2;
  }

  at(token, step) {
    const low = Math.min(Math.floor(step), this.layers), high = Math.min(low + 1, this.layers), part = step - low;
    const a = 2 * (low * this.count + token), b = 2 * (high * this.count + token), p = this.points;
    const x = p[a] + part * (p[b] - p[a]), y = p[a + 1] + part * (p[b + 1] - p[a + 1]);
    return [this.left + this.scale * x, this.top - this.scale * y];
  }

  draw(step, color, selected) {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.points === null) return;
    context.globalAlpha = 0.7;
    for (let token = 0; token < this.count; token++) {
      const [x, y] = this.at(token, step);
      context.fillStyle = `rgb(${color(token).join(",")})`;
      context.fillRect(x - 2.5, y - 2.5, 5, 5);
    }
    context.globalAlpha = 1;
    if (selected !== null) this.drawPath(context, step, selected);
  }

  drawPath(context, step, token) {
    for (const [ink, width] of [["#fff", 5], ["#111", 2]]) {
      context.strokeStyle = ink;
      context.lineWidth = width;
      context.beginPath();
      for (let n = 0; n <= this.layers; n++) context.lineTo(...this.at(token, n));
      context.stroke();
      for (let n = 0; n <= this.layers; n++) {
        context.beginPath();
        context.arc(...this.at(token, n), 3.5, 0, 7);
        context.stroke();
      }
      context.beginPath();
      context.arc(...this.at(token, step), 9, 0, 7);
      context.stroke();
    }
  }

  nearest(x, y, step) {
    let best = 0, least = Infinity;
    for (let token = 0; token < this.count; token++) {
      const [u, v] = this.at(token, step), distance = (u - x) ** 2 + (v - y) ** 2;
      if (distance < least) [best, least] = [token, distance];
    }
    return best;
  }
}
