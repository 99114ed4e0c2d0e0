/**
 * A module of the role `patterns` in a JavaScript runtime: what one operation on a cache does next.
 *
 * As thin as `policy.js`, and thinner, for there are no columns here: records are objects in the words of
 * `wit/patterns.wit` (`ageMs` for `age-ms`), variants are `{ tag, val }`, u64 is BigInt. A step is pure, so a trap loses
 * nothing: the call throws, and the next one is asked of a new instance.
 */
import { bytes, start } from './instance.js';
import { PolicyFault, PolicyRefusal } from './policy.js';

/** A duration without end. */
export const FOREVER = 0xffff_ffff_ffff_ffffn;

/** What was compiled; opens rules. */
export class PatternsModule {
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

  /** The module's card, with the parameters that a rule may set. */
  describe() {
    return start(this.#instantiate, this.#core).component.about.describe();
  }

  /** Takes the rules of keyspaces; throws a `PolicyRefusal` that names keyspace and parameter where they cannot be taken. */
  open(keyspaces) {
    return new Rules(() => {
      const { component, memories } = start(this.#instantiate, this.#core);
      try {
        return { rules: component.patterns.Rules.open(keyspaces), memories };
      } catch (error) {
        // An error of WIT's `result` is thrown as it is; a trap is an `Error`.
        if (typeof error?.parameter === 'string') throw new PolicyRefusal(error);
        throw new PolicyFault('open', error);
      }
    });
  }
}

/** Rules that a module has taken. Get them from `PatternsModule.open`. */
export class Rules {
  #open;
  #instance;

  /** Not for users: see `PatternsModule.open`. */
  constructor(open) {
    this.#open = open;
    this.#instance = open();
  }

  /** What is next? Answers with the next action, and the cookie for the step after it. */
  step(moment, operation, event) {
    return this.#ask('step', (rules) => rules.step(moment, operation, event));
  }

  /** The same for many operations at once: turns are `{ moment, operation, event }`. */
  stepMany(turns) {
    return this.#ask('step-many', (rules) => rules.stepMany(turns));
  }

  /** The bytes of memory that the instance holds. */
  get memory() {
    return this.#instance ? bytes(this.#instance.memories) : 0;
  }

  #ask(name, call) {
    this.#instance ??= this.#open();
    try {
      return call(this.#instance.rules);
    } catch (error) {
      this.#instance = null;
      throw new PolicyFault(name, error);
    }
  }
}
