// The schemes of `.aibit`, page by page of spec/schemes/. Those of fourbit.md and nf4_cpu.md are in fourbit.js, those
// of ggml.md in ggml.js, and scales of blocks in blocks.js.
//
// A scheme is functions of the six parameters p of the scheme table, with the two of the tensor after them, and of the
// tensor's shape s:
//
//     parameters(p)          does its page allow the six
//     ofTensor               how many of a tensor's parameters it uses, if any
//     takes(p, s)            can it hold the shape
//     dtypes                 logical dtypes that it can hold
//     planes(p, s, dtype)    [role, dtype, shape] of each plane
//     checked                roles of the planes that `check` looks at
//     check(p, s, planes)    AIB-E502 and AIB-E503 about the elements of these planes, by role
//     decode(p, s, planes)   the values, as float32
//
// `check` and `decode` get planes that are there, so their numbers fit a Number; the others may get any shape. A new
// scheme is a row of the table at the end.

import { BLOCK_SCHEMES } from './blocks.js';
import { FP4, NF4, NF4_CPU } from './fourbit.js';
import { GGML_SCHEMES, ORDERED_SCHEMES } from './ggml.js';
import {
  DTYPES, FLOATS, atLeast, f32, f32OfBigInt, isRowAbsmax, isScale, need, needValues, noneFrom, product, unpackedRows,
  up,
} from './numbers.js';

const rowsOf = (s) => s.slice(0, -1);

// plain.md

function plain({ name, bits }) {
  return {
    parameters: (p) => noneFrom(p, 0),
    takes: () => true,
    dtypes: [name],
    planes: (p, s, dtype) => [['values', dtype, [...s]]],
    checked: name === 'bool' || bits < 8 ? ['values'] : [],
    check(p, s, { values }) {
      if (name === 'bool') needValues(values, (x) => x <= 1, 'bool');
    },
    decode: (p, s, planes) => Array.from(planes.values, (x) => (typeof x === 'bigint' ? f32OfBigInt(x) : f32(x))),
  };
}

// int8.md

const INV127 = f32(1 / 127);

const INT8 = {
  parameters: (p) => noneFrom(p, 0),
  takes: atLeast(2),
  dtypes: FLOATS,
  planes: (p, s) => [['codes', 'i8', [...s]], ['row_absmax', 'f32', rowsOf(s)]],
  checked: ['row_absmax'],
  check: (p, s, planes) => needValues(planes.row_absmax, isRowAbsmax, 'row_absmax'),
  decode: (p, s, planes) => Array.from(planes.codes, (code, i) =>
    f32(f32(code * planes.row_absmax[Math.floor(i / s.at(-1))]) * INV127)),
};

// int8_affine.md and fp8.md

const TENSOR = 0xffffffff; // group=tensor

function scaleShape(group, s) {
  if (group === TENSOR) return [1];
  return [...rowsOf(s), group ? up(s.at(-1), group) : 1];
}

// Which scale element i has.
function scaleIndex(group, s, i) {
  if (group === TENSOR) return 0;
  const row = Math.floor(i / s.at(-1));
  return group ? row * up(s.at(-1), group) + Math.floor((i % s.at(-1)) / group) : row;
}

function affine(dtype, groups, zeroPoints) {
  return {
    parameters([group, ...rest]) {
      const multiple = groups && group >= 16 && group <= 65536 && group % 16 === 0;
      return (group === 0 || group === TENSOR || multiple) && noneFrom(rest, 0);
    },
    takes: atLeast(1),
    dtypes: FLOATS,
    planes([group], s) {
      const scales = scaleShape(group, s);
      const found = [['codes', dtype, [...s]], ['scale', 'f32', scales]];
      return zeroPoints ? [...found, ['zero_point', 'u8', scales]] : found;
    },
    checked: dtype === 'f8_e4m3' ? ['codes', 'scale'] : ['scale', 'zero_point'],
    check(p, s, { codes = [], scale, zero_point: zeros = [] }) {
      needValues(scale, isScale, 'scale');
      zeros.forEach((zero, i) => {
        need(scale[i] !== 0 || zero === 0, 'AIB-E502', () => `zero point ${zero} where scale ${i} is 0`);
      });
      need(!codes.some(Number.isNaN), 'AIB-E503', 'a code is NaN');
    },
    decode: ([group], s, { codes, scale, zero_point: zeros }) => Array.from(codes, (code, i) => {
      const j = scaleIndex(group, s, i);
      return f32((zeros ? code - zeros[j] : code) * scale[j]);
    }),
  };
}

