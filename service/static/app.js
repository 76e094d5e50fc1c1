/** Starts the playground: makes its parts, and requests recommendations at every change of the session. */

import { address, apiKey, ask } from "./api.js";
import { Grid, titleOf } from "./cards.js";
import { CataloguePanel } from "./catalogue.js";
import { byId, debounced } from "./dom.js";
import { announce, showFacts } from "./facts.js";
import { HistoryPanel, showTruth } from "./history.js";
import { keyDialog } from "./key.js";
import { Latest } from "./latest.js";
import { Notice } from "./notice.js";
import { OutcomesPanel } from "./outcomes.js";
import { curlOf, Session, WANTED } from "./session.js";
import { legendOf } from "./shares.js";
import { SimilarDialog } from "./similar.js";
import { TuningPanel } from "./tuning.js";

const MANY_CHANGES_MS = 80; // a slider that is dragged asks about ten times a second
const LOOKED_THROUGH = 500; // items from which filters are found
const NARROW = "(max-width: 60rem)";

/** Titles of all items that were in any response. */
const titles = {
  known: new Map(),
  of: (itemId) => titles.known.get(itemId) ?? itemId,
  learn: (items) => items.forEach((item) => titles.known.set(item.item_id, titleOf(item))),
};
const session = new Session();
const slots = [];
const actions = {
  slots,
  add: (itemId) => session.add(itemId),
  similar: (itemId, title) => similar.open(itemId, title),
  titleOf: titles.of,
  target: () => session.sample?.target?.item_id ?? null,
};
const openKey = keyDialog(() => (slots.length === 0 ? start() : again()));
const notice = new Notice(byId("notice"), openKey);
const similar = new SimilarDialog(session, titles, new Notice(byId("similar-notice"), openKey), actions);
const grid = new Grid(byId("grid"), actions);
const history = new HistoryPanel(session, titles);
const catalogue = new CataloguePanel(session, titles);
const opening = new Latest();
const answers = new Latest();

/** Load the slots, samples and items, then request the first recommendations. */
function start() {
  notice.hide();
  showParts(true);
  grid.showLoading(8);
  opening.ask(
    (signal) => Promise.all([
      ask("bundle", { signal }), ask(`items?limit=${LOOKED_THROUGH}`, { signal }), ask("users/samples", { signal }),
    ]),
    { answered: ([bundle, page, samples]) => begin(bundle.data, page.data.items, samples.data.samples), failed: (failure) => fail(failure, start) },
  );
}

function begin(bundle, items, samples) {
  titles.learn(items);
  for (const sample of samples) titles.learn([...sample.history, sample.target]);
  slots.splice(0, slots.length, ...Object.keys(bundle.slots));
  session.weights = Object.fromEntries(slots.map((slot) => [slot, 1]));
  session.fields = items.some((item) => "title" in item.fields) ? ["title"] : [];
  byId("bundle-facts").textContent = `${bundle.items.toLocaleString()} items in the catalogue`;
  new TuningPanel(session, slots, items);
  byId("legend").replaceChildren(...legendOf([], slots));
  history.offer(samples);
  catalogue.load();
  if (session.history.length === 0 && samples.length > 0) session.take(samples[0]);
  else session.change({});
}

/** Repeat the requests with another key. */
function again() {
  catalogue.load();
  recommend();
}

function recommend() {
  if (slots.length === 0) return; // not begun
  const body = session.recommendBody();
  byId("curl").textContent = curlOf(address("recommend"), body, apiKey() !== null);
  byId("grid").setAttribute("aria-busy", "true");
  answers.ask((signal) => ask("recommend", { body, signal }), {
    answered: ({ data, timing }) => show(data, timing),
    failed: (failure) => fail(failure, recommend),
  });
}

function show(answer, timing) {
  notice.hide();
  catalogue.retry();
  titles.learn(answer.items);
  const popular = answer.strategy === "popular" && session.history.length === 0;
  byId("results-title").textContent = popular ? "Everyone’s favourites" : "Recommended next";
  grid.show(answer.items);
  byId("grid-empty").hidden = answer.items.length > 0;
  byId("legend").replaceChildren(...legendOf(answer.items, slots));
  showFacts(answer, timing);
  showTruth(session, titles, answer.items);
  announce(answer.items.slice(0, WANTED), titleOf);
}

function fail(failure, again) {
  if (slots.length === 0) showParts(false); // nothing was ever shown: no grey shapes that never fill
  byId("grid").setAttribute("aria-busy", "false");
  notice.show(failure, again);
}

function showParts(shown) {
  for (const part of ["columns", "browse"]) byId(part).hidden = !shown;
}

async function copyCurl() {
  const button = byId("curl-copy");
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("curl")); // no clipboard without HTTPS: then by hand
    button.textContent = "Selected: copy with Ctrl-C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

new OutcomesPanel(slots);
session.addEventListener("change", debounced(MANY_CHANGES_MS, recommend));
byId("curl-copy").addEventListener("click", copyCurl);
if (matchMedia(NARROW).matches) byId("tuning").open = false;
start();
