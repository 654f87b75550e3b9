// What the tables say of one another: sections 7 to 13 of spec/aibit-1.md.

import {
  BY_NAME, DTYPES, RuleError, align, divided, hex, isArrayEqual, isZero, need, planeLength, product, remainder, up,
  viewOf,
} from './numbers.js';
import { schemeOf } from './schemes.js';
import { HEADER } from './tables.js';

// 7. Schemes

function isBefore(a, b) {
  const [x, y] = [a, b].map(({ version, parameters }) => [version, ...parameters]);
  if (a.name !== b.name) return a.name < b.name;
  const i = x.findIndex((number, j) => number !== y[j]);
  return i >= 0 && x[i] < y[i];
}

export function checkSchemes(schemes, tensors) {
  for (const scheme of schemes) {
    const { name, version, parameters } = scheme;
    scheme.rules = schemeOf(name, version);
    const fit = !scheme.rules || scheme.rules.parameters(parameters);
    need(fit, 'AIB-E407', () => `parameters ${parameters} of ${name}`);
  }
  const increasing = schemes.every((scheme, i) => i === 0 || isBefore(schemes[i - 1], scheme));
  need(increasing, 'AIB-E416', 'schemes are not strictly increasing');
  const used = new Set(tensors.map(({ scheme }) => scheme));
  const right = used.size === schemes.length && [...used].every((i) => i < schemes.length);
  need(right, 'AIB-E416', `${schemes.length} schemes, and tensors use ${used.size} places`);
}

// 8. Tensor directory

const ALIAS = 1;
const TRANSPOSED = 2;
const MOST_ELEMENTS = 2 ** 60;

export function checkTensors(tensors, schemes) {
  let first = 0;
  tensors.forEach((t, i) => {
    const { name, flags } = t;
    const alias = (flags & ALIAS) !== 0;
    const known = flags <= 3 && !(flags & TRANSPOSED && t.rank !== 2 && t.rank !== 3);
    need(known, 'AIB-E415', () => `${name}: flags ${flags}, rank ${t.rank}`);
    need(t.rank <= 8 && isZero(t.shape.slice(t.rank)), 'AIB-E402', () => `${name}: rank ${t.rank}`);
    t.shape = t.shape.slice(0, t.rank);
    t.dtype = dtypeName(t.dtype);
    const size = product(t.shape.filter((dimension) => dimension !== 0));
    need(size < MOST_ELEMENTS, 'AIB-E403', () => `${name}: shape ${t.shape}`);
    if (alias) {
      need(t.target < i, 'AIB-E411', () => `${name}: alias of tensor ${t.target}`);
      const other = tensors[t.target];
      const same = t.scheme === other.scheme && t.dtype === other.dtype && isArrayEqual(t.shape, other.shape)
        && isArrayEqual(t.parameters, other.parameters);
      need(same && (other.flags ^ flags) === ALIAS, 'AIB-E411', () => `${name} is not as ${other.name}`);
    }
    need(alias || t.target === 0, 'AIB-E411', () => `${name}: target ${t.target}, and no alias`);
    const { name: schemeName, version, rules, parameters: ofScheme } = schemes[t.scheme];
    const parameters = [...ofScheme, ...t.parameters];
    const used = !rules || isZero(t.parameters.slice(rules.ofTensor ?? 0));
    need(used, 'AIB-E415', () => `${name}: parameters ${t.parameters} in ${schemeName}`);
    if (!rules) t.unknown = new RuleError('AIB-E406', `scheme ${schemeName} of version ${version}`);
    else if (!BY_NAME.has(t.dtype)) t.unknown = new RuleError('AIB-E404', `${name}: ${t.dtype}`);
    const takes = t.unknown || (rules.dtypes.includes(t.dtype) && rules.takes(parameters, t.shape));
    need(takes, 'AIB-E413', () => `${name}: ${t.dtype} [${t.shape}] in ${schemeName}`);
    // Of planes in an unknown scheme or of an unknown dtype, only their number is known here.
    const specs = () => (t.unknown ? Array(t.plane_count).fill(null) : rules.planes(parameters, t.shape, t.dtype));
    t.specs = alias ? [] : specs();
    const count = t.specs.length;
    need(t.plane_count === count, 'AIB-E401', () => `${name}: ${t.plane_count} planes, not ${count}`);
    need(t.first_plane === (count ? first : 0), 'AIB-E401', () => `${name}: first plane ${t.first_plane}`);
    first += count;
    t.alias_of = alias ? tensors[t.target].name : null;
    t.transposed = (flags & TRANSPOSED) !== 0;
  });
  need(new Set(tensors.map(({ name }) => name)).size === tensors.length, 'AIB-E414', 'two tensors have one name');
}

