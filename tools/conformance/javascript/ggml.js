// The schemes `gguf:...`: spec/schemes/ggml.md. Types with grids are in ggml_grids.js.

import { GRID_TYPES, scattered, spread } from './ggml_grids.js';
import { FLOATS, divided, f32, half, need, noneFrom, product, remainder } from './numbers.js';

const list = (field, change) => Array.from(field, change);
const signed = (field) => list(field, (byte) => (byte << 24) >> 24);
const added = (low, high, factor, base = 0) => low.map((a, i) => a + factor * high[i] + base);

// The scales s and minima t of q4_k and q5_k.
function sixBits(scales) {
  const [low, minimum, high] = [scales.subarray(0, 4), scales.subarray(4, 8), scales.subarray(8)];
  const s = [...list(low, (x) => x & 63), ...list(low, (x, i) => (high[i] & 15) + 16 * (x >> 6))];
  const t = [...list(minimum, (x) => x & 63), ...list(minimum, (x, i) => (high[i] >> 4) + 16 * (x >> 6))];
  return [s, t];
}

function withMinima(d, dmin, s, t, q) {
  const size = q.length / s.length;
  return q.map((x, i) => {
    const j = Math.floor(i / size);
    return f32(f32(f32(d * s[j]) * x) - f32(dmin * t[j]));
  });
}

const scaled = (d, s, q) => q.map((x, i) => f32(f32(d * s[i >> 4]) * x));
const around = (d, q, zero = 0) => q.map((x) => f32(d * (x - zero)));
const above = (d, m, q) => q.map((x) => f32(f32(d * x) + m));
const fifthBits = (qh) => Array.from({ length: 32 }, (_, i) => (qh[i >> 3] >> (i % 8)) & 1);
const fiveBits = (qs, qh) => added(spread(qs, 4, 16), fifthBits(qh), 16);

function q3k({ hmask, qs, scales, d }) {
  const s = added(spread(scales.subarray(0, 8), 4, 8), spread(scales.subarray(8), 2, 4), 16, -32);
  return scaled(d, s, added(spread(qs, 2, 32), spread(hmask, 1, 32), 4, -4));
}

const q6k = ({ ql, qh, scales, d }) =>
  scaled(d, signed(scales), added(spread(ql, 4, 64), spread(qh, 2, 32), 16, -32));
const q5k = ({ d, dmin, scales, qh, qs }) =>
  withMinima(d, dmin, ...sixBits(scales), added(spread(qs, 4, 32), spread(qh, 1, 32), 16));

// The ternary digits of every byte: the first ones of all, then the second ones, and so on.
const digits = (field, n) =>
  Array.from({ length: n }, (_, k) => list(field, (b) => (3 * ((b * 3 ** k) & 255)) >> 8)).flat();

const tq1_0 = ({ qs, qh, d }) =>
  around(d, [...digits(qs.subarray(0, 32), 5), ...digits(qs.subarray(32), 5), ...digits(qh, 4)], 1);

function e4m3Half(d) {
  const [exponent, fraction] = [(d >> 3) & 15, d & 7];
  return exponent ? (8 + fraction) * 2 ** (exponent - 11) : fraction * 2 ** -10;
}

const TWICE_E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
const SIXTEEN = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const looked = (values, codes) => codes.map((code) => values[code]);

function iq4_xs({ d, scales_h: h, scales_l: l, qs }) {
  const s = added(spread(l, 4, 1), spread(h, 2, 1), 16, -32);
  return looked(SIXTEEN, spread(qs, 4, 16)).map((x, i) => f32(f32(d * s[i >> 5]) * x));
}

