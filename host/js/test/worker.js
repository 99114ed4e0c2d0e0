/**
 * The worker under test: `/replay/NAME` replays the corpus, `/steps/SET/COUNT` that of patterns with so many steps in a call,
 * `/work/NAME/SIZE/CALLS` makes calls for the benchmark.
 */
import { PatternsModule } from '../src/patterns.js';
import { Module } from '../src/policy.js';
import { instantiate as instantiatePatterns } from '../dist/patterns.js';
import patterns from '../dist/patterns.wasm';
import patterns2 from '../dist/patterns.core2.wasm';
import patterns3 from '../dist/patterns.core3.wasm';
import { instantiate } from '../dist/policy.js';
import core2 from '../dist/policy.core2.wasm';
import core3 from '../dist/policy.core3.wasm';
import modules, { sets } from '../dist/worker-modules.js';
import { work } from '../bench/work.js';
import { replay as replayPatterns } from './replay-patterns.js';
import { replay } from './replay.js';

function answer(url) {
  const [what, name, ...rest] = new URL(url).pathname.slice(1).split('/').map(decodeURIComponent);
  if (what === 'steps') {
    if (!Object.hasOwn(sets, name)) throw new Error(`there is no set \`${name}\``);
    const module = new PatternsModule(instantiatePatterns, {
      'patterns.core.wasm': patterns,
      'patterns.core2.wasm': patterns2,
      'patterns.core3.wasm': patterns3,
    });
    return { name: module.describe().name, ...replayPatterns(module, sets[name], Number(rest[0])) };
  }
  if (!Object.hasOwn(modules, name)) throw new Error(`there is no policy \`${name}\``);
  const [core, corpus] = modules[name];
  const module = new Module(instantiate, {
    'policy.core.wasm': core,
    'policy.core2.wasm': core2,
    'policy.core3.wasm': core3,
  });
  if (what === 'replay') return { name: module.describe().name, ...replay(module, corpus) };
  if (what === 'work') return work(module, ...rest.map(Number));
  throw new Error(`what is \`${what}\`?`);
}

export default {
  fetch(request) {
    try {
      return Response.json(answer(request.url));
    } catch (error) {
      return new Response(String(error.stack ?? error), { status: 500 });
    }
  },
};
