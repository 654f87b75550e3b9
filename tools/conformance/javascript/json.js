// JSON as documents may have it: RFC 8259 and AIB-E705 and AIB-E706 of spec/aibit-1.md, section 11.
//
// JSON.parse takes a key twice and says nothing, and tells neither depth nor digits. This parser makes no values.

import { RuleError, need } from './numbers.js';

const DEPTH = 64;
const DIGITS = 4300;
const VOCABULARIES = ['tokenizer.json', 'vocab.json', 'added_tokens.json', 'tekken.json'];
export const FORBIDDEN = [
  '_attn_implementation', '_attn_implementation_internal', '_experts_implementation',
  '_experts_implementation_internal', 'attn_implementation', 'auto_map', 'code_revision', 'custom_generate',
  'custom_pipelines', 'experts_implementation', 'kernel_config', 'trust_remote_code', 'use_kernels',
];
export const FORBIDDEN_IN = new Map([
  ['config.json', ['quantization_config']],
  ['tokenizer_config.json', [
    'added_tokens_file', 'chat_template_file', 'fast_tokenizer_files', 'init_inputs', 'merges_file', 'model_file',
    'special_tokens_map_file', 'spm_file', 'tokenizer_file', 'vocab_file',
  ]],
]);

const QUOTE = 34;
const BACKSLASH = 92;
const NUMBER = /(-?(?:0|[1-9][0-9]*))((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)/y;
const WORD = /true|false|null/y;

// Calls `onKey` for every key whose value is not null.
function parse(text, onKey) {
  let at = 0;

  function take(pattern) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found;
  }
  function skip() {
    while (' \t\n\r'.includes(text[at])) at++;
  }
  const taken = (letter) => text[at] === letter && (at += 1) > 0;
  const fail = (what) => {
    throw new RuleError('AIB-E705', `character ${at}: ${what}`);
  };

  // One value at this depth, or an error; true unless it is null.
  function value(depth) {
    if (depth > DEPTH) fail(`nested more than ${DEPTH} deep`);
    skip();
    let found;
    if (taken('{')) members(depth);
    else if (taken('[')) items(depth);
    else if (text[at] === '"') string();
    else if ((found = take(WORD))) return found[0] !== 'null';
    else if ((found = take(NUMBER))) {
      const [, digits, more] = found;
      if (!more && digits.replace('-', '').length > DIGITS) fail(`an integer of ${digits.length} digits`);
    } else fail('no JSON value');
    return true;
  }

  function string() {
    const start = at;
    if (!taken('"')) fail('no JSON string');
    for (let code; (code = text.charCodeAt(at)) !== QUOTE; at++) {
      if (code === BACKSLASH) at++;
      else if (!(code >= 32)) fail('a control character, or no end of the string');
    }
    at++;
    try {
      return JSON.parse(text.slice(start, at));
    } catch {
      return fail('an escape that is none');
    }
  }

  function items(depth) {
    skip();
    if (taken(']')) return;
    do {
      value(depth + 1);
      skip();
    } while (taken(','));
    if (!taken(']')) fail('no comma, and no end of the array');
  }

  function members(depth) {
    const keys = new Set();
    skip();
    if (taken('}')) return;
    do {
      skip();
      const key = string();
      if (keys.has(key)) fail(`the key ${JSON.stringify(key)} twice`);
      keys.add(key);
      skip();
      if (!taken(':')) fail('no colon');
      if (value(depth + 1)) onKey(key);
      skip();
    } while (taken(','));
    if (!taken('}')) fail('no comma, and no end of the object');
  }

  value(1);
  skip();
  if (at < text.length) fail('more after the value');
}

// A document whose name, in lower case, ends in .json.
export function checkJson(name, bytes) {
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new RuleError('AIB-E705', `${name} is not UTF-8`);
  }
  const forbidden = new Set([...FORBIDDEN, ...(FORBIDDEN_IN.get(name) || [])]);
  const found = [];
  parse(text, (key) => forbidden.has(key) && found.push(key));
  const isVocabulary = VOCABULARIES.includes(name.split('/').at(-1));
  need(isVocabulary || found.length === 0, 'AIB-E706', () => `${name}: ${found.join(', ')}`);
}
