// The forward process x_t = alpha_t x_0 + sigma_t eps, from the tables of Python: diffusion/process.py.

/** Return the float64 numbers of a little-endian base64 text. */
export function decodeNumbers(text) {
  return new Float64Array(decodeBytes(text).buffer);
}

export function decodeBytes(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

/** a x + b y, as float32. */
export function combine(a, x, b, y) {
  return Float32Array.from(x, (value, i) => a * value + b * y[i]);
}

export class Process {
  /** `tables` has alpha, sigma, log_snr and scale for t = 0..T, each as base64. */
  constructor(tables) {
    this.alpha = decodeNumbers(tables.alpha);
    this.sigma = decodeNumbers(tables.sigma);
    this.logSnr = decodeNumbers(tables.log_snr);
    this.scale = decodeNumbers(tables.scale);
    this.steps = this.alpha.length - 1;
  }

  /** 1 - SNR_t / SNR_s, the share of the noise at t that is added between s < t and t. */
  tau(t, s) {
    return -Math.expm1(this.logSnr[t] - this.logSnr[s]);
  }

  beta(t, s) {
    return this.sigma[t] ** 2 * this.tau(t, s);
  }

  betaTilde(t, s) {
    return this.beta(t, s) * (this.sigma[s] / this.sigma[t]) ** 2;
  }

  diffuse(x0, eps, t) {
    return combine(this.alpha[t], x0, this.sigma[t], eps);
  }

  eps(x, x0, t) {
    return combine(1 / this.sigma[t], x, -this.alpha[t] / this.sigma[t], x0);
  }

  posteriorMean(x0, x, t, s) {
    const ofX = (this.alpha[t] / this.alpha[s]) * (this.sigma[s] / this.sigma[t]) ** 2;
    return combine(this.alpha[s] * this.tau(t, s), x0, ofX, x);
  }

  /** x_s with the noise of x_t rescaled to `sigma`. */
  ddimUpdate(x, x0, t, s, sigma = this.sigma[s]) {
    const ratio = sigma / this.sigma[t];
    return combine(ratio, x, this.alpha[s] - ratio * this.alpha[t], x0);
  }
}

const SPACINGS = {
  uniform: (T, K) => steps(K, (i) => Math.floor(T - (K - 1 - i) * ((T - 1) / Math.max(K - 1, 1)) + 0.5)),
  quadratic: (T, K) => squares(T, 0, (0.8 * T) ** 0.5, K, 1),
  quadratic_full: (T, K) => squares(T, 1, T ** 0.5, K, 0.5),
  leading: (T, K) => steps(K, (i) => 1 + i * Math.floor(T / K)),
  trailing: (T, K) => steps(K, (i) => roundHalfEven(T + (K - 1 - i) * (T - T / K - T))),
};

export const spacings = Object.keys(SPACINGS);

/** Return the times of a chain of K steps, descending from T to 0: diffusion/timestep_spacing.py. */
export function timesteps(T, K, spacing) {
  return [...SPACINGS[spacing](T, K).reverse(), 0];
}

function steps(K, time) {
  return Array.from({ length: K }, (_, i) => time(i));
}

function squares(T, start, end, K, shift) {
  const stride = (end - start) / Math.max(K - 1, 1);
  const times = [];
  for (let i = 0; i < K; i++) {
    const root = i < K - 1 ? start + i * stride : K > 1 ? end : T ** 0.5;
    times.push(Math.min(Math.max(Math.floor(root ** 2 + shift), (times.at(-1) ?? 0) + 1), T));
  }
  return times;
}

/** Python's round. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const up = value - floor > 0.5 || (value - floor === 0.5 && floor % 2 !== 0);
  return floor + Number(up);
}
