/** What `scripts/build.js` built, for Node. */
import { readFileSync } from 'node:fs';
import { Module } from '../src/policy.js';
import { instantiate } from '../dist/policy.js';

const read = (path) => readFileSync(new URL(path, import.meta.url));
const compile = (file) => new WebAssembly.Module(read(`../dist/${file}`));

export const { policies } = JSON.parse(read('../dist/built.json'));

export function load(name) {
  return new Module(instantiate, {
    'policy.core.wasm': compile(`${name}.wasm`),
    'policy.core2.wasm': compile('policy.core2.wasm'),
    'policy.core3.wasm': compile('policy.core3.wasm'),
  });
}

export const corpus = (name) => read(`../../../tests/corpus/${name}.jsonl`).toString();