// Elements of a block, its fields with their bytes (0: an f16), and what they decode to.
const GGML = {
  q4_0: [32, { d: 0, qs: 16 }, ({ d, qs }) => around(d, spread(qs, 4, 16), 8)],
  q4_1: [32, { d: 0, m: 0, qs: 16 }, ({ d, m, qs }) => above(d, m, spread(qs, 4, 16))],
  q5_0: [32, { d: 0, qh: 4, qs: 16 }, ({ d, qh, qs }) => around(d, fiveBits(qs, qh), 16)],
  q5_1: [32, { d: 0, m: 0, qh: 4, qs: 16 }, ({ d, m, qh, qs }) => above(d, m, fiveBits(qs, qh))],
  q8_0: [32, { d: 0, qs: 32 }, ({ d, qs }) => around(d, signed(qs))],
  q2_k: [256, { scales: 16, qs: 64, d: 0, dmin: 0 }, ({ scales, qs, d, dmin }) =>
    withMinima(d, dmin, list(scales, (x) => x & 15), list(scales, (x) => x >> 4), spread(qs, 2, 32))],
  q3_k: [256, { hmask: 32, qs: 64, scales: 12, d: 0 }, q3k],
  q4_k: [256, { d: 0, dmin: 0, scales: 12, qs: 128 }, ({ d, dmin, scales, qs }) =>
    withMinima(d, dmin, ...sixBits(scales), spread(qs, 4, 32))],
  q5_k: [256, { d: 0, dmin: 0, scales: 12, qh: 32, qs: 128 }, q5k],
  q6_k: [256, { ql: 128, qh: 64, scales: 16, d: 0 }, q6k],
  q1_0: [128, { d: 0, qs: 16 }, ({ d, qs }) => around(d, spread(qs, 1, 1).map((q) => 2 * q), 1)],
  q2_0: [64, { d: 0, qs: 16 }, ({ d, qs }) => around(d, spread(qs, 2, 1), 1)],
  tq1_0: [256, { qs: 48, qh: 4, d: 0 }, tq1_0],
  tq2_0: [256, { qs: 64, d: 0 }, ({ d, qs }) => around(d, spread(qs, 2, 32), 1)],
  mxfp4: [32, { e: 1, qs: 16 }, ({ e, qs }) => around(2 ** (e[0] - 128), looked(TWICE_E2M1, spread(qs, 4, 16)))],
  nvfp4: [64, { d: 4, qs: 32 }, ({ d, qs }) =>
    looked(TWICE_E2M1, spread(qs, 4, 8)).map((x, i) => f32(e4m3Half(d[i >> 4]) * x))],
  iq4_nl: [32, { d: 0, qs: 16 }, ({ d, qs }) => around(d, looked(SIXTEEN, spread(qs, 4, 16)))],
  iq4_xs: [256, { d: 0, scales_h: 2, scales_l: 4, qs: 128 }, iq4_xs],
  ...GRID_TYPES,
};

// Scales that are no f16 of their own: whether the scale is one that there may be.
const OTHER_SCALES = {
  mxfp4: { e: (e) => e[0] <= 252 },
  nvfp4: { d: (d) => d.every((x) => (x & 127) !== 127) },
  iq1_m: { scales: (scales) => Number.isFinite(scattered(scales)) },
};

function ggml(kind, length, fields, decoded) {
  const size = Object.values(fields).reduce((sum, width) => sum + (width || 2), 0);

  function* blocks({ blocks: bytes }) {
    for (let at = 0; at < bytes.length; ) {
      const block = {};
      for (const [name, width] of Object.entries(fields)) {
        block[name] = width ? bytes.subarray(at, at + width) : half(bytes, at);
        at += width || 2;
      }
      yield block;
    }
  }

  return {
    parameters: (p) => noneFrom(p, 0),
    takes: (p, s) => s.length >= 1 && remainder(s.at(-1), length) === 0,
    dtypes: FLOATS,
    planes: (p, s) => [['blocks', 'u8', [...s.slice(0, -1), product([divided(s.at(-1), length), size])]]],
    checked: ['blocks'],
    check(p, s, planes) {
      let i = 0;
      for (const block of blocks(planes)) {
        for (const [name, width] of Object.entries(fields)) {
          const isScale = width ? OTHER_SCALES[kind]?.[name] : Number.isFinite;
          need(!isScale || isScale(block[name]), 'AIB-E503', () => `${name} of block ${i} is ${block[name]}`);
        }
        i++;
      }
    },
    decode: (p, s, planes) => [...blocks(planes)].flatMap(decoded),
  };
}

// Version 2: the blocks of version 1, and the column of them that each column is.
const ordered = (scheme) => ({
  ...scheme,
  planes: (p, s) => [...scheme.planes(p, s), ['column_order', 'i32', [s.at(-1)]]],
  checked: ['blocks', 'column_order'],
  check(p, s, planes) {
    const right = [...planes.column_order].sort((a, b) => a - b).every((column, i) => column === i);
    need(right, 'AIB-E502', 'column_order has not each column once');
    scheme.check(p, s, planes);
  },
  decode(p, s, planes) {
    const [values, k] = [scheme.decode(p, s, planes), s.at(-1)];
    return values.map((_, i) => values[i - (i % k) + planes.column_order[i % k]]);
  },
});

export const GGML_SCHEMES = Object.entries(GGML).map(([name, row]) => [`gguf:${name}`, ggml(name, ...row)]);
export const ORDERED_SCHEMES = GGML_SCHEMES.map(([name, scheme]) => [name, ordered(scheme)]);
