// The cards of the page: what each part of a file says.

import { checkJson } from '../conformance/javascript/json.js';
import { layoutMap } from './map.js';
import { bytesOf, byScheme, partsOf, piecesOf, totalElements } from './pieces.js';
import { about, count, h, many, shown, size, table } from './text.js';

const PAGE = 200; // rows that are put on the page at a time
const MOST_SHOWN = 1 << 18; // bytes of a document
const MOST_DECODED = 16 << 20; // bytes of a tensor whose values are shown
const VALUES = 64; // that are shown of a tensor
const FEW = 8; // values of an array in the metadata

const card = (title, ...children) =>
  h('section', { className: 'card', 'aria-label': title }, h('h2', {}, title), children);
const note = (text) => h('p', { className: 'note' }, text);
const number = (name) => ({ name, kind: 'number' });
const swatch = (fill) => h('span', { className: `swatch fill-${fill}`, 'aria-hidden': 'true' });

export function errorBox(error) {
  const code = error.code?.startsWith?.('AIB-') ? error.code : null;
  const message = shown(code ? error.message.replace(`${code}: `, '') : String(error.message ?? error));
  return h('div', { className: 'error' }, h('strong', {}, code ?? 'Error'), message);
}

// A button whose result takes the place of what was there before, or an error does.
function action(label, target, run) {
  const button = h('button', { type: 'button', className: 'small' }, label);
  button.onclick = async () => {
    button.disabled = true;
    target.replaceChildren('Reading …');
    try {
      target.replaceChildren(...[await run()].flat());
    } catch (error) {
      target.replaceChildren(errorBox(error));
    } finally {
      button.disabled = false;
    }
  };
  return button;
}

export function summaryCard(file, name, verify) {
  const { header, tensors, documents, signatures, source } = file;
  const rows = byScheme(file);
  const elements = totalElements(rows);
  const data = rows.reduce((sum, { bytes }) => sum + bytes, 0);
  const bits = elements ? (8 * data) / Number(elements) : 0;
  const fact = (term, value, className = '') => h('div', { className }, h('dt', {}, term), h('dd', {}, value));
  const result = h('div', { 'aria-live': 'polite' });
  const button = action('Verify all of it', result, () => verify((done, of) => {
    result.textContent = `Reading … ${size(done)} of ${size(of)}`;
  }));
  return h('section', { className: 'card', 'aria-label': 'Summary' },
    h('div', { className: 'title' },
      h('h2', {}, shown(name)),
      h('span', {}, h('span', { className: 'level' }, '✓ structure is right '), button)),
    note('Checked: header, digest of the front matter, every table, name and place. Documents and tensors are checked' +
      ' when they are shown.'),
    shardNote(file),
    source.isWhole ? note('The server has no ranges: this small file was taken whole.') : null,
    result,
    h('dl', { className: 'facts' },
      fact('Size', size(source.size)), fact('Format', `${header.major}.${header.minor}`),
      fact('Parameters', about(elements)), fact('Tensors', count(tensors.length)),
      fact('Bits per weight', bits.toLocaleString('en', { maximumFractionDigits: 2 })),
      fact('Documents', count(documents.length)), fact('Alignment', size(header.alignment)),
      fact('Signatures', signatures.length ? many(signatures.length, 'claim') : 'none'),
      fact('Root', h('span', { className: 'mono' }, header.root), 'wide')),
    signatures.length ? signatureClaims(signatures) : null);
}

// One shard is never taken for a model (R14).
function shardNote({ metadata }) {
  const [index, of] = ['shard.index', 'shard.count'].map((key) => metadata.get(key)?.value);
  return of === undefined ? null : note(`Shard ${count(index)} of ${count(of)}: all figures are of this file alone.`);
}

function signatureClaims(signatures) {
  return [
    note('Keys that claim to have signed the file. This page does not check signatures.'),
    h('ul', {}, signatures.map(({ key }) => h('li', { className: 'mono' }, `ed25519:${key}`))),
  ];
}

