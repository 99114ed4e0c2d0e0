import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PolicyFault, PolicyRefusal } from '../src/policy.js';
import { corpus, load, loadPatterns, policies, sets } from './modules.js';
import { replay as replayPatterns } from './replay-patterns.js';
import { fingerprint, replay } from './replay.js';

for (const name of policies) {
  test(`${name} decides in Node as recorded`, () => {
    const module = load(name);
    assert.equal(module.describe().name, name);
    const { calls, victims } = replay(module, corpus(name));
    assert.ok(calls > 1000 && victims > 1000, `only ${calls} calls and ${victims} victims`);
  });
}

for (const set of sets) {
  test(`${set} decides in Node as recorded`, () => {
    const module = loadPatterns();
    assert.equal(module.describe().name, 'patterns');
    for (const atOnce of [1, 64]) {
      const { steps } = replayPatterns(module, corpus(set), atOnce);
      assert.ok(steps > 500, `only ${steps} steps`);
    }
  });
}

test('a wrong step does not pass', () => {
  const lines = corpus('patterns/read-through').split('\n');
  const at = lines.findIndex((line) => line.includes('"loaded","fresh",0,["loaded",'));
  assert.notEqual(at, -1);
  for (const [recorded, wrong] of [['"loaded","fresh",0,', '"loaded","fresh",1,'], [',["loaded",', ',["held",']]) {
    const changed = lines.map((line, i) => (i === at ? line.replace(recorded, wrong) : line));
    for (const atOnce of [1, 64]) {
      const replays = () => replayPatterns(loadPatterns(), changed.join('\n'), atOnce);
      assert.throws(replays, new RegExp(`line ${at + 1}: answered`));
    }
  }
});

test('a call that a patterns module does not survive is followed by others', () => {
  const rules = loadPatterns().open([{ name: 'a', tiers: 1, shared: 0, abilities: { loads: true }, parameters: [] }]);
  const operation = { keyspace: 0, kind: 'read', target: 'key', traits: {}, cookie: 0n, elapsedMs: 0n };
  const moment = { now: 0n, random: 7n };
  assert.throws(() => rules.step(moment, { ...operation, kind: 'dance' }, { tag: 'start' }), PolicyFault);
  assert.equal(rules.step(moment, operation, { tag: 'start' }).action.tag, 'join');
});

test('a wrong decision does not pass', () => {
  assert.throws(() => replay(load('fifo'), corpus('lru')), /line \d+: answered/);
});

test('fingerprints are those of the corpus', () => {
  assert.equal(fingerprint(1), 0x910a2dec89025cc1n);
});

test('what is left out is empty, and what is of another type is refused before it is copied', () => {
  const policy = load('lru').open({ capacity: 2n, expected: 2 });
  const arrived = { slots: Uint32Array.of(0, 1), fingerprints: BigUint64Array.of(7n, 8n) };
  assert.deepEqual([...policy.advance({ now: 0n, arrived })], []);
  assert.deepEqual([...policy.advance({ now: 1n, touched: Uint32Array.of(0) })], []);
  assert.deepEqual([...policy.residents().slots], [1, 0]);

  assert.throws(() => policy.advance({ now: 2n, departed: Uint8Array.of(0) }), /`departed` must be a Uint32Array/);
  assert.throws(() => policy.advance({ now: 2n, touched: [0] }), /`touched` must be a Uint32Array/);
  const short = { slots: Uint32Array.of(2, 3), fingerprints: BigUint64Array.of(9n) };
  assert.throws(() => policy.advance({ now: 2n, arrived: short }), /1 elements for 2 slots/);
  assert.deepEqual([...policy.residents().slots], [1, 0], 'a refused batch changed something');
});

test('a number that is none is refused before anything happens', () => {
  const module = load('lru');
  for (const [limits, expected] of [
    [{}, /`capacity` must be a bigint/],
    [{ capacity: 2 }, /`capacity` must be a bigint/],
    [{ capacity: 0n }, /`capacity` is 0/],
    [{ capacity: -1n }, /`capacity` must be from 0/],
    [{ capacity: 2n, expected: 1.5 }, /`expected` must be a whole number/],
    [{ capacity: 2n, seed: 1 }, /`seed` must be a bigint/],
  ]) {
    assert.throws(() => module.open(limits), expected);
  }
  const policy = module.open({ capacity: 2n });
  assert.throws(() => policy.advance({}), /`now` must be a bigint/);
  assert.throws(() => policy.advance({ now: 1 }), /`now` must be a bigint/);
  assert.throws(() => policy.advance({ now: 1n << 64n }), /`now` must be from 0/);
  const arrived = { slots: Uint32Array.of(0), fingerprints: BigUint64Array.of(7n) };
  assert.deepEqual([...policy.advance({ now: 0n, arrived })], [], 'it is well');
  assert.deepEqual([...policy.residents().slots], [0]);
});

