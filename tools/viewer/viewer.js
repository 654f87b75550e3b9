// Opens a file that was chosen, dropped or named in ?url=, and puts the cards about it on the page.

import { open, verify } from '../conformance/javascript/reader.js';
import { BlobSource, remote } from '../conformance/javascript/sources.js';
import {
  documentsCard, errorBox, headerCard, layoutCard, metadataCard, summaryCard, tensorDetail, tensorsCard,
} from './cards.js';
import { count, h, many, shown } from './text.js';

const byId = (id) => document.getElementById(id);
const [status, errors, content] = ['status', 'error', 'content'].map(byId);
let latest = 0; // what was asked for last; answers to earlier questions are dropped

async function show(name, sourceOf) {
  const turn = ++latest;
  document.body.dataset.state = 'loading';
  status.textContent = `Reading ${shown(name)} …`;
  errors.replaceChildren();
  content.replaceChildren();
  try {
    const file = await open(await sourceOf());
    if (turn === latest) render(file, name);
  } catch (error) {
    if (turn !== latest) return;
    errors.replaceChildren(errorBox(error));
    status.textContent = `${shown(name)} is not shown.`;
    document.body.dataset.state = 'error';
  }
}

function render(file, name) {
  const chosen = h('div', { 'aria-live': 'polite' });

  function choose({ tensor, document: found }) {
    if (!tensor) return found && documents.scrollIntoView({ behavior: 'smooth' });
    chosen.replaceChildren(tensorDetail(file, tensor));
    chosen.firstChild.scrollIntoView({ behavior: 'smooth', block: 'nearest' });
    return chosen.firstChild.focus({ preventScroll: true });
  }

  async function verifyAll(onProgress) {
    await verify(file, onProgress);
    return h('p', { className: 'level' }, '✓ Verified in full: digests, padding, values of planes, JSON documents.');
  }

  const documents = documentsCard(file);
  const layout = layoutCard(file, choose);
  layout.append(chosen);
  content.replaceChildren(
    summaryCard(file, name, verifyAll), layout, tensorsCard(file, choose), documents, metadataCard(file),
    headerCard(file),
  );
  status.textContent = `${many(file.tensors.length, 'tensor')} in ${count(file.source.size)} bytes.`;
  document.title = `${name} · aibit viewer`;
  document.body.dataset.state = 'ready';
}

const showFile = (file) => file && show(file.name, async () => new BlobSource(file));

function showUrl(address) {
  const name = address.split(/[?#]/)[0].split('/').at(-1) || address;
  show(name, async () => remote(new URL(address, location.href).href));
}

byId('file').onchange = (event) => showFile(event.target.files[0]);
byId('open').onsubmit = (event) => {
  event.preventDefault();
  const address = byId('url').value.trim();
  if (!address) return;
  history.replaceState(null, '', `?url=${encodeURIComponent(address)}`);
  showUrl(address);
};
addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dropping');
});
addEventListener('dragleave', (event) => event.relatedTarget ?? document.body.classList.remove('dropping'));
addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dropping');
  showFile(event.dataTransfer.files[0]);
});

status.textContent = '';
const asked = new URLSearchParams(location.search).get('url');
if (asked) {
  byId('url').value = asked;
  showUrl(asked);
}
