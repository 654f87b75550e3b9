# A Kaitai Struct description of `.aibit` files: every table, name, document and plane, by where the tables say they lie.
# It reads good files. It checks no rule but the signature, the version and reserved bytes; digests, placement, names
# and values are for readers that know spec/aibit-1.md.
#
# What stands between markers is made from the layout by tools/spec/make_spec.py. tools/conformance/kaitai/ compiles and runs this file.

meta:
  id: aibit
  title: .aibit, one file for a quantized language model
  file-extension: aibit
  license: Apache-2.0
  ks-version: '0.11'
  endian: le
doc-ref: spec/aibit-1.md

seq:
  - id: header
    type: header_record
  - id: sections
    type: section
    repeat: expr
    repeat-expr: header.section_count

# The first seven sections are those of kinds 1 to 7, in this order.
instances:
  metadata:
    pos: sections[0].record.offset
    type: entry
    repeat: expr
    repeat-expr: sections[0].record.count
  schemes:
    pos: sections[1].record.offset
    type: scheme
    repeat: expr
    repeat-expr: sections[1].record.count
  documents:
    pos: sections[2].record.offset
    type: document
    repeat: expr
    repeat-expr: sections[2].record.count
  tensors:
    pos: sections[3].record.offset
    type: tensor
    repeat: expr
    repeat-expr: sections[3].record.count
  planes:
    pos: sections[4].record.offset
    type: plane
    repeat: expr
    repeat-expr: sections[4].record.count
  strings:
    pos: sections[5].record.offset
    size: sections[5].record.length
    type: str
    encoding: ASCII
    doc: every name with a line feed after it, schemes' first, then documents', then tensors'
  leaves:
    pos: sections[6].record.offset
    type: u8
    repeat: expr
    repeat-expr: sections[6].record.count
    doc: xxh3_64 of every mebibyte of documents, then of data

types:
  section:
    seq:
      - id: record
        type: section_record
    instances:
      data:
        io: _root._io
        pos: record.offset
        size: record.length
      signatures:
        if: record.kind == section_kind::signatures or record.kind == section_kind::front_signatures
        io: _root._io
        pos: record.offset
        type: signature_record
        repeat: expr
        repeat-expr: record.count
        doc: those in use come first; algorithm 0 says that one is not
      strong_leaves:
        if: record.kind == section_kind::strong_leaves
        io: _root._io
        pos: record.offset
        size: 32
        repeat: expr
        repeat-expr: record.count
        doc: SHA-256 of every mebibyte of documents, then of data

  entry:
    doc: of the metadata
    seq:
      - id: record
        type: metadata_record
      - id: key
        type: str
        encoding: ASCII
        size: record.key_length
      - id: body
        size: record.length
        type: values(record.type, record.is_array, record.count)
  values:
    params:
      - id: kind
        type: u1
        enum: value_type
      - id: is_array
        type: u1
      - id: count
        type: u4
    seq:
      - id: values
        repeat: expr
        repeat-expr: count
        type:
          switch-on: kind
          cases:
            value_type::int: s8
            value_type::float: f8
            value_type::bool: u1
            value_type::string: text(is_array)
            value_type::bytes: blob(is_array)
  text:
    params:
      - id: is_array
        type: u1
    seq:
      - id: length
        type: u4
        if: is_array != 0
      - id: value
        type: str
        encoding: UTF-8
        size: 'is_array != 0 ? length : _io.size'
  blob:
    params:
      - id: is_array
        type: u1
    seq:
      - id: length
        type: u4
        if: is_array != 0
      - id: value
        size: 'is_array != 0 ? length : _io.size'

  scheme:
    seq:
      - id: record
        type: scheme_record
    instances:
      name:
        type: name(record.name_offset, record.name_length)
  document:
    seq:
      - id: record
        type: document_record
    instances:
      name:
        type: name(record.name_offset, record.name_length)
      data:
        io: _root._io
        pos: record.offset
        size: record.length
  tensor:
    seq:
      - id: record
        type: tensor_record
    instances:
      name:
        type: name(record.name_offset, record.name_length)
      is_alias:
        value: record.flags & 1 != 0
      is_transposed:
        value: record.flags & 2 != 0
      scheme:
        value: _root.schemes[record.scheme]
      target:
        value: _root.tensors[record.target]
        if: is_alias
        doc: the tensor that this one is an alias of; its planes are those of this one
      plane:
        value: _root.planes[record.first_plane]
        if: record.plane_count != 0
        doc: its first plane; the others follow in the table
  plane:
    seq:
      - id: record
        type: plane_record
    instances:
      tensor:
        value: _root.tensors[record.tensor]
      data:
        io: _root._io
        pos: record.offset
        size: record.length
  name:
    params:
      - id: offset
        type: u4
      - id: length
        type: u2
    instances:
      value:
        io: _root._io
        pos: _root.sections[5].record.offset + offset
        size: length
        type: str
        encoding: ASCII

