// Names, metadata and signatures: sections 5, 6, 20, 24 and 25 of spec/aibit-1.md.

import { RuleError, ascii, hex, isArrayEqual, isZero, layout, need, unpack, viewOf, whole } from './numbers.js';

// 5. Metadata

const TYPES = new Map([[1, 'int'], [2, 'float'], [3, 'bool'], [4, 'string'], [5, 'bytes']]);
const KEY = /^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$/;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/;
const MOST_STRINGS = 1 << 20;
const ENTRY = layout('H keyLength B kind B isArray I count Q length');

// Bytes of one value, and how it is read. Others have lengths of their own.
const FIXED = {
  int: [8, (view, at) => whole(view.getBigInt64(at, true))],
  float: [8, (view, at, key) => {
    const value = view.getFloat64(at, true);
    need(Number.isFinite(value), 'AIB-E307', () => `${key}: ${value}`);
    return value;
  }],
  bool: [1, (view, at, key) => {
    const value = view.getUint8(at);
    need(value <= 1, 'AIB-E306', () => `${key}: bool ${value}`);
    return value === 1;
  }],
};
const OTHERS = { string: text, bytes: hex };

function text(bytes) {
  let string;
  try {
    string = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new RuleError('AIB-E206', `${hex(bytes.subarray(0, 32))} is not UTF-8`);
  }
  need(!CONTROL.test(string), 'AIB-E207', () => `a control character in ${JSON.stringify(string)}`);
  return string;
}

// A map from key to { type, isArray, value }.
export function readMetadata(body, count) {
  const found = new Map();
  let [at, strings, last] = [0, 0, ''];
  while (at < body.length) {
    need(body.length - at >= ENTRY.size, 'AIB-E301', 'the head of an entry is cut off');
    const { keyLength, kind, isArray, count: items, length } = unpack(ENTRY, body, at);
    at += ENTRY.size;
    need(keyLength <= body.length - at, 'AIB-E301', 'a key ends beyond the section');
    const key = ascii(body.subarray(at, at + keyLength));
    at += keyLength;
    need(KEY.test(key) && keyLength <= 255, 'AIB-E302', () => `key ${JSON.stringify(key)}`);
    need(key > last, 'AIB-E303', () => `key ${key} after ${last}`);
    need(TYPES.has(kind), 'AIB-E304', () => `${key}: type ${kind}`);
    need(length <= body.length - at, 'AIB-E301', () => `${key} ends beyond the section`);
    need(isArray <= 1 && (isArray || items === 1), 'AIB-E305', () => `${key}: is_array ${isArray}, count ${items}`);
    need(items > 0 || kind === 1 || length, 'AIB-E308', () => `${key}: an empty array of type ${kind}`);
    const type = TYPES.get(kind);
    if (!FIXED[type]) strings += items;
    need(strings <= MOST_STRINGS, 'AIB-E305', 'more than 2^20 strings');
    const value = valuesOf(type, body.subarray(at, at + length), items, isArray, key);
    found.set(key, { type, isArray: isArray === 1, value: isArray ? value : value[0] });
    at += length;
    last = key;
  }
  need(found.size === count, 'AIB-E203', () => `${found.size} metadata entries, and ${count} declared`);
  return found;
}

function valuesOf(type, bytes, count, isArray, key) {
  const values = [];
  const view = viewOf(bytes);
  if (FIXED[type]) {
    const [width, read] = FIXED[type];
    need(bytes.length === count * width, 'AIB-E305', () => `${key}: ${count} values in ${bytes.length} bytes`);
    for (let i = 0; i < count; i++) values.push(read(view, width * i, key));
    return values;
  }
  let at = 0;
  for (let i = 0; i < count; i++) {
    let size = bytes.length;
    if (isArray) {
      need(bytes.length - at >= 4, 'AIB-E305', () => `${key}: no more room for a length`);
      size = view.getUint32(at, true);
      at += 4;
    }
    need(size <= bytes.length - at, 'AIB-E305', () => `${key}: an item ends beyond its value`);
    values.push(OTHERS[type](bytes.subarray(at, at + size)));
    at += size;
  }
  need(at === bytes.length, 'AIB-E305', () => `${key}: ${bytes.length - at} bytes after the last item`);
  return values;
}

