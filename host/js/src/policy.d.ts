/** Slots, weights, costs: `u32`. Fingerprints, moments: `u64`. The words are those of `wit/eviction.wit`. */
export interface Limits {
  /** 1 or more. */
  capacity: bigint;
  expected?: number;
  /** 0 if nothing is said. */
  seed?: bigint;
}

export type Value =
  | { tag: 'flag'; val: boolean }
  | { tag: 'integer'; val: bigint }
  | { tag: 'number'; val: number }
  | { tag: 'text'; val: string };

export interface Parameter {
  name: string;
  value: Value;
}

/** Entries as parallel columns; one that is left out means its default for all. */
export interface Entries {
  slots: Uint32Array;
  fingerprints: BigUint64Array;
  weights?: Uint32Array;
  costs?: Uint32Array;
  expiries?: BigUint64Array;
}

/** What happened since the last call; what is left out did not. */
export interface Batch {
  now: bigint;
  departed?: Uint32Array;
  changed?: Entries;
  touched?: Uint32Array;
  touches?: Uint8Array;
  arrived?: Entries;
}

export interface Ranking {
  slots: Uint32Array;
  uses?: Uint32Array;
}

export interface Description {
  name: string;
  version: string;
  summary: string;
  roles: ('eviction' | 'patterns')[];
  parameters: { name: string; doc: string; default: Value; minimum?: number; maximum?: number }[];
}

/** The expiry of an entry that does not expire. */
export const NEVER: bigint;

/** A call that a policy did not survive. Every later call throws the same. */
export class PolicyFault extends Error {
  readonly call: 'open' | 'advance' | 'residents' | 'adopt' | 'learned' | 'recall' | 'step' | 'step-many';
}

/** A policy that would not open, or rules that are not taken. */
export class PolicyRefusal extends Error {
  /** The keyspace at fault; none for a policy. */
  readonly keyspace?: string;
  /** The parameter at fault; empty if it is not one. */
  readonly parameter: string;
  /** What is wrong and what to do about it. */
  readonly reason: string;
}

/** What was compiled; opens as many policies as there are shards. */
export class Module {
  constructor(instantiate: Function, core: Record<string, WebAssembly.Module>);
  describe(): Description;
  open(limits: Limits, parameters?: Parameter[]): Policy;
}

/** One running policy. Get it from `Module.open`. */
export class Policy {
  private constructor();
  advance(batch: Batch): Uint32Array;
  residents(): Ranking;
  adopt(residents: Entries, uses?: Uint32Array): Uint32Array;
  learned(): Uint8Array;
  recall(learned: Uint8Array): boolean;
  /** The bytes of memory that the instance holds. */
  readonly memory: number;
}
