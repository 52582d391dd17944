(function () {
  "use strict";
  const G = globalThis;
  const { freeze, getPrototypeOf, getOwnPropertyDescriptor, defineProperty } = Object;
  const { ownKeys, apply } = Reflect;
  const functions = [function () {}, async function () {}, function* () {}, async function* () {}];
  // No program is made of text: it would stand outside of what begins anew with each event.
  const refuse = function Function() {
    throw new TypeError("a program can't be made of text here");
  };
  refuse.prototype = getPrototypeOf(functions[0]);
  for (const one of functions) {
    defineProperty(getPrototypeOf(one), "constructor", { value: refuse });
  }
  for (const name of ["eval", "performance", "queueMicrotask", "navigator", "print", "gc", "os", "std"]) {
    delete G[name];
  }
  defineProperty(G, "Function", { value: refuse });
  // What only syntax leads to.
  const hidden = [
    [][Symbol.iterator](), ""[Symbol.iterator](), new Map().entries(), new Set().values(), "".matchAll(/./g),
    functions[2].prototype, functions[3].prototype, functions[2](), functions[3](),
  ];
  if (typeof Iterator === "function") {
    hidden.push([].values().map((x) => x), Iterator.from({ next() {} }));
    if (typeof Iterator.concat === "function") hidden.push(Iterator.concat([]));
  }
  // How a stack is written is no property but state of the engine's, which no freezing holds; and what stands for a place in it can be
  // reached through this alone.
  Error.prepareStackTrace = (error, sites) => sites;
  hidden.push(...new Error("").stack);
  Error.prepareStackTrace = undefined;
  delete Error.prepareStackTrace;
  delete Error.stackTraceLimit;
  const seen = new Set();
  const todo = [G, ...functions.map(getPrototypeOf), ...hidden.map(getPrototypeOf)];
  while (todo.length > 0) {
    const one = todo.pop();
    if (one === null || (typeof one !== "object" && typeof one !== "function") || seen.has(one)) continue;
    seen.add(one);
    for (const key of ownKeys(one)) {
      const property = getOwnPropertyDescriptor(one, key);
      if ("value" in property) todo.push(property.value);
      else todo.push(property.get, property.set);
    }
    todo.push(getPrototypeOf(one));
    freeze(one);
  }
  const { stringify } = JSON;
  const { keys } = Object;
  const { isArray } = Array;
  const { isPrototypeOf } = Object.prototype;
  const generators = [functions[2], functions[3]].map((one) => getPrototypeOf(one.prototype));
  const wellFormed = String.prototype.toWellFormed;
  const text = (value) => apply(wellFormed, value, []);
  const ROUTING = freeze({ __proto__: null, payload: 1, headers: 1, key: 1, subject: 1 });

  // What is wrong with what a program gave back; it holds nothing of the event.
  let wanted = "";
  const wants = (what) => {
    wanted = what;
    throw new TypeError(what);
  };
  const word = (name, value) => {
    if (value === undefined || value === null) return null;
    if (typeof value === "string") return text(value);
    if (typeof value === "number" || typeof value === "boolean") return `${value}`;
    return wants(`${name} is to be text`);
  };
  const payloadOf = (value, out) => {
    if (typeof value === "string") {
      out[0] = 1;
      out[1] = text(value);
      return;
    }
    if (typeof value !== "object" || value === null) {
      wants("the payload is to be an object, an array or a string");
    }
    let json;
    try {
      json = stringify(value);
    } catch (thrown) {
      // The program has returned by then: there is no place in it.
      if (thrown instanceof TypeError && thrown.message === "circular reference") {
        wants("the payload is circular: what holds itself is no JSON");
      }
      throw thrown;
    }
    if (typeof json !== "string") wants("the payload is no JSON");
    out[0] = 2;
    out[1] = json;
  };

  // [what: 0 nothing, 1 text, 2 JSON; payload; headers: names and values in turn; key; subject]
  const run = (factory, event, meta) => {
    wanted = "";
    const main = factory();
    if (typeof main !== "function") wants("what is exported by default is no function");
    const result = main(event, meta);
    if (result === null) return [0, "", [], null, null];
    if (result === undefined) wants("it returned nothing: return null where nothing is to be delivered");
    const out = [0, "", [], null, null];
    if (typeof result === "object" && !isArray(result)) {
      if (result instanceof Promise) wants("it returned a promise: it can't be async");
      // As JSON it would be empty.
      for (let i = 0; i < generators.length; i++) {
        if (apply(isPrototypeOf, generators[i], [result])) wants("it returned a generator: it can't be function*");
      }
      const names = keys(result);
      let routes = false;
      let others = false;
      for (let i = 0; i < names.length; i++) {
        if (names[i] === "payload") routes = true;
        else if (ROUTING[names[i]] === undefined) others = true;
      }
      if (routes && !others) {
        const { payload, headers, key, subject } = result;
        payloadOf(payload, out);
        if (headers !== undefined && headers !== null) {
          if (typeof headers !== "object" || isArray(headers)) wants("headers is to be an object");
          const names = keys(headers);
          for (let i = 0; i < names.length; i++) {
            const value = word("each of the headers", headers[names[i]]);
            if (value === null) continue;
            const at = out[2].length;
            out[2][at] = text(names[i]);
            out[2][at + 1] = value;
          }
        }
        out[3] = word("key", key);
        out[4] = word("subject", subject);
        return out;
      }
    }
    payloadOf(result, out);
    return out;
  };

  // Of what was thrown: its message, its stack, and the words where it was thrown here.
  const explain = (thrown) => {
    if (thrown instanceof Error) {
      return [text(`${thrown.name}: ${thrown.message}`), text(`${thrown.stack}`), wanted];
    }
    // The engine throws null where there is no memory left even for an error.
    if (thrown === null) return ["", "", wanted];
    if (typeof thrown === "string") return [text(thrown), "", wanted];
    return ["", "", wanted || "it threw something that is no Error and names no place: throw new Error(...) instead"];
  };
  return [run, explain];
})()
