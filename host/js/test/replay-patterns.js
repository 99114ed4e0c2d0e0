/**
 * Replays the corpus of the role `patterns` (`tests/corpus/README.md`). Runs in any runtime: imports nothing of Node's.
 *
 * The corpus has the types of `wit/patterns.wit` by one rule (records are lists, variants names or `{NAME: payload}`), so
 * here are those types, each as what it is made of, and what reads and writes each kind.
 */
import { FOREVER } from '../src/patterns.js';
import { PolicyRefusal } from '../src/policy.js';
import { fingerprint } from './replay.js';

const camel = (name) => name.replace(/-(.)/g, (_, letter) => letter.toUpperCase());

const plain = { read: (json) => json, write: (value) => value };

/** A number if it is exact, -1 for the greatest, else decimal digits. */
const u64 = {
  read: (json) => (json === -1 ? FOREVER : BigInt(json)),
  write: (value) => (value === FOREVER ? -1 : value < 1n << 53n ? Number(value) : String(value)),
};

const option = (type) => ({
  read: (json) => (json === null ? undefined : type.read(json)),
  write: (value) => (value === undefined ? null : type.write(value)),
});

/** A list of the names that are set. */
const flags = {
  read: (json) => Object.fromEntries(json.map((name) => [camel(name), true])),
};

function record(fields) {
  const all = Object.entries(fields).map(([name, type]) => [camel(name), type]);
  return {
    read(json) {
      if (json.length !== all.length) throw new Error(`${JSON.stringify(json)} has not ${all.length} fields`);
      return Object.fromEntries(all.map(([name, type], i) => [name, type.read(json[i])]));
    },
    write: (value) => all.map(([name, type]) => type.write(value[name])),
  };
}

/** Cases that carry something; the others are just names. */
function variant(cases) {
  return {
    read(json) {
      if (typeof json === 'string') return { tag: json };
      const [[tag, payload]] = Object.entries(json);
      return { tag, val: cases[tag].read(payload) };
    },
    write: ({ tag, val }) => (cases[tag] ? { [tag]: cases[tag].write(val) } : tag),
  };
}

const facts = record({
  tier: plain, 'age-ms': u64, 'fresh-ms': u64, 'stale-ms': u64, 'rescue-ms': u64, 'early-us': u64, 'cost-us': u64,
  size: plain, marks: flags,
});
const incoming = record({
  'cost-us': u64, size: plain, negative: plain, 'fresh-ms': option(u64), 'stale-ms': option(u64), 'rescue-ms': option(u64),
});
const outcome = record({ fenced: plain, down: plain, declined: plain, unannounced: plain });
const event = variant({
  loaded: incoming, unchanged: incoming, 'load-failed': plain, kept: outcome, dropped: outcome, 'save-failed': plain,
  'log-failed': plain,
});
const promotion = record({ tiers: plain, 'near-ms': u64 });
const looking = record({ tier: plain, promote: option(promotion) });
const joining = record({ scope: plain, 'wait-ms': u64 });
const loading = record({ 'soft-ms': u64, 'hard-ms': u64, conditional: plain });
const terms = record({
  'fresh-ms': u64, 'stale-ms': u64, 'rescue-ms': u64, 'near-ms': u64, 'quiet-ms': u64, 'early-us': u64,
});
const keeping = record({ what: plain, tiers: plain, terms, announce: plain });
const dropping = record({ tiers: plain, announce: plain });
const saving = record({ fence: plain, 'hard-ms': u64 });
const serving = record({ what: plain, mark: plain, 'quiet-ms': u64, keep: option(keeping), then: plain });
const action = variant({
  look: looking, join: joining, load: loading, keep: keeping, save: saving, log: saving, drop: dropping, expire: dropping,
  pause: u64, serve: serving, finish: option(u64), fail: plain,
});
const value = variant({ flag: plain, integer: { read: BigInt }, number: plain, text: plain });

function keyspace({ name, tiers, shared, abilities, parameters = [] }) {
  const set = parameters.map(([name, setting]) => ({ name, value: value.read(setting) }));
  return { name, tiers, shared, abilities: flags.read(abilities), parameters: set };
}

/** The turns of an operation, and the answers that are recorded. */
function turnsOf({ keyspace, kind, target = 'key', traits = [], began, brought = null, cookie = 0, steps }) {
  let last = cookie;
  return steps.map(([elapsed, random, held, happened, next, does]) => {
    const operation = {
      keyspace, kind, target, traits: flags.read(traits), cookie: u64.read(last), elapsedMs: BigInt(elapsed),
      held: option(facts).read(held), brought: option(incoming).read(brought),
    };
    last = next;
    // A number stands for the bits that splitmix64 makes of it; digits are the bits.
    const bits = typeof random === 'number' ? fingerprint(random) : BigInt(random);
    const moment = { now: BigInt(began + elapsed), random: bits };
    return { turn: { moment, operation, event: event.read(happened) }, recorded: JSON.stringify([next, does]) };
  });
}

/** Takes the recorded steps, `atOnce` in a call; throws at the first answer that is not the recorded one. */
export function replay(module, text, atOnce = 1) {
  let rules;
  let steps = 0;
  let waiting = [];
  const take = () => {
    const taken = waiting.splice(0);
    if (taken.length === 0) return;
    const turns = taken.map(({ turn }) => turn);
    const one = ([{ moment, operation, event }]) => [rules.step(moment, operation, event)];
    const answers = atOnce === 1 ? one(turns) : rules.stepMany(turns);
    taken.forEach(({ line, recorded }, i) => {
      const answered = JSON.stringify([u64.write(answers[i].cookie), action.write(answers[i].action)]);
      if (answered !== recorded) throw new Error(`line ${line}: answered ${answered}, recorded ${recorded}`);
    });
    steps += taken.length;
  };
  let line = 0;
  for (const json of text.split('\n')) {
    if (json === '') continue;
    line += 1;
    const [[what, content]] = Object.entries(JSON.parse(json));
    if (what === 'open') {
      take();
      rules = module.open(content.map(keyspace));
    } else if (what === 'refuse') {
      const { keyspaces, ...recorded } = content;
      let answered = 'that they are taken';
      try {
        module.open(keyspaces.map(keyspace));
      } catch (error) {
        if (!(error instanceof PolicyRefusal)) throw error;
        answered = JSON.stringify({ keyspace: error.keyspace, parameter: error.parameter, message: error.reason });
      }
      if (answered !== JSON.stringify(recorded)) {
        throw new Error(`line ${line}: answered ${answered}, recorded ${JSON.stringify(recorded)}`);
      }
    } else if (what === 'run') {
      for (const { turn, recorded } of turnsOf(content)) {
        waiting.push({ line, turn, recorded });
        if (waiting.length >= atOnce) take();
      }
    } else {
      throw new Error(`line ${line}: what is \`${what}\`?`);
    }
  }
  take();
  return { steps };
}