// 6. Names, each a string of bytes

const DOCUMENT = /^[A-Za-z0-9_][A-Za-z0-9_.+-]*(\/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$/;
const DEVICE = /(^|\/)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\/|$)/i;

export const NAMES = {
  schemes: ['AIB-E213', (name) => /^[a-z][a-z0-9_]*([-.:][a-z0-9_]+)*$/.test(name)],
  documents: ['AIB-E701', (name) => DOCUMENT.test(name) && !DEVICE.test(name) && !`${name}/`.includes('./')],
  tensors: ['AIB-E214', (name) => /^(?!__)[!#-&(-[\]-~]+$/.test(name)],
};

// 20. Known metadata keys

const KNOWN = [
  ['string', false, 'model.architecture model.type model.dtype model.missing source.kind tool.name tool.version' +
    ' quantization.compute_dtype'],
  ['string', true, 'source.files source.xxh3_128 tool.libraries config.dropped_keys quantization.recipe shard.roots' +
    ' vocabulary.source pruning.applied pruning.scores pruning.kept.kind'],
  ['int', false, 'model.parameters shard.index shard.count vocabulary.size'],
  ['int', true, 'source.sizes quantization.error.tensor shard.places pruning.kept.step pruning.kept.layer' +
    ' pruning.kept.expert pruning.kept.count'],
  ['float', false, 'quantization.outlier_threshold'],
  ['float', true, 'quantization.error.relative_rms quantization.error.largest quantization.error.signal_to_noise_db'],
];
export const TYPE_OF = new Map(
  KNOWN.flatMap(([type, isArray, keys]) => keys.split(' ').map((key) => [key, { type, isArray }])),
);
const PARALLEL = [
  ['source.files', 'source.sizes', 'source.xxh3_128'],
  ['tensor', 'relative_rms', 'largest', 'signal_to_noise_db'].map((name) => `quantization.error.${name}`),
  ['pruning.applied', 'pruning.scores'],
  ['step', 'kind', 'layer', 'expert', 'count'].map((name) => `pruning.kept.${name}`),
];

// The document that says which rows of a larger vocabulary a model has.
export const KEPT = 'vocabulary.kept';
// The one that says which layers, channels, heads and experts of a larger model it has.
export const NUMBERS = 'pruning.kept';

// The rules about these keys, and what they must agree with: documents with their lengths, elements and tensors.
export function checkKnownKeys(metadata, documents, parameters, tensors) {
  for (const [key, { type, isArray, value }] of metadata) {
    const kind = TYPE_OF.get(key);
    const isEmpty = kind && kind.isArray && isArray && value.length === 0;
    const right = !kind || isEmpty || (kind.type === type && kind.isArray === isArray);
    need(right, 'AIB-E309', () => `${key} is ${isArray ? 'an array of' : 'one'} ${type}`);
  }
  const valueOf = (key, other) => (metadata.has(key) ? metadata.get(key).value : other);
  const hasConfig = !metadata.has('model.architecture') || documents.has('config.json');
  need(hasConfig, 'AIB-E310', 'model.architecture, and no config.json');
  for (const keys of PARALLEL) {
    const lengths = keys.map((key) => valueOf(key, { length: 'none' }).length);
    need(new Set(lengths).size === 1, 'AIB-E310', () => `${keys.join(', ')}: lengths ${lengths}`);
  }
  const [rows, length] = [valueOf('vocabulary.size', null), documents.get(KEPT) ?? null];
  need((rows === null) === (length === null), 'AIB-E310', `vocabulary.size and ${KEPT}, one without the other`);
  const whole = rows === null || (length % 4 === 0 && length >= 4 && length / 4 <= rows);
  need(whole, 'AIB-E310', () => `${KEPT}: ${length} bytes, of ${rows} rows`);
  const [counts, size] = [valueOf('pruning.kept.count', null), documents.get(NUMBERS) ?? null];
  need((counts === null) === (size === null), 'AIB-E310', `pruning.kept.count and ${NUMBERS}, one without the other`);
  const some = counts === null || (counts.length > 0 && counts.every((count) => count >= 1));
  const fits = counts === null || 4 * counts.reduce((sum, count) => sum + Number(count), 0) === size;
  need(some && fits, 'AIB-E310', () => `${NUMBERS}: ${size} bytes, of ${counts} numbers`);
  // In a shard, what is said of all tensors is said of those of the set.
  if ([...metadata.keys()].some((key) => key.startsWith('shard.'))) return checkShard(metadata, valueOf, documents);
  const agrees = valueOf('model.parameters', parameters) === parameters;
  need(agrees, 'AIB-E310', () => `model.parameters, and the file has ${parameters}`);
  const places = valueOf('quantization.error.tensor', []);
  need(places.every((i) => i >= 0 && i < tensors), 'AIB-E310', 'quantization.error.tensor: no such tensor');
}

export function checkNumbers(bytes, counts) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  for (const count of counts) {
    for (let i = 0, before = -1; i < count; i++, at += 4) {
      const number = view.getUint32(at, true);
      need(number > before, 'AIB-E707', () => `${NUMBERS}: ${number} after ${before}`);
      before = number;
    }
  }
}

export function checkKept(bytes, rows) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let before = -1;
  for (let at = 0; at < view.byteLength; at += 4) {
    const id = view.getUint32(at, true);
    need(id > before && id < rows, 'AIB-E707', () => `${KEPT}: id ${id} after ${before}, of ${rows}`);
    before = id;
  }
}

