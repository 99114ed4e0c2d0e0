/**
 * A policy module in a JavaScript runtime.
 *
 * A module is a WebAssembly component; `jco` makes of it some core modules and a file of JavaScript that lowers and
 * lifts (`scripts/build.js`). This file is the thin layer above: it takes the module apart from its instances, fills in
 * the columns that a caller leaves out, and checks the types of those that it gives, which the generated code does not
 * (it copies `length * 4` bytes of whatever typed array it gets).
 *
 * Everything is synchronous and nothing is compiled here: Workers forbid compiling at run time and hand over compiled
 * modules as imports. Time and randomness are arguments, as in every host.
 */
import { bytes, start } from './instance.js';

/** The expiry of an entry that does not expire. */
export const NEVER = 0xffff_ffff_ffff_ffffn;

/** A call that a policy did not survive. Its instance is gone: the host goes on without it. */
export class PolicyFault extends Error {
  constructor(call, cause) {
    super(`the policy trapped in \`${call}\`: ${cause?.message ?? cause}`, { cause });
    this.name = 'PolicyFault';
    this.call = call;
  }
}

/** A policy that would not open, or rules that are not taken. */
export class PolicyRefusal extends Error {
  constructor({ keyspace, parameter, message }) {
    super((keyspace ? `keyspace \`${keyspace}\`: ` : '') + (parameter ? `parameter \`${parameter}\`: ` : '') + message);
    this.name = 'PolicyRefusal';
    this.keyspace = keyspace;
    this.parameter = parameter;
    this.reason = message;
  }
}

/** What was compiled; opens as many policies as there are shards. */
export class Module {
  #instantiate;
  #core;

  /**
   * @param {Function} instantiate what the generated JavaScript exports
   * @param {Record<string, WebAssembly.Module>} core its core modules, compiled, by the names that it asks for
   */
  constructor(instantiate, core) {
    this.#instantiate = instantiate;
    this.#core = core;
  }

  #instance() {
    return start(this.#instantiate, this.#core);
  }

  /** The module's card: name, version, summary, roles, parameters. */
  describe() {
    return this.#instance().component.about.describe();
  }

  /**
   * Opens a policy with no residents, in an instance of its own: a trap takes no other shard along.
   *
   * @param {{ capacity: bigint, expected?: number, seed?: bigint }} limits
   * @param {{ name: string, value: { tag: string, val: unknown } }[]} parameters
   */
  open({ capacity, expected, seed = 0n }, parameters = []) {
    if (u64(capacity, 'capacity') === 0n) throw new RangeError('`capacity` is 0: nothing could stay; give 1 or more');
    if (expected !== undefined && !(Number.isInteger(expected) && expected >= 0 && expected < 2 ** 32)) {
      throw new TypeError('`expected` must be a whole number below 2^32, or left out');
    }
    u64(seed, 'seed');
    const { component, memories } = this.#instance();
    let policy;
    try {
      policy = component.eviction.Policy.open({ capacity, expected, seed }, parameters);
    } catch (error) {
      // An error of WIT's `result` is thrown as it is; a trap is an `Error`.
      if (typeof error?.parameter === 'string') throw new PolicyRefusal(error);
      throw faultOf('open', error);
    }
    return new Policy(policy, memories);
  }
}

/** One running policy, for one shard. */
export class Policy {
  #policy;
  #memories;
  #fault = null;

  /** Not for users: see `Module.open`. */
  constructor(policy, memories) {
    this.#policy = policy;
    this.#memories = memories;
  }

  /**
   * Takes a batch in and answers with the victims. Parts and columns that are left out did not happen or have their
   * defaults; so do empty ones, which are left out here, for each list would cost a call.
   */
  advance({ now, departed, changed, touched, touches, arrived }) {
    const batch = {
      now: u64(now, 'now'),
      departed: list(departed, Uint32Array, 'departed'),
      changed: changed?.slots.length ? entries(changed, 'changed') : undefined,
      touched: list(touched, Uint32Array, 'touched'),
      touches: column(touches, Uint8Array, touched?.length ?? 0, 'touches'),
      arrived: arrived?.slots.length ? entries(arrived, 'arrived') : undefined,
    };
    return this.#call('advance', () => this.#policy.advance(batch));
  }

  /** The residents, the next victim first, and their uses, if the policy knows of any. */
  residents() {
    return this.#call('residents', () => this.#policy.residents());
  }

  /** Takes over residents from a predecessor; answers with what it does not want. */
  adopt(residents, uses) {
    const adopted = entries(residents, 'residents');
    const used = column(uses, Uint32Array, adopted.slots.length, 'uses');
    return this.#call('adopt', () => this.#policy.adopt(adopted, used));
  }

  /** What it has learned beyond that, for a successor of the same name. */
  learned() {
    return this.#call('learned', () => this.#policy.learned());
  }

  /** Takes over what a predecessor had learned, before `adopt`; answers whether it could. */
  recall(learned) {
    typed(learned, Uint8Array, 'learned');
    return this.#call('recall', () => this.#policy.recall(learned));
  }

  /** The bytes of memory that the instance holds. */
  get memory() {
    return bytes(this.#memories);
  }

  #call(name, call) {
    if (this.#fault) throw this.#fault;
    try {
      return call();
    } catch (error) {
      throw (this.#fault = faultOf(name, error));
    }
  }
}

function faultOf(call, error) {
  return new PolicyFault(call, error);
}

function entries(given, name) {
  const { slots, fingerprints, weights, costs, expiries } = given;
  typed(slots, Uint32Array, `${name}.slots`);
  typed(fingerprints, BigUint64Array, `${name}.fingerprints`);
  if (fingerprints.length !== slots.length) throw mismatch(`${name}.fingerprints`, fingerprints.length, slots.length);
  return {
    slots,
    fingerprints,
    weights: column(weights, Uint32Array, slots.length, `${name}.weights`),
    costs: column(costs, Uint32Array, slots.length, `${name}.costs`),
    expiries: column(expiries, BigUint64Array, slots.length, `${name}.expiries`),
  };
}

/** A column is left out, or empty, or as long as the slots. */
function column(given, type, length, name) {
  const column = list(given, type, name);
  if (column && column.length !== length) throw mismatch(name, column.length, length);
  return column;
}

function list(given, type, name) {
  return given === undefined || typed(given, type, name).length === 0 ? undefined : given;
}

/** What is no such number would only fail within the call, of which the policy's instance would not be well. */
function u64(given, name) {
  if (typeof given !== 'bigint') throw new TypeError(`\`${name}\` must be a bigint`);
  if (given < 0n || given > NEVER) throw new RangeError(`\`${name}\` must be from 0 to 2^64 - 1`);
  return given;
}

function typed(given, type, name) {
  if (!(given instanceof type)) throw new TypeError(`\`${name}\` must be a ${type.name}`);
  return given;
}

function mismatch(name, length, expected) {
  return new RangeError(`\`${name}\` has ${length} elements for ${expected} slots`);
}
