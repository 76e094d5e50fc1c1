/** Makes the sliders for weights and diversity, and filters from the fields of the catalogue. */

import { byId, element } from "./dom.js";
import { colourOf } from "./shares.js";

const MOST_WEIGHT = 3;
const MOST_VALUES = 30;
const MOST_FILTERS = 8;
/** Fields that say something about one item alone. */
const NO_CATEGORIES = new Set(["title", "text", "image", "item_id"]);

export class TuningPanel {
  #session;

  /**
   * @param {import("./session.js").Session} session
   * @param {string[]} slots
   * @param {Array<{fields: Object}>} items some of the catalogue, from which filters are found
   */
  constructor(session, slots, items) {
    this.#session = session;
    const sliders = slots.map((slot) => this.#slider({
      name: slot, colour: colourOf(slots, slot), most: MOST_WEIGHT, read: () => session.weights[slot],
      shown: (value) => `× ${value.toFixed(1)}`, write: (value) => session.setWeight(slot, value),
    }));
    const diversity = this.#slider({
      name: "diversity", colour: "plain", most: 1, read: () => session.diversity,
      shown: (value) => value.toFixed(1), write: (value) => session.change({ diversity: value }),
    });
    byId("sliders").replaceChildren(...sliders, diversity);
    byId("filters").replaceChildren(...facetsOf(items).map((facet) => this.#filter(facet)));
    const reset = byId("tuning-reset");
    reset.onclick = () => session.reset();
    session.addEventListener("change", () => { reset.disabled = !session.tuned; });
  }

  #slider({ name, colour, most, read, shown, write }) {
    const value = element("output", { text: shown(read()) });
    const input = element("input", {
      type: "range", min: 0, max: most, step: 0.1, value: read(), class: colour, "aria-label": `${name}, 0 to ${most}`,
      on: { input: () => write(Number(input.value)) },
    });
    const show = () => {
      const now = read();
      if (Number(input.value) !== now) input.value = now;
      input.style.setProperty("--filled", `${(now / most) * 100}%`);
      input.setAttribute("aria-valuetext", shown(now));
      value.textContent = shown(now);
    };
    this.#session.addEventListener("change", show);
    show();
    return element("div", { class: "slider" }, element("span", { text: name, "aria-hidden": "true" }), value, input);
  }

  #filter(facet) {
    return facet.values === null ? this.#limit(facet) : this.#choice(facet);
  }

  #choice({ field, values }) {
    const select = element("select", { "aria-label": field }, element("option", { value: "", text: "any" }),
      ...values.map((value, place) => element("option", { value: place, text: String(value) })));
    select.addEventListener("change", () => {
      this.#session.setFilter(field, select.value === "" ? null : { eq: values[Number(select.value)] });
    });
    this.#whenEnded(field, () => { select.value = ""; });
    return element("label", {}, element("span", { text: field }), select);
  }

  #limit({ field, most }) {
    const name = `${field}, at most`;
    const input = element("input", {
      type: "number", inputmode: "decimal", step: "any", placeholder: `to ${most}`, "aria-label": name,
    });
    input.addEventListener("input", () => {
      const limit = input.value === "" ? Number.NaN : Number(input.value);
      this.#session.setFilter(field, Number.isFinite(limit) ? { lte: limit } : null);
    });
    this.#whenEnded(field, () => { if (Number.isFinite(input.valueAsNumber)) input.value = ""; });
    return element("label", {}, element("span", { text: name }), input);
  }

  /** Empty a control when something else, like the reset, ended its filter. */
  #whenEnded(field, empty) {
    let was = false;
    this.#session.addEventListener("change", () => {
      const is = field in this.#session.filters;
      if (was && !is) empty();
      was = is;
    });
  }
}

/**
 * Fields to filter by: few texts that many items share, or numbers.
 * @returns {Array<{field: string, values: any[]|null, most: number|null}>} `values` is null for numbers
 */
export function facetsOf(items) {
  const fields = [...new Set(items.flatMap((item) => Object.keys(item.fields)))];
  const found = fields.filter((field) => !NO_CATEGORIES.has(field)).map((field) => facetOf(field, items));
  return found.filter((facet) => facet !== null).slice(0, MOST_FILTERS);
}

function facetOf(field, items) {
  const all = items.flatMap((item) => item.fields[field] ?? []);
  if (all.length === 0) return null;
  if (all.every((value) => typeof value === "number")) {
    return { field, values: null, most: Math.ceil(all.reduce((most, value) => Math.max(most, value))) };
  }
  const values = [...new Set(all)];
  const scarce = values.length < 2 || values.length > MOST_VALUES || values.length * 2 > all.length;
  if (scarce || !all.every((value) => typeof value === "string" || typeof value === "boolean")) return null;
  return { field, values: values.sort((one, other) => String(one).localeCompare(String(other))), most: null };
}
