/** Replays the corpus of recorded decisions (`tests/corpus/README.md`). Runs in any runtime: imports nothing of Node's. */
import { NEVER } from '../src/policy.js';

/** splitmix64, as the corpus makes fingerprints of keys. */
export function fingerprint(key) {
  const u64 = (x) => BigInt.asUintN(64, x);
  let z = u64(BigInt(key) + 0x9e3779b97f4a7c15n);
  z = u64((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = u64((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

function entries({ slots, keys, weights = [], costs = [], expiries = [] }) {
  return {
    slots: Uint32Array.from(slots),
    fingerprints: BigUint64Array.from(keys, fingerprint),
    weights: Uint32Array.from(weights),
    costs: Uint32Array.from(costs),
    expiries: BigUint64Array.from(expiries, (at) => (at === null ? NEVER : BigInt(at))),
  };
}

function parameter([name, setting]) {
  const [[tag, value]] = Object.entries(setting);
  return { name, value: { tag, val: tag === 'integer' ? BigInt(value) : value } };
}

function same(what, answered, recorded, line) {
  if (answered.length !== recorded.length || recorded.some((slot, i) => answered[i] !== slot)) {
    throw new Error(`line ${line}: answered ${what} [${answered}], recorded [${recorded}]`);
  }
}

/** Makes the recorded calls; throws at the first answer that is not the recorded one. */
export function replay(module, text) {
  let policy;
  let calls = 0;
  let victims = 0;
  for (const line of text.split('\n')) {
    if (line === '') continue;
    calls += 1;
    const [[call, value]] = Object.entries(JSON.parse(line));
    if (call === 'open') {
      const { capacity, expected, seed, parameters = [] } = value;
      policy = module.open({ capacity: BigInt(capacity), expected, seed: BigInt(seed) }, parameters.map(parameter));
    } else if (call === 'advance') {
      const answered = policy.advance({
        now: BigInt(value.now),
        departed: Uint32Array.from(value.departed ?? []),
        changed: value.changed && entries(value.changed),
        touched: Uint32Array.from(value.touched ?? []),
        touches: Uint8Array.from(value.touches ?? []),
        arrived: value.arrived && entries(value.arrived),
      });
      same('victims', answered, value.victims, calls);
      victims += answered.length;
    } else if (call === 'residents') {
      const { slots, uses } = policy.residents();
      same('residents', slots, value.slots, calls);
      same('uses', uses ?? [], value.uses ?? [], calls);
    } else if (call === 'adopt') {
      const answered = policy.adopt(entries(value.residents), Uint32Array.from(value.uses ?? []));
      same('victims', answered, value.victims, calls);
    } else {
      throw new Error(`line ${calls}: what is \`${call}\`?`);
    }
  }
  return { calls, victims };
}
