// Samplers: chains from x_T to x_0 in steps (t, s), s < t, as in diffusion/samplers.py.
import { combine } from "./process.mjs";

/**
 * Each `step` returns x_s of {x, x0, t, s, last, previous}. `adds_noise` is true if the sampler
 * calls `noise`; `options` are the controls that it has.
 */
export const SAMPLERS = {
  ddpm: {
    title: "DDPM",
    options: ["variance"],
    step({ x, x0, t, s, last }, { process, variance, noise }) {
      const mean = process.posteriorMean(x0, x, t, s);
      const beta = variance === "beta" ? process.beta(t, s) : process.betaTilde(t, s);
      return last ? mean : combine(1, mean, Math.sqrt(beta), noise());
    },
  },
  ddim: {
    title: "DDIM",
    options: ["eta"],
    step({ x, x0, t, s, last }, { process, eta, sigmaHat, noise }) {
      if (eta === 0 || last) return process.ddimUpdate(x, x0, t, s);
      const variance = eta ** 2 * process.betaTilde(t, s);
      const sigma = Math.sqrt(Math.max(process.sigma[s] ** 2 - variance, 0));
      const added = sigmaHat ? process.beta(t, s) : variance;
      return combine(1, process.ddimUpdate(x, x0, t, s, sigma), Math.sqrt(added), noise());
    },
  },
  dpm_solver: {
    title: "DPM-Solver++(2M)",
    options: [],
    step({ x, x0, t, s, last, previous }, { process }) {
      let middle = x0;
      if (previous && !last) {
        const [start, now, end] = [previous.t, t, s].map((time) => 0.5 * process.logSnr[time]);
        const share = (end - now) / (now - start) / 2;
        middle = combine(1 + share, x0, -share, previous.x0);
      }
      const fall = Math.expm1(0.5 * (process.logSnr[t] - process.logSnr[s]));
      return combine(process.sigma[s] / process.sigma[t], x, -process.alpha[s] * fall, middle);
    },
  },
  heun: {
    title: "Heun",
    options: [],
    async step({ x, x0, t, s, last, previous }, { process, estimate }) {
      const eps = process.eps(x, x0, t);
      const euler = process.diffuse(x0, eps, s);
      if (last || !previous) return euler;
      const end = process.eps(euler, (await estimate(euler, s)).x0, s);
      const mean = combine(0.5, eps, 0.5, end);
      const ratio = process.alpha[s] / process.alpha[t];
      return combine(ratio, x, process.sigma[s] - ratio * process.sigma[t], mean);
    },
  },
};

/**
 * Yield {x, x0, t, s, last, next} for each step of `times`, from x_T = `x`.
 *
 * `options` has sampler, process, clip (null: none), noise, and what the sampler needs; `denoise`
 * returns the x_0 estimate of (x, t), or a promise of it.
 */
export async function* chain(denoise, x, times, options) {
  const { sampler, clip } = options;
  const estimate = async (x, t) => {
    const x0 = await denoise(x, t);
    return { x0: clip === null ? x0 : x0.map((value) => Math.min(Math.max(value, -clip), clip)) };
  };
  let previous = null;
  for (let i = 0; i + 1 < times.length; i++) {
    const [t, s] = [times[i], times[i + 1]];
    const { x0 } = await estimate(x, t);
    const step = { x, x0, t, s, last: s === 0, previous };
    step.next = await SAMPLERS[sampler].step(step, { ...options, estimate });
    yield step;
    x = step.next;
    previous = { t, x0 };
  }
}

/** x_0 + w (x_0 - baseline): classifier-free guidance (Ho & Salimans, 2022, eq. 6). */
export function guide(x0, baseline, w) {
  return combine(1 + w, x0, -w, baseline);
}
