/** Keeps one request in progress: a new request aborts the one before, so that the last response wins. */

const SHORTEST_WAIT_S = 1;

export class Latest {
  #controller = null;
  #timer = 0;

  /**
   * Ask, unless something newer is asked meanwhile.
   * @template T
   * @param {(signal: AbortSignal) => Promise<T>} question
   * @param {{answered: (answer: T) => void, failed: (failure: Error) => void}} then neither is called for what is outdated
   */
  async ask(question, { answered, failed }) {
    this.#controller?.abort();
    clearTimeout(this.#timer);
    const controller = new AbortController();
    this.#controller = controller;
    let answer;
    try {
      answer = await question(controller.signal);
    } catch (error) {
      if (this.#controller === controller && error.name !== "AbortError") failed(error);
      return;
    }
    if (this.#controller === controller) answered(answer);
  }

  /**
   * Ask once more after the time that the service asks for, unless something newer is asked before.
   * @param {import("./api.js").Failure} failure without such a time nothing happens
   * @param {() => void} again
   */
  waitFor(failure, again) {
    if (failure.retryAfterS === null) return;
    this.#timer = setTimeout(again, Math.max(failure.retryAfterS, SHORTEST_WAIT_S) * 1000);
  }
}
