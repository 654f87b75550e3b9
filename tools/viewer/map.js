// The layout map: all bytes of a file to scale, row under row, as a canvas that says which tensor lies where.

import { pieceAt } from './pieces.js';
import { count, h, shown, size } from './text.js';

const ROW = 15;
const GAP = 3;
const HINT = 'Point at the map, or go through it with the arrow keys.';

const colourOf = (fill) => getComputedStyle(document.documentElement).getPropertyValue(`--${fill}`).trim();

export function describePiece({ label, start, end, plane, tensor }) {
  const shape = plane ? ` · ${plane.dtype} [${plane.shape.join(', ')}]` : '';
  const scheme = tensor ? ` of ${tensor.dtype} [${tensor.shape.join(', ')}]` : '';
  return `${shown(label)}${scheme}${shape} · ${size(end - start)} at ${count(start)}`;
}

// An element with the map. Calls onChoose(piece) when one is clicked, or chosen with Enter.
export function layoutMap(pieces, fileSize, onChoose) {
  const rows = fileSize < 1 << 14 ? 8 : fileSize < 1 << 24 ? 16 : 28;
  const perRow = fileSize / rows;
  const canvas = h('canvas', { tabIndex: 0, role: 'img' });
  const label = `Map of ${count(pieces.length)} pieces: arrow keys go through them, Enter chooses one`;
  canvas.setAttribute('aria-label', label);
  const tip = h('div', { className: 'tip' });
  const readout = h('p', { className: 'readout soft', 'aria-live': 'polite' }, HINT);
  const element = h('div', {}, h('div', { className: 'map' }, canvas, tip), readout);
  let way = 'scheme';
  let current = null;

  function draw() {
    const width = canvas.clientWidth;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = (rows * (ROW + GAP) - GAP) * scale;
    canvas.style.height = `${canvas.height / scale}px`;
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    const colours = new Map();
    for (const piece of pieces) {
      const fill = piece.fills[way];
      if (!colours.has(fill)) colours.set(fill, colourOf(fill));
      context.fillStyle = colours.get(fill);
      spans(piece, width, (x, y, length) => context.fillRect(x, y, separated(length), ROW));
    }
    if (current !== null) {
      context.strokeStyle = colourOf('text');
      context.lineWidth = 2;
      const outline = (x, y, length) => context.strokeRect(x + 1, y + 1, Math.max(length - 2, 1), ROW - 2);
      spans(pieces[current], width, outline);
    }
  }

  // Pieces that are wide enough are drawn apart.
  const separated = (length) => (length > 5 ? length - 1 : length);

  function spans({ start, end }, width, paint) {
    for (let row = Math.floor(start / perRow); row < rows && row * perRow < end; row++) {
      const from = Math.max(start / perRow - row, 0) * width;
      const to = Math.min(end / perRow - row, 1) * width;
      paint(from, row * (ROW + GAP), to - from);
    }
  }

  function show(index, x, y) {
    if (index !== current) {
      current = index;
      readout.textContent = index === null ? HINT : describePiece(pieces[index]);
      draw();
    }
    tip.style.visibility = index === null || x === undefined ? 'hidden' : 'visible';
    if (x === undefined) return;
    tip.textContent = readout.textContent;
    tip.style.left = `${Math.max(0, Math.min(x + 12, canvas.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${y + 18}px`;
  }

  function indexAt(event) {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(Math.floor((event.clientY - box.top) / (ROW + GAP)), rows - 1);
    return pieceAt(pieces, (row + (event.clientX - box.left) / box.width) * perRow);
  }

  canvas.addEventListener('pointermove', (event) => {
    const box = canvas.getBoundingClientRect();
    show(indexAt(event), event.clientX - box.left, event.clientY - box.top);
  });
  canvas.addEventListener('pointerleave', () => show(null));
  canvas.addEventListener('click', (event) => onChoose(pieces[indexAt(event)]));
  const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  canvas.addEventListener('keydown', (event) => {
    if (event.key in STEPS) {
      const next = (current ?? -1) + STEPS[event.key];
      show(Math.max(0, Math.min(next, pieces.length - 1)));
    } else if (event.key === 'Enter' && current !== null) onChoose(pieces[current]);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);

  const colourBy = (name) => {
    way = name;
    draw();
  };
  return { element, colourBy };
}
