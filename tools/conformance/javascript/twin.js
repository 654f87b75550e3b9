// All that a file says, in the form of the twins in fixtures/container/.

import { hex } from './numbers.js';

const pick = (record, fields) => Object.fromEntries(fields.split(' ').map((field) => [field, record[field]]));

export async function describe(file) {
  const { header, sections, metadata, schemes, documents, tensors, planes, leaves } = file;
  const more = {
    strings: () => ({ text: file.pool }),
    signatures: () => ({ records: file.signatures }),
    front_signatures: () => ({ records: file.signatures }),
    strong_leaves: () => ({ digests: file.strongLeaves }),
    unknown: ({ body }) => ({ data: hex(body) }),
  };
  const withData = async (record, fields) => ({ ...pick(record, fields), data: hex(await file.bytes(record)) });
  const described = {
    header,
    sections: sections.map((s) => ({ ...pick(s, 'name kind flags count offset length'), ...more[s.name]?.(s) })),
    metadata: {},
    schemes: schemes.map((scheme) => pick(scheme, 'name version parameters')),
    documents: [],
    tensors: [],
    planes: [],
    leaves: Array.from({ length: leaves.length }, (_, i) => leaves.at(i).toString(16).padStart(16, '0')),
  };
  for (const [key, { type, isArray, value }] of metadata) described.metadata[key] = { type, is_array: isArray, value };
  for (const document of documents) described.documents.push(await withData(document, 'name offset length'));
  for (const tensor of tensors) {
    const fields = 'name shape dtype scheme flags target first_plane plane_count alias_of transposed';
    const values = tensor.unknown ? { unknown: tensor.unknown.code } : { values: await file.values(tensor) };
    const own = tensor.parameters.some((x) => x !== 0) ? { parameters: tensor.parameters } : {};
    described.tensors.push({ ...pick(tensor, fields), ...own, ...values });
  }
  for (const plane of planes) described.planes.push(await withData(plane, 'tensor role dtype shape offset length'));
  return described;
}

// JSON as JSON.stringify writes it, but for integers of 64 bits, minus zero, NaN and infinities.
export function toJson(value) {
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return Object.is(value, -0) ? '-0.0' : String(value);
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(toJson).join(', ')}]`;
  return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${toJson(item)}`).join(', ')}}`;
}