// w8a8.md: parameter asymmetric

// The weight is that of int8-absmax by rows; the scale and the zero point of inputs have the same rules.
function w8a8(isStatic) {
  const weight = affine('i8', false, false);
  return {
    parameters: ([asymmetric, ...rest]) => asymmetric <= (isStatic ? 1 : 0) && noneFrom(rest, 0),
    takes: atLeast(2),
    dtypes: FLOATS,
    planes([asymmetric], s) {
      const matrices = [...s.slice(0, -2), 1];
      const found = weight.planes([0], s);
      if (isStatic) found.push(['input_scale', 'f32', matrices]);
      if (asymmetric) found.push(['input_zero_point', 'i8', matrices]);
      return found;
    },
    checked: ['scale', 'input_scale', 'input_zero_point'],
    check(p, s, { scale, input_scale: inputs = [], input_zero_point: zeros = [] }) {
      needValues(scale, isScale, 'scale');
      needValues(inputs, isScale, 'input_scale');
      zeros.forEach((zero, i) => {
        need(inputs[i] !== 0 || zero === 0, 'AIB-E502', () => `zero point ${zero} where the scale of inputs is 0`);
      });
    },
    decode: (p, s, planes) => weight.decode([0], s, planes),
  };
}

// int8_outlier.md

// How many rows are kept apart is parameter 1 of the scheme in version 1, and parameter 0 of the tensor since.
const outlier = (at) => ({
  parameters: (p) => p[0] >= 1 && p[0] <= 65535 && noneFrom(p, at === 1 ? 2 : 1),
  ofTensor: at === 1 ? 0 : 1,
  takes: (p, s) => s.length >= 2 && p[at] <= product(rowsOf(s)) && product(rowsOf(s)) <= 2 ** 32,
  dtypes: FLOATS,
  planes: (p, s) => [
    ...INT8.planes(p, s), ['outlier_index', 'u32', [p[at]]], ['outlier_values', 'f16', [p[at], s.at(-1)]],
  ],
  checked: ['codes', 'row_absmax', 'outlier_index', 'outlier_values'],
  check(p, s, planes) {
    INT8.check(p, s, planes);
    const { outlier_index: index, row_absmax: absmax, codes } = planes;
    const k = s.at(-1);
    const increasing = index.every((row, i) => i === 0 || index[i - 1] < row);
    need(increasing, 'AIB-E502', 'outlier_index is not strictly increasing');
    needValues(index, (row) => row < product(rowsOf(s)), 'outlier_index');
    needValues(planes.outlier_values, Number.isFinite, 'outlier_values');
    for (const row of index) {
      const free = absmax[row] === 0 && codes.subarray(row * k, (row + 1) * k).every((code) => code === 0);
      need(free, 'AIB-E502', () => `row ${row} is an outlier, and row_absmax or codes are not 0`);
    }
  },
  decode(p, s, planes) {
    const values = INT8.decode(p, s, planes);
    const k = s.at(-1);
    planes.outlier_index.forEach((row, m) => {
      for (let i = 0; i < k; i++) values[row * k + i] = planes.outlier_values[m * k + i];
    });
    return values;
  },
});

// cluster.md

const CLUSTER = {
  parameters: (p) => p[0] >= 2 && p[0] <= 8 && noneFrom(p, 1),
  takes: atLeast(1),
  dtypes: FLOATS,
  planes: ([bits], s) => [
    ['codes', 'u8', [...rowsOf(s), up(product([s.at(-1), bits]), 8)]], ['codebook', 'f32', [2 ** bits]],
  ],
  checked: ['codes', 'codebook'],
  check([bits], s, { codes, codebook }) {
    needValues(codebook, (x) => Math.abs(x) <= 65504 && !Object.is(x, -0), 'codebook');
    const largest = codebook.reduce((a, b) => Math.max(a, b));
    const used = codebook.indexOf(largest) + 1;
    const rises = codebook.every((x, i) => (i === 0 || i >= used ? i === 0 || x === largest : codebook[i - 1] < x));
    need(rises, 'AIB-E502', 'the codebook is not strictly increasing');
    const fits = unpackedRows(codes, bits, s).every((code) => code < used);
    need(fits, 'AIB-E503', 'a code of an entry that only repeats the largest value');
  },
  decode: ([bits], s, { codes, codebook }) => Array.from(unpackedRows(codes, bits, s), (code) => codebook[code]),
};

