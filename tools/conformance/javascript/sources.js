// Where browsers read a file from: a Blob, such as a file that somebody chose, or an address, by ranges. See reader.js.

import { RuleError, need } from './numbers.js';

const HEAD = 128; // bytes that are read first: a header
const WHOLE = 16 << 20; // bytes up to which a file is taken whole where the server has no ranges

export class BlobSource {
  constructor(blob) {
    this.blob = blob;
    this.size = blob.size;
  }

  async read(offset, length) {
    let bytes;
    try {
      bytes = new Uint8Array(await this.blob.slice(offset, offset + length).arrayBuffer());
    } catch (error) {
      throw new RuleError('AIB-E802', `the file cannot be read any more: ${error.message}`);
    }
    need(bytes.length === length, 'AIB-E802', `${bytes.length} bytes of ${length} at ${offset}`);
    return bytes;
  }

  async check() {
    await this.read(0, Math.min(1, this.size)); // a browser refuses to read a file that has changed since it was chosen
  }
}

async function request(url, options) {
  try {
    return await fetch(url, { credentials: 'omit', referrerPolicy: 'no-referrer', ...options });
  } catch (error) {
    throw new RuleError('AIB-E803', `${url}: out of reach, or not for this page to read (CORS): ${error.message}`);
  }
}

const ranged = (url, offset, length) =>
  request(url, { headers: { Range: `bytes=${offset}-${offset + length - 1}` } });

async function bodyOf(response) {
  try {
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new RuleError('AIB-E803', `${response.url} stopped sending: ${error.message}`);
  }
}

// The size that an answer to a range states; servers elsewhere may not let us see it, and are asked once more.
async function sizeOf(url, response) {
  const stated = response.headers.get('Content-Range')?.match(/\/(\d+)$/);
  if (stated) return Number(stated[1]);
  const head = await request(url, { method: 'HEAD' });
  const length = head.headers.get('Content-Length');
  need(head.ok && length !== null, 'AIB-E803', `${url}: the server does not say how long the file is`);
  return Number(length);
}

class RemoteSource {
  constructor(url, size, version, head) {
    Object.assign(this, { url, size, version, head });
  }

  async read(offset, length) {
    if (offset + length <= this.head.length) return this.head.subarray(offset, offset + length);
    if (length === 0) return new Uint8Array(0);
    return this.fetched(offset, length);
  }

  async fetched(offset, length) {
    const response = await ranged(this.url, offset, length);
    need(response.status === 206, 'AIB-E803', `${this.url}: status ${response.status} for a range`);
    this.compare(response);
    const bytes = await bodyOf(response);
    need(bytes.length === length, 'AIB-E803', `${this.url}: ${bytes.length} bytes of ${length} at ${offset}`);
    return bytes;
  }

  compare(response) {
    need(versionOf(response) === this.version, 'AIB-E802', `${this.url} has changed while it was read`);
  }

  async check() {
    await this.fetched(0, 1);
  }
}

const versionOf = ({ headers }) => headers.get('ETag') ?? headers.get('Last-Modified') ?? '';

// A source at an address. A server without ranges sends the file whole, if it is small.
export async function remote(url) {
  const response = await ranged(url, 0, HEAD);
  const { status } = response;
  if (status === 206) {
    const size = await sizeOf(url, response);
    return new RemoteSource(url, size, versionOf(response), await bodyOf(response));
  }
  const empty = status === 416 && /^bytes \*\/0$/.test(response.headers.get('Content-Range') ?? 'bytes */0');
  if (empty) return new BlobSource(new Blob([]));
  need(status === 200, 'AIB-E803', `${url}: status ${status}`);
  const length = Number(response.headers.get('Content-Length') ?? Infinity);
  if (length <= WHOLE) return Object.assign(new BlobSource(new Blob([await bodyOf(response)])), { isWhole: true });
  await response.body?.cancel();
  throw new RuleError('AIB-E803', `${url}: the server has no ranges, and would send all ${length} bytes`);
}
