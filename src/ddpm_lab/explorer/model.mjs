// A trained network in the page: forward process, sampling step by step, editing and training.
import { samplerTitles, titles } from "./analytic.mjs";
import { drawImage, drawLines } from "./charts.mjs";
import { addControls, element, onDrag, oncePerFrame, playButton, redrawWith } from "./controls.mjs";
import { perSampleNoise } from "./noise.mjs";
import { decodeBytes, roundHalfEven, spacings, timesteps } from "./process.mjs";
import { chain, guide, SAMPLERS } from "./samplers.mjs";

const EDIT_STREAM = 2 ** 31; // of the noise in re-noised images: sampling/editing.py

/** Return a function (x, t, labels, w) -> x_0 estimate; label -1 is no class. */
export function onnxDenoiser(ort, session, shape, hasLabels) {
  const size = shape.reduce((product, length) => product * length, 1);
  let queue = Promise.resolve(); // a session runs one batch at a time
  const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);
  const run = (x, t, labels) => {
    const batch = x.length / size;
    const inputs = { x: new ort.Tensor("float32", x, [batch, ...shape]), t: integers(new Array(batch).fill(t)) };
    if (hasLabels) inputs.label = integers(labels);
    queue = queue.catch(() => {}).then(() => session.run(inputs));
    return queue.then(({ x0 }) => x0.data);
  };
  return async (x, t, labels, w = 0) => {
    if (!w) return run(x, t, labels);
    const twice = new Float32Array(2 * x.length);
    twice.set(x);
    twice.set(x, x.length);
    const x0 = await run(twice, t, [...labels, ...labels.map(() => -1)]);
    return guide(x0.subarray(0, x.length), x0.subarray(x.length), w);
  };
}

/** Replace x_0 by `image` where `visible`, in each sample: guidance=inpainting. */
export function keepVisible(x0, image, visible) {
  return x0.map((value, i) => (visible[i % image.length] ? image[i % image.length] : value));
}

/** The steps of one sampler, computed as far as they are shown. */
export class Lane {
  /**
   * `options` are those of `chain`, with steps, spacing, seed, count, labels, w; optionally image
   * with visible (inpainting) or with strength (editing).
   */
  constructor(denoise, process, options) {
    const { seed, count, image, visible, strength, labels, w } = options;
    const samples = Array.from({ length: count }, (_, i) => i);
    const size = options.size;
    const noise = perSampleNoise(seed, samples, size);
    this.times = timesteps(process.steps, Math.min(options.steps, process.steps), options.spacing);
    let x;
    if (image && strength) {
      const start = Math.max(1, roundHalfEven(strength * process.steps));
      this.times = [start, ...this.times.filter((t) => t < start)];
      const repeated = Float32Array.from({ length: count * size }, (_, i) => image[i % size]);
      x = process.diffuse(repeated, perSampleNoise(seed, samples, size, EDIT_STREAM)(), start);
    } else x = noise().map((z) => process.scale[this.times[0]] * z);
    const estimate = async (x, t) => {
      const x0 = await denoise(x, t, labels, w);
      return image && visible ? keepVisible(x0, image, visible) : x0;
    };
    this.process = process;
    this.steps = [];
    this.start = x;
    this.iterator = chain(estimate, x, this.times, { ...options, process, noise });
  }

  /** Compute the first `count` steps; steps until `isCurrent` returns false. */
  async advance(count, isCurrent = () => true) {
    let pause = 0;
    while (this.steps.length < Math.min(count, this.times.length - 1) && isCurrent()) {
      const { value, done } = await this.iterator.next();
      if (!done) this.steps.push(value); // calls may overlap
      if (performance.now() < pause) continue;
      await new Promise((resolve) => setTimeout(resolve)); // the network itself lets nothing else run
      pause = performance.now() + 30;
    }
  }

  /** Return {t, x, x0, eps} after `position` steps; at the end x_0, and no noise. */
  view(position) {
    const step = this.steps[position];
    if (step) return { ...step, eps: this.process.eps(step.x, step.x0, step.t) };
    const last = this.steps.at(-1);
    if (!last) return { t: this.times[0], x: this.start, x0: null, eps: null };
    return { t: last.s, x: last.next, x0: last.s ? null : last.next, eps: null };
  }
}

function figure(title) {
  const canvas = element("canvas", { className: "pixels", role: "img", ariaLabel: title });
  const caption = element("figcaption", {}, title);
  return { node: element("figure", {}, canvas, caption), canvas, caption };
}