export function layoutCard(file, choose) {
  const { pieces, legends } = piecesOf(file);
  const map = layoutMap(pieces, file.source.size, choose);
  const parts = partsOf(file);
  const bar = h('div', { className: 'bar' }, parts.map(({ label, bytes, fill }) => {
    const part = h('div', { className: `fill-${fill}`, title: `${label}: ${size(bytes)}` }, `${label} ${size(bytes)}`);
    part.style.flexGrow = String(Math.log2(bytes + 1) ** 2);
    return part;
  }));
  const legend = h('ul', { className: 'legend' });
  const select = h('select', { id: 'way' }, ['scheme', 'role'].map((way) => h('option', { value: way }, way)));
  const others = [['head', 'front matter'], ['document', 'documents'], ['gap', 'padding']];
  select.onchange = () => {
    map.colourBy(select.value);
    const items = legends[select.value].map(({ fill, label, bytes }) => [fill, `${shown(label)} ${size(bytes)}`]);
    legend.replaceChildren(...[...items, ...others].map(([fill, label]) => h('li', {}, swatch(fill), label)));
  };
  select.onchange();
  return card('Layout',
    note('The parts of the file, not to scale; below, all of its bytes to scale. Click a plane to see its tensor.'),
    bar,
    h('div', { className: 'tools' }, h('label', { htmlFor: 'way' }, 'Colours by'), select,
      h('span', { className: 'soft push' }, many(pieces.length, 'piece'))),
    map.element, legend);
}

// All of a tensor, with its values where they are few enough to be read.
export function tensorDetail(file, tensor) {
  const scheme = file.schemes[tensor.scheme];
  const planes = file.planesOf(tensor);
  const bytes = bytesOf(file, tensor);
  const values = h('div', { className: 'values', 'aria-live': 'polite' });
  const words = [
    `scheme ${scheme.name}`, scheme.parameters.some((x) => x) ? `parameters ${scheme.parameters.join(', ')}` : null,
    tensor.parameters.some((x) => x) ? `of the tensor ${tensor.parameters.join(', ')}` : null,
    tensor.dtype, `shape [${tensor.shape.join(', ')}]`, size(bytes),
    tensor.alias_of === null ? null : `alias of ${shown(tensor.alias_of)}`,
    tensor.transposed ? 'stored as the transpose' : null,
  ];
  const rows = planes.map((plane) => [
    plane.role, plane.dtype, `[${plane.shape.join(', ')}]`, count(plane.offset), count(plane.length),
  ]);
  return h('div', { className: 'detail', tabIndex: -1 },
    h('h3', { className: 'mono' }, shown(tensor.name)), h('p', {}, words.filter(Boolean).join(' · ')),
    table([{ name: 'plane' }, { name: 'dtype' }, { name: 'shape' }, number('offset'), number('bytes')], rows),
    bytes <= MOST_DECODED ? action('Decode its values', values, async () => decoded(await file.values(tensor))) : null,
    values);
}

function decoded(values) {
  const finite = values.filter(Number.isFinite);
  let [least, most, squares] = [Infinity, -Infinity, 0];
  for (const x of finite) [least, most, squares] = [Math.min(least, x), Math.max(most, x), squares + x * x];
  const rms = Math.sqrt(squares / finite.length).toPrecision(4);
  const others = values.length - finite.length;
  const range = `from ${least.toPrecision(6)} to ${most.toPrecision(6)}`;
  const figures = [
    many(values.length, 'value'), finite.length ? `${range}, root of the mean square ${rms}` : '',
    others ? `${count(others)} not finite` : '',
  ];
  const first = values.slice(0, VALUES).map((x) => (Object.is(x, -0) ? '-0' : String(Number(x.toPrecision(7)))));
  const rest = values.length > VALUES ? ' …' : '';
  return [
    h('p', {}, figures.filter(Boolean).join(', ')),
    h('pre', {}, `${first.join('  ')}${rest}`),
  ];
}

