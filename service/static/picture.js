/** Shows pictures of items, and a placeholder where there is none. */

import { apiKey, fetchPicture, pictureAddress } from "./api.js";
import { element } from "./dom.js";

const REMEMBERED = 500;
/** Item id → promise of a local address; only for services with keys. */
const fetched = new Map();

/**
 * The picture of an item. It says nothing to screen readers: the title stands beside it.
 * @param {string} itemId
 * @param {string} title its first letter stands where there is no picture
 */
export function picture(itemId, title) {
  const frame = element("span", { class: "picture", style: { "--hue": hueOf(itemId) }, "aria-hidden": "true" });
  const image = element("img", { alt: "", decoding: "async", loading: "lazy", draggable: "false" });
  image.addEventListener("load", () => frame.classList.add("there"), { once: true });
  const missing = () => {
    image.remove();
    frame.classList.add("none");
    frame.append(element("span", { class: "initial", text: [...title.trim()][0]?.toUpperCase() ?? "?" }));
  };
  image.addEventListener("error", missing, { once: true });
  if (apiKey() === null) image.src = pictureAddress(itemId);
  else local(itemId).then((address) => { image.src = address; }, missing);
  frame.append(image);
  return frame;
}

function local(itemId) {
  if (!fetched.has(itemId)) {
    if (fetched.size >= REMEMBERED) forgetOldest();
    fetched.set(itemId, fetchPicture(itemId));
    fetched.get(itemId).catch(() => fetched.delete(itemId)); // so that it is tried again
  }
  return fetched.get(itemId);
}

function forgetOldest() {
  const [oldest, promise] = fetched.entries().next().value;
  fetched.delete(oldest);
  promise.then((address) => URL.revokeObjectURL(address), () => {});
}

/** A hue that is always the same for an item. */
function hueOf(text) {
  let hash = 7;
  for (const character of text) hash = (hash * 31 + character.codePointAt(0)) % 9973;
  return hash % 360;
}