# <!-- generated: kaitai records -->
  header_record:
    doc: 128 bytes
    seq:
      - id: signature
        contents: [137, 97, 105, 98, 105, 116, 13, 10, 26, 10]
        doc: "89 61 69 62 69 74 0D 0A 1A 0A"
      - id: major
        type: u2
        valid: 1
        doc: "format version, 1; a reader refuses another"
      - id: minor
        type: u2
        doc: "0 in this version; a reader accepts any"
      - id: reserved
        contents: [0, 0]
        doc: "zero"
      - id: file_size
        type: u8
        doc: "size of the whole file in bytes"
      - id: front_matter_length
        type: u8
        doc: "bytes from the end of this header to the first document; a multiple of 64"
      - id: incompatible
        type: u8
        valid: 0
        doc: "feature bits; a reader refuses a bit it does not know; no bit is defined in 1.0"
      - id: compatible
        type: u8
        doc: "feature bits a reader may ignore; no bit is defined in 1.0"
      - id: alignment
        type: u4
        doc: "alignment of bulk planes: 64, 4096 or 2097152"
      - id: section_count
        type: u4
        doc: "entries of the section table, 7 to 64"
      - id: reserved2
        contents: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        doc: "zero"
      - id: root
        size: 16
        doc: "xxh3_128, canonical form, of bytes 0 to 111 followed by the front matter"
  section_record:
    doc: 32 bytes
    seq:
      - id: kind
        type: u2
        enum: section_kind
        doc: "what the section holds; see the list of kinds"
      - id: flags
        type: u2
        doc: "bit 0: critical, a reader that does not know the kind refuses the file; others zero"
      - id: count
        type: u4
        doc: "entries in the section"
      - id: offset
        type: u8
        doc: "from the start of the file; a multiple of 64"
      - id: length
        type: u8
        doc: "bytes, without the zero padding that follows"
      - id: reserved
        contents: [0, 0, 0, 0, 0, 0, 0, 0]
        doc: "zero"
  metadata_record:
    doc: 16 bytes
    seq:
      - id: key_length
        type: u2
        doc: "bytes of the key, 1 to 255"
      - id: type
        type: u1
        enum: value_type
        doc: "1 int, 2 float, 3 bool, 4 string, 5 bytes"
      - id: is_array
        type: u1
        doc: "0: one value; 1: an array of `count` values of that type"
      - id: count
        type: u4
        doc: "number of values; 1 when `is_array` is 0"
      - id: length
        type: u8
        doc: "bytes of the value or values"
  scheme_record:
    doc: 32 bytes
    seq:
      - id: name_offset
        type: u4
        doc: "start of the name in the string pool"
      - id: name_length
        type: u2
        doc: "bytes of the name without its line feed, 1 to 255"
      - id: version
        type: u2
        doc: "version of the scheme, from 1"
      - id: parameters
        type: u4
        repeat: expr
        repeat-expr: 6
        doc: "as the scheme's page defines them; unused ones zero"
  document_record:
    doc: 32 bytes
    seq:
      - id: name_offset
        type: u4
        doc: "start of the name in the string pool"
      - id: name_length
        type: u2
        doc: "bytes of the name without its line feed, 1 to 255"
      - id: reserved
        contents: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        doc: "zero"
      - id: offset
        type: u8
        doc: "from the start of the file; a multiple of 64"
      - id: length
        type: u8
        doc: "bytes, without the zero padding that follows; at most 2^28"
  tensor_record:
    doc: 96 bytes
    seq:
      - id: name_offset
        type: u4
        doc: "start of the name in the string pool"
      - id: name_length
        type: u2
        doc: "bytes of the name without its line feed, 1 to 255"
      - id: reserved
        contents: [0, 0]
        doc: "zero"
      - id: first_plane
        type: u4
        doc: "index of the tensor's first plane; 0 for an alias"
      - id: target
        type: u4
        doc: "for an alias: index of the tensor it stands for; otherwise 0"
      - id: flags
        type: u2
        doc: "bit 0: alias; bit 1: stored as the transpose of the architecture's tensor; others zero"
      - id: scheme
        type: u2
        doc: "index into the scheme table"
      - id: dtype
        type: u1
        enum: dtype
        doc: "logical dtype: what the values are to the model"
      - id: rank
        type: u1
        doc: "number of dimensions, 0 to 8"
      - id: plane_count
        type: u2
        doc: "planes of the tensor, as its scheme says; 0 for an alias"
      - id: parameters
        type: u4
        repeat: expr
        repeat-expr: 2
        doc: "of the tensor, as its scheme's page defines them; unused ones zero"
      - id: shape
        type: u8
        repeat: expr
        repeat-expr: 8
        doc: "dimensions, outermost first; those beyond the rank are zero"
  plane_record:
    doc: 32 bytes
    seq:
      - id: tensor
        type: u4
        doc: "index of the tensor it belongs to"
      - id: role
        type: u2
        enum: role
        doc: "what it holds; see the list of roles"
      - id: dtype
        type: u1
        enum: dtype
        doc: "dtype of its elements"
      - id: reserved
        contents: [0, 0, 0, 0, 0, 0, 0, 0, 0]
        doc: "zero"
      - id: offset
        type: u8
        doc: "from the start of the file"
      - id: length
        type: u8
        doc: "bytes"
  signature_record:
    doc: 104 bytes
    seq:
      - id: algorithm
        type: u2
        doc: "1, 2: Ed25519 (RFC 8032) over the content digest, the front digest; 0 if it is not used"
      - id: reserved
        contents: [0, 0, 0, 0, 0, 0]
        doc: "zero"
      - id: key
        size: 32
        doc: "the public key, raw: it says whose the signature claims to be, and makes nobody trusted"
      - id: signature
        size: 64
        doc: "of the signed message"
