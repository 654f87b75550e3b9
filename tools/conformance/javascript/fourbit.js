// The schemes `nf4`, `fp4` and `nf4-cpu`: spec/schemes/fourbit.md and nf4_cpu.md.

import {
  FLOATS, atLeast, bf16Bits, divided, f32, isAbsmax, isArrayEqual, need, needValues, noneFrom, product, remainder,
  unpacked, up,
} from './numbers.js';

// fourbit.md: parameters block_size, nested

const NF4_BITS = [
  0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000, 0x3da2faff,
  0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000,
];
const NF4_BOOK = new Float32Array(Uint32Array.from(NF4_BITS).buffer);
// Code 8 is zero like code 0, not minus zero: adding 0 makes it so.
const FP4_BOOK = [1, -1].flatMap((sign) => [0, 1 / 16, 8, 12, 4, 6, 2, 3].map((x) => f32((sign * x) / 12) + 0));

// The values of the codes of nested scales.
function nestedMap() {
  const values = [0, 1];
  const tenth = f32(0.1);
  for (let p = 0; p < 7; p++) {
    const n = 2 ** p;
    const step = f32(f32(1 - tenth) / n);
    const edges = Array.from({ length: n + 1 }, (_, i) =>
      f32(i < Math.floor((n + 1) / 2) ? tenth + step * i : 1 - step * (n - i)));
    for (let i = 0; i < n; i++) {
      const middle = f32(f32(10 ** (p - 6)) * f32(f32(edges[i] + edges[i + 1]) / 2));
      values.push(middle, -middle);
    }
  }
  return values.sort((a, b) => a - b);
}

export const NESTED = nestedMap();

function fourbitScales(p, planes) {
  if (!p[1]) return planes.absmax;
  const { absmax, nested_absmax: groups, nested_offset: offset } = planes;
  return Float32Array.from(absmax, (code, j) => f32(NESTED[code] * groups[j >> 8]) + offset[0]);
}

function fourbit(book) {
  return {
    parameters: (p) => [32, 64, 128, 256, 512, 1024, 2048, 4096].includes(p[0]) && p[1] <= 1 && noneFrom(p, 2),
    takes: atLeast(1),
    dtypes: FLOATS,
    planes([size, nested], s) {
      const blocks = up(product(s), size);
      const codes = ['codes', 'u8', [up(product(s), 2)]];
      if (!nested) return [codes, ['absmax', 'f32', [blocks]]];
      return [
        codes, ['absmax', 'u8', [blocks]], ['nested_absmax', 'f32', [up(blocks, 256)]], ['nested_offset', 'f32', [1]],
      ];
    },
    checked: ['absmax', 'nested_absmax', 'nested_offset'],
    check(p, s, planes) {
      const role = p[1] ? 'nested_absmax' : 'absmax';
      needValues(planes[role], isAbsmax, role);
      needValues(planes.nested_offset || [], Number.isFinite, 'nested_offset');
    },
    decode(p, s, planes) {
      const scales = fourbitScales(p, planes);
      const codes = unpacked(planes.codes, 4);
      return Array.from({ length: product(s) }, (_, i) => f32(book[codes[i]] * scales[Math.floor(i / p[0])]));
    },
  };
}

export const NF4 = fourbit(NF4_BOOK);
export const FP4 = fourbit(FP4_BOOK);

// nf4_cpu.md

export const NF4_CPU = {
  ...NF4,
  takes: (p, s) =>
    s.length === 2 && [[s[0], 32], [s[1], 64], [s[1], p[0]]].every(([size, unit]) => remainder(size, unit) === 0),
  planes: (p, [n, k], dtype) => [
    ...NF4.planes(p, [n, k], dtype),
    ['tiles', 'u8', [n, divided(k, 2)]],
    ['tile_absmax', 'bf16', [divided(k, p[0]), n]],
  ],
  checked: ['codes', 'absmax', 'nested_absmax', 'nested_offset', 'tiles', 'tile_absmax'],
  check(p, [n, k], planes) {
    NF4.check(p, [n, k], planes);
    needValues(planes.tile_absmax, Number.isFinite, 'tile_absmax');
    const codes = unpacked(planes.codes, 4);
    const tiles = new Uint8Array((n * k) / 2);
    let at = 0;
    for (let g = 0; g < n; g += 32) {
      for (let pair = 0; pair < k; pair += 2) {
        const code = (i) => codes[(g + (i >> 1)) * k + pair + (i & 1)];
        for (let i = 0; i < 32; i++) tiles[at++] = code(i) | (code(i + 32) << 4);
      }
    }
    need(isArrayEqual(tiles, planes.tiles), 'AIB-E503', 'tiles are not the codes in the order of tiles');
    const scales = fourbitScales(p, planes);
    const blocks = k / p[0];
    const scale = (i) => scales[(i % n) * blocks + Math.floor(i / n)];
    const right = planes.tile_absmax.every((x, i) => bf16Bits(x) === bf16Bits(scale(i)));
    need(right, 'AIB-E503', 'tile_absmax are not the scales in bfloat16');
  },
};