export function tensorsCard(file, choose) {
  const rows = byScheme(file);
  const { legends } = piecesOf(file);
  const fills = new Map(legends.scheme.map(({ label, fill }) => [label, fill]));
  const filter = h('input', { type: 'text', id: 'filter', placeholder: 'Part of a name', spellcheck: false });
  const groups = h('div', {});
  const wide = (cells) => h('span', { className: 'row' }, cells.map((cell) => h('span', {}, cell)));
  const heads = h('div', { className: 'head-row', 'aria-hidden': 'true' },
    wide(['', 'scheme', 'tensors', 'elements', 'bytes', 'bits a weight']));
  filter.oninput = () => {
    const wanted = filter.value.toLowerCase();
    groups.replaceChildren(...rows.map((row) => group(row, wanted)).filter(Boolean));
    if (!groups.childElementCount) groups.append(note(rows.length ? 'No tensor has that in its name.' : 'No tensors.'));
  };

  function group({ label, tensors, elements, bytes, bits }, wanted) {
    const found = wanted ? tensors.filter(({ name }) => name.toLowerCase().includes(wanted)) : tensors;
    if (!found.length) return null;
    const inner = h('div', { className: 'inner' });
    const figures = [
      swatch(fills.get(label) ?? 'gap'), h('span', { className: 'name' }, shown(label)),
      wanted ? `${count(found.length)} of ${count(tensors.length)}` : count(tensors.length), about(elements),
      size(bytes), bits.toLocaleString('en', { maximumFractionDigits: 3 }),
    ];
    const details = h('details', {}, h('summary', {}, wide(figures)), inner);
    const fill = () => details.open && !inner.childElementCount && inner.append(listed(found, tensorRows));
    details.ontoggle = fill;
    details.open = Boolean(wanted) || rows.length === 1;
    fill();
    return details;
  }

  function tensorRows(tensors) {
    return table([{ name: 'tensor' }, { name: 'dtype' }, { name: 'shape' }, number('bytes')], tensors.map((tensor) => {
      const { name, dtype, shape, alias_of: alias } = tensor;
      const link = h('button', { type: 'button', className: 'link mono' }, shown(name));
      link.onclick = () => choose({ tensor });
      const bytes = alias === null ? size(bytesOf(file, tensor)) : `alias of ${shown(alias)}`;
      return [link, dtype, `[${shape.join(', ')}]`, bytes];
    }));
  }

  filter.oninput();
  return card('Tensors by scheme',
    h('div', { className: 'tools' }, h('label', { htmlFor: 'filter' }, 'Find'), filter), heads, groups);
}

// The first rows, and a button for more.
function listed(items, rows) {
  const list = h('div', {});
  let at = 0;
  const more = h('button', { type: 'button', className: 'small' });
  more.onclick = () => {
    more.before(rows(items.slice(at, at + PAGE)));
    at += PAGE;
    more.textContent = `Show more of ${count(items.length)}`;
    more.hidden = at >= items.length;
  };
  list.append(more);
  more.onclick();
  return list;
}

export function documentsCard(file) {
  const target = h('div', { 'aria-live': 'polite' });
  const rows = file.documents.map((document) => {
    const title = () => h('h3', { className: 'mono' }, shown(document.name));
    const show = action('Show', target, async () => [title(), await text(document)]);
    return [shown(document.name), size(document.length), show];
  });

  async function text(document) {
    const bytes = await file.bytes(document);
    const name = document.name.toLowerCase();
    if (name.endsWith('.json')) checkJson(name, bytes);
    const string = new TextDecoder().decode(bytes.subarray(0, MOST_SHOWN));
    const rest = bytes.length > MOST_SHOWN ? `\n… ${size(bytes.length - MOST_SHOWN)} more` : '';
    return h('pre', {}, shown(string) + rest);
  }

  const list = rows.length ? table([{ name: 'document' }, number('size'), number('')], rows) : note('None.');
  return card('Documents', list, target);
}

export function metadataCard(file) {
  const rows = [...file.metadata].map(([key, { type, isArray, value }]) => [
    h('span', { className: 'mono' }, key), isArray ? `${count(value.length)} × ${type}` : type,
    isArray ? items(value) : shown(String(value)),
  ]);
  const columns = [{ name: 'key', kind: 'key' }, { name: 'type', kind: 'key' }, { name: 'value', kind: 'text' }];
  return card('Metadata', rows.length ? table(columns, rows) : note('None.'));
}

// Numbers side by side, strings one below the other; what is many behind a click.
function items(values) {
  const between = typeof values[0] === 'string' ? '\n' : ', ';
  const joined = (some) => some.map((value) => shown(String(value))).join(between);
  if (values.length <= FEW) return joined(values);
  const rest = h('details', {}, h('summary', {}, `${joined(values.slice(0, FEW))}${between}…`));
  const lines = (some) => h('div', {}, joined(some));
  rest.ontoggle = () => rest.open && rest.childElementCount === 1 && rest.append(listed(values.slice(FEW), lines));
  return rest;
}

export function headerCard(file) {
  const fields = Object.entries(file.header).map(([name, value]) => [
    name, h('span', { className: 'mono' }, typeof value === 'string' ? value : count(value)),
  ]);
  const rows = file.sections.map(({ name, kind, flags, count: entries, offset, length }) => [
    count(kind), name, flags & 1 ? 'critical' : 'ancillary', count(entries), count(offset), count(length),
  ]);
  return card('Header and sections',
    table([{ name: 'field', kind: 'key' }, { name: 'value' }], fields),
    h('h2', { className: 'second' }, 'Sections'),
    table([number('kind'), { name: 'section' }, { name: '' }, ...['entries', 'offset', 'bytes'].map(number)], rows));
}
