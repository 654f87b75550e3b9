// Rules, whole numbers, records and dtypes of `.aibit`: sections 1, 10 and 16 of spec/aibit-1.md.
//
// A whole number of a file is a Number up to 2^53 - 1 and a BigInt beyond, so that none is ever rounded. JavaScript
// compares the two exactly. Calculations with one that may be large use `product`, `up`, `divided` and `remainder`.

export class RuleError extends Error {
  constructor(code, reason) {
    super(`${code}: ${reason}`);
    this.name = 'RuleError';
    this.code = code;
  }
}

// `reason` may be a function, where making the text costs more than the check.
export function need(holds, code, reason) {
  if (!holds) throw new RuleError(code, typeof reason === 'function' ? reason() : reason);
}

// Whole numbers

export function whole(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : BigInt(value);
}

export const product = (numbers) => whole(numbers.reduce((a, b) => a * BigInt(b), 1n));

// a / b, rounded down, rounded up, and what remains.
export const divided = (a, b) => whole(BigInt(a) / BigInt(b));
export const remainder = (a, b) => Number(BigInt(a) % BigInt(b));
export const up = (a, b) => whole((BigInt(a) + BigInt(b) - 1n) / BigInt(b));

// Of Numbers below 2^52 alone: places in a file that is there.
export const align = (x, a) => Math.ceil(x / a) * a;

export const isArrayEqual = (a, b) => a.length === b.length && a.every((item, i) => item === b[i]);

// Records

export const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
export const ascii = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');
export const isZero = (bytes) => bytes.every((byte) => byte === 0);

function unsigned64(view, at) {
  const high = view.getUint32(at + 4, true);
  return high < 1 << 21 ? high * 2 ** 32 + view.getUint32(at, true) : view.getBigUint64(at, true);
}

const LETTERS = {
  B: [1, (view, at) => view.getUint8(at)],
  H: [2, (view, at) => view.getUint16(at, true)],
  I: [4, (view, at) => view.getUint32(at, true)],
  Q: [8, unsigned64],
};

// A record's fields from text like Python's struct: "2s - I count 8Q shape" is two reserved bytes, a u32 and eight u64.
// Reserved bytes are called "-"; of others `s` gives the bytes.
export function layout(text) {
  const parts = text.split(' ');
  const fields = [];
  let size = 0;
  for (let i = 0; i < parts.length; i += 2) {
    const [, count, letter] = parts[i].match(/^(\d*)([sBHIQ])$/);
    const [width, read] = LETTERS[letter] || [1, null];
    fields.push({ name: parts[i + 1], at: size, count: count ? Number(count) : null, width, read });
    size += width * (count || 1);
  }
  return { fields, size };
}

// The fields of a record by name. Reserved bytes must be zero (the code `reserved`) and are dropped.
export function unpack({ fields, size }, bytes, start, reserved) {
  const view = viewOf(bytes.subarray(start, start + size));
  const record = {};
  for (const { name, at, count, width, read } of fields) {
    if (!read) {
      const piece = bytes.subarray(start + at, start + at + count);
      if (name === '-') need(isZero(piece), reserved, 'reserved bytes are not zero');
      else record[name] = piece;
    } else if (count === null) record[name] = read(view, at);
    else record[name] = Array.from({ length: count }, (_, i) => read(view, at + width * i));
  }
  return record;
}

// Dtypes

// A float of `exponentBits` and `fractionBits`, and a sign: f16 and the OCP floats of at most 8 bits. `special` says
// whether it has infinities and NaN, NaN alone or neither.
function small(code, exponentBits, fractionBits, special) {
  const top = (1 << exponentBits) - 1;
  const bias = top >> 1;
  const sign = code >> (exponentBits + fractionBits) ? -1 : 1;
  const exponent = (code >> fractionBits) & top;
  const fraction = code & ((1 << fractionBits) - 1);
  if (special === 'infinity' && exponent === top) return fraction ? NaN : sign * Infinity;
  if (special === 'nan' && exponent === top && fraction === (1 << fractionBits) - 1) return NaN;
  const significand = fraction + (exponent ? 1 << fractionBits : 0);
  return sign * significand * 2 ** (Math.max(exponent, 1) - bias - fractionBits);
}

