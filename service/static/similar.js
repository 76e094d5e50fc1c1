/** Shows the neighbours of one item in a dialog, "More like this". */

import { ask } from "./api.js";
import { Grid } from "./cards.js";
import { byId, element } from "./dom.js";
import { Latest } from "./latest.js";

const GHOSTS = 6;

export class SimilarDialog {
  #session;
  #titles;
  #notice;
  #grid;
  #latest = new Latest();

  /**
   * @param {import("./session.js").Session} session
   * @param {{learn: (items: Object[]) => void}} titles
   * @param {import("./notice.js").Notice} notice
   * @param {import("./cards.js").Actions} actions
   */
  constructor(session, titles, notice, actions) {
    this.#session = session;
    this.#titles = titles;
    this.#notice = notice;
    this.#grid = new Grid(byId("similar-grid"), actions);
    const dialog = byId("similar");
    byId("similar-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // the backdrop is the dialog's own
    });
  }

  open(itemId, title) {
    byId("similar-title").replaceChildren("More like ", element("bdi", { text: title }));
    this.#notice.hide();
    this.#grid.showLoading(GHOSTS);
    if (!byId("similar").open) byId("similar").showModal();
    byId("similar").scrollTop = 0;
    const body = this.#session.similarBody(itemId);
    this.#latest.ask((signal) => ask("similar", { body, signal }), {
      answered: ({ data }) => {
        this.#titles.learn(data.items);
        this.#grid.show(data.items);
      },
      failed: (failure) => {
        this.#grid.show([]);
        this.#notice.show(failure, () => this.open(itemId, title));
      },
    });
  }
}
