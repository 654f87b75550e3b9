// Judges files: node cli.js FILE ... [--list]
//
// Each is verified in full and printed as one line: all that it says, in the form of the twins in fixtures/container/,
// or the code of the rule that it breaks and why. --list prints the tensors of a file instead. The exit status is 0, or
// 3 if a file was refused.

import fs from 'node:fs';
import process from 'node:process';

import { RuleError, need } from './numbers.js';
import { open, verify } from './reader.js';
import { describe, toJson } from './twin.js';

function attempt(action) {
  try {
    return action();
  } catch (error) {
    throw new RuleError('AIB-E803', error.message);
  }
}

const state = (fd) => {
  const { size, mtimeNs } = fs.fstatSync(fd, { bigint: true });
  return `${size} ${mtimeNs}`;
};

// A source (see reader.js) of a file that is there.
class FileSource {
  constructor(path) {
    this.fd = attempt(() => fs.openSync(path, fs.constants.O_RDONLY | (fs.constants.O_NONBLOCK || 0)));
    const status = fs.fstatSync(this.fd);
    need(status.isFile(), 'AIB-E801', 'not a regular file');
    this.size = status.size;
    this.state = state(this.fd);
  }

  async read(offset, length) {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const count = attempt(() => fs.readSync(this.fd, bytes, at, length - at, offset + at));
      need(count > 0, 'AIB-E802', `the file ends at ${offset + at}, and had ${this.size} bytes`);
      at += count;
    }
    return bytes;
  }

  async check() {
    need(state(this.fd) === this.state, 'AIB-E802', 'the file has changed while it was read');
  }

  close() {
    fs.closeSync(this.fd);
  }
}

function listed({ tensors, schemes }) {
  const row = ({ name, scheme, dtype, shape }) => [name, schemes[scheme].name, dtype, toJson(shape)].join('\t');
  return tensors.map(row).join('\n');
}

// What is printed of a file, and whether it was refused.
async function judged(path, show) {
  let source;
  try {
    source = new FileSource(path);
    const file = await open(source);
    await verify(file);
    return [await show(file), false];
  } catch (error) {
    if (!(error instanceof RuleError)) throw error;
    return [error.message, true];
  } finally {
    source?.close();
  }
}

const paths = process.argv.slice(2).filter((argument) => argument !== '--list');
const show = process.argv.includes('--list') ? listed : async (file) => toJson(await describe(file));
if (!paths.length) {
  console.error('usage: node cli.js FILE ... [--list]');
  process.exitCode = 2;
}
for (const path of paths) {
  const [line, refused] = await judged(path, show);
  console.log(line);
  if (refused) process.exitCode = 3;
}
