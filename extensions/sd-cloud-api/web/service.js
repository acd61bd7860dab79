// What every page needs of the service. Addresses are relative to the page's own, so that the pages
// work below any prefix a proxy adds.

const BASE = new URL("../", import.meta.url);

export const address = (path) => new URL(path, BASE).href;

/** The answer's JSON. Throws an Error with the service's own sentence. */
export async function ask(path, options = {}) {
  const answer = await fetch(address(path), { credentials: "same-origin", ...options });
  const text = await answer.text();
  let content = {};
  try {
    content = JSON.parse(text);
  } catch {
    content = { detail: text.slice(0, 300) };
  }
  if (!answer.ok) throw new Error(content.detail || content.message || `${answer.status} ${answer.statusText}`);
  return content;
}

/** An element; a property that is a function listens, `class` and `data-*` are attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Dark when the page around the frame is; a page of its own follows the browser.
const around = window.parent === window ? null : window.parent.document.body;
const asked = matchMedia("(prefers-color-scheme: dark)");
const follow = () =>
  document.documentElement.classList.toggle("dark", around ? around.classList.contains("dark") : asked.matches);
follow();
asked.addEventListener("change", follow);
if (around) new MutationObserver(follow).observe(around, { attributeFilter: ["class"] });

const chinese = (navigator.language || "").toLowerCase().startsWith("zh");
document.documentElement.lang = chinese ? "zh" : "en";

/** The words of a page: `{key: [English, Chinese]}` to a function of the key. */
export const wordsOf = (table) => (key) => (table[key] ? table[key][chinese ? 1 : 0] : key);

export const moment = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");
