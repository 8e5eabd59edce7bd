// Drawing on canvases. Colors come from the page, and so follow its light or dark theme.

const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a7f00", "#777777"];

export function color(index) {
  return PALETTE[index % PALETTE.length];
}

function themeColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Return a cleared 2D context in CSS pixels, and the size of the canvas. */
export function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Draw image `index` of `batch`, (C, H, W) numbers from -range to range. */
export function drawImage(canvas, batch, shape, index = 0, range = 1) {
  const [channels, height, width] = shape;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const start = index * channels * height * width;
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) {
      const value = batch[start + (channels === 1 ? 0 : c) * height * width + i] / range;
      pixels.data[4 * i + c] = toByte(value);
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** Map [-1, 1] to 0..255, as Python does in the images that it saves. */
export function toByte(value) {
  return Math.round(Math.min(Math.max((value + 1) * 127.5, 0), 255));
}

/**
 * Draw lines {label, xs, ys} with axes. `options` has x and y, the titles of the axes, and
 * optionally marker (an x), logX, logY, low and high (the range of y).
 */
export function drawLines(canvas, lines, options) {
  const { context, width, height } = prepare(canvas);
  const text = themeColor("--text");
  const [left, right, top, bottom] = [54, width - 10, 12 + 16 * Math.ceil(lines.length / 3), height - 36];
  const ofX = options.logX ? Math.log10 : Number;
  const ofY = options.logY ? Math.log10 : Number;
  const finite = (values) => values.filter(Number.isFinite);
  const xs = finite(lines.flatMap((line) => line.xs.map(ofX)));
  const ys = finite(lines.flatMap((line) => line.ys.map(ofY)));
  const [minX, maxX] = [Math.min(...xs), Math.max(...xs)];
  const [minY, maxY] = [options.low ?? Math.min(...ys), options.high ?? Math.max(...ys)];
  const px = (x) => left + ((ofX(x) - minX) / (maxX - minX || 1)) * (right - left);
  const py = (y) => bottom - ((ofY(y) - minY) / (maxY - minY || 1)) * (bottom - top);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = text;
  context.strokeStyle = themeColor("--line");
  context.strokeRect(left, top, right - left, bottom - top);
  const number = (value, isLog) => Number((isLog ? 10 ** value : value).toPrecision(3)).toString();
  context.textAlign = "right";
  context.fillText(number(minY, options.logY), left - 4, bottom);
  context.fillText(number(maxY, options.logY), left - 4, top + 10);
  context.fillText(number(maxX, options.logX), right, bottom + 14);
  context.textAlign = "left";
  context.fillText(number(minX, options.logX), left, bottom + 14);
  context.textAlign = "center";
  context.fillText(options.x, (left + right) / 2, bottom + 28);
  context.save();
  context.translate(14, (top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(options.y, 0, 0);
  context.restore();
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  context.lineWidth = 2;
  lines.forEach((line, index) => {
    context.strokeStyle = color(index);
    context.beginPath();
    line.xs.forEach((x, i) => Number.isFinite(ofY(line.ys[i])) && context.lineTo(px(x), py(line.ys[i])));
    context.stroke();
  });
  if (options.marker !== undefined) {
    context.strokeStyle = text;
    context.lineWidth = 1;
    context.setLineDash([4, 4]);
    context.strokeRect(px(options.marker), top, 0, bottom - top);
  }
  context.restore();
  context.textAlign = "left";
  lines.forEach((line, index) => {
    const [x, y] = [left + (index % 3) * ((right - left) / 3), 12 + 16 * Math.floor(index / 3)];
    context.fillStyle = color(index);
    context.fillRect(x, y - 8, 12, 8);
    context.fillStyle = text;
    context.fillText(line.label, x + 16, y);
  });
}

/** The plane [-range, range]^2 on a canvas: density, arrows, points and paths. */
export class Plane {
  constructor(canvas, range) {
    Object.assign(this, prepare(canvas));
    this.range = range;
  }

  at(x, y) {
    const { width, height, range } = this;
    return [((x / range + 1) / 2) * width, ((1 - y / range) / 2) * height];
  }

  /** Shade by `value(x, y)` in 0..1. */
  shade(value, cells = 120) {
    const { context, range, width, height } = this;
    const small = Object.assign(document.createElement("canvas"), { width: cells, height: cells });
    const brush = small.getContext("2d");
    brush.fillStyle = themeColor("--shade");
    for (let i = 0; i < cells; i++) {
      for (let j = 0; j < cells; j++) {
        const [x, y] = [((i + 0.5) / cells) * 2 - 1, 1 - ((j + 0.5) / cells) * 2];
        brush.globalAlpha = Math.min(value(x * range, y * range), 1);
        brush.fillRect(i, j, 1, 1);
      }
    }
    context.drawImage(small, 0, 0, width, height);
  }

  /** Draw the field `direction(x, y)` as arrows, longest where the field is strong. */
  arrows(direction, cells = 18) {
    const { context, range } = this;
    context.strokeStyle = themeColor("--text");
    context.lineWidth = 1;
    context.globalAlpha = 0.55;
    for (let i = 0; i < cells * cells; i++) {
      const [x, y] = [i % cells, Math.floor(i / cells)].map((k) => ((k + 0.5) / cells) * 2 * range - range);
      const [dx, dy] = direction(x, y);
      const size = Math.hypot(dx, dy);
      const length = (((1.4 * range) / cells) * Math.min(1, 0.25 + size / 8)) / (size || 1);
      const [from, to] = [this.at(x, y), this.at(x + dx * length, y + dy * length)];
      const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      for (const turn of [2.6, -2.6]) {
        context.moveTo(...to);
        context.lineTo(to[0] + 4 * Math.cos(angle + turn), to[1] + 4 * Math.sin(angle + turn));
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** Draw points as dots. */
  dots(points, fill, radius = 1.5, alpha = 0.6) {
    const { context } = this;
    context.fillStyle = fill;
    context.globalAlpha = alpha;
    for (let i = 0; i < points.length; i += 2) {
      const [x, y] = this.at(points[i], points[i + 1]);
      context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
    context.globalAlpha = 1;
  }

  /** Draw the path of point `index` through `states`. */
  path(states, index, stroke) {
    const { context } = this;
    context.strokeStyle = stroke;
    context.lineWidth = 1.2;
    context.beginPath();
    for (const state of states) context.lineTo(...this.at(state[2 * index], state[2 * index + 1]));
    context.stroke();
  }
}