// 9. Plane table

const NAMES = 'values codes row_absmax absmax nested_absmax nested_offset scale zero_point codebook group_index'
  + ' outlier_index outlier_values tiles blocks tile_absmax global_scale bias column_order'
  + ' input_scale input_zero_point';
export const ROLES = new Map(NAMES.split(' ').map((name, i) => [i + 1, name]));
const BULK = ['values', 'codes', 'tiles', 'blocks'];
const PRIVATE = 0x8000;

// The names of any role and dtype, also of those that are unknown here.
const roleName = (code) => ROLES.get(code) ?? (code < PRIVATE ? `unknown_${code}` : `private_${code.toString(16)}`);
const dtypeName = (code) => DTYPES.get(code)?.name ?? `unknown_${code}`;

export function checkPlanes(planes, tensors) {
  const wanted = tensors.flatMap(({ specs }, i) => specs.map((spec) => [i, spec]));
  need(planes.length === wanted.length, 'AIB-E401', `${planes.length} planes, and the tensors have ${wanted.length}`);
  const seen = new Set();
  planes.forEach((plane, i) => {
    const [tensor, spec] = wanted[i];
    const [foundRole, foundDtype] = [roleName(plane.role), dtypeName(plane.dtype)];
    if (!spec) {
      const key = `${tensor} ${foundRole}`;
      const right = plane.tensor === tensor && !seen.has(key);
      need(right, 'AIB-E412', () => `plane ${i}: tensor ${plane.tensor}, ${foundRole}`);
      seen.add(key);
      const bits = BY_NAME.get(foundDtype)?.bits ?? 8;
      const whole = bits < 8 || remainder(plane.length, bits / 8) === 0;
      need(whole, 'AIB-E405', () => `tensor ${tensor}, ${foundRole}: ${plane.length} bytes`);
      const shape = [divided(product([8, plane.length]), bits)];
      Object.assign(plane, { role: foundRole, dtype: foundDtype, shape });
      return;
    }
    const [role, dtype, shape] = spec;
    const right = plane.tensor === tensor && foundRole === role && foundDtype === dtype;
    need(right, 'AIB-E412', () => `plane ${i}: tensor ${plane.tensor}, ${foundRole} of ${foundDtype}`);
    const length = planeLength(dtype, shape);
    need(plane.length === length, 'AIB-E405', () => `tensor ${tensor}, ${role}: ${plane.length} bytes, not ${length}`);
    Object.assign(plane, { role, dtype, shape });
  });
}

// 11. Documents

const MOST_DOCUMENT = 1 << 28;

export function checkDocuments(documents) {
  const names = documents.map(({ name }) => name);
  const increasing = names.every((name, i) => i === 0 || names[i - 1] < name);
  need(increasing, 'AIB-E703', 'documents are not strictly increasing by name');
  const lower = new Set(names.map((name) => name.toLowerCase()));
  const folders = [...lower].flatMap((name) => [...name.matchAll('/')].map(({ index }) => name.slice(0, index)));
  const apart = lower.size === names.length && !folders.some((folder) => lower.has(folder));
  need(apart, 'AIB-E703', 'names of documents clash');
  for (const { name, length } of documents) need(length <= MOST_DOCUMENT, 'AIB-E702', () => `${name}: ${length} bytes`);
}

