/** Shows the facts of a response: strategy, history, latency, bundle, and why it is degraded. */

import { stages } from "./api.js";
import { byId, element } from "./dom.js";

const STRATEGIES = { sequence: "from the sequence", similar: "by likeness", popular: "by popularity" };
const DEGRADED = {
  history_unavailable: "histories cannot be read",
  retrieval_unavailable: "items cannot be searched",
  deadline: "answered at the deadline",
  overload: "answered under load",
};

/** Show the facts above the results; @param {string} timing the Server-Timing header */
export function showFacts(answer, timing) {
  const spent = stages(timing);
  const inFull = Object.entries(spent).map(([stage, time]) => `${stage} ${time.toFixed(2)} ms`).join(", ");
  const used = answer.history_used;
  const facts = [
    element("li", { "data-fact": "strategy", text: STRATEGIES[answer.strategy] ?? answer.strategy, title: answer.strategy }),
    element("li", { "data-fact": "history", text: `${used} ${used === 1 ? "item" : "items"} of history` }),
  ];
  if (spent.total !== undefined) {
    facts.push(element("li", { "data-fact": "latency", text: `${spent.total.toFixed(1)} ms`, title: inFull }));
  }
  if (answer.degraded) {
    const words = DEGRADED[answer.degraded] ?? answer.degraded;
    facts.push(element("li", { class: "degraded", "data-fact": "degraded", text: words, title: answer.degraded }));
  }
  facts.push(element("li", { "data-fact": "bundle", text: answer.bundle, title: "The bundle that answered" }));
  byId("facts").replaceChildren(...facts);
}

/** Announce the results to screen readers. */
export function announce(items, titleOf) {
  const first = items.slice(0, 3).map(titleOf).join(", ");
  const words = items.length === 0 ? "No recommendations" : `${items.length} recommendations, first ${first}`;
  byId("announcement").textContent = words;
}
