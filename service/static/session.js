/** Holds the reader's choices (history, weights, diversity, filters) and builds the request from them. */

export const WANTED = 24;
const MOST_ITEMS = 500;

export class Session extends EventTarget {
  /** Item ids, oldest first. */
  history = [];
  /** Slot → 0 … 3. */
  weights = {};
  diversity = 0;
  /** Field → a clause without its field, as in `{eq: "mug"}`. */
  filters = {};
  /** Metadata fields to be answered with every item. */
  fields = [];
  /** The sample of the history: `{history, target}`; null once the history was changed. */
  sample = null;

  /** Change the session and notify the listeners. */
  change(values) {
    Object.assign(this, values);
    this.dispatchEvent(new Event("change"));
  }

  /** Begin with a sample's history. */
  take(sample) {
    this.change({ sample, history: sample.history.map((item) => item.item_id) });
  }

  /** Put an item at the end of the history; one that is there moves. */
  add(itemId) {
    const others = this.history.filter((known) => known !== itemId);
    this.change({ sample: null, history: [...others, itemId].slice(-MOST_ITEMS) });
  }

  remove(itemId) {
    this.change({ sample: null, history: this.history.filter((known) => known !== itemId) });
  }

  clear() {
    this.change({ sample: null, history: [] });
  }

  setWeight(slot, weight) {
    this.change({ weights: { ...this.weights, [slot]: weight } });
  }

  /** Filter by a field; a null clause ends it. */
  setFilter(field, clause) {
    const { [field]: _before, ...others } = this.filters;
    this.change({ filters: clause === null ? others : { ...others, [field]: clause } });
  }

  /** Reset weights, diversity and filters. */
  reset() {
    const weights = Object.fromEntries(Object.keys(this.weights).map((slot) => [slot, 1]));
    this.change({ weights, diversity: 0, filters: {} });
  }

  get tuned() {
    return this.diversity > 0 || Object.keys(this.filters).length > 0 || this.#weighted;
  }

  /** Body of `POST /recommend`, as JSON; what is at its default is left out. */
  recommendBody() {
    return JSON.stringify({ items: this.history, k: WANTED, explain: true, fields: this.fields, ...this.#tuning() });
  }

  /** Body of `POST /similar`. */
  similarBody(itemId) {
    return JSON.stringify({ item_id: itemId, k: 12, explain: true, fields: this.fields, ...this.#tuning() });
  }

  get #weighted() {
    return Object.values(this.weights).some((weight) => weight !== 1);
  }

  #tuning() {
    const must = Object.entries(this.filters).map(([field, clause]) => ({ field, ...clause }));
    return {
      ...(this.#weighted && { slot_weights: this.weights }),
      ...(this.diversity > 0 && { diversity: this.diversity }),
      ...(must.length > 0 && { filter: { must } }),
    };
  }
}

/** The request as a command for a POSIX shell. A key is named, never shown. */
export function curlOf(url, body, keyed) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = keyed ? ` \\\n  -H "X-API-Key: $VLM2REC_API_KEY"` : "";
  return `curl -s ${quoted(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(body)}`;
}