# <!-- end -->

enums:
# <!-- generated: kaitai enums -->
  section_kind:
    1: metadata
    2: schemes
    3: documents
    4: tensors
    5: planes
    6: strings
    7: leaves
    8: signatures
    10: strong_leaves
    11: front_signatures
    12: slack
  value_type:
    1: int
    2: float
    3: bool
    4: string
    5: bytes
  dtype:
    1: bool
    2: u8
    3: i8
    4: u16
    5: i16
    6: u32
    7: i32
    8: u64
    9: i64
    10: f16
    11: bf16
    12: f32
    13: f64
    14: f8_e4m3
    15: f8_e5m2
    16: f8_e8m0
    18: f4_e2m1
    19: u4
    20: i4
    21: u2
    22: i2
    23: u1
    24: f6_e2m3
    25: f6_e3m2
    26: u3
    27: u5
    28: u6
  role:
    1: values
    2: codes
    3: row_absmax
    4: absmax
    5: nested_absmax
    6: nested_offset
    7: scale
    8: zero_point
    9: codebook
    10: group_index
    11: outlier_index
    12: outlier_values
    13: tiles
    14: blocks
    15: tile_absmax
    16: global_scale
    17: bias
    18: column_order
    19: input_scale
    20: input_zero_point
# <!-- end -->
