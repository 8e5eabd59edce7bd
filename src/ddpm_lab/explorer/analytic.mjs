// The exact denoiser of a mixture of Gaussians in the plane, and what samplers make of it.
import { color, drawLines, Plane } from "./charts.mjs";
import { addControls, element, oncePerFrame, playButton, redrawWith } from "./controls.mjs";
import { Mixture, slicedWasserstein } from "./mixture.mjs";
import { Generator } from "./noise.mjs";
import { spacings, timesteps } from "./process.mjs";
import { chain, guide, SAMPLERS } from "./samplers.mjs";

const RANGE = 2.2;
const POINTS = 4000;
const DOTS = 1000;
const PATHS = 40;
const ETAS = {
  "η = 0 (DDIM)": [0],
  "η = 0.2": [0.2],
  "η = 0.5": [0.5],
  "η = 1 (DDPM, β̃)": [1],
  "σ̂ (DDPM, β)": [1, true],
};
const CAPTION =
  "Shade: density of x_t. Dots: samples at the time of the chain at or below t. Lines: paths of samples from x_T to x_0. " +
  "Arrows: score.";
const STEPS = [5, 10, 20, 50, 100];
const START = [
  { x: -1, y: 0.5, weight: 0.4, label: 0 },
  { x: -0.1, y: -0.9, weight: 0.2, label: 0 },
  { x: 0.9, y: 0.6, weight: 0.4, label: 1 },
];
export const titles = (choices) => Object.fromEntries(choices.map((choice) => [choice, choice]));

/** Sample `count` points; return the times and states of the chain, x_T first. */
async function simulate(mixture, process, options, count, isCurrent = () => true) {
  const { label, w, steps, spacing, seed } = options;
  const generator = new Generator(seed);
  const noise = () => generator.normal(2 * count);
  const times = timesteps(process.steps, Math.min(steps, process.steps), spacing);
  const denoise = (x, t) => {
    const [alpha, sigma] = [process.alpha[t], process.sigma[t]];
    const x0 = mixture.denoise(x, alpha, sigma, label);
    return w && label !== null ? guide(x0, mixture.denoise(x, alpha, sigma), w) : x0;
  };
  const x = noise().map((z) => process.scale[times[0]] * z);
  const states = [x];
  for await (const step of chain(denoise, x, times, { ...options, process, noise, clip: null })) {
    states.push(step.next);
    if (!isCurrent()) break;
  }
  return { times, states };
}

