/** Shows items as cards in a grid and moves the cards to their new positions at every response. */

import { element, still } from "./dom.js";
import { picture } from "./picture.js";
import { shareBar } from "./shares.js";

const GLIDE_MS = 420;
const EASE = "cubic-bezier(.2, .7, .2, 1)";

/**
 * Actions of a card: `add(id)`, `similar(id, title)`, `titleOf(id)`; `slots`, in their order; `target()`, the item to
 * mark as the one that followed, or null.
 * @typedef {{add: Function, similar: Function, titleOf: Function, target: Function, slots: string[]}} Actions
 */

export class Grid {
  #list;
  #actions;
  /** Item id → its card. */
  #cards = new Map();

  /** @param {HTMLElement} list @param {Actions} actions */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  get isEmpty() {
    return this.#cards.size === 0;
  }

  /** Show grey placeholders until the first response. */
  showLoading(count) {
    this.#cards.clear();
    this.#list.setAttribute("aria-busy", "true");
    this.#list.replaceChildren(
      ...Array.from({ length: count }, () =>
        element("li", { class: "card ghost", "aria-hidden": "true" }, element("span", { class: "picture" }))),
    );
  }

  /** Show the items of an answer. */
  show(items) {
    const before = this.#places();
    const focused = this.#focused();
    const next = new Map();
    items.forEach((item, place) => {
      const card = this.#cards.get(item.item_id) ?? new Card(item, this.#actions);
      card.update(item, place + 1);
      next.set(item.item_id, card);
    });
    this.#cards = next;
    this.#list.replaceChildren(...[...next.values()].map((card) => card.node));
    this.#list.setAttribute("aria-busy", "false");
    this.#focusAgain(focused);
    this.#glide(before);
  }

  #places() {
    return new Map([...this.#cards].map(([itemId, card]) => [itemId, card.node.getBoundingClientRect()]));
  }

  /** The button and card that have the focus; moving a node removes the focus. */
  #focused() {
    const place = [...this.#cards.values()].findIndex((card) => card.node.contains(document.activeElement));
    return place < 0 ? null : { place, button: document.activeElement };
  }

  #focusAgain(focused) {
    if (focused === null) return;
    const cards = [...this.#cards.values()];
    const target = focused.button.isConnected ? focused.button : cards[Math.min(focused.place, cards.length - 1)]?.main;
    target?.focus({ preventScroll: true });
  }

  #glide(before) {
    if (still()) return;
    for (const [itemId, card] of this.#cards) {
      const from = before.get(itemId);
      if (from === undefined) {
        card.node.animate([{ opacity: 0, transform: "scale(.97)" }, { opacity: 1, transform: "none" }],
          { duration: GLIDE_MS, easing: EASE });
        continue;
      }
      const to = card.node.getBoundingClientRect();
      const [x, y] = [from.left - to.left, from.top - to.top];
      if (x !== 0 || y !== 0) {
        card.node.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }],
          { duration: GLIDE_MS, easing: EASE });
      }
    }
  }
}

class Card {
  #actions;
  #why = element("div", { class: "why" });
  #rank = element("span", { class: "rank", "aria-hidden": "true" });
  #badge = element("span", { class: "badge", text: "Really taken next", hidden: true });

  constructor(item, actions) {
    this.#actions = actions;
    const title = titleOf(item);
    this.main = element("button",
      { type: "button", class: "card-main", "aria-label": `Add ${title} to the history`, on: { click: () => actions.add(item.item_id) } },
      picture(item.item_id, title),
      element("span", { class: "plus", text: "+", "aria-hidden": "true" }),
    );
    const similar = element("button", {
      type: "button", class: "quiet", text: "More like this", "aria-label": `More like ${title}`,
      on: { click: () => actions.similar(item.item_id, title) },
    });
    const head = element("div", { class: "card-title" }, element("h3", { text: title, title, dir: "auto" }), this.#rank);
    this.node = element("li", { class: "card", "data-item": item.item_id },
      this.main, this.#badge, element("div", { class: "card-text" }, head, this.#why, similar));
  }

  /** Show an item of a response; @param {number} rank from 1 on */
  update(item, rank) {
    this.#rank.textContent = String(rank);
    this.#badge.hidden = this.#actions.target() !== item.item_id;
    if (!item.contributions) {
      this.#why.replaceChildren(element("p", { class: "because", text: "Popular with everyone" }));
      return;
    }
    this.#why.replaceChildren(
      shareBar(item.contributions, this.#actions.slots), this.#because(item.nearest_history_item));
  }

  #because(nearest) {
    if (!nearest) return "";
    const title = this.#actions.titleOf(nearest);
    return element("p", { class: "because" },
      picture(nearest, title), element("span", { title }, "because of ", element("b", { text: title, dir: "auto" })));
  }
}

/** The title of an item, or its id where it has none. */
export function titleOf(item) {
  const title = item.fields?.title ?? item.title;
  return typeof title === "string" && title.trim() !== "" ? title : item.item_id;
}
