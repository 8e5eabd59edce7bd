// A mixture of Gaussians in the plane and its exact denoiser: diffusion/analytic_denoisers.py.
// Points are flat arrays [x_1, y_1, x_2, y_2, ...].

export class Mixture {
  /** `components` are {x, y, weight, label}; `std` is that of each component. */
  constructor(components, std) {
    this.components = components;
    this.std = std;
  }

  /**
   * Return the mean of the centers, weighted by their probability given x_t = (x, y), and the log
   * of the sum and the variance of the components, of `label` (null: all), at (alpha, sigma).
   */
  responsibilities(x, y, alpha, sigma, label) {
    const variance = (alpha * this.std) ** 2 + sigma ** 2;
    const logits = this.components.map((c) => {
      if (label !== null && c.label !== label) return -Infinity;
      return Math.log(c.weight) - ((x - alpha * c.x) ** 2 + (y - alpha * c.y) ** 2) / (2 * variance);
    });
    const top = Math.max(...logits);
    const weights = logits.map((logit) => Math.exp(logit - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const mean = ["x", "y"].map((axis) => this.components.reduce((sum, c, k) => sum + weights[k] * c[axis], 0) / total);
    return { mean, logTotal: top + Math.log(total), variance };
  }

  /** log of the density of x_t at the point (x, y). */
  logDensity(x, y, alpha, sigma, label = null) {
    const { logTotal, variance } = this.responsibilities(x, y, alpha, sigma, label);
    const used = this.components.filter((c) => label === null || c.label === label);
    const mass = used.reduce((sum, c) => sum + c.weight, 0);
    return logTotal - Math.log(2 * Math.PI * variance) - Math.log(mass);
  }

  /** E[x_0 | x_t = (x, y), label]. */
  estimateAt(x, y, alpha, sigma, label = null) {
    const { mean, variance } = this.responsibilities(x, y, alpha, sigma, label);
    const gain = (alpha * this.std ** 2) / variance;
    return [mean[0] + gain * (x - alpha * mean[0]), mean[1] + gain * (y - alpha * mean[1])];
  }

  /** The score, the gradient of `logDensity`. */
  scoreAt(x, y, alpha, sigma, label = null) {
    const { mean, variance } = this.responsibilities(x, y, alpha, sigma, label);
    return [(alpha * mean[0] - x) / variance, (alpha * mean[1] - y) / variance];
  }

  /** E[x_0 | x_t, label] of each point. */
  denoise(points, alpha, sigma, label = null) {
    const result = new Float32Array(points.length);
    for (let i = 0; i < points.length; i += 2) {
      result.set(this.estimateAt(points[i], points[i + 1], alpha, sigma, label), i);
    }
    return result;
  }

  /** Return `count` points of the mixture, or of one label. */
  sample(count, generator, label = null) {
    const used = this.components.filter((c) => label === null || c.label === label);
    const mass = used.reduce((sum, c) => sum + c.weight, 0);
    const noise = generator.normal(2 * count);
    const points = new Float32Array(2 * count);
    for (let i = 0; i < count; i++) {
      let rest = generator.uniform() * mass;
      const component = used.find((c) => (rest -= c.weight) < 0) ?? used.at(-1);
      points[2 * i] = component.x + this.std * noise[2 * i];
      points[2 * i + 1] = component.y + this.std * noise[2 * i + 1];
    }
    return points;
  }

  /** Median squared distance of `points` to the nearest component of `label`. */
  width(points, label = null) {
    const used = this.components.filter((c) => label === null || c.label === label);
    const distances = new Float32Array(points.length / 2);
    for (let i = 0; i < distances.length; i++) {
      const [x, y] = [points[2 * i], points[2 * i + 1]];
      distances[i] = Math.min(...used.map((c) => (x - c.x) ** 2 + (y - c.y) ** 2));
    }
    return distances.sort()[distances.length >> 1];
  }
}

/** Sliced W2 distance of two sets of as many points, over `slices` evenly spaced directions. */
export function slicedWasserstein(a, b, slices = 32) {
  let total = 0;
  for (let slice = 0; slice < slices; slice++) {
    const [cos, sin] = [Math.cos((Math.PI * slice) / slices), Math.sin((Math.PI * slice) / slices)];
    const [left, right] = [a, b].map((points) => {
      const line = new Float32Array(points.length / 2);
      for (let i = 0; i < line.length; i++) line[i] = cos * points[2 * i] + sin * points[2 * i + 1];
      return line.sort();
    });
    total += left.reduce((sum, value, i) => sum + (value - right[i]) ** 2, 0) / left.length;
  }
  return Math.sqrt(total / slices);
}
