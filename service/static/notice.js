/** Shows an error and what to do about it, in a box that screen readers announce. */

import { element } from "./dom.js";

export class Notice {
  #box;
  #askForKey;
  #timer = 0;

  /**
   * @param {HTMLElement} box
   * @param {() => void} askForKey opens the field for a key
   */
  constructor(box, askForKey) {
    this.#box = box;
    this.#askForKey = askForKey;
  }

  hide() {
    clearInterval(this.#timer);
    this.#box.hidden = true;
    this.#box.replaceChildren();
  }

  /**
   * Show a failure.
   * @param {import("./api.js").Failure} failure
   * @param {() => void} again tries once more; done by itself after the time that the service asks for
   */
  show(failure, again) {
    this.hide();
    const actions = element("div", { class: "buttons" });
    if (failure.kind === "key") {
      actions.append(element("button", { type: "button", class: "strong", text: "Enter a key", on: { click: this.#askForKey } }));
    } else if (failure.kind !== "refused") {
      const button = element("button", { type: "button", class: "strong", text: "Try again", on: { click: again } });
      actions.append(button);
      if (failure.retryAfterS !== null) this.#countDown(failure.retryAfterS, button, again);
    }
    this.#box.dataset.kind = failure.kind;
    this.#box.replaceChildren(
      element("div", {}, element("strong", { text: failure.title }), element("p", { text: failure.detail })), actions);
    this.#box.hidden = false;
  }

  #countDown(seconds, button, again) {
    let left = Math.max(seconds, 1);
    // Seconds are for the eye: read out, they would interrupt every other word.
    const shown = element("span", { "aria-hidden": "true", text: ` (${left})` });
    button.append(shown);
    this.#timer = setInterval(() => {
      left -= 1;
      shown.textContent = ` (${left})`;
      if (left > 0) return;
      clearInterval(this.#timer);
      again();
    }, 1000);
  }
}
