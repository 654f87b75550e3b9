// Reads `.aibit` without packages, written from spec/aibit-1.md. It runs in node and in browsers.
//
//     const file = await open(source);   // every rule of level open
//     await verify(file);                // those of level full
//     await file.bytes(record);          // a document or a plane, its leaves checked
//     await file.values(tensor);         // decoded, as float32
//
// A source has `size`, `read(offset, length)`, which promises a Uint8Array of that many bytes, and `check()`, which
// fails if the file is no longer what it was (AIB-E802). sources.js has those of browsers, cli.js that of node. A file
// that breaks a rule is a RuleError with its `code`.

import {
  LEAF, checkDocuments, checkLeafTable, checkPlaces, checkPlanes, checkSchemes, checkTensors, strongLeaves,
} from './checks.js';
import { checkKept, checkKnownKeys, checkNumbers, KEPT, NUMBERS, readMetadata, readSignatures } from './contents.js';
import { checkJson } from './json.js';
import { RuleError, align, elements, hex, isZero, need, product, whole } from './numbers.js';
import { sha256 } from './sha256.js';
import { TABLES, nameAll, readHeader, readSectionTable, records } from './tables.js';
import { xxh3_64 } from './xxh3.js';

export { RuleError };

// 2. The file

class File {
  // Every check of level open but those of readHeader.
  constructor(source, header, front) {
    this.source = source;
    this.header = header;
    this.sections = readSectionTable(front, header);
    const byName = Object.fromEntries(this.sections.map((section) => [section.name, section]));
    const { metadata, leaves, strings, strong_leaves: strong } = byName;
    this.metadata = readMetadata(metadata.body, metadata.count);
    for (const [name, table] of Object.entries(TABLES)) this[name] = records(table, byName[name].body);
    const { schemes, documents, tensors, planes } = this;
    this.pool = nameAll(strings.body, { schemes, documents, tensors });
    checkSchemes(schemes, tensors);
    checkTensors(tensors, schemes);
    checkPlanes(planes, tensors);
    checkDocuments(documents);
    this.regions = checkPlaces(this);
    this.leaves = checkLeafTable(leaves.body, leaves.count, this.regions);
    if (strong) this.strongLeaves = strongLeaves(strong.body, strong.count, this.leaves.length);
    this.signatures = readSignatures(byName);
    const parameters = whole(
      tensors.reduce((sum, { alias_of: alias, shape }) => sum + (alias === null ? BigInt(product(shape)) : 0n), 0n),
    );
    const lengths = new Map(documents.map(({ name, length }) => [name, length]));
    checkKnownKeys(this.metadata, lengths, parameters, tensors.length);
  }

  // The bytes of a document or a plane, once the leaves that they lie in are right.
  async bytes({ offset, length }) {
    if (length === 0) return new Uint8Array(0);
    const region = this.regions.find(({ start, end }) => offset >= start && offset < end);
    const from = offset - ((offset - region.start) % LEAF);
    const to = Math.min(region.start + align(offset + length - region.start, LEAF), region.end);
    const bytes = await this.leavesBetween(region, from, to);
    return bytes.subarray(offset - from, offset - from + length);
  }

  // Whole leaves of a region. The last one is kept, as small planes lie side by side.
  async leavesBetween(region, from, to) {
    if (this.kept?.from === from && this.kept.to === to) return this.kept.bytes;
    const bytes = await this.source.read(from, to - from);
    for (let at = 0; at < bytes.length; at += LEAF) this.checkLeaf(region, from + at, bytes.subarray(at, at + LEAF));
    if (bytes.length <= LEAF) this.kept = { from, to, bytes };
    return bytes;
  }

  checkLeaf(region, at, bytes) {
    const i = region.firstLeaf + (at - region.start) / LEAF;
    const wanted = this.leaves.at(i);
    const found = xxh3_64(bytes);
    need(found === wanted, 'AIB-E602', () => `leaf at ${at}: ${found.toString(16)}, not ${wanted.toString(16)}`);
    const strong = this.strongLeaves?.[i];
    need(!strong || hex(sha256(bytes)) === strong, 'AIB-E602', `strong leaf at ${at}: not ${strong}`);
  }

  // The tensor that a tensor stands for: itself, unless it is an alias.
  owner(tensor) {
    return tensor.alias_of === null ? tensor : this.tensors[tensor.target];
  }

  planesOf(tensor) {
    const { first_plane: first, plane_count: count } = this.owner(tensor);
    return this.planes.slice(first, first + count);
  }

  // The planes of a tensor as numbers, by role.
  async elements(tensor, allowed = () => true) {
    const found = {};
    for (const plane of this.planesOf(tensor)) {
      const { role, dtype, shape } = plane;
      if (allowed(role)) found[role] = elements(dtype, await this.bytes(plane), shape);
    }
    return found;
  }

  // The rules of a tensor's scheme, and all parameters: those of the scheme and then those of the tensor.
  rulesOf(tensor) {
    const { rules, parameters } = this.schemes[tensor.scheme];
    return { rules, parameters: [...parameters, ...tensor.parameters] };
  }

  // The values of a tensor as float32, once those of its planes are right (R4.3).
  async values(tensor) {
    if (tensor.unknown) throw tensor.unknown;
    const { rules, parameters } = this.rulesOf(tensor);
    const planes = await this.elements(tensor);
    rules.check(parameters, tensor.shape, planes);
    return rules.decode(parameters, tensor.shape, planes);
  }
}

export async function open(source) {
  return new File(source, ...(await readHeader(source)));
}

// 14. Verification: the rules of level full; `open` has checked the others. Calls onProgress(bytes, of).

export async function verify(file, onProgress = () => {}) {
  const { source, regions, header } = file;
  for (const region of regions) {
    for (let at = region.start; at < region.end; at += LEAF) {
      file.checkLeaf(region, at, await source.read(at, Math.min(LEAF, region.end - at)));
      onProgress(at, header.file_size);
    }
  }
  await checkPadding(file);
  for (const tensor of file.tensors) if (tensor.alias_of === null && !tensor.unknown) await checkValues(file, tensor);
  for (const document of file.documents) {
    const name = document.name.toLowerCase();
    if (name.endsWith('.json')) checkJson(name, await file.bytes(document));
    if (document.name === NUMBERS) {
      checkNumbers(await file.bytes(document), file.metadata.get('pruning.kept.count').value);
    }
    if (document.name === KEPT) checkKept(await file.bytes(document), file.metadata.get('vocabulary.size').value);
  }
  await source.check();
}

async function checkPadding({ source, regions, documents, planes }) {
  const pieces = [...documents, ...planes].sort((a, b) => a.offset - b.offset);
  let position = regions[0].start;
  for (const { offset, length } of [...pieces, { offset: source.size, length: 0 }]) {
    if (offset > position) {
      const found = await source.read(position, offset - position);
      need(isZero(found), 'AIB-E603', `padding from ${position} to ${offset} is not zero`);
    }
    position = Math.max(position, offset + length);
  }
}

async function checkValues(file, tensor) {
  const { rules, parameters } = file.rulesOf(tensor);
  rules.check(parameters, tensor.shape, await file.elements(tensor, (role) => rules.checked.includes(role)));
}