// 25. Sharded models: what one file says of the set that it belongs to

function checkShard(metadata, valueOf, documents) {
  const [index, count] = [valueOf('shard.index', 0), valueOf('shard.count', 0)];
  need(index >= 1 && index <= count && count <= 99999, 'AIB-E609', () => `shard ${index} of ${count}`);
  if (index === 1) {
    const roots = valueOf('shard.roots', null);
    need(roots && metadata.has('shard.places'), 'AIB-E609', 'shard.roots or shard.places is missing');
    const right = roots.length === count - 1 && roots.every((root) => /^[0-9a-f]{32}$/.test(root));
    need(right, 'AIB-E609', () => `shard.roots are ${JSON.stringify(roots)}`);
  } else {
    const others = [...metadata.keys()].filter((key) => key !== 'shard.index' && key !== 'shard.count');
    const found = [...others, ...documents];
    need(found.length === 0, 'AIB-E609', () => `${found.slice(0, 5).join(', ')} belong in the first shard`);
  }
}

// 24. Signatures: their shape. Whether one is right is for those who demand it.

const SIGNATURE = layout('H algorithm 6s - 32s key 64s signature');
const MOST_SIGNATURES = 8;

// Those of a section that are in use, in hex.
function signaturesIn({ body, count }, wanted) {
  const { size } = SIGNATURE;
  const right = count === MOST_SIGNATURES && body.length === MOST_SIGNATURES * size;
  need(right, 'AIB-E604', () => `${count} signatures in ${body.length} bytes, not 8 in 832`);
  const records = Array.from({ length: count }, (_, i) => unpack(SIGNATURE, body, i * size, 'AIB-E604'));
  const used = records.filter(({ algorithm }) => algorithm !== 0);
  const known = used.length > 0 && used.every(({ algorithm }) => algorithm === wanted);
  need(known, 'AIB-E604', `no signature, or an algorithm that is not ${wanted}`);
  need(isZero(body.subarray(size * used.length)), 'AIB-E604', 'records that are not used are not zero, or not last');
  const found = used.map(({ algorithm, key, signature }) => ({ algorithm, key: hex(key), signature: hex(signature) }));
  const keys = found.map(({ key }) => key);
  need(isArrayEqual(keys, [...new Set(keys)].sort()), 'AIB-E604', 'signatures are not strictly increasing by key');
  return found;
}

// Those over the whole file, or those over its front matter: a file has one kind.
export function readSignatures({ signatures, front_signatures: front, strong_leaves: strong }) {
  const found = signatures ? signaturesIn(signatures, 1) : [];
  if (!front) return found;
  found.push(...signaturesIn(front, 2));
  need(strong !== undefined, 'AIB-E604', 'signatures of the front matter, and no strong leaves');
  need(signatures === undefined, 'AIB-E604', 'both sections of signatures');
  return found;
}
