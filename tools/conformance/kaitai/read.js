// What the compiled description says of files, one line of JSON each: node read.js Aibit.js FILE ...
// The form is that of the twins in fixtures/container/, but for what needs more than a description: values, and shapes of
// planes. Integers that a double does not hold are written as strings.

const fs = require('fs');
const path = require('path');
const KaitaiStream = require('kaitai-struct/KaitaiStream');

const hex = (bytes) => Buffer.from(bytes).toString('hex');

// Types of metadata that are not yet what they should be; the runtime's 64-bit integers are doubles, and not always right.
const READ = {
  1: (item, raw, i) => integer(raw.readBigInt64LE(8 * i)),
  3: (item) => item !== 0,
  4: (item) => item.value,
  5: (item) => hex(item.value),
};
const integer = (big) => (Number.isSafeInteger(Number(big)) ? Number(big) : String(big));

function describe(Aibit, data) {
  const file = new Aibit(new KaitaiStream(data));
  const { header } = file;
  const name = (names, code) => (names[code] || 'unknown').toLowerCase();
  const shown = (code) => (code < 0x8000 ? `unknown_${code}` : `private_${code.toString(16)}`);
  const known = (names, code) => (names[code] || shown(code)).toLowerCase();
  const metadata = {};
  for (const { key, record, body, _raw_body: raw } of file.metadata) {
    const read = READ[record.type] || ((item) => item);
    const values = body.values.map((item, i) => read(item, Buffer.from(raw), i));
    const isArray = record.isArray !== 0;
    const type = name(Aibit.ValueType, record.type);
    metadata[key] = { type, is_array: isArray, value: isArray ? values : values[0] };
  }
  return {
    header: {
      signature: hex(header.signature), major: header.major, minor: header.minor, file_size: header.fileSize,
      front_matter_length: header.frontMatterLength, incompatible: header.incompatible, compatible: header.compatible,
      alignment: header.alignment, section_count: header.sectionCount, root: hex(header.root),
    },
    sections: file.sections.map(({ record, data, signatures, strongLeaves }) => {
      const kind = name(Aibit.SectionKind, record.kind);
      const records = (signatures || []).filter(({ algorithm }) => algorithm !== 0).map((s) => (
        { algorithm: s.algorithm, key: hex(s.key), signature: hex(s.signature) }));
      const more = {
        strings: { text: file.strings }, signatures: { records }, front_signatures: { records },
        strong_leaves: { digests: (strongLeaves || []).map(hex) }, unknown: { data: hex(data) },
      }[kind];
      const { flags, count, offset, length } = record;
      return { name: kind, kind: record.kind, flags, count, offset, length, ...more };
    }),
    metadata,
    schemes: file.schemes.map(({ name, record }) => (
      { name: name.value, version: record.version, parameters: record.parameters })),
    documents: file.documents.map(({ name, record, data }) => (
      { name: name.value, offset: record.offset, length: record.length, data: hex(data) })),
    tensors: file.tensors.map((tensor) => {
      const { record } = tensor;
      return {
        name: tensor.name.value, shape: record.shape.slice(0, record.rank), dtype: known(Aibit.Dtype, record.dtype),
        scheme: record.scheme, flags: record.flags, target: record.target, first_plane: record.firstPlane,
        plane_count: record.planeCount, alias_of: tensor.isAlias ? tensor.target.name.value : null,
        transposed: tensor.isTransposed,
        ...(record.parameters.some((x) => x !== 0) ? { parameters: record.parameters } : {}),
      };
    }),
    planes: file.planes.map(({ record, data }) => (
      { tensor: record.tensor, role: known(Aibit.Role, record.role), dtype: known(Aibit.Dtype, record.dtype),
        offset: record.offset, length: record.length, data: hex(data) })),
    leaves: file.leaves.map((leaf, i) => hex(Buffer.from(file.sections[6].data).subarray(8 * i, 8 * i + 8).reverse())),
  };
}

const [compiled, ...paths] = process.argv.slice(2);
const { Aibit } = require(path.resolve(compiled));
for (const file of paths) console.log(JSON.stringify(describe(Aibit, fs.readFileSync(file))));
