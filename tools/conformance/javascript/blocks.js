// Codes of a dtype with scales of blocks: fp8_block.md, int_group.md, microscaling.md and ternary.md.
//
// A layout is what the parameters of a scheme say: the dtypes of codes and of numbers by role, and a block's size, of
// which 0 is the whole dimension.

import { BY_NAME, DTYPES, FLOATS, atLeast, f32, isAbsmax, need, needValues, noneFrom, up } from './numbers.js';

const [F16, BF16, F32, E4M3, E5M2, E8M0] = ['f16', 'bf16', 'f32', 'f8_e4m3', 'f8_e5m2', 'f8_e8m0']
  .map((name) => BY_NAME.get(name).code);
const [CODE, FLOAT, BIAS] = [1, 2, 3]; // the parameter zero of int-group
const nameOf = (code) => DTYPES.get(code).name;

const sizes = ({ rows, columns }, s) => [rows || s.at(-2) || 1, columns || s.at(-1) || 1];

function planesOf(layout, s) {
  const outer = s.slice(0, -2);
  const [rows, columns] = sizes(layout, s);
  const grid = [...outer, up(s.at(-2), rows), up(s.at(-1), columns)];
  const found = [['codes', layout.codes, [...s]]];
  for (const [role, dtype] of Object.entries(layout.each)) found.push([role, dtype, grid]);
  for (const [role, dtype] of Object.entries(layout.whole ?? {})) found.push([role, dtype, [...outer, 1]]);
  if (layout.ordered) found.push(['group_index', 'i32', [s.at(-1)]]);
  return found;
}

// For each element its code, and the numbers that it goes with, by role.
function* elementsOf(layout, s, planes) {
  const [rows, columns] = sizes(layout, s);
  const [n, k] = [s.at(-2), s.at(-1)];
  for (let i = 0; i < planes.codes.length; i++) {
    const row = Math.floor(i / k);
    const matrix = Math.floor(row / n);
    const column = layout.ordered ? planes.group_index[i % k] : Math.floor((i % k) / columns);
    const at = (matrix * up(n, rows) + Math.floor((row % n) / rows)) * up(k, columns) + column;
    const found = {};
    for (const role of Object.keys(layout.each)) found[role] = planes[role][at];
    for (const role of Object.keys(layout.whole ?? {})) found[role] = planes[role][matrix];
    yield [planes.codes[i], found];
  }
}

// `choices` says whether each parameter is allowed.
function scheme(choices, layout, value, more) {
  return {
    parameters: (p) => choices.every((allowed, i) => allowed(p[i], p)) && noneFrom(p, choices.length),
    takes: atLeast(2),
    dtypes: FLOATS,
    planes: (p, s) => planesOf(layout(p), s),
    checked: ['codes', 'scale', 'zero_point', 'bias', 'global_scale', 'group_index'],
    check(p, s, planes) {
      for (const [role] of planesOf(layout(p), s).slice(1)) needValues(planes[role], Number.isFinite, role);
      more(p, s, planes);
      need(planes.codes.every(Number.isFinite), 'AIB-E503', 'a code is not finite');
    },
    decode: (p, s, planes) => Array.from(elementsOf(layout(p), s, planes), ([code, found]) => value(p, code, found)),
  };
}

const size = (x) => x <= 65536;
const binary = (x) => x <= 1;
const oneOf = (...allowed) => (x) => allowed.includes(x);
const times = (p, code, { scale }) => f32(code * scale);
const scales = (p, s, { scale }) => needValues(scale, isAbsmax, 'scale');

// microscaling.md

const nvfp4Scale = ([reciprocal], scale, overall) => f32(reciprocal ? scale / overall : scale * overall);

function nvfp4Check(p, s, { scale, global_scale: overall }) {
  needValues(scale, isAbsmax, 'scale');
  needValues(overall, (x) => isAbsmax(x) && !(p[0] && x === 0), 'global_scale');
  const each = scale.length / (overall.length || 1);
  scale.forEach((x, i) => {
    const found = nvfp4Scale(p, x, overall[Math.floor(i / each)]);
    need(Number.isFinite(found), 'AIB-E502', () => `scale ${i} with the global scale is not finite`);
  });
}

// int_group.md: parameters bits, group, scale, zero, ordered

function intLayout([bits, group, scale, zero, ordered]) {
  const name = nameOf(scale);
  const each = { scale: name };
  if (zero === CODE) each.zero_point = 'u8';
  if (zero === FLOAT) each.zero_point = name;
  if (zero === BIAS) each.bias = name;
  return { codes: `u${bits}`, rows: 1, columns: group, each, ordered };
}

function intCheck([bits, group, , zero], s, { zero_point: zeros = [], group_index: index = [] }) {
  if (zero === CODE) needValues(zeros, (x) => x <= 2 ** bits, 'zero_point');
  const groups = up(s.at(-1), group || s.at(-1) || 1);
  needValues(index, (x) => x >= 0 && x < groups, 'group_index');
}

function intValue([bits, , , zero], code, { scale, zero_point: point = 2 ** (bits - 1), bias }) {
  return zero === BIAS ? f32(f32(code * scale) + bias) : f32(f32(code - point) * scale);
}

// ternary.md: parameters scale, reciprocal

function ternaryCheck(p, s, { codes, scale }) {
  needValues(scale, (x) => isAbsmax(x) && !(p[1] && x === 0), 'scale');
  need(codes.every((code) => code <= 2), 'AIB-E503', 'a code is 3');
}

export const BLOCK_SCHEMES = [
  ['fp8-block', scheme(
    [size, size, oneOf(F16, BF16, F32, E8M0)],
    ([rows, columns, scale]) => ({ codes: 'f8_e4m3', rows, columns, each: { scale: nameOf(scale) } }), times, scales,
  )],
  ['int-group', scheme(
    [oneOf(1, 2, 3, 4, 5, 6, 8), size, oneOf(F16, BF16, F32), (x) => x <= 3, (x, p) => x <= (p[1] ? 1 : 0)],
    intLayout, intValue, intCheck,
  )],
  ['mxfp4', scheme([], () => ({ codes: 'f4_e2m1', rows: 1, columns: 32, each: { scale: 'f8_e8m0' } }), times, scales)],
  ['mxfp8', scheme(
    [oneOf(E4M3, E5M2)], ([element]) => ({ codes: nameOf(element), rows: 1, columns: 32, each: { scale: 'f8_e8m0' } }),
    times, scales,
  )],
  ['nvfp4', scheme(
    [binary],
    () => ({ codes: 'f4_e2m1', rows: 1, columns: 16, each: { scale: 'f8_e4m3' }, whole: { global_scale: 'f32' } }),
    (p, code, { scale, global_scale: overall }) => f32(code * nvfp4Scale(p, scale, overall)), nvfp4Check,
  )],
  ['ternary', scheme(
    [oneOf(F16, BF16, F32), binary],
    ([scale]) => ({ codes: 'u2', rows: 1, columns: 0, each: {}, whole: { scale: nameOf(scale) } }),
    ([, reciprocal], code, { scale }) => f32(reciprocal ? (code - 1) / scale : (code - 1) * scale), ternaryCheck,
  )],
];
