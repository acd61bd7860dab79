// The caller's tasks: waiting, running and finished, with what became of them.

import { address, ask, make, moment, wordsOf } from "./service.js";

const word = wordsOf({
  jobs: ["Jobs", "任务"],
  waiting: ["waiting", "个任务等待中"],
  pending: ["waiting", "等待中"],
  suspended: ["held back", "已暂停"],
  running: ["running", "运行中"],
  succeeded: ["done", "已完成"],
  failed: ["failed", "失败"],
  cancelled: ["cancelled", "已取消"],
  cancel: ["Cancel", "取消"],
  newer: ["← newer", "← 较新"],
  older: ["older →", "较早 →"],
  none: ["No jobs yet. Requests that the service queues appear here.", "还没有任务。进入服务队列的请求会显示在这里。"],
  seconds: ["s", "秒"],
  preview: ["preview", "预览"],
  lost: ["The connection is lost; trying again.", "连接已断开，正在重试。"],
  polling: ["Live updates were refused, so the list is looked up again and again:", "实时更新被拒绝，改为定时刷新："],
});

const AT_ONCE = 25;
const LOOK_MILLISECONDS = 1500; // between two looks, where the list cannot be followed
const CLOCK_MILLISECONDS = 1000;
const find = (id) => document.getElementById(id);
let offset = 0;
let latest = []; // the tasks as last told
let attended = false;
let stream = null; // what tells of them while the page is shown
let refusal = null; // why nothing does: then they are looked up again and again
const shown = new Map(); // task id -> {element, told}: what has not changed is not drawn again

find("title").textContent = word("jobs");
find("newer").textContent = word("newer");
find("older").textContent = word("older");
find("newer").addEventListener("click", () => turn(-AT_ONCE));
find("older").addEventListener("click", () => turn(AT_ONCE));

function turn(by) {
  offset = Math.max(offset + by, 0);
  unfollow();
  begin();
}

function seconds(task) {
  if (!task.scheduled) return "";
  const until = task.ended || Date.now() / 1000;
  return ` · ${Math.max(until - task.scheduled, 0).toFixed(1)} ${word("seconds")}`;
}

function picture(one) {
  if (one.error) return make("span", { className: "problem" }, one.error);
  const link = one.file ? address(one.file) : one.link;
  if (!link) return null;
  const image = make("img", { src: link, alt: one.name || one.role, title: `${one.role} ${one.seed ?? ""}`, loading: "lazy" });
  return make("a", { href: link, target: "_blank", rel: "noopener" }, image);
}

function row(task) {
  const labels = Object.entries(task.labels).map(([name, value]) => `${name}=${value}`);
  const about = [task.kind, task.checkpoint, task.owner, ...labels].filter(Boolean).join(" · ");
  const stop = make("button", { click: () => cancel(task.id, stop) }, word("cancel"));
  const going = task.state === "pending" || task.state === "running";
  return make(
    "article",
    { className: "job", "data-task": task.id },
    make("span", { className: `state ${task.state}` }, word(task.state)),
    make(
      "div",
      { className: "what" },
      make("span", { className: "prompt" }, task.prompt || task.id),
      make("span", { className: "faint" }, `${moment(task.submitted)}${seconds(task)} · ${about}`),
      task.fraction === null ? null : make("progress", { value: task.fraction, max: 1 }),
      task.preview ? make("div", { className: "pictures" }, make("img", { src: task.preview, alt: word("preview") })) : null,
      task.error ? make("div", { className: "problem" }, task.error) : null,
      task.pictures.length ? make("div", { className: "pictures" }, ...task.pictures.map(picture)) : null,
    ),
    going ? stop : make("span"),
  );
}

async function cancel(id, button) {
  button.disabled = true;
  try {
    await ask(`v1/tasks/${encodeURIComponent(id)}/cancel`, { method: "POST" });
    if (refusal !== null) await look();
  } catch (error) {
    find("problem").textContent = error.message;
  }
}

// Links to the same picture are signed anew each time: they alone are no change.
const withoutLinks = (task) =>
  JSON.stringify({ ...task, pictures: task.pictures.map((one) => [one.name, one.error]) });

function draw(tasks) {
  const rows = tasks.map((task) => {
    const told = withoutLinks(task) + (task.state === "running" ? Math.floor(Date.now() / 1000) : "");
    const known = shown.get(task.id);
    if (known && known.told === told) return known.element;
    const element = row(task);
    shown.set(task.id, { element, told });
    return element;
  });
  for (const id of [...shown.keys()]) if (!tasks.some((task) => task.id === id)) shown.delete(id);
  find("jobs").replaceChildren(...(rows.length ? rows : [make("p", { className: "faint" }, word("none"))]));
}

function show(listing) {
  latest = listing.tasks;
  find("problem").textContent = "";
  find("waiting").textContent = listing.waiting ? `${listing.waiting} ${word("waiting")}` : "";
  find("newer").disabled = offset === 0;
  find("older").disabled = latest.length < AT_ONCE;
  draw(latest);
}

const listed = (path) => `${path}?limit=${AT_ONCE}&offset=${offset}`;

async function look() {
  try {
    show(await ask(listed("v1/tasks")));
  } catch (error) {
    find("problem").textContent = error.message;
  }
}

function follow() {
  const mine = (stream = new EventSource(address(listed("v1/tasks/events"))));
  mine.addEventListener("tasks", (one) => show(JSON.parse(one.data)));
  mine.addEventListener("error", () => {
    if (mine !== stream) return;
    if (mine.readyState === EventSource.CLOSED) refused(mine.url);
    else find("problem").textContent = word("lost"); // it comes back by itself
  });
}

function unfollow() {
  stream?.close();
  stream = null;
}

/** An EventSource does not say why it was refused; the same request does. */
async function refused(url) {
  unfollow();
  refusal = await reasonOf(url);
  find("refused").textContent = `${word("polling")} ${refusal}`;
  keepLooking();
}

async function reasonOf(url) {
  const aborting = new AbortController();
  try {
    const answer = await fetch(url, { credentials: "same-origin", signal: aborting.signal });
    const kind = answer.headers.get("content-type") || "";
    const said = kind.includes("json") ? (await answer.json()).detail : "";
    return [answer.status, said || answer.statusText || kind].filter(Boolean).join(" ");
  } catch (error) {
    return error.message;
  } finally {
    aborting.abort();
  }
}

// A frame in a tab that is not shown has no size; it need not ask.
const isShown = () => !document.hidden && document.body.clientWidth > 0;

function begin() {
  if (refusal === null) follow();
  else look();
}

function attend() {
  if (isShown() === attended) return;
  attended = !attended;
  if (attended) begin();
  else unfollow();
}

async function keepLooking() {
  if (isShown()) await look();
  setTimeout(keepLooking, LOOK_MILLISECONDS);
}

document.addEventListener("visibilitychange", attend);
new ResizeObserver(attend).observe(document.body);
setInterval(() => isShown() && latest.length && draw(latest), CLOCK_MILLISECONDS); // how long each has been running
