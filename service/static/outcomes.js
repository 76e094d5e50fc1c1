/** Shows what the answers of the last day brought, by the slot that gives most of the score. */

import { ask } from "./api.js";
import { colourOf } from "./shares.js";
import { byId, element } from "./dom.js";
import { Latest } from "./latest.js";

const percent = (rate) => (rate === null ? "–" : `${(100 * rate).toFixed(2)} %`);

const REASONS = {
  sampled: "outside of the sample",
  dropped: "as too many waited",
  failed: "as Redis did not answer",
  evicted: "counted, but dropped early, so later clicks are missing",
};

/** What is not counted, as in "12 answers (12 outside of the sample)"; null where nothing is. */
function leftOut(counts) {
  const parts = Object.entries(counts).flatMap(([what, reasons]) => {
    const found = Object.entries(reasons).filter(([, amount]) => amount > 0);
    const total = found.reduce((sum, [, amount]) => sum + amount, 0);
    const listed = found.map(([reason, amount]) => `${amount.toLocaleString()} ${REASONS[reason]}`).join(", ");
    return total === 0 ? [] : [`${total.toLocaleString()} ${what} (${listed})`];
  });
  return parts.length === 0 ? null : `Not counted, or not in full: ${parts.join("; ")}.`;
}

/** The panel; it asks only when it is opened, as outcomes are off by default. */
export class OutcomesPanel {
  #slots;
  #latest = new Latest();

  /** @param {string[]} slots names, filled when the bundle is known */
  constructor(slots) {
    this.#slots = slots;
    byId("outcomes").addEventListener("toggle", () => {
      if (byId("outcomes").open) this.#load();
    });
  }

  #load() {
    this.#latest.ask((signal) => ask("outcomes?by=slot", { signal }), {
      answered: ({ data }) => {
        this.#show(data.outcomes);
        this.#note(leftOut(data.left_out));
      },
      failed: (failure) => {
        this.#say(failure.detail);
        this.#latest.waitFor(failure, () => this.#load());
      },
    });
  }

  #show(entries) {
    if (entries.length === 0) {
      this.#say("No answer of the last day is counted yet.");
      return;
    }
    byId("outcomes-note").hidden = true;
    byId("outcomes-note").textContent = "";
    byId("outcomes-table").hidden = false;
    byId("outcomes-rows").replaceChildren(...entries.map((entry) => this.#row(entry)));
  }

  #note(text) {
    byId("outcomes-left-out").hidden = text === null;
    byId("outcomes-left-out").textContent = text ?? "";
  }

  #row(entry) {
    const known = this.#slots.includes(entry.value);
    const colour = known ? element("span", { class: `dot ${colourOf(this.#slots, entry.value)}`, "aria-hidden": "true" }) : null;
    return element(
      "tr", {}, element("th", { scope: "row" }, colour, entry.value),
      ...[entry.shown.toLocaleString(), percent(entry.click_rate), percent(entry.conversion_rate), entry.revenue.toLocaleString()]
        .map((text) => element("td", { text })),
    );
  }

  #say(text) {
    this.#note(null);
    byId("outcomes-table").hidden = true;
    byId("outcomes-note").hidden = false;
    byId("outcomes-note").textContent = text;
  }
}
