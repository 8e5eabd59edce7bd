// Noise as functions of (seed, sample), equal to torch's: see diffusion/rng.py.

const POOL = 4;

/** The 32 low bits of numpy.random.SeedSequence(numbers).generate_state(1, uint64). */
export function deriveSeed(...numbers) {
  const entropy = numbers.flatMap((n) => (n < 2 ** 32 ? [n] : [n % 2 ** 32, Math.floor(n / 2 ** 32)]));
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const mix = (a, b) => {
    const value = Math.imul(0xca01f9dd, a) - Math.imul(0x4973f715, b);
    return value ^ (value >>> 16);
  };
  const pool = Array.from({ length: POOL }, (_, i) => hash(entropy[i] ?? 0));
  for (let from = 0; from < POOL; from++) {
    for (let to = 0; to < POOL; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const value of entropy.slice(POOL)) {
    for (let to = 0; to < POOL; to++) pool[to] = mix(pool[to], hash(value));
  }
  const state = Math.imul(pool[0] ^ 0x8b51f9dd, Math.imul(0x8b51f9dd, 0x58f38ded));
  return (state ^ (state >>> 16)) >>> 0;
}

/** The Mersenne Twister MT19937, which torch uses on the CPU. */
export class Generator {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.next = 624;
  }

  /** Return an integer in 0..2^32 - 1. */
  integer() {
    if (this.next === 624) this.twist();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** Return a float32 in [0, 1). */
  uniform() {
    return (this.integer() & 0xffffff) / 2 ** 24;
  }

  /** Return `size` >= 16 standard normal numbers: torch.randn(size, generator=...). */
  normal(size) {
    const values = Float32Array.from({ length: size }, () => this.uniform());
    for (let i = 0; i + 16 <= size; i += 16) boxMuller(values.subarray(i, i + 16));
    if (size % 16) {
      const tail = values.subarray(size - 16);
      for (let i = 0; i < 16; i++) tail[i] = this.uniform();
      boxMuller(tail);
    }
    return values;
  }
}

function boxMuller(block) {
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - block[i]));
    const angle = 2 * Math.PI * block[i + 8];
    block[i] = radius * Math.cos(angle);
    block[i + 8] = radius * Math.sin(angle);
  }
}

/** Return a function that draws one row of `size` numbers per sample, as PerSampleGenerator does. */
export function perSampleNoise(seed, samples, size, stream = 0) {
  const generators = samples.map((i) => new Generator(deriveSeed(seed, i, stream)));
  return () => {
    const noise = new Float32Array(samples.length * size);
    generators.forEach((generator, row) => noise.set(generator.normal(size), row * size));
    return noise;
  };
}
