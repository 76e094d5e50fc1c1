/** Shows the catalogue, page by page or by a text search; a click on an item adds it to the history. */

import { ask } from "./api.js";
import { titleOf } from "./cards.js";
import { byId, debounced, element } from "./dom.js";
import { Latest } from "./latest.js";
import { picture } from "./picture.js";

const PAGE = 24;
const EMPTY_PAGES = 5; // a page may be empty before the end: the service bounds what one search reads
const TYPING_MS = 200;

export class CataloguePanel {
  #session;
  #titles;
  #latest = new Latest();
  #next = null;
  /** Asks once more for what failed; null: nothing did. */
  #again = null;

  /**
   * @param {import("./session.js").Session} session
   * @param {{learn: (items: Object[]) => void}} titles
   */
  constructor(session, titles) {
    this.#session = session;
    this.#titles = titles;
    byId("search").addEventListener("input", debounced(TYPING_MS, () => this.load()));
    byId("catalogue-more").addEventListener("click", () => this.#page(this.#next, true));
    session.addEventListener("change", () => this.#mark());
  }

  /** Show the first page of the search. */
  load() {
    this.#page(0, false);
  }

  /** Ask once more for the page that failed, if one did: the service answers again. */
  retry() {
    this.#again?.();
  }

  #page(cursor, more) {
    const text = byId("search").value.trim();
    this.#again = null;
    this.#latest.ask((signal) => pageOf(text, cursor, signal), {
      answered: (page) => this.#show(page, more, text),
      // Another bundle answers now: show its first page, as a position in the old one is another item.
      failed: (failure) => failure.kind === "outdated" ? this.load() : this.#fail(failure, () => this.#page(cursor, more)),
    });
  }

  #fail(failure, again) {
    this.#say(`${failure.title}. ${failure.detail ?? ""}`);
    this.#again = ["key", "refused"].includes(failure.kind) ? null : again;
    this.#latest.waitFor(failure, again);
  }

  #show({ items, next }, more, text) {
    this.#titles.learn(items);
    const tiles = items.map((item) => this.#tile(item));
    if (more) byId("catalogue").append(...tiles);
    else byId("catalogue").replaceChildren(...tiles);
    if (more) tiles[0]?.querySelector("button").focus({ preventScroll: true });
    this.#next = next;
    byId("catalogue-more").hidden = next === null;
    const nothing = byId("catalogue").childElementCount === 0;
    this.#say(nothing ? `Nothing in the catalogue says “${text}”.` : "");
    this.#mark();
  }

  #say(words) {
    byId("catalogue-empty").textContent = words;
    byId("catalogue-empty").hidden = words === "";
  }

  #tile(item) {
    const title = titleOf(item);
    return element("li", { class: "tile", "data-item": item.item_id },
      element("button",
        { type: "button", "aria-label": `Add ${title} to the history`, on: { click: () => this.#session.add(item.item_id) } },
        picture(item.item_id, title),
        element("span", { class: "plus", text: "+", "aria-hidden": "true" }),
        element("span", { class: "step-title", text: title, title, dir: "auto" })),
    );
  }

  #mark() {
    const known = new Set(this.#session.history);
    for (const tile of byId("catalogue").children) tile.classList.toggle("taken", known.has(tile.dataset.item));
  }
}

async function pageOf(text, cursor, signal) {
  let next = cursor;
  for (let tries = 0; tries < EMPTY_PAGES; tries += 1) {
    const query = new URLSearchParams({ limit: PAGE, cursor: next, ...(text !== "" && { q: text }) });
    const { data } = await ask(`items?${query}`, { signal });
    if (data.items.length > 0 || data.next === null) return data;
    next = data.next;
  }
  return { items: [], next };
}