const table = (read) => {
  const values = Float32Array.from({ length: 256 }, (_, code) => read(code));
  return (view, at) => values[view.getUint8(at)];
};

const word = new DataView(new ArrayBuffer(4));

function bf16(view, at) {
  word.setUint32(0, view.getUint16(at, true) << 16);
  return word.getFloat32(0);
}

// float32 to the bits of bfloat16, to nearest with ties to even.
export function bf16Bits(x) {
  word.setFloat32(0, x);
  const bits = word.getUint32(0);
  return Math.floor((bits + 0x7fff + ((bits >>> 16) & 1)) / 65536);
}

const B = LETTERS.B[1];
const signed = (bits) => (code) => (code >> (bits - 1) ? code - (1 << bits) : code);

// Bits of an element, how one is read, and what an array of them is. In the order of their codes, from 1. One of less
// than a byte is read from a row's codes, one a byte.
const ROWS = [
  ['bool', 8, B, Uint8Array],
  ['u8', 8, B, Uint8Array],
  ['i8', 8, (view, at) => view.getInt8(at), Int8Array],
  ['u16', 16, LETTERS.H[1], Uint16Array],
  ['i16', 16, (view, at) => view.getInt16(at, true), Int16Array],
  ['u32', 32, LETTERS.I[1], Uint32Array],
  ['i32', 32, (view, at) => view.getInt32(at, true), Int32Array],
  ['u64', 64, (view, at) => view.getBigUint64(at, true), BigUint64Array],
  ['i64', 64, (view, at) => view.getBigInt64(at, true), BigInt64Array],
  ['f16', 16, (view, at) => small(view.getUint16(at, true), 5, 10, 'infinity'), Float32Array],
  ['bf16', 16, bf16, Float32Array],
  ['f32', 32, (view, at) => view.getFloat32(at, true), Float32Array],
  ['f64', 64, (view, at) => view.getFloat64(at, true), Float64Array],
  ['f8_e4m3', 8, table((code) => small(code, 4, 3, 'nan')), Float32Array],
  ['f8_e5m2', 8, table((code) => small(code, 5, 2, 'infinity')), Float32Array],
  ['f8_e8m0', 8, table((code) => (code < 255 ? 2 ** (code - 127) : NaN)), Float32Array],
  null, // 17 stands for nothing
  ['f4_e2m1', 4, table((code) => small(code & 15, 2, 1)), Float32Array],
  ['u4', 4, B, Uint8Array],
  ['i4', 4, table((code) => signed(4)(code & 15)), Int8Array],
  ['u2', 2, B, Uint8Array],
  ['i2', 2, table((code) => signed(2)(code & 3)), Int8Array],
  ['u1', 1, B, Uint8Array],
  ['f6_e2m3', 6, table((code) => small(code & 63, 2, 3)), Float32Array],
  ['f6_e3m2', 6, table((code) => small(code & 63, 3, 2)), Float32Array],
  ['u3', 3, B, Uint8Array],
  ['u5', 5, B, Uint8Array],
  ['u6', 6, B, Uint8Array],
];
export const DTYPES = new Map(
  ROWS.map((row, i) => [i + 1, row]).filter(([, row]) => row)
    .map(([code, [name, bits, read, List]]) => [code, { code, name, bits, read, List }]),
);
export const BY_NAME = new Map([...DTYPES.values()].map((dtype) => [dtype.name, dtype]));
export const FLOATS = ['f16', 'bf16', 'f32']; // the logical dtypes that can be quantized

const columnsOf = (shape) => (shape.length ? shape.at(-1) : 1);

// The bytes of a plane; rows of less than a byte an element are whole bytes each.
export function planeLength(dtype, shape) {
  const { bits } = BY_NAME.get(dtype);
  if (bits >= 8) return product([...shape, bits / 8]);
  return product([...shape.slice(0, -1), up(product([columnsOf(shape), bits]), 8)]);
}

