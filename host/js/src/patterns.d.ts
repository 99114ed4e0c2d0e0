/** The words and their meaning are those of `wit/patterns.wit`; durations in milliseconds unless the name says otherwise. */
import type { Description, Parameter } from './policy.js';

export interface Keyspace {
  name: string;
  /** Bit `i` is tier `i`; so in all sets of tiers. */
  tiers: number;
  shared: number;
  abilities: { loads?: boolean; saves?: boolean; logs?: boolean; announces?: boolean; leases?: boolean };
  parameters: Parameter[];
}

export interface Facts {
  tier: number;
  ageMs: bigint;
  freshMs: bigint;
  staleMs: bigint;
  rescueMs: bigint;
  earlyUs: bigint;
  costUs: bigint;
  size: number;
  marks: { negative?: boolean; validator?: boolean };
}

export interface Incoming {
  costUs: bigint;
  size: number;
  negative: boolean;
  freshMs?: bigint;
  staleMs?: bigint;
  rescueMs?: bigint;
}

export interface Operation {
  /** The index of its keyspace in what was given to `open`. */
  keyspace: number;
  kind: 'read' | 'write' | 'remove' | 'fill' | 'refresh' | 'invalidate' | 'flush';
  target: 'key' | 'keys' | 'prefix' | 'tag' | 'all';
  traits: { soft?: boolean; heard?: boolean; scheduled?: boolean; cachedOnly?: boolean };
  /** What the last answer said; 0n for `start`. */
  cookie: bigint;
  elapsedMs: bigint;
  held?: Facts;
  brought?: Incoming;
}

export type Failure = 'timed-out' | 'unavailable' | 'overloaded' | 'rejected' | 'unreached' | 'unsupported';

export interface Outcome {
  fenced: number;
  down: number;
  declined: number;
  unannounced: boolean;
}

export type Event =
  | { tag: 'start' | 'found' | 'absent' | 'tier-down' | 'leading' | 'landed' | 'leader-lost' | 'waited' }
  | { tag: 'still-loading' | 'saved' | 'logged' | 'resumed' | 'buried' }
  | { tag: 'loaded' | 'unchanged'; val: Incoming }
  | { tag: 'kept' | 'dropped'; val: Outcome }
  | { tag: 'load-failed' | 'save-failed' | 'log-failed'; val: Failure };

export type What = 'held' | 'loaded' | 'brought';

export interface Terms {
  freshMs: bigint;
  staleMs: bigint;
  rescueMs: bigint;
  nearMs: bigint;
  quietMs: bigint;
  earlyUs: bigint;
}

export interface Keeping {
  what: What;
  tiers: number;
  terms: Terms;
  announce: boolean;
}

export interface Serving {
  what: What;
  mark: 'fresh' | 'stale' | 'rescued';
  quietMs: bigint;
  keep?: Keeping;
  then: 'end' | 'refresh' | 'go-on';
}

export type Action =
  | { tag: 'look'; val: { tier: number; promote?: { tiers: number; nearMs: bigint } } }
  | { tag: 'join'; val: { scope: 'process' | 'fleet'; waitMs: bigint } }
  | { tag: 'load'; val: { softMs: bigint; hardMs: bigint; conditional: boolean } }
  | { tag: 'keep'; val: Keeping }
  | { tag: 'save' | 'log'; val: { fence: number; hardMs: bigint } }
  | { tag: 'drop' | 'expire'; val: { tiers: number; announce: boolean } }
  | { tag: 'pause'; val: bigint }
  | { tag: 'bury' | 'miss' }
  | { tag: 'serve'; val: Serving }
  | { tag: 'finish'; val?: bigint }
  | { tag: 'fail'; val: Failure };

export interface Moment {
  now: bigint;
  /** 64 random bits, drawn for this step alone. */
  random: bigint;
}

export interface Answer {
  cookie: bigint;
  action: Action;
}

/** A duration without end. */
export const FOREVER: bigint;

/** What was compiled; opens rules. */
export class PatternsModule {
  constructor(instantiate: Function, core: Record<string, WebAssembly.Module>);
  describe(): Description;
  /** Throws a `PolicyRefusal` (of `policy.js`) where the rules cannot be taken. */
  open(keyspaces: Keyspace[]): Rules;
}

/** Rules that a module has taken. A call that traps throws a `PolicyFault`; the next is asked of a new instance. */
export class Rules {
  private constructor();
  step(moment: Moment, operation: Operation, event: Event): Answer;
  stepMany(turns: { moment: Moment; operation: Operation; event: Event }[]): Answer[];
  /** The bytes of memory that the instance holds. */
  readonly memory: number;
}
