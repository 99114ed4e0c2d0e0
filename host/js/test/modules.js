/** What `scripts/build.js` built, for Node. */
import { readFileSync, readdirSync } from 'node:fs';
import { PatternsModule } from '../src/patterns.js';
import { Module } from '../src/policy.js';
import { instantiate as instantiatePatterns } from '../dist/patterns.js';
import { instantiate } from '../dist/policy.js';

const read = (path) => readFileSync(new URL(path, import.meta.url));
const compile = (file) => new WebAssembly.Module(read(`../dist/${file}`));

export const { policies } = JSON.parse(read('../dist/built.json'));

/** The core modules of a module, by the names that the JavaScript of its role asks for. */
const core = (name, role) => ({
  [`${role}.core.wasm`]: compile(`${name}.wasm`),
  [`${role}.core2.wasm`]: compile(`${role}.core2.wasm`),
  [`${role}.core3.wasm`]: compile(`${role}.core3.wasm`),
});

export const load = (name) => new Module(instantiate, core(name, 'policy'));
export const loadPatterns = () => new PatternsModule(instantiatePatterns, core('patterns', 'patterns'));

export const corpus = (name) => read(`../../../tests/corpus/${name}.jsonl`).toString();

/** The files of the corpus of patterns: `patterns/NAME`. */
export const sets = readdirSync(new URL('../../../tests/corpus/patterns', import.meta.url))
  .filter((file) => file.endsWith('.jsonl'))
  .map((file) => `patterns/${file.slice(0, -'.jsonl'.length)}`)
  .sort();
