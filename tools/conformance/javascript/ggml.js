// The schemes `gguf:q4_0` to `gguf:q6_k`: spec/schemes/ggml.md.

import { FLOATS, divided, f32, half, need, noneFrom, product, remainder } from './numbers.js';

// The codes of a field in the order of elements.
function spread(field, bits, width) {
  const c = 8 / bits;
  return Array.from({ length: field.length * c }, (_, i) => {
    const byte = field[Math.floor(i / (c * width)) * width + (i % width)];
    return (byte >> (bits * (Math.floor(i / width) % c))) & ((1 << bits) - 1);
  });
}

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
};

function ggml(length, fields, decoded) {
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
          need(width || Number.isFinite(block[name]), 'AIB-E503', () => `${name} of block ${i} is ${block[name]}`);
        }
        i++;
      }
    },
    decode: (p, s, planes) => [...blocks(planes)].flatMap(decoded),
  };
}

export const GGML_SCHEMES = Object.entries(GGML).map(([name, row]) => [`gguf:${name}`, ggml(...row)]);
