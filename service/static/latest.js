/** Keeps one request in progress: a new request aborts the one before, so that the last response wins. */

export class Latest {
  #controller = null;

  /**
   * Ask, unless something newer is asked meanwhile.
   * @template T
   * @param {(signal: AbortSignal) => Promise<T>} question
   * @param {{answered: (answer: T) => void, failed: (failure: Error) => void}} then neither is called for what is outdated
   */
  async ask(question, { answered, failed }) {
    this.#controller?.abort();
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
}
