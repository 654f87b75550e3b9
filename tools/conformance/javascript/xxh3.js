// XXH3 with seed 0 and the default secret, as far as `.aibit` needs it:
//
//     xxh3_64(bytes) -> BigInt       any length: the leaves of a file
//     xxh3_128(bytes) -> Uint8Array  more than 240 bytes, canonical form: its root, which covers 368 or more
//
// Written from the description that xxHash publishes (doc/xxhash_spec.md). Long inputs are accumulated in halves of 32
// bits, at hundreds of MiB a second; what happens once for each input is in BigInt, which is easier to read.

const SECRET = Uint8Array.from(
  (
    'b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221' +
    'b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8' +
    'a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb' +
    '170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e'
  ).match(/../g),
  (pair) => parseInt(pair, 16),
);
const P32 = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn];
const P64 = [
  0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x85ebca77c2b2ae63n, 0x27d4eb2f165667c5n,
];
const STRIPE = 64; // bytes that are added to the lanes at a time
const BLOCK = 16; // stripes between two scramblings

const wrap = (value) => BigInt.asUintN(64, value);
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const u32 = (view, at) => BigInt(view.getUint32(at, true));
const u64 = (view, at) => view.getBigUint64(at, true);
const secret = viewOf(SECRET);
const key = (at) => u64(secret, at);

function swapped(value) {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, value, true);
  return view.getBigUint64(0);
}

const rotated = (value, bits) => wrap(value << bits) | (value >> (64n - bits));

// The halves of the 128-bit product, one on the other.
function folded(a, b) {
  const product = a * b;
  return wrap(product) ^ (product >> 64n);
}

function avalanche(h) {
  h = wrap((h ^ (h >> 37n)) * 0x165667919e3779f9n);
  return h ^ (h >> 32n);
}

// The finish of XXH64, which the shortest inputs get.
function avalanche64(h) {
  h = wrap((h ^ (h >> 33n)) * P64[1]);
  h = wrap((h ^ (h >> 29n)) * P64[2]);
  return h ^ (h >> 32n);
}

const mix = (view, at, from) => folded(u64(view, at) ^ key(from), u64(view, at + 8) ^ key(from + 8));

function upTo16(view, size) {
  const n = BigInt(size);
  if (size > 8) {
    const low = u64(view, 0) ^ key(24) ^ key(32);
    const high = u64(view, size - 8) ^ key(40) ^ key(48);
    return avalanche(wrap(n + swapped(low) + high + folded(low, high)));
  }
  if (size > 3) {
    let h = (u32(view, size - 4) + (u32(view, 0) << 32n)) ^ key(8) ^ key(16);
    h = wrap((h ^ rotated(h, 49n) ^ rotated(h, 24n)) * 0x9fb21c651e98df25n);
    h = wrap((h ^ ((h >> 35n) + n)) * 0x9fb21c651e98df25n);
    return h ^ (h >> 28n);
  }
  if (size) {
    const byte = (at) => BigInt(view.getUint8(at));
    const h = (byte(0) << 16n) | (byte(size >> 1) << 24n) | byte(size - 1) | (n << 8n);
    return avalanche64(h ^ u32(secret, 0) ^ u32(secret, 4));
  }
  return avalanche64(key(56) ^ key(64));
}

function upTo128(view, size) {
  let h = BigInt(size) * P64[0];
  for (let i = 0; i <= (size - 1) >> 5; i++) {
    h += mix(view, 16 * i, 32 * i) + mix(view, size - 16 * (i + 1), 32 * i + 16); // from both ends inwards
  }
  return avalanche(wrap(h));
}

function upTo240(view, size) {
  let h = BigInt(size) * P64[0];
  for (let i = 0; i < 8; i++) h += mix(view, 16 * i, 16 * i);
  h = avalanche(wrap(h));
  for (let i = 8; i < size >> 4; i++) h += mix(view, 16 * i, 16 * (i - 8) + 3);
  return avalanche(wrap(h + mix(view, size - 16, 136 - 17)));
}

export function xxh3_64(bytes) {
  const size = bytes.length;
  if (size > 240) return merged(accumulated(bytes), 11, BigInt(size) * P64[0]);
  const view = viewOf(bytes);
  return size > 128 ? upTo240(view, size) : size > 16 ? upTo128(view, size) : upTo16(view, size);
}