// 13. Placement

const isWeights = (role) => BULK.includes(role) || role.startsWith('private_');

// Where pieces lie one after another, each at a multiple of a, and where the last one ends.
function pack(lengths, start, a) {
  let [position, end] = [start, start];
  const offsets = lengths.map((length) => {
    const offset = position;
    end = offset + length;
    position += align(length, a);
    return offset;
  });
  return [offsets, end];
}

// The two regions, once every document and plane lies where it should.
export function checkPlaces({ header, documents, planes }) {
  const { file_size: size, alignment } = header;
  const total = planes.reduce((sum, { length }) => sum + BigInt(length), 0n);
  need(total <= size, 'AIB-E408', `planes of ${total} bytes in a file of ${size}`);
  const start = HEADER.size + header.front_matter_length;
  const lengths = (pieces) => pieces.map(({ length }) => length);
  const [places, end] = pack(lengths(documents), start, 64);
  const documentsEnd = align(end, 64);
  documents.forEach(({ name, offset }, i) => {
    need(offset === places[i], 'AIB-E704', () => `${name} at ${offset}, not ${places[i]}`);
  });
  for (const plane of planes) plane.isBulk = plane.length >= alignment && isWeights(plane.role);
  const [pooled, bulk] = [false, true].map((which) => planes.filter(({ isBulk }) => isBulk === which));
  let [offsets, dataLength] = pack(lengths(pooled), 0, 64);
  if (bulk.length) {
    const [more, last] = pack(lengths(bulk), align(dataLength, alignment), alignment);
    [offsets, dataLength] = [[...offsets, ...more], last];
  }
  const step = Math.max(bulk.length ? alignment : 64, dataLength >= 64 << 20 ? 2 << 20 : 64);
  const dataStart = align(documentsEnd, step);
  for (const { role, tensor, offset: at, length, isBulk } of planes) {
    const where = () => `${role} of tensor ${tensor}: at ${at}, ${length} bytes`;
    need(dataStart <= at && at <= size && length <= size - at, 'AIB-E408', where);
    need(at % (isBulk ? alignment : 64) === 0, 'AIB-E409', where);
  }
  [...pooled, ...bulk].forEach(({ role, tensor, offset }, i) => {
    const right = offset === dataStart + offsets[i];
    need(right, 'AIB-E410', () => `${role} of tensor ${tensor}: at ${offset}, not ${dataStart + offsets[i]}`);
  });
  need(dataStart + dataLength === size, 'AIB-E108', `ends at ${dataStart + dataLength}, and has ${size} bytes`);
  return [{ name: 'documents', start, end: documentsEnd }, { name: 'data', start: dataStart, end: size }];
}

// 12. Leaf table

export const LEAF = 1 << 20;

// The digests of all leaves, to be asked for by number; gives each region the number of its first leaf.
export function checkLeafTable(body, count, regions) {
  let wanted = 0;
  for (const region of regions) {
    region.firstLeaf = wanted;
    wanted += up(region.end - region.start, LEAF);
  }
  const right = count === wanted && body.length === 8 * wanted;
  need(right, 'AIB-E601', `${count} leaves in ${body.length} bytes, and ${wanted} are needed`);
  const view = viewOf(body);
  return { length: wanted, at: (i) => view.getBigUint64(8 * i, true) };
}

// The strong digests of all leaves, in hex.
export function strongLeaves(body, count, wanted) {
  const right = count === wanted && body.length === 32 * wanted;
  need(right, 'AIB-E601', `${count} strong leaves in ${body.length} bytes, and ${wanted} are needed`);
  return Array.from({ length: count }, (_, i) => hex(body.subarray(32 * i, 32 * (i + 1))));
}
