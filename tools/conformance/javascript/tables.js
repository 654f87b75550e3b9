// The header, the section table, the records and their names: sections 3, 4 and 6 of spec/aibit-1.md.

import { NAMES } from './contents.js';
import { RuleError, align, ascii, hex, isArrayEqual, isZero, layout, need, unpack, viewOf } from './numbers.js';
import { xxh3_128 } from './xxh3.js';

// 3. Header

export const HEADER = layout(
  '10s signature H major H minor 2s - Q file_size Q front_matter_length Q incompatible Q compatible I alignment' +
    ' I section_count 56s - 16s root',
);
const SIGNATURE = '\x89aibit\r\n\x1a\n';
const ALIGNMENTS = [64, 4096, 2 << 20];
const MOST_FRONT_MATTER = 1 << 26;

// The header, and the front matter, whose digest is right.
export async function readHeader(source) {
  const head = await source.read(0, Math.min(HEADER.size, source.size));
  const start = ascii(head.subarray(0, SIGNATURE.length));
  if (!SIGNATURE.startsWith(start)) {
    const damaged = /^[\x89\x09]?aibit/.test(start);
    throw new RuleError(damaged ? 'AIB-E103' : 'AIB-E102', `begins with ${hex(head.subarray(0, 10))}`);
  }
  need(head.length === HEADER.size, 'AIB-E101', `${source.size} bytes`);
  const view = viewOf(head);
  need(view.getUint16(10, true) === 1, 'AIB-E104', `major version ${view.getUint16(10, true)}`);
  need(view.getBigUint64(32, true) === 0n, 'AIB-E105', `feature bits 0x${view.getBigUint64(32, true).toString(16)}`);
  const header = unpack(HEADER, head, 0, 'AIB-E106');
  need(ALIGNMENTS.includes(header.alignment), 'AIB-E107', `alignment ${header.alignment}`);
  const { section_count: count, front_matter_length: length, file_size: size } = header;
  need(size === source.size, 'AIB-E108', `file_size ${size}, and ${source.size} bytes are there`);
  need(count >= 7 && count <= 64, 'AIB-E110', `${count} sections`);
  const most = Math.min(MOST_FRONT_MATTER, source.size - HEADER.size);
  const fits = length >= align(SECTION.size * count, 64) && length <= most && length % 64 === 0;
  need(fits, 'AIB-E109', `front_matter_length ${length}`);
  const front = await source.read(HEADER.size, length);
  const covered = new Uint8Array(112 + length);
  covered.set(head.subarray(0, 112));
  covered.set(front, 112);
  need(isArrayEqual(xxh3_128(covered), header.root), 'AIB-E111', 'the root is another');
  return [{ ...header, signature: hex(header.signature), root: hex(header.root) }, front];
}

// 4. Section table

export const SECTION = layout('H kind H flags I count Q offset Q length 8s -');
const KINDS = new Map(
  'metadata schemes documents tensors planes strings leaves'.split(' ').map((name, i) => [i + 1, name]),
);
export const TABLES = {
  schemes: layout('I name_offset H name_length H version 6I parameters'), // 7
  documents: layout('I name_offset H name_length 10s - Q offset Q length'), // 11
  tensors: layout(
    'I name_offset H name_length 2s - I first_plane I target H flags H scheme B dtype B rank H plane_count' +
      ' 2I parameters 8Q shape',
  ), // 8
  planes: layout('I tensor H role B dtype 9s - Q offset Q length'), // 9
};
const OPTIONAL = new Map([[8, 'signatures'], [10, 'strong_leaves'], [11, 'front_signatures'], [12, 'slack']]);
const MOST_SLACK = 1 << 24;
const MOST = { metadata: 1 << 16, schemes: 1 << 12, documents: 1 << 12, tensors: 1 << 20 }; // 15

// Every section with its name and its body. Offsets count from the start of the file, and `front` begins at 128.
export function readSectionTable(front, { section_count: count }) {
  const end = HEADER.size + front.length;
  const rows = Array.from({ length: count }, (_, i) => unpack(SECTION, front, SECTION.size * i, 'AIB-E205'));
  const kinds = rows.map(({ kind }) => kind);
  const increasing = kinds.every((kind, i) => kind > (i ? kinds[i - 1] : 0));
  need(increasing && isArrayEqual(kinds.slice(0, 7), [...KINDS.keys()]), 'AIB-E201', `kinds ${kinds}`);
  const between = (from, to) => front.subarray(from - HEADER.size, to - HEADER.size);
  let used = HEADER.size + SECTION.size * count;
  let position = align(used, 64);
  for (const row of rows) {
    const { kind, flags, offset, length } = row;
    need(KINDS.has(kind) || !(flags & 1), 'AIB-E202', `critical section of kind ${kind}`);
    need(flags === Number(KINDS.has(kind)), 'AIB-E205', `section ${kind} has flags ${flags}`);
    need(offset === position && length <= end - position, 'AIB-E208', `place of section ${kind}`);
    need(isZero(between(used, position)), 'AIB-E209', `bytes before section ${kind} are not zero`);
    used = position + length;
    row.name = KINDS.get(kind) ?? OPTIONAL.get(kind) ?? 'unknown';
    row.body = between(position, used);
    position = align(used, 64);
  }
  need(position === end, 'AIB-E208', `sections end at ${position}, the front matter at ${end}`);
  need(isZero(between(used, end)), 'AIB-E209', 'bytes after the last section are not zero');
  for (const { name, count: entries, length, body } of rows) {
    const table = TABLES[name];
    need(!table || length === entries * table.size, 'AIB-E203', `${name}: ${entries} records in ${length} bytes`);
    need(entries <= (MOST[name] ?? entries), 'AIB-E204', `${entries} ${name}`);
    need(!['strings', 'slack'].includes(name) || entries === 0, 'AIB-E203', `${name}: a count of ${entries}`);
    if (name === 'slack') {
      need(length % 64 === 0 && length <= MOST_SLACK, 'AIB-E204', `${length} bytes of slack`);
      need(isZero(body), 'AIB-E209', 'slack is not zero');
    }
  }
  return rows;
}

export function records(table, body) {
  return Array.from({ length: body.length / table.size }, (_, i) => unpack(table, body, table.size * i, 'AIB-E415'));
}

// 6. String pool

// Give every record its name, and return the pool as text.
export function nameAll(pool, tables) {
  const named = Object.values(tables).flat();
  for (const { name_offset: start, name_length: length } of named) {
    need(length >= 1 && length <= 255, 'AIB-E211', `a name of ${length} bytes`);
    need(start <= pool.length && length <= pool.length - start, 'AIB-E210', `a name at ${start} of ${length} bytes`);
  }
  for (const [kind, table] of Object.entries(tables)) {
    const [code, allowed] = NAMES[kind];
    for (const record of table) {
      record.name = ascii(pool.subarray(record.name_offset, record.name_offset + record.name_length));
      need(allowed(record.name), code, () => `${kind}: the name ${JSON.stringify(record.name)}`);
    }
  }
  let position = 0;
  for (const { name, name_offset: offset, name_length: length } of named) {
    need(offset === position, 'AIB-E212', () => `${name} lies at ${offset}, not ${position}`);
    position += length + 1;
  }
  const joined = named.map(({ name }) => `${name}\n`).join('');
  const agrees = pool.length === joined.length && pool.every((byte, i) => byte === joined.charCodeAt(i));
  need(agrees, 'AIB-E212', 'the pool is not the names and line feeds');
  return joined;
}