/** Build the section in `root`; `processes` are the forward processes by name of the schedule. */
export function analyticSection(root, processes) {
  const steps = Object.values(processes)[0].steps;
  const components = START.map((component) => ({ ...component }));
  const canvas = element("canvas", { role: "img", ariaLabel: "Density, score and samples in the plane" });
  const plane = element("div", { className: "plane" }, canvas);
  const form = element("form", { className: "controls", ariaLabel: "Controls of the plane" });
  const law = element("p", { className: "law", role: "status" });
  const marginal = element("canvas", { className: "chart", role: "img", ariaLabel: "Marginal density of x_0" });
  const play = playButton(
    () => result.times,
    (time) => {
      controls.set("t", time);
      draw();
    },
  );
  const table = element("div", { className: "scroll" });
  const compute = element("button", { type: "button" }, "Compute the table");
  root.append(
    element(
      "div",
      { className: "columns" },
      element("div", {}, plane, element("p", { className: "caption" }, CAPTION)),
      element("div", {}, form, play, law, marginal),
    ),
    element("h3", {}, "Steps and noise"),
    element(
      "p",
      {},
      "Distance between samples and data (sliced W₂) with the settings above, in the layout of table 1 of DDIM " +
        "(Song et al., 2021). The bottom row compares two sets of data.",
    ),
    compute,
    table,
  );

  const controls = addControls(
    form,
    {
      t: { label: "time t", type: "range", min: 0, max: steps, step: 1, value: 0 },
      schedule: {
        label: "schedule",
        type: "select",
        choices: titles(Object.keys(processes)),
        value: Object.keys(processes)[0],
      },
      sampler: { label: "sampler", type: "select", choices: samplerTitles(), value: "ddim" },
      eta: { label: "η", type: "range", min: 0, max: 1, step: 0.1, value: 0 },
      variance: { label: "variance", type: "select", choices: { beta_tilde: "β̃", beta: "β" }, value: "beta_tilde" },
      steps: { label: "steps", type: "range", min: 1, max: 100, step: 1, value: 10 },
      spacing: { label: "spacing", type: "select", choices: titles(spacings), value: "uniform" },
      label: {
        label: "class",
        type: "select",
        choices: ["all", "A", "B"].map((title, i) => [i ? i - 1 : "all", title]),
        value: "all",
      },
      w: { label: "guidance w", type: "range", min: 0, max: 8, step: 0.5, value: 0 },
      std: { label: "component width", type: "range", min: 0.02, max: 0.6, step: 0.02, value: 0.2 },
      seed: { label: "seed", type: "number", min: 0, max: 1e9, step: 1, value: 0 },
      density: { label: "density at t", type: "checkbox", value: true },
      score: { label: "score at t", type: "checkbox", value: false },
      paths: { label: "trajectories", type: "checkbox", value: true },
    },
    (name) => (["t", "density", "score", "paths"].includes(name) ? draw() : restart()),
  );
  const { values } = controls;
  const label = () => (values.label === "all" ? null : Number(values.label));
  let result = { times: [0], states: [new Float32Array()] };
  let data = new Float32Array();
  let run = 0;

  const restart = () => {
    table.replaceChildren(); // its settings are no longer those above
    simulateAgain();
  };
  const simulateAgain = oncePerFrame(async () => {
    const current = ++run;
    controls.toggle("eta", values.sampler === "ddim");
    controls.toggle("variance", values.sampler === "ddpm");
    controls.toggle("w", values.label !== "all");
    const mixture = new Mixture(components, values.std);
    const options = { ...values, label: label() };
    const next = await simulate(mixture, processes[values.schedule], options, POINTS, () => current === run);
    if (current !== run) return;
    result = next;
    data = mixture.sample(POINTS, new Generator(values.seed + 1), label());
    const other = mixture.sample(POINTS, new Generator(values.seed + 2), label());
    const end = result.states.at(-1);
    const width = mixture.width(end, label()) / mixture.width(data, label());
    const verdict = width < 0.9 ? "too narrow" : width > 1.1 ? "too wide" : "as wide as the data";
    law.textContent =
      `Distance of the samples to the data (sliced W₂): ${slicedWasserstein(end, data).toFixed(3)} (between two sets of data: ` +
      `${slicedWasserstein(other, data).toFixed(3)}). Median squared distance to the nearest center: ` +
      `${width.toFixed(2)} of the data's, ${verdict}.`;
    draw();
  });

  const draw = oncePerFrame(() => {
    const mixture = new Mixture(components, values.std);
    const process = processes[values.schedule];
    const [alpha, sigma] = [process.alpha[values.t], process.sigma[values.t]];
    const view = new Plane(canvas, RANGE);
    const logDensity = (x, y) => mixture.logDensity(x, y, alpha, sigma, label());
    if (values.density) {
      const peak = Math.max(...components.map((c) => logDensity(alpha * c.x, alpha * c.y)));
      view.shade((x, y) => 0.8 * Math.exp(0.5 * (logDensity(x, y) - peak)));
    }
    if (values.score) {
      view.arrows((x, y) => mixture.scoreAt(x, y, alpha, sigma, label()));
    }
    if (values.paths) {
      for (let i = 0; i < PATHS; i++) view.path(result.states, i, color(i));
    }
    const now = result.times.findIndex((time) => time <= values.t);
    view.dots(result.states[Math.max(now, 0)].subarray(0, 2 * DOTS), color(4));
    drawMarginal(mixture);
  });

  function drawMarginal(mixture) {
    const bins = 60;
    const width = (2 * RANGE) / bins;
    const xs = Array.from({ length: bins }, (_, i) => -RANGE + (i + 0.5) * width);
    const histogram = new Array(bins).fill(0);
    const end = result.states.at(-1);
    for (let i = 0; i < end.length; i += 2) histogram[Math.floor((end[i] + RANGE) / width)] += 1 / (POINTS * width);
    const used = components.filter((c) => label() === null || c.label === label());
    const mass = used.reduce((sum, c) => sum + c.weight, 0);
    const exact = xs.map((x) =>
      used.reduce((sum, c) => sum + (c.weight / mass) * Math.exp(-(((x - c.x) / mixture.std) ** 2) / 2), 0),
    );
    const scale = 1 / (Math.sqrt(2 * Math.PI) * mixture.std);
    drawLines(
      marginal,
      [
        { label: "data", xs, ys: exact.map((value) => value * scale) },
        { label: "samples", xs, ys: histogram },
      ],
      { x: "horizontal coordinate of x_0", y: "density", low: 0 },
    );
  }

  const handles = components.map((component, k) => {
    const handle = element("button", { type: "button", className: "handle", textContent: "AB"[component.label] });
    handle.style.background = color(component.label);
    const moveTo = (x, y) => {
      component.x = Math.min(Math.max(x, -RANGE), RANGE);
      component.y = Math.min(Math.max(y, -RANGE), RANGE);
      placeHandles();
      restart();
    };
    handle.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (!moves[event.key]) return;
      event.preventDefault();
      const [dx, dy] = moves[event.key];
      moveTo(component.x + 0.1 * dx, component.y + 0.1 * dy);
    });
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const box = canvas.getBoundingClientRect();
      moveTo(
        ((event.clientX - box.left) / box.width) * 2 * RANGE - RANGE,
        RANGE - ((event.clientY - box.top) / box.height) * 2 * RANGE,
      );
    });
    handle.place = () => {
      handle.style.left = `${(component.x / RANGE + 1) * 50}%`;
      handle.style.top = `${(1 - component.y / RANGE) * 50}%`;
      const [x, y] = [component.x, component.y].map((value) => value.toFixed(1));
      handle.ariaLabel = `Center ${k + 1}, class ${"AB"[component.label]}, at ${x}, ${y}; arrow keys move it`;
    };
    plane.append(handle);
    return handle;
  });
  function placeHandles() {
    for (const handle of handles) handle.place();
  }

  compute.addEventListener("click", async () => {
    compute.disabled = true;
    const mixture = new Mixture(components, values.std);
    const process = processes[values.schedule];
    const head = element("tr", {}, element("th", { scope: "col" }, "steps"));
    head.append(...STEPS.map((count) => element("th", { scope: "col" }, String(count))));
    const body = element("tbody");
    table.replaceChildren(element("table", {}, element("thead", {}, head), body));
    const exact = mixture.sample(POINTS, new Generator(values.seed + 1), label());
    for (const [title, [eta, sigmaHat]] of Object.entries(ETAS)) {
      const row = element("tr", {}, element("th", { scope: "row" }, title));
      body.append(row);
      for (const count of STEPS) {
        const options = { ...values, label: label(), sampler: "ddim", eta, sigmaHat, steps: count };
        const { states } = await simulate(mixture, process, options, POINTS);
        if (!body.isConnected) {
          compute.disabled = false;
          return;
        }
        row.append(element("td", {}, slicedWasserstein(states.at(-1), exact).toFixed(3)));
        await new Promise((resolve) => setTimeout(resolve));
      }
    }
    const other = mixture.sample(POINTS, new Generator(values.seed + 2), label());
    const row = element("tr", {}, element("th", { scope: "row" }, "data"));
    row.append(element("td", { colSpan: STEPS.length }, slicedWasserstein(other, exact).toFixed(3)));
    body.append(row);
    compute.disabled = false;
  });

  placeHandles();
  redrawWith(draw);
  simulateAgain();
}

export function samplerTitles() {
  return Object.fromEntries(Object.entries(SAMPLERS).map(([name, { title }]) => [name, title]));
}
