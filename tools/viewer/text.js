// Elements made of text, and numbers and strings as people read them. Nothing here parses HTML: what a file holds is
// only ever a text node, with its invisible characters shown as escapes.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== 'list') element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

// A string of a file, with everything that would not be seen, or would move the rest, as an escape.
export const shown = (string) => string.replace(HIDDEN, (letter) =>
  letter === '\n' || letter === '\t' ? letter : `\\u{${letter.codePointAt(0).toString(16)}}`);

export const count = (number) => number.toLocaleString('en');
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

export function size(bytes) {
  let [value, unit] = [Number(bytes), 0];
  while (value >= 1024 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
  const digits = value >= 1000 ? 4 : 3;
  return `${value.toLocaleString('en', unit ? { maximumSignificantDigits: digits } : {})} ${UNITS[unit]}`;
}

// A large number of things: 1.24 billion.
export function about(number) {
  const value = Number(number);
  for (const [least, word] of [[1e12, 'trillion'], [1e9, 'billion'], [1e6, 'million']]) {
    if (value >= least) return `${(value / least).toLocaleString('en', { maximumSignificantDigits: 3 })} ${word}`;
  }
  return count(number);
}

export function table(columns, rows) {
  const kind = (column) => ({ className: column.kind ?? '' });
  const head = h('tr', {}, columns.map((column) => h('th', { ...kind(column), scope: 'col' }, column.name)));
  const body = rows.map((row) => h('tr', {}, row.map((cell, i) => h('td', kind(columns[i]), cell))));
  return h('div', { className: 'scroll' }, h('table', {}, h('thead', {}, head), h('tbody', {}, body)));
}
