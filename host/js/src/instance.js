/** Starts components that `jco` has taken apart (`scripts/build.js`): an instance is some core modules, put together. */

/**
 * @param {Function} instantiate what the generated JavaScript exports
 * @param {Record<string, WebAssembly.Module>} core its core modules, compiled, by the names that it asks for
 * @returns {{ component: any, memories: WebAssembly.Memory[] }} what it exports, and all the memory that it has
 */
export function start(instantiate, core) {
  const memories = [];
  const component = instantiate(
    (name) => {
      const module = core[name];
      if (!module) throw new Error(`the core module \`${name}\` was not given`);
      return module;
    },
    {},
    (module, imports) => {
      const instance = new WebAssembly.Instance(module, imports);
      for (const item of Object.values(instance.exports)) {
        if (item instanceof WebAssembly.Memory) memories.push(item);
      }
      return instance;
    },
  );
  return { component, memories };
}

/** The bytes of these memories. */
export const bytes = (memories) => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