test('a successor decides as its predecessor would have', () => {
  const module = load('s3-fifo');
  const open = () => module.open({ capacity: 50n, expected: 50 });
  const arrived = (from) => {
    const slots = Uint32Array.from({ length: 50 }, (_, i) => (from + i) % 100);
    return { slots, fingerprints: BigUint64Array.from(slots, (_, i) => fingerprint(from + i)) };
  };
  const first = open();
  first.advance({ now: 0n, arrived: arrived(0) });
  first.advance({ now: 1n, arrived: arrived(50) });
  const { slots, uses } = first.residents();
  const residents = { slots, fingerprints: BigUint64Array.from(slots, fingerprint) };
  // Of those that left, the ghosts that come back go to the main queue: only one who remembers them knows.
  const [heir, stranger] = [open(), open()];
  assert.equal(heir.recall(first.learned()), true);
  assert.equal(stranger.recall(Uint8Array.of(1, 2, 3)), false);
  const free = Uint32Array.from({ length: 100 }, (_, slot) => slot).filter((slot) => !slots.includes(slot)).slice(-10);
  assert.equal(free.length, 10);
  for (const policy of [heir, stranger]) assert.equal(policy.adopt(residents, uses).length, 0);
  const decides = (policy) => {
    const back = { now: 2n, arrived: { slots: free, fingerprints: BigUint64Array.from(free, fingerprint) } };
    const victims = policy.advance(back);
    const fingerprints = BigUint64Array.from(victims, (_, i) => fingerprint(1000 + i));
    return [victims, policy.advance({ now: 3n, arrived: { slots: victims, fingerprints } })].map((slots) => [...slots]);
  };
  const expected = decides(first);
  assert.deepEqual(decides(heir), expected);
  assert.notDeepEqual(decides(stranger), expected);
});

test('a refusal names its parameter', () => {
  const open = () => load('lru').open({ capacity: 2n }, [{ name: 'colour', value: { tag: 'text', val: 'red' } }]);
  assert.throws(open, (error) => error instanceof PolicyRefusal && error.parameter === 'colour');
});

test('refused rules name their keyspace and parameter', () => {
  const parameters = [{ name: 'beta', value: { tag: 'number', val: 1 } }];
  const keyspace = { name: 'prices', tiers: 1, shared: 0, abilities: { loads: true }, parameters };
  const named = ({ keyspace, parameter }) => keyspace === 'prices' && parameter === 'beta';
  assert.throws(() => loadPatterns().open([keyspace]), (error) => error instanceof PolicyRefusal && named(error));
});

test('calls leave no memory behind', () => {
  const policy = load('lru').open({ capacity: 64n, expected: 64 });
  const run = (from, to) => {
    for (let i = from; i < to; i += 64) {
      // The first victims of a full LRU are all the residents: odd and even rounds use other slots.
      const base = (i / 64) % 2 === 0 ? 0 : 64;
      const slots = Uint32Array.from({ length: 64 }, (_, j) => base + j);
      const victims = policy.advance({
        now: BigInt(i),
        arrived: { slots, fingerprints: BigUint64Array.from(slots, (slot) => fingerprint(i + slot)) },
      });
      assert.equal(victims.length, i === 0 ? 0 : 64);
    }
  };
  run(0, 64 * 100);
  const before = policy.memory;
  run(64 * 100, 64 * 20_000);
  assert.equal(policy.memory, before);
});

test('steps leave no memory behind', () => {
  const rules = loadPatterns().open([{ name: 'a', tiers: 3, shared: 2, abilities: { loads: true }, parameters: [] }]);
  const operation = { keyspace: 0, kind: 'read', target: 'key', traits: {}, cookie: 0n, elapsedMs: 0n };
  const turn = { moment: { now: 0n, random: 7n }, operation, event: { tag: 'start' } };
  const run = (calls) => {
    for (let i = 0; i < calls; i += 1) {
      assert.equal(rules.step(turn.moment, turn.operation, turn.event).action.tag, 'look');
      assert.equal(rules.stepMany(Array(16).fill(turn)).length, 16);
    }
  };
  run(100);
  const before = rules.memory;
  run(5_000);
  assert.equal(rules.memory, before);
});