// The elements of a plane as numbers.
export function elements(dtype, plane, shape) {
  const { bits, read, List } = BY_NAME.get(dtype);
  const bytes = bits < 8 ? packedCodes(plane, bits, columnsOf(shape)) : plane;
  const view = viewOf(bytes);
  const width = Math.max(bits, 8) / 8;
  const found = new List(bytes.length / width);
  for (let i = 0; i < found.length; i++) found[i] = read(view, width * i);
  return found;
}

// Codes of less than a byte, one a byte: code i of a row is in its bits from bits * i on, of which the first are the
// lowest of the first byte (AIB-E503: what follows the last code of a row is zero).
function packedCodes(bytes, bits, columns) {
  if (bytes.length === 0) return bytes; // whatever its shape says
  const width = Math.ceil((columns * bits) / 8);
  const rows = bytes.length / width;
  const codes = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    let [held, have, at] = [0, 0, row * width];
    for (let i = 0; i < columns; i++) {
      if (have < bits) {
        held |= bytes[at++] << have;
        have += 8;
      }
      codes[row * columns + i] = held & ((1 << bits) - 1);
      held >>= bits;
      have -= bits;
    }
    need(held === 0, 'AIB-E503', () => `bits after the last code of row ${row} are not zero`);
  }
  return codes;
}

export const half = (bytes, at) => small(viewOf(bytes).getUint16(at, true), 5, 10, 'infinity');

// The float32 nearest to an integer of 64 bits. What lies below its 53 highest bits counts only as zero or not.
export function f32OfBigInt(n) {
  const magnitude = n < 0n ? -n : n;
  const low = BigInt(Math.max(magnitude.toString(2).length - 53, 0));
  const kept = (magnitude >> low) | (magnitude & ((1n << low) - 1n) ? 1n : 0n);
  return Math.fround((n < 0n ? -1 : 1) * Number(kept) * 2 ** Number(low));
}

// What schemes share

export const f32 = Math.fround;
export const noneFrom = (p, i) => p.slice(i).every((x) => x === 0);
export const atLeast = (rank) => (p, s) => s.length >= rank;

export function needValues(values, allowed, what) {
  for (let i = 0; i < values.length; i++) {
    if (!allowed(values[i])) throw new RuleError('AIB-E502', `${what} ${i} is ${values[i]}`);
  }
}

export const isAbsmax = (x) => Number.isFinite(x) && (x > 0 || Object.is(x, 0));
export const isRowAbsmax = (x) => isAbsmax(x) && x <= 65504;
export const isScale = (x) => Object.is(x, 0) || (x >= 2 ** -126 && x <= 2 ** 119);

// Codes from the highest bits down; bits that are left over come last, as one more.
export function unpacked(bytes, bits) {
  const all = 8 * bytes.length;
  const codes = new Uint8Array(Math.ceil(all / bits));
  let [held, have, n] = [0, 0, 0];
  for (let i = 0; i < bytes.length; i++) {
    held = (held << 8) | bytes[i];
    have += 8;
    while (have >= bits) {
      have -= bits;
      codes[n++] = held >> have;
      held &= (1 << have) - 1;
    }
  }
  if (have) codes[n] = held;
  return codes;
}

// Codes of rows that start a byte each (AIB-E503: what follows them is zero).
export function unpackedRows(bytes, bits, shape) {
  if (bytes.length === 0) return bytes; // whatever its shape says
  const length = shape.at(-1);
  const width = Math.ceil((length * bits) / 8);
  const rows = bytes.length / width;
  const codes = new Uint8Array(rows * length);
  for (let i = 0; i < rows; i++) {
    const row = unpacked(bytes.subarray(i * width, (i + 1) * width), bits);
    need(isZero(row.subarray(length)), 'AIB-E503', () => `bits after the last code of row ${i} are not zero`);
    codes.set(row.subarray(0, length), i * length);
  }
  return codes;
}
