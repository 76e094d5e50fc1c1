/** Shows the history that recommendations are made from, and the sample shoppers to begin with. */

import { byId, element } from "./dom.js";
import { picture } from "./picture.js";

const MOSAIC = 4;

export class HistoryPanel {
  #session;
  #titles;

  /**
   * @param {import("./session.js").Session} session
   * @param {{of: (itemId: string) => string}} titles
   */
  constructor(session, titles) {
    this.#session = session;
    this.#titles = titles;
    byId("history-clear").addEventListener("click", () => session.clear());
    session.addEventListener("change", () => this.#show());
  }

  /** Offer the samples and select the first. */
  offer(samples) {
    const buttons = samples.map((sample, place) => this.#shopper(sample, place));
    byId("shoppers").replaceChildren(...buttons);
    byId("shoppers").hidden = samples.length === 0;
  }

  #shopper(sample, place) {
    const recent = sample.history.slice(-MOSAIC);
    const count = sample.history.length;
    const button = element("button", { type: "button", class: "shopper", on: { click: () => this.#session.take(sample) } },
      element("span", { class: "mosaic" }, ...recent.map((item) => picture(item.item_id, this.#titles.of(item.item_id)))),
      element("span", { class: "shopper-name", text: `Shopper ${place + 1}` }),
      element("span", { class: "hint", text: `${count} ${count === 1 ? "item" : "items"}` }),
    );
    const mark = () => button.setAttribute("aria-pressed", String(this.#session.sample === sample));
    this.#session.addEventListener("change", mark);
    mark();
    return button;
  }

  #show() {
    const { history } = this.#session;
    const place = [...byId("history").children].findIndex((step) => step.contains(document.activeElement));
    byId("history").replaceChildren(...history.map((itemId) => this.#step(itemId)));
    byId("history-empty").hidden = history.length > 0;
    byId("history-clear").disabled = history.length === 0;
    byId("history").scrollTo(byId("history").scrollWidth, byId("history").scrollHeight); // the newest is last
    if (place < 0) return;
    const next = byId("history").children[Math.min(place, history.length - 1)];
    (next?.querySelector("button") ?? byId("results-title")).focus();
  }

  #step(itemId) {
    const title = this.#titles.of(itemId);
    return element("li", { "data-item": itemId },
      picture(itemId, title),
      element("span", { class: "step-title", text: title, title, dir: "auto" }),
      element("button", {
        type: "button", class: "round", text: "×", "aria-label": `Take ${title} out of the history`,
        on: { click: () => this.#session.remove(itemId) },
      }),
    );
  }
}

/** Show the item that followed in the sample, and its rank in the response. */
export function showTruth(session, titles, items) {
  const place = byId("truth");
  const target = session.sample?.target ?? null;
  place.hidden = target === null;
  if (target === null) return;
  const title = titles.of(target.item_id);
  const rank = items.findIndex((item) => item.item_id === target.item_id);
  const none = items.length === 0 ? "Nothing is recommended" : `Not among these ${items.length}`;
  const found = rank < 0 ? none : `Number ${rank + 1} of these ${items.length}`;
  place.replaceChildren(
    picture(target.item_id, title),
    element("div", {},
      element("p", { class: "hint", text: "Really taken next" }),
      element("p", { class: "step-title", text: title, title, dir: "auto" }),
      element("p", { class: "hint", text: found })),
  );
}
