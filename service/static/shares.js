/** Draws bars that show the share of each slot in a score. */

import { element } from "./dom.js";

const COLOURS = 6;

/** Class of a slot's colour; the same everywhere on the page. */
export const colourOf = (slots, slot) => `slot-${slots.indexOf(slot) % COLOURS}`;

/**
 * Shares of a score: parts may be negative, so a share is a part's size over the sum of sizes.
 * @param {Object<string, number>} contributions slot → part of the score
 * @returns {Array<{slot: string, part: number, share: number}>} shares sum to 1
 */
export function sharesOf(contributions) {
  const entries = Object.entries(contributions);
  const total = entries.reduce((sum, [, part]) => sum + Math.abs(part), 0);
  return entries.map(([slot, part]) => ({ slot, part, share: total === 0 ? 0 : Math.abs(part) / total }));
}

/** In words, as in "text 40 %, image 35 %, behaviour 25 % against". */
export function inWords(shares) {
  const words = ({ slot, part, share }) => `${slot} ${Math.round(share * 100)} %${part < 0 ? " against" : ""}`;
  return shares.map(words).join(", ");
}

/** The bar of one item. */
export function shareBar(contributions, slots) {
  const shares = sharesOf(contributions);
  const words = inWords(shares);
  const segments = shares.map(({ slot, part, share }) =>
    element("span", {
      class: `segment ${colourOf(slots, slot)}${part < 0 ? " against" : ""}`,
      style: { "flex-grow": share.toFixed(4) },
    }),
  );
  return element("div", { class: "bar", role: "img", "aria-label": words, title: words }, ...segments);
}

/** Which colour is which slot, with its mean share over items. */
export function legendOf(items, slots) {
  const explained = items.filter((item) => item.contributions).map((item) => sharesOf(item.contributions));
  return slots.map((slot) => {
    const own = explained.flatMap((shares) => shares.filter((entry) => entry.slot === slot));
    const mean = own.reduce((sum, entry) => sum + entry.share, 0) / Math.max(explained.length, 1);
    return element("li", {},
      element("span", { class: `dot ${colourOf(slots, slot)}`, "aria-hidden": "true" }),
      element("span", { text: slot }),
      explained.length > 0 ? element("b", { text: `${Math.round(mean * 100)} %` }) : null,
    );
  });
}