export function xxh3_128(bytes) {
  const size = bytes.length;
  if (size <= 240) throw new RangeError(`${size} bytes: below 241 there is another formula, which no root needs`);
  const lanes = accumulated(bytes);
  const root = new DataView(new ArrayBuffer(16));
  root.setBigUint64(0, merged(lanes, 192 - 64 - 11, ~(BigInt(size) * P64[1])));
  root.setBigUint64(8, merged(lanes, 11, BigInt(size) * P64[0]));
  return new Uint8Array(root.buffer);
}

// Long inputs: eight lanes of 64 bits, as pairs of 32-bit words, the lower one first.

// 32-bit words of some bytes, little-endian.
function words(bytes) {
  const view = viewOf(bytes);
  return Int32Array.from({ length: bytes.length >> 2 }, (_, i) => view.getInt32(4 * i, true));
}

const LITTLE = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;
const KEYS = words(SECRET);
const LAST_KEYS = words(SECRET.subarray(192 - STRIPE - 7, 192 - 7));
const PRIME = Number(P32[0]) | 0;
const START = new BigUint64Array([P32[2], ...P64.slice(0, 4), P32[1], P64[4], P32[0]]);

function accumulated(bytes) {
  const lanes = new Int32Array(16);
  START.forEach((lane, i) => {
    lanes[2 * i] = Number(lane & 0xffffffffn);
    lanes[2 * i + 1] = Number(lane >> 32n);
  });
  const size = bytes.length;
  const stripes = Math.floor((size - 1) / STRIPE);
  const whole = bytes.byteOffset % 4 ? bytes.slice() : bytes;
  const data = LITTLE ? new Int32Array(whole.buffer, whole.byteOffset, size >> 2) : words(whole);
  for (let i = 0; i < stripes; i++) {
    add(lanes, data, (STRIPE / 4) * i, KEYS, 2 * (i % BLOCK));
    if (i % BLOCK === BLOCK - 1) scramble(lanes);
  }
  add(lanes, words(bytes.subarray(size - STRIPE)), 0, LAST_KEYS, 0);
  return lanes;
}

// One stripe: each value to its neighbour, and to its own lane the product of its halves, keyed.
function add(lanes, data, at, keys, from) {
  for (let i = 0; i < 16; i += 2) {
    const low = data[at + i];
    const high = data[at + i + 1];
    const neighbour = i ^ 2;
    const sum = (lanes[neighbour] + low) | 0;
    lanes[neighbour + 1] += high + (sum >>> 0 < low >>> 0 ? 1 : 0);
    lanes[neighbour] = sum;
    const a = low ^ keys[from + i];
    const b = high ^ keys[from + i + 1];
    const product = Math.imul(a, b);
    const own = (lanes[i] + product) | 0;
    lanes[i + 1] += upper(a, b) + (own >>> 0 < product >>> 0 ? 1 : 0);
    lanes[i] = own;
  }
}

function scramble(lanes) {
  for (let i = 0; i < 16; i += 2) {
    const low = lanes[i] ^ (lanes[i + 1] >>> 15) ^ KEYS[32 + i];
    const high = lanes[i + 1] ^ KEYS[33 + i];
    lanes[i] = Math.imul(low, PRIME);
    lanes[i + 1] = upper(low, PRIME) + Math.imul(high, PRIME);
  }
}

// The upper half of the product of two words without sign.
function upper(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const lowHigh = Math.imul(aLow, bHigh);
  const highLow = Math.imul(aHigh, bLow);
  const middle = (Math.imul(aLow, bLow) >>> 16) + (lowHigh & 0xffff) + (highLow & 0xffff);
  return (Math.imul(aHigh, bHigh) + (lowHigh >>> 16) + (highLow >>> 16) + (middle >>> 16)) | 0;
}

function merged(lanes, from, start) {
  const lane = (i) => BigInt.asUintN(32, BigInt(lanes[2 * i])) | (BigInt.asUintN(32, BigInt(lanes[2 * i + 1])) << 32n);
  let h = start;
  for (let i = 0; i < 8; i += 2) h += folded(lane(i) ^ key(from + 8 * i), lane(i + 1) ^ key(from + 8 * (i + 1)));
  return avalanche(wrap(h));
}
