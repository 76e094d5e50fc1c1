/** Asks for an API key in a dialog. */

import { apiKey, useKey } from "./api.js";
import { byId } from "./dom.js";

/**
 * Make the dialog work.
 * @param {() => void} changed called when another key is used from now on
 * @returns {() => void} opens it
 */
export function keyDialog(changed) {
  const dialog = byId("key");
  const open = () => {
    byId("key-value").value = apiKey() ?? "";
    dialog.showModal();
  };
  byId("key-open").addEventListener("click", open);
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key-value").value.trim());
    dialog.close();
    changed();
  });
  return open;
}