/** Build the sections of a run in `root`: `run` is its description, `denoise` its network. */
export function modelSections(root, run, process, processes, denoise) {
  const { shape, defaults } = run;
  const size = shape.reduce((product, length) => product * length, 1);
  const bytes = decodeBytes(run.images);
  const images = Array.from({ length: bytes.length / size }, (_, i) =>
    Float32Array.from(bytes.subarray(i * size, (i + 1) * size), (value) => value / 127.5 - 1),
  );
  const image = new Float32Array(images[0] ?? size).slice();
  const painted = new Uint8Array(size);
  const section = (id, title, text) => {
    const node = element("section", { id }, element("h2", {}, title), element("p", {}, text));
    root.append(node);
    return node;
  };

  // The forward process.
  const forward = section(
    "forward",
    "Forward: data to noise",
    "x_t = α_t x_0 + σ_t ε, with one ε for all times and schedules. Pictures show x_t divided by its standard deviation if that is above 1.",
  );
  const views = element("div", { className: "figures" });
  const curves = element("canvas", { className: "chart", role: "img", ariaLabel: "log SNR against t" });
  const forwardForm = element("form", { className: "controls", ariaLabel: "Controls of the forward process" });
  forward.append(forwardForm, views, curves);
  const named = { "this run": process, ...processes };
  const figures = Object.fromEntries(Object.keys(named).map((name) => [name, figure(name)]));
  views.append(...Object.values(figures).map(({ node }) => node));
  const time = addControls(
    forwardForm,
    { share: { label: "time t / T", type: "range", min: 0, max: 1, step: 0.01, value: 0.3 } },
    () => drawForward(),
  );
  const eps = perSampleNoise(0, [0], size)();
  const drawForward = oncePerFrame(() => {
    for (const [name, each] of Object.entries(named)) {
      const t = Math.round(time.values.share * each.steps);
      const { canvas, caption } = figures[name];
      drawImage(canvas, each.diffuse(image, eps, t), shape, 0, Math.max(each.scale[t], 1));
      const numbers = [each.alpha[t], each.sigma[t], each.logSnr[t]].map((value) => Number(value.toPrecision(3)));
      caption.textContent = `${name}, t = ${t}: α\u00a0${numbers[0]}, σ\u00a0${numbers[1]}, log\u00a0SNR\u00a0${numbers[2]}`;
    }
    const lines = Object.entries(named).map(([label, each]) => {
      const ts = Array.from({ length: 101 }, (_, i) => Math.round((i / 100) * each.steps));
      return { label, xs: ts.map((t) => t / each.steps), ys: ts.map((t) => each.logSnr[t]) };
    });
    drawLines(curves, lines, { x: "t / T", y: "log SNR", low: -12, high: 12, marker: time.values.share });
  });

  // The image that is noised, edited and inpainted.
  const pad = figure("Paint with the pointer");
  pad.canvas.classList.add("pad");
  const padForm = element("form", { className: "controls", ariaLabel: "Controls of the image" });
  const choices = element("div", { className: "thumbnails" });
  images.forEach((each, i) => {
    const { canvas } = figure(`image ${i + 1}`);
    const button = element("button", { type: "button", ariaLabel: `Use held-out image ${i + 1}` }, canvas);
    button.addEventListener("click", () => {
      painted.fill(0);
      edit(() => image.set(each));
    });
    drawImage(canvas, each, shape);
    choices.append(button);
  });
  const brush = addControls(
    padForm,
    {
      tool: { label: "pointer", type: "select", choices: { paint: "paints", mask: "hides pixels" }, value: "paint" },
      color: { label: "color", type: "range", min: -1, max: 1, step: 0.1, value: 1 },
      mask: {
        label: "hidden pixels",
        type: "select",
        choices: { right: "right half", lower: "lower half", center: "center", painted: "those painted" },
        value: "right",
      },
    },
    () => edit(() => {}),
  );
  const channelSize = shape[1] * shape[2];
  const isHidden = (i) => {
    const [row, column] = [Math.floor((i % channelSize) / shape[2]) / shape[1], (i % shape[2]) / shape[2]];
    const inside = (value) => value >= 0.25 && value < 0.75;
    const cases = {
      right: column >= 0.5,
      lower: row >= 0.5,
      center: inside(row) && inside(column),
      painted: painted[i],
    };
    return Boolean(cases[brush.values.mask]);
  };
  onDrag(pad.canvas, (x, y) => {
    const [column, row] = [Math.floor(x * shape[2]), Math.floor(y * shape[1])];
    if (column < 0 || row < 0 || column >= shape[2] || row >= shape[1]) return;
    edit(() => {
      for (let c = 0; c < shape[0]; c++) {
        const i = c * channelSize + row * shape[2] + column;
        if (brush.values.tool === "paint") image[i] = brush.values.color;
        else painted[i] = 1;
      }
      if (brush.values.tool !== "mask") return;
      brush.set("mask", "painted");
      controls.set("start", "inpaint");
    });
  });
  function edit(change) {
    change();
    const hides = controls.values.start === "inpaint";
    drawImage(
      pad.canvas,
      image.map((value, i) => (hides && isHidden(i) ? 0 : value)),
      shape,
    );
    drawForward();
    if (controls.values.start !== "noise") restart();
  }

  // The reverse process.
  const reverse = section(
    "reverse",
    "Reverse: noise to data",
    "Each step shows x_t, the estimate of x_0 at t and the noise that it implies.",
  );
  const form = element("form", { className: "controls", ariaLabel: "Controls of sampling" });
  const play = playButton(
    () => lanes[0].lane.times.map((_, position) => position),
    (position) => {
      controls.set("position", position);
      return show();
    },
  );
  const status = element("p", { role: "status" });
  const command = element("code");
  const same = element("p", {}, "The same images: ", command);
  const lanes = [0, 1].map(() => {
    const parts = ["x_t", "x_0 estimate", "noise"].map(figure);
    const batch = element("div", { className: "thumbnails" });
    const node = element(
      "div",
      { className: "lane" },
      element("div", { className: "figures" }, ...parts.map(({ node }) => node)),
      batch,
    );
    return { parts, batch, node, lane: null, sample: 0 };
  });
  const classChoices = [["turn", "each in turn"]];
  if (run.nullable) classChoices.push(["none", "none"]);
  run.classes?.forEach((name, i) => classChoices.push([i, name]));
  const spec = {
    position: { label: "step", type: "range", min: 0, max: 1, step: 1, value: 0 },
    sampler: { label: "sampler", type: "select", choices: samplerTitles(), value: defaults.sampler },
    steps: { label: "steps", type: "range", min: 1, max: Math.min(process.steps, 250), step: 1, value: defaults.steps },
    spacing: { label: "spacing", type: "select", choices: titles(spacings), value: defaults.spacing },
    eta: { label: "η", type: "range", min: 0, max: 1, step: 0.1, value: defaults.eta },
    variance: { label: "variance", type: "select", choices: { beta_tilde: "β̃", beta: "β" }, value: defaults.variance },
    label: { label: "class", type: "select", choices: classChoices, value: "turn" },
    w: { label: "guidance w", type: "range", min: 0, max: 8, step: 0.5, value: defaults.w },
    seed: { label: "seed", type: "number", min: 0, max: 2 ** 48, step: 1, value: 0 },
    count: { label: "samples", type: "range", min: 1, max: 16, step: 1, value: 8 },
    start: {
      label: "begin with",
      type: "select",
      choices: {
        noise: "noise",
        edit: "the image below, noised (SDEdit)",
        inpaint: "noise, and pixels of the image below",
      },
      value: "noise",
    },
    strength: { label: "strength, t / T", type: "range", min: 0.05, max: 1, step: 0.05, value: 0.4 },
    other: { label: "compare with", type: "select", choices: { none: "nothing", ...samplerTitles() }, value: "none" },
  };
  const controls = addControls(form, spec, (name) => (name === "position" ? show() : edit(() => restart())));
  const next = element("button", { type: "button" }, "Step");
  next.addEventListener("click", () => {
    controls.set("position", (controls.values.position + 1) % lanes[0].lane.times.length);
    show();
  });
  reverse.append(form, next, " ", play, status, ...lanes.map(({ node }) => node), same);
  reverse.append(
    element("h3", {}, "Image"),
    element("div", { className: "columns" }, pad.node, element("div", {}, padForm, choices)),
  );

  let current = 0;
  const restart = oncePerFrame(() => {
    const { values } = controls;
    current++;
    const labels = Array.from({ length: values.count }, (_, i) => {
      if (!run.classes || values.label === "none") return -1;
      return values.label === "turn" ? i % run.classes.length : Number(values.label);
    });
    const options = { ...values, size, labels, clip: defaults.clip, w: values.label === "none" ? 0 : values.w };
    if (values.start !== "noise") options.image = image.slice();
    if (values.start === "inpaint") options.visible = image.map((_, i) => !isHidden(i));
    if (values.start !== "edit") options.strength = 0;
    [values.sampler, values.other].forEach((sampler, i) => {
      lanes[i].lane = sampler === "none" ? null : new Lane(denoise, process, { ...options, sampler });
      lanes[i].node.hidden = sampler === "none";
    });
    const used = [values.sampler, values.other].flatMap((name) => SAMPLERS[name]?.options ?? []);
    controls.toggle("eta", used.includes("eta"));
    controls.toggle("variance", used.includes("variance"));
    controls.toggle("label", Boolean(run.classes));
    controls.toggle("w", run.nullable && values.label !== "none");
    controls.toggle("strength", values.start === "edit");
    const last = lanes[0].lane.times.length - 1;
    controls.limit("position", last);
    controls.set("position", last);
    status.textContent = "Sampling";
    same.hidden = values.start !== "noise";
    command.textContent = sampleCommand(run, values);
    show();
  });

  const show = async () => {
    const mine = current;
    const { position } = controls.values;
    const isCurrent = () => mine === current && position === controls.values.position;
    const { times } = lanes[0].lane;
    const began = performance.now();
    for (const each of lanes.filter(({ lane }) => lane)) {
      const until = each.lane.times.findIndex((t) => t <= times[position]);
      try {
        await each.lane.advance(until + 1, () => {
          if (isCurrent() && performance.now() - began > 500)
            status.textContent = `Sampling: step ${each.lane.steps.length} of ${times.length - 1}`;
          return isCurrent();
        });
      } catch (error) {
        status.textContent = `The network failed: ${error.message}`;
        return;
      }
      if (!isCurrent()) return;
      drawLane(each, until);
    }
    const seconds = (performance.now() - began) / 1000;
    const speed = seconds > 0.2 ? ` (${seconds.toFixed(1)} s)` : "";
    status.textContent = `Step ${position} of ${times.length - 1}, t = ${times[position]}${speed}`;
  };

  function drawLane(each, position) {
    const { x, x0, eps, t } = each.lane.view(position);
    const empty = new Float32Array(x.length);
    const range = Math.max(process.scale[t], 1); // of x_t, where the schedule explodes
    const titles = [`x_t at t = ${t}`, "x_0 estimate", "noise"];
    [x, x0 ?? x, eps ?? empty].forEach((batch, i) => {
      drawImage(each.parts[i].canvas, batch, shape, each.sample, [range, 1, 3][i]);
      each.parts[i].caption.textContent = titles[i];
    });
    each.batch.replaceChildren(
      ...Array.from({ length: x.length / size }, (_, i) => {
        const { canvas } = figure(`sample ${i + 1} at t = ${t}`);
        drawImage(canvas, x, shape, i, range);
        const button = element(
          "button",
          { type: "button", ariaLabel: `Show sample ${i + 1}`, ariaPressed: String(i === each.sample) },
          canvas,
        );
        button.addEventListener("click", () => {
          each.sample = i;
          drawLane(each, position);
          each.batch.children[i].focus();
        });
        return button;
      }),
    );
  }

  // Training.
  if (run.terms || run.grids.length) {
    const training = section("training", "Training", "The terms of the bound, and samples at steps of the training.");
    if (run.terms) {
      const bound = element("canvas", { className: "chart", role: "img", ariaLabel: "Terms of the bound against t" });
      training.append(bound);
      const lines = [{ label: "L_t", xs: run.terms.t, ys: run.terms.bits }];
      const draw = () => drawLines(bound, lines, { x: "t", y: "bits/dim", logX: true, logY: true });
      redrawWith(draw);
      draw();
    }
    const grids = run.grids.map(({ step, picture }) => {
      const alt = `Samples after ${step} training steps`;
      return element("figure", {}, element("img", { src: picture, alt }), element("figcaption", {}, `step ${step}`));
    });
    training.append(element("div", { className: "figures" }, ...grids));
  }
  redrawWith(drawForward);
  edit(() => restart());
}

/** Return the command of sample.py with the same settings. */
export function sampleCommand(run, values) {
  const words = [`seed=${values.seed}`, `count=${values.count}`, `sampler=${values.sampler}`];
  words.push(`sampler.steps=${values.steps}`, `sampler.spacing=${values.spacing}`);
  if (run.defaults.clip !== 1) words.push(`sampler.clip=${run.defaults.clip}`);
  if (values.sampler === "ddim") words.push(`sampler.eta=${values.eta}`);
  if (values.sampler === "ddpm") words.push(`variance=${values.variance}`);
  if (run.classes && values.label !== "turn") words.push(`label=${run.labels[values.label] ?? "none"}`);
  const w = run.nullable && values.label !== "none" ? values.w : 0;
  if (w) words.push("guidance=classifier_free", `guidance.w=${w}`);
  else if (run.guided) words.push("guidance=none");
  return [run.command, ...words].join(" ");
}
