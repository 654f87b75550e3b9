// What a file consists of, from its first byte to its last: the pieces of the layout map, and tensors by scheme.

import { product, whole } from '../conformance/javascript/numbers.js';

const COLOURS = 10; // --c0 to --c9 of viewer.css

// The largest groups get a colour each, the rest the last one.
function coloured(groups) {
  const bySize = [...groups.values()].sort((a, b) => b.bytes - a.bytes);
  bySize.forEach((group, i) => Object.assign(group, { fill: `c${Math.min(i, COLOURS - 1)}` }));
  return bySize;
}

function add(groups, key, label, bytes) {
  const group = groups.get(key) ?? { label, bytes: 0, count: 0 };
  groups.set(key, Object.assign(group, { bytes: group.bytes + bytes, count: group.count + 1 }));
  return group;
}

export function schemeLabel({ name, version, parameters }) {
  const last = parameters.findLastIndex((x) => x !== 0);
  const used = parameters.slice(0, last + 1).map((x) => (x === 0xffffffff ? 'tensor' : x));
  return `${name}${version > 1 ? ` v${version}` : ''}${used.length ? ` (${used.join(', ')})` : ''}`;
}

// Header, sections, documents and planes in the order of their bytes, with what lies between them: { start, end, label,
// fills, plane?, tensor? }. `fills` says how a piece is coloured by scheme and by role.
export function piecesOf(file) {
  const { sections, documents, planes, tensors, schemes, source } = file;
  const pieces = [];
  const always = (fill) => ({ scheme: fill, role: fill });
  const put = (start, length, label, fills, more) =>
    length > 0 && pieces.push({ start, end: start + length, label, fills, ...more });
  put(0, 128, 'header', always('head'));
  put(128, 32 * sections.length, 'section table', always('head'));
  for (const { name, kind, offset, length } of sections) {
    put(offset, length, `section ${kind}: ${name}`, always('head'));
  }
  for (const document of documents) {
    put(document.offset, document.length, `document ${document.name}`, always('document'), { document });
  }
  const groups = { scheme: new Map(), role: new Map() };
  for (const plane of planes) {
    const tensor = tensors[plane.tensor];
    const scheme = schemes[tensor.scheme];
    const fills = {
      scheme: add(groups.scheme, tensor.scheme, schemeLabel(scheme), plane.length),
      role: add(groups.role, plane.role, plane.role, plane.length),
    };
    put(plane.offset, plane.length, `${tensor.name}, ${plane.role}`, fills, { plane, tensor });
  }
  const legends = { scheme: coloured(groups.scheme), role: coloured(groups.role) };
  for (const { fills } of pieces) {
    for (const way of ['scheme', 'role']) fills[way] = fills[way].fill ?? fills[way];
  }
  pieces.sort((a, b) => a.start - b.start);
  return { pieces: filled(pieces, source.size, always('gap')), legends };
}

function filled(pieces, size, fills) {
  const all = [];
  let position = 0;
  for (const piece of [...pieces, { start: size }]) {
    if (piece.start > position) all.push({ start: position, end: piece.start, label: 'padding', fills });
    if (piece.end) all.push(piece);
    position = piece.end;
  }
  return all;
}

// The piece that holds an offset, or the last one.
export function pieceAt(pieces, offset) {
  let [low, high] = [0, pieces.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pieces[middle].end > offset) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The four parts of a file with their sizes.
export function partsOf({ header, regions, source }) {
  const [documents, data] = regions;
  return [
    { label: 'header', bytes: 128, fill: 'head' },
    { label: 'front matter', bytes: header.front_matter_length, fill: 'head' },
    { label: 'documents', bytes: documents.end - documents.start, fill: 'document' },
    { label: 'padding', bytes: data.start - documents.end, fill: 'gap' },
    { label: 'data', bytes: source.size - data.start, fill: 'c0' },
  ].filter(({ bytes }) => bytes > 0);
}

const sum = (numbers) => whole(numbers.reduce((total, number) => total + BigInt(number), 0n));

// For each scheme, the largest first: its tensors, their elements and bytes. Aliases count as tensors alone.
export function byScheme(file) {
  const { schemes, tensors } = file;
  const rows = schemes.map((scheme, i) => ({ scheme, label: schemeLabel(scheme), index: i, tensors: [] }));
  for (const tensor of tensors) rows[tensor.scheme].tensors.push(tensor);
  for (const row of rows) {
    const stored = row.tensors.filter((tensor) => tensor.alias_of === null);
    row.elements = sum(stored.map((tensor) => product(tensor.shape)));
    row.bytes = sum(stored.flatMap((tensor) => file.planesOf(tensor).map(({ length }) => length)));
    row.bits = row.elements ? (8 * row.bytes) / Number(row.elements) : 0;
  }
  return rows.sort((a, b) => b.bytes - a.bytes);
}

export const bytesOf = (file, tensor) => sum(file.planesOf(tensor).map(({ length }) => length));
export const totalElements = (rows) => sum(rows.map(({ elements }) => elements));