// cluster_group.md: parameters bits, group

const clusterGroups = ([, group], s) => up(s.at(-1), group || s.at(-1) || 1);

const CLUSTER_GROUP = {
  ...CLUSTER,
  parameters: (p) => p[0] >= 2 && p[0] <= 8 && p[1] <= 65536 && noneFrom(p, 2),
  planes(p, s) {
    const [codes, codebook] = CLUSTER.planes(p, s);
    return [codes, ['scale', 'f16', [...rowsOf(s), clusterGroups(p, s)]], codebook];
  },
  checked: ['codes', 'scale', 'codebook'],
  check(p, s, planes) {
    CLUSTER.check(p, s, planes);
    needValues(planes.scale, isScale, 'scale');
  },
  decode(p, s, planes) {
    const [k, groups] = [s.at(-1), clusterGroups(p, s)];
    return CLUSTER.decode(p, s, planes).map((value, i) => {
      const j = Math.floor(i / k) * groups + (p[1] ? Math.floor((i % k) / p[1]) : 0);
      return f32(value * planes.scale[j]);
    });
  },
};

// int4_group.md: parameters group, symmetric, ordered

const int4Groups = ([group], s) => up(s.at(-1), group || s.at(-1) || 1);

const INT4_GROUP = {
  parameters([group, symmetric, ordered, ...rest]) {
    const allowed = [0, 16, 32, 64, 128, 256, 512, 1024].includes(group) && symmetric <= 1 && ordered <= 1;
    return allowed && !(ordered && group === 0) && noneFrom(rest, 0);
  },
  takes: atLeast(2),
  dtypes: FLOATS,
  planes(p, s) {
    const scales = [...rowsOf(s), int4Groups(p, s)];
    const found = [['codes', 'u8', [...rowsOf(s), up(s.at(-1), 2)]], ['scale', 'f16', scales]];
    if (!p[1]) found.push(['zero_point', 'u8', scales]);
    if (p[2]) found.push(['group_index', 'i32', [s.at(-1)]]);
    return found;
  },
  checked: ['codes', 'scale', 'zero_point', 'group_index'],
  check(p, s, { codes, scale, zero_point: zeros = [], group_index: index = [] }) {
    needValues(scale, Number.isFinite, 'scale');
    needValues(zeros, (zero) => zero <= 16, 'zero_point');
    needValues(index, (group) => group >= 0 && group < int4Groups(p, s), 'group_index');
    unpackedRows(codes, 4, s);
  },
  decode(p, s, { codes, scale, zero_point: zeros, group_index: index }) {
    const groups = int4Groups(p, s);
    return Array.from(unpackedRows(codes, 4, s), (code, i) => {
      const [n, k] = [Math.floor(i / s.at(-1)), i % s.at(-1)];
      const j = n * groups + (index ? index[k] : p[0] ? Math.floor(k / p[0]) : 0);
      return f32((code - (zeros ? zeros[j] : 8)) * scale[j]);
    });
  },
};

const ROWS = [
  ...[...DTYPES.values()].map((dtype) => [dtype.name, plain(dtype)]),
  ['int8', INT8],
  ['int8-absmax', affine('i8', true, false)],
  ['int8-zp', affine('u8', true, true)],
  ['fp8-e4m3', affine('f8_e4m3', false, false)],
  ['int8-outlier', outlier(1)],
  ['int8-dynamic', w8a8(false)],
  ['int8-static', w8a8(true)],
  ['cluster', CLUSTER],
  ['cluster-group', CLUSTER_GROUP],
  ['int4-group', INT4_GROUP],
  ['nf4', NF4],
  ['fp4', FP4],
  ['nf4-cpu', NF4_CPU],
  ...GGML_SCHEMES,
  ...BLOCK_SCHEMES,
];
const SCHEMES = new Map([
  ...ROWS.map(([name, scheme]) => [`${name} 1`, scheme]),
  ['int8-outlier 2', outlier(6)],
  ...ORDERED_SCHEMES.map(([name, scheme]) => [`${name} 2`, scheme]),
]);
export const SCHEME_NAMES = [...SCHEMES.keys()]; // with their versions

// The scheme of this name and version, or nothing.
export const schemeOf = (name, version) => SCHEMES.get(`${name} ${version}`);
