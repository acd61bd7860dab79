// The FileBrowser: outputs of the caller, and for an admin models and embeddings.

import { address, ask, make, moment, wordsOf } from "./service.js";

const word = wordsOf({
  files: ["Files", "文件"],
  name: ["Name", "名称"],
  size: ["Size", "大小"],
  time: ["Changed", "修改时间"],
  top: ["All", "全部"],
  upload: ["Upload", "上传"],
  folder: ["New folder", "新建文件夹"],
  rename: ["Rename", "重命名"],
  remove: ["Delete", "删除"],
  new_name: ["New name", "新名称"],
  new_folder: ["Name of the new folder", "新文件夹名称"],
  close: ["Close", "关闭"],
  sure: ["Delete", "确定删除"],
  empty: ["Nothing here yet.", "此处为空。"],
  uploaded: ["uploaded", "已上传"],
});
const PICTURE = /\.(png|jpe?g|webp)$/i;
const find = (id) => document.getElementById(id);
const query = (path) => `?path=${encodeURIComponent(path)}`;
const joined = (folder, name) => (folder ? `${folder}/${name}` : name);
let here = "";

for (const [id, key] of Object.entries({
  title: "files", "head-name": "name", "head-size": "size", "head-time": "time", "upload-word": "upload", folder: "folder", close: "close",
})) find(id).textContent = word(key);

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

/** Runs what a button asks for, then shows the folder again; says what went wrong. */
async function doing(work) {
  find("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    find("problem").textContent = error.message;
  }
  await open(here, { keepProblem: true });
}

function rename(path, name) {
  const wanted = prompt(word("new_name"), name);
  if (!wanted || wanted === name) return;
  const headers = { "Content-Type": "application/json" };
  doing(() => ask(`v1/browse/rename${query(path)}`, { method: "POST", headers, body: JSON.stringify({ name: wanted }) }));
}

function remove(path, name) {
  if (confirm(`${word("sure")}: ${name}?`)) doing(() => ask(`v1/browse/file${query(path)}`, { method: "DELETE" }));
}

function show(path, name) {
  const file = address(`v1/browse/file${query(path)}`);
  Object.assign(find("picture"), { src: file, alt: name });
  Object.assign(find("picture-name"), { href: file, textContent: name });
  find("preview").showModal();
}

function row(entry) {
  const path = joined(here, entry.name);
  const isFolder = entry.kind === "folder";
  const href = isFolder ? `#${encodeURI(path)}` : address(`v1/browse/file${query(path)}`);
  const link = make("a", { href }, entry.name + (isFolder ? "/" : ""));
  if (!isFolder && PICTURE.test(entry.name)) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      show(path, entry.name);
    });
  } else if (!isFolder) link.download = entry.name;
  const actions = here
    ? [
        make("button", { click: () => rename(path, entry.name) }, word("rename")),
        " ",
        make("button", { click: () => remove(path, entry.name) }, word("remove")),
      ]
    : [];
  return make(
    "tr",
    {},
    make("td", { className: "name" }, link),
    make("td", { className: "number" }, isFolder ? "" : size(entry.size_bytes)),
    make("td", { className: "number faint" }, moment(entry.modified)),
    make("td", { className: "actions" }, ...actions),
  );
}

function trail() {
  const names = here ? here.split("/") : [];
  const links = names.map((name, index) => make("a", { href: `#${encodeURI(names.slice(0, index + 1).join("/"))}` }, name));
  find("where").replaceChildren(make("a", { href: "#" }, word("top")), ...links);
}

async function open(path, { keepProblem = false } = {}) {
  try {
    const { entries } = await ask(`v1/browse${query(path)}`);
    here = path;
    find("folder").hidden = find("upload-label").hidden = !here;
    trail();
    const none = make("tr", {}, make("td", { colSpan: 4, className: "faint" }, word("empty")));
    find("entries").replaceChildren(...(entries.length ? entries.map(row) : [none]));
    if (!keepProblem) find("problem").textContent = "";
  } catch (error) {
    find("problem").textContent = error.message;
  }
}

function upload(files) {
  doing(async () => {
    for (const file of files) {
      find("told").textContent = `${file.name} …`;
      const path = joined(here, file.name);
      const headers = { "Content-Type": "application/octet-stream" };
      await ask(`v1/browse/file${query(path)}`, { method: "PUT", headers, body: file });
      find("told").textContent = `${file.name} ${word("uploaded")}`;
    }
  });
}

find("upload").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});
find("folder").addEventListener("click", () => {
  const name = prompt(word("new_folder"), "");
  if (name) doing(() => ask(`v1/browse/folder${query(joined(here, name))}`, { method: "POST" }));
});
document.body.addEventListener("dragover", (event) => event.preventDefault());
document.body.addEventListener("drop", (event) => {
  event.preventDefault();
  if (here) upload([...event.dataTransfer.files]);
});
window.addEventListener("hashchange", () => {
  find("preview").close();
  open(decodeURI(location.hash.slice(1)));
});
open(decodeURI(location.hash.slice(1)));
