// The admin page. It asks its own service and nobody else; whatever comes from there is put in as text, never as HTML.

const SILENT_MS = 8000; // without a word from the service, after which this page counts as cut off
const PAUSES_MS = [500, 1000, 2000, 5000];
const KEPT_MESSAGES = 50;
const TOGGLES_MS = 10000; // between two looks at what is set on the nodes
const KEY = "copilotlab-token";

const $ = (id) => document.getElementById(id);
let now = null; // the last picture
let hour = {}; // of each node: [seconds ago, charts, lag, outages]
let heardAt = 0;
let cutSince = 0;
let stopStream = () => {};

// --- text and elements -----------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  for (const child of children) made.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function set(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

const count = (number) => (number === null || number === undefined ? "not told" : Number(number).toLocaleString("en"));
const clock = (ms) => new Date(ms).toLocaleTimeString();

function span(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  return `${Math.round(whole / 3600)} h`;
}

function fact(list, name, words, { tone = "", wide = false } = {}) {
  let row = list.querySelector(`[data-name="${name}"]`);
  if (!row) {
    row = el("div", { "data-name": name }, el("dt", {}, name), el("dd"));
    list.append(row);
  }
  setClass(row, [tone, wide ? "wide" : ""].filter(Boolean).join(" "));
  set(row.lastChild, words);
  return row.lastChild;
}

// --- the token, and asking -------------------------------------------------------------------------------------------

const token = () => sessionStorage.getItem(KEY) || "";
const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

async function ask(path, options = {}) {
  const answer = await fetch(path, {
    ...options,
    headers: { ...headers(), ...(options.body ? { "Content-Type": "application/json" } : {}) },
    cache: "no-store",
    redirect: "error",
    referrerPolicy: "no-referrer",
  });
  if (!answer.ok) {
    let said = `${answer.status} ${answer.statusText}`;
    try {
      said = (await answer.json()).detail || said;
    } catch {
      // no problem details: the status has to do
    }
    const error = new Error(said);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

function login(said = "") {
  set($("login-said"), said);
  $("login-token").value = "";
  if (!$("login").open) $("login").showModal();
}

$("token").addEventListener("click", () => login(token() ? "A token is in use." : "No token is in use."));
$("login-cancel").addEventListener("click", () => $("login").close());
$("login-forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  $("login").close();
  restart();
});
$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("login-token").value.trim());
  $("login-token").value = "";
  $("login").close();
  restart();
});

// --- the live stream -------------------------------------------------------------------------------------------------

async function listen(signal) {
  const answer = await ask("/v1/cluster/events", { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the service has ended the stream");
    heard();
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      take(rest.slice(0, end));
      rest = rest.slice(end + 2);
    }
  }
}

function take(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return;
  const told = JSON.parse(data.join("\n"));
  if (name === "now") now = told;
  if (name === "history") hour = told;
  show();
}

function heard() {
  heardAt = Date.now();
  if (cutSince) {
    cutSince = 0;
    $("cut").hidden = true;
    document.body.classList.remove("stale");
    showToggles();
  }
}

function cutOff(why) {
  if (!cutSince) cutSince = heardAt || Date.now();
  document.body.classList.add("stale");
  const since = heardAt ? `What is shown is how it was at ${clock(heardAt)}, and says nothing of the nodes now.` : "";
  set($("cut"), `This page is cut off from its service: ${why}. ${since} It goes on trying.`);
  $("cut").hidden = false;
}

async function keepListening(signal) {
  for (let failed = 0; !signal.aborted; failed += 1) {
    const began = Date.now();
    const silent = new AbortController();
    const watch = setInterval(() => {
      if (Date.now() - Math.max(heardAt, began) > SILENT_MS) silent.abort(new Error("nothing came for a while"));
    }, 500);
    try {
      await listen(AbortSignal.any([signal, silent.signal]));
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 403) {
        cutOff(error.message);
        login(`${error.message}.`);
        return;
      }
      if (heardAt > began) failed = 0;
      cutOff(error.status ? error.message : error instanceof TypeError ? "it does not answer" : error.message);
    } finally {
      clearInterval(watch);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[Math.min(failed, PAUSES_MS.length - 1)]));
  }
}

function restart() {
  stopStream();
  const stop = new AbortController();
  stopStream = () => stop.abort();
  keepListening(stop.signal);
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function show() {
  if (!now) return;
  showHealth();
  showAlerts();
  showNodes();
  showChoices();
  showTimeline();
}

function showHealth() {
  set($("namespace"), now.namespace);
  set($("served"), now.service.node ? `served by node ${now.service.node}, ${now.service.version}` : `served without a node, ${now.service.version}`);
  const critical = now.alerts.some((alert) => alert.severity === "critical");
  const well = now.agree && !now.alerts.length;
  const tone = well ? "good" : critical || !now.connected ? "bad" : "warn";
  setClass($("verdict"), tone);
  set($("verdict").querySelector(".sign"), well ? "✓" : tone === "bad" ? "✕" : "▲");
  set($("verdict").querySelector("b"), now.verdict.charAt(0).toUpperCase() + now.verdict.slice(1));
  document.title = `${well ? "✓" : tone === "bad" ? "✕" : "▲"} copilotlab: ${now.verdict}`;
  const living = now.nodes.filter((node) => node.alive);
  const facts = $("facts");
  fact(facts, "Redis", now.connected ? `connected, ${now.redis}` : `cut off: ${now.reason}`, { tone: now.connected ? "" : "warn" });
  const repository = Math.max(0, ...now.nodes.map((node) => node.repository));
  fact(facts, "Repository", `revision ${count(repository)}`);
  const lag = Math.max(0, ...living.map((node) => node.lag || 0));
  fact(facts, "Furthest behind", lag ? `${count(lag)} charts` : "none", { tone: lag ? "warn" : "" });
  const lease = now.lease;
  const gone = lease && lease.alive === false ? ", who shows no sign of life" : "";
  const held = fact(facts, "Lease", lease ? `${lease.holder}, epoch ${lease.epoch}, for ${span(lease.seconds)}${gone} ` : "free", { tone: gone ? "warn" : "" });
  if (lease) {
    const release = el("button", { type: "button", id: "release" }, "Release…");
    release.addEventListener("click", () => confirmAction("release_lease", null, lease));
    if (!held.querySelector("button")) held.append(release);
  }
  fact(facts, "Rebuild owed", now.owed ? "yes" : "no", { tone: now.owed ? "warn" : "" });
  const batches = now.nodes.filter((node) => node.batch);
  const box = $("batches");
  const known = new Map([...box.children].map((line) => [line.dataset.node, line]));
  for (const node of batches) {
    let line = known.get(node.node);
    known.delete(node.node);
    if (!line) {
      line = el("p", { class: "batch", "data-node": node.node }, el("b", {}, node.node), el("span"), el("progress"), el("span"));
      box.append(line);
    }
    const { kind, done, total, seconds, expected } = node.batch;
    const left = expected === null ? "no estimate yet" : `about ${span(Math.max(0, expected - seconds))} to go`;
    set(line.children[1], kind);
    const bar = line.children[2];
    bar.setAttribute("aria-label", `${kind} on ${node.node}`);
    bar.max = Math.max(1, total);
    bar.value = done;
    set(line.children[3], `${count(done)} of ${count(total)}, since ${span(seconds)}, ${left}`);
  }
  for (const line of known.values()) line.remove();
}

function showAlerts() {
  const list = $("alerts");
  set($("alerts-count"), now.alerts.length ? `(${now.alerts.length})` : "");
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]));
  if (!now.alerts.length && !known.has("none")) list.append(el("li", { class: "none", "data-key": "none" }, "None"));
  if (!now.alerts.length) known.delete("none");
  for (const alert of now.alerts) {
    const key = `${alert.node} ${alert.name}`;
    let item = known.get(key);
    known.delete(key);
    if (!item) {
      item = el("li", { "data-key": key, class: alert.severity }, el("b"), el("span"), el("p", { class: "evidence" }), el("p"));
      list.append(item);
    }
    const sign = alert.severity === "critical" ? "✕ critical" : "▲ warning";
    set(item.children[0], `${sign}: ${alert.name.replaceAll("_", " ")}`);
    set(item.children[1], ` · ${alert.node} · since ${span(alert.seconds)}`);
    set(item.children[2], alert.evidence);
    set(item.children[3], alert.remedy);
  }
  for (const item of known.values()) item.remove();
}

function health(node) {
  if (node.alive === null) return ["warn", "?", "unknown"];
  if (node.connection === "left") return ["dead", "✕", "stopped"];
  if (!node.alive) return ["bad", "▲", "silent"];
  if (node.state === "failed") return ["bad", "✕", "failed"];
  if (node.batch) return ["busy", "◐", node.batch.kind];
  if (node.state === "building") return ["busy", "◐", "building a model"];
  if (node.alerts.length || node.lag) return ["warn", "▲", node.alerts.length ? "alerts" : "behind"];
  return ["good", "●", node.state === "not told" ? "alive" : node.state];
}

const ACTIONS = [
  ["rebuild", "Rebuild", ""],
  ["sync", "Sync", ""],
  ["switch_model", "Switch model…", ""],
  ["stop", "Stop…", "danger"],
];

function makeCard(node) {
  const name = node.node;
  const builds = node.state === "building";
  const title = el("h3", {}, builds ? `${name}, another model` : name);
  const buttons = el("div", { class: "buttons", role: "group", "aria-label": `Actions of ${name}` });
  for (const [action, words, tone] of ACTIONS) {
    const button = el("button", { type: "button", class: tone, "data-action": action, "aria-label": `${words} ${name}` }, words);
    button.addEventListener("click", () => confirmAction(action, name));
    buttons.append(button);
  }
  const line = svg("svg", { class: "line", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img" });
  const facts = el("dl");
  const card = el("article", { "aria-label": builds ? `${name}, another model` : name }, el("div", { class: "head" }, title, el("span", { class: "state" })), facts, line);
  if (!builds) card.append(buttons);
  return card;
}

function showNodes() {
  const box = $("nodes");
  const living = now.nodes.filter((node) => node.alive).length;
  set($("nodes-count"), now.nodes.length ? `(${living} of ${now.nodes.length} alive)` : "");
  const known = new Map([...box.children].map((card) => [card.dataset.key, card]));
  if (!now.nodes.length) {
    const claims = Object.keys(now.speakers);
    const none = known.get("none") || el("p", { class: "empty", "data-key": "none" });
    known.delete("none");
    if (!none.parentNode) box.append(none);
    set(none, now.verified ? "No node was heard of yet." : `Nothing that is heard can be verified without the repository, so no node is shown. ${claims.length} claim to be nodes: ${claims.join(", ")}`);
  }
  let after = null;
  for (const node of now.nodes) {
    const key = `${node.node}\n${node.model}\n${node.state === "building"}`;
    let card = known.get(key);
    known.delete(key);
    if (!card) {
      card = makeCard(node);
      card.dataset.key = key;
      box.insertBefore(card, after ? after.nextSibling : box.firstChild);
    }
    after = card;
    showCard(card, node);
  }
  for (const card of known.values()) card.remove();
}

function showCard(card, node) {
  const [tone, sign, word] = health(node);
  setClass(card, tone);
  const state = card.querySelector(".state");
  setClass(state, `state ${tone}`);
  set(state, `${sign} ${word}`);
  const facts = card.querySelector("dl");
  fact(facts, "charts", count(node.charts));
  const digest = fact(facts, "holds", `${node.group} ${node.digest.slice(0, 8)}`.trim());
  if (node.group && !digest.firstElementChild) {
    digest.textContent = "";
    digest.append(el("span", { class: `letter ${node.group.toLowerCase()}`, title: "alike where the letter is the same" }, node.group), ` ${node.digest.slice(0, 8)}`);
  }
  fact(facts, "revision", `${count(node.revision)} of ${count(node.repository)}`, { tone: node.revision < node.repository ? "warn" : "" });
  fact(facts, "lag", node.lag === null ? "not told" : node.lag ? `${count(node.lag)} charts` : "none", { tone: node.lag ? "warn" : "" });
  fact(facts, "Redis", node.connection, { tone: node.connection === "connected" || node.connection === "left" ? "" : "warn" });
  fact(facts, "lease", node.lease ? "held" : "—");
  fact(facts, "outages", count(node.outages));
  fact(facts, "skipped", node.skipped ? `${count(node.skipped)} charts` : node.skipped === null ? "not told" : "none", { tone: node.skipped ? "warn" : "" });
  fact(facts, "heard", node.alive ? "just now" : `${span(node.heard)} ago`, { tone: node.alive ? "" : "warn" });
  fact(facts, "version", node.version || "an older one");
  fact(facts, "model", node.model, { wide: true });
  fact(facts, "at", node.address || "not told", { wide: true });
  if (node.alerts.length || facts.querySelector('[data-name="alerts"]')) {
    fact(facts, "alerts", node.alerts.map((name) => name.replaceAll("_", " ")).join(", ") || "none", { tone: node.alerts.length ? "warn" : "", wide: true });
  }
  for (const button of card.querySelectorAll("button")) {
    const off = !node.alive || !node.version || node.state === "stopped";
    if (button.disabled !== off) button.disabled = off;
  }
  showLine(card.querySelector("svg"), hour[node.node] || []);
}

function showLine(line, points) {
  const most = Math.max(1, ...points.map(([, , lag]) => lag || 0));
  const drawn = points.map(([ago, , lag]) => `${(100 * (1 - ago / 3600)).toFixed(1)},${(28 - (26 * (lag || 0)) / most).toFixed(1)}`).join(" ");
  if (line.dataset.drawn === drawn) return;
  line.dataset.drawn = drawn;
  const peak = Math.max(0, ...points.map(([, , lag]) => lag || 0));
  const away = points.length ? points.at(-1)[3] - points[0][3] : 0;
  line.setAttribute("aria-label", `lag over the last hour, at most ${peak} charts; ${away || 0} outages`);
  line.replaceChildren(svg("line", { x1: 0, y1: 29, x2: 100, y2: 29 }), svg("polyline", { points: drawn }));
}

function showChoices() {
  const names = [...new Set(now.nodes.filter((node) => node.version).map((node) => node.node))];
  choose($("left"), [["", "every node"], ...names.map((name) => [name, name])]);
  const living = now.nodes.filter((node) => node.version && node.alive && node.state !== "building");
  choose($("toggle-node"), [["", "every node"], ...living.map((node) => [node.node, node.node])]);
  choose($("right"), [["", now.service.node || names.length ? "the repository" : "—"], ...names.map((name) => [name, name])]);
}

function choose(select, options) {
  const have = [...select.options].map((option) => option.value);
  if (have.join("\n") === options.map(([value]) => value).join("\n")) return false;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, words]) => el("option", { value }, words)));
  select.value = options.some(([value]) => value === chosen) ? chosen : options[0][0];
  return true;
}

function showTimeline() {
  const wanted = $("filter").value.trim().toLowerCase();
  const body = $("timeline");
  const base = Date.now();
  const rows = now.timeline
    .map((line) => [clock(base - 1000 * line.ago), line.node, line.event.replaceAll("_", " "), line.detail, line.seconds])
    .filter((row) => !wanted || row.slice(1, 4).join(" ").toLowerCase().includes(wanted))
    .reverse();
  const drawn = rows.map((row) => `${row[4]}${row[2]}`).join("|");
  if (body.dataset.drawn === drawn) return;
  body.dataset.drawn = drawn;
  body.replaceChildren(...rows.map(([when, node, event, detail]) =>
    el("tr", {}, el("td", { class: "when" }, when), el("td", {}, node), el("td", {}, event), el("td", {}, detail))));
}

$("filter").addEventListener("input", () => now && showTimeline());

// --- toggles ---------------------------------------------------------------------------------------------------------

let toggles = null; // what each node has in force, what can be set, and what cannot, and why

const inWords = (name) => name.replaceAll("_", " ");
const valued = (value) => (value === true ? "on" : value === false ? "off" : String(value));

async function showToggles() {
  try {
    toggles = await (await ask("/v1/cluster/toggles")).json();
  } catch (error) {
    set($("toggles-said"), `What is set cannot be read: ${error.status ? error.message : "the service does not answer"}`);
    return;
  }
  const nodes = Object.keys(toggles.nodes);
  const silent = nodes.filter((node) => toggles.nodes[node].reason);
  set($("toggles-said"), silent.map((node) => `${node} does not tell: ${toggles.nodes[node].reason}`).join("; "));
  const names = Object.keys(toggles.settable);
  if (choose($("toggle-name"), names.map((name) => [name, inWords(name)]))) showChosen();
  const drawn = JSON.stringify(toggles);
  if ($("toggles").dataset.drawn === drawn) return;
  $("toggles").dataset.drawn = drawn;
  const head = ["toggle", ...nodes].map((words) => el("th", { scope: "col" }, words));
  const rows = names.map((name) => {
    const first = el("th", { scope: "row", title: toggles.settable[name].meaning }, inWords(name));
    return el("tr", {}, first, ...nodes.map((node) => toggleCell(toggles.nodes[node].toggles, name)));
  });
  $("toggles").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)));
  $("toggles").hidden = !nodes.length;
  $("fixed").replaceChildren();
  for (const [name, why] of Object.entries(toggles.fixed)) fact($("fixed"), inWords(name), why);
}

function toggleCell(known, name) {
  const toggle = known.find((one) => one.name === name);
  if (!toggle) return el("td", {}, "not told");
  if (!toggle.version) return el("td", {}, valued(toggle.value));
  const whose = toggle.everywhere ? "every node" : "this node";
  const when = new Date(toggle.set_at).toLocaleString();
  return el("td", { class: "set" }, valued(toggle.value), el("span", {}, `for ${whose}, by ${toggle.set_by}, ${when}`));
}

function showChosen() {
  const { meaning, type, minimum, maximum } = toggles.settable[$("toggle-name").value];
  const [switched, number] = [$("toggle-switch"), $("toggle-number")];
  const isSwitch = type === "boolean";
  set($("toggle-meaning"), isSwitch ? `On means: ${meaning}.` : `It means: ${meaning}; ${minimum} to ${count(maximum)}.`);
  $("toggle-switch-label").hidden = switched.disabled = !isSwitch;
  $("toggle-number-label").hidden = number.disabled = isSwitch;
  [number.min, number.max, number.step] = isSwitch ? ["", "", ""] : [minimum, maximum, type === "integer" ? 1 : "any"];
}

$("toggle-name").addEventListener("change", () => {
  $("toggle-number").value = "";
  showChosen();
});

$("toggle").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!toggles) return;
  const [name, node, by] = [$("toggle-name").value, $("toggle-node").value, $("toggle-by").value.trim()];
  const isSwitch = toggles.settable[name].type === "boolean";
  const value = isSwitch ? $("toggle-switch").value === "true" : Number($("toggle-number").value);
  const where = node || "every node";
  const present = new Map(); // which nodes have a value
  for (const [other, told] of Object.entries(toggles.nodes).filter(([other]) => !node || other === node)) {
    const toggle = told.toggles.find((one) => one.name === name);
    const words = toggle ? valued(toggle.value) : "not told";
    present.set(words, [...(present.get(words) || []), other]);
  }
  const spread = node ? "The other nodes keep theirs." : "Nodes that are away, or come later, learn it from the others.";
  const said = [
    `Now ${[...present].map(([words, nodes]) => `${words}: ${nodes.join(", ")}`).join("; ")}.`,
    $("toggle-meaning").textContent,
    "It holds at once, until it is set again or the nodes have ended: what is to last belongs into their settings too.",
    spread,
    `It is recorded as set by ${by}, with the time.`,
  ].join(" ");
  const wanted = { who: `set ${inWords(name)}`, path: "/v1/cluster/toggles", method: "PATCH", after: learnToggles };
  const body = { set: { [name]: value }, node, by };
  confirmWith([`Set ${inWords(name)} to ${valued(value)} for ${where}?`, said, "Set it"], { ...wanted, body });
});

function learnToggles() {
  for (const wait of [0, 1500, 4000]) setTimeout(showToggles, wait); // it spreads with heartbeats
}

setInterval(() => {
  if (!document.hidden && heardAt && !cutSince) showToggles();
}, TOGGLES_MS);

// --- what can be done ------------------------------------------------------------------------------------------------

const WHAT = {
  rebuild: (node) => [
    `Rebuild from ${node}?`,
    `Node ${node} takes the lease and brings the whole catalogue into all nodes. What no node has is embedded, once. Searches go on; changes that are made meanwhile are taken up by the batch.`,
    "Rebuild",
  ],
  sync: (node) => [
    `Sync ${node}?`,
    `Node ${node} compares all that it holds with the repository, and fetches what differs from the others, or embeds what none has. Searches go on.`,
    "Sync",
  ],
  switch_model: (node) => [
    `Switch the model of ${node}?`,
    `Node ${node} loads another model, builds its vectors beside the present ones, which takes memory for both, and answers with them once it has all. Until then nothing changes. The other nodes keep theirs: switch each of them.`,
    "Switch the model",
  ],
  stop: (node) => [
    `Stop ${node}?`,
    `The service of node ${node}, or the node alone where it is in a program of its own, ends in order: it takes no new requests, finishes those under way, gives its lease back and leaves Redis. It comes back only if somebody or a supervisor starts it. ${now.nodes.filter((other) => other.alive && other.node !== node).length} other nodes live.`,
    "Stop the node",
  ],
  release_lease: (_, lease) => [
    `Release the lease of ${lease.holder}?`,
    `The lease of epoch ${lease.epoch}, held for ${span(lease.seconds)}, is taken from ${lease.holder}. If it is still at work, what it says from then on is refused and its batch ends as fenced. What was published stays; the next node that beats takes up the rest.`,
    "Release the lease",
  ],
};

let pending = null;

function confirmAction(action, node, lease = null) {
  const body = { action, node: node || "", argument: lease ? lease.value : "" };
  const who = `${inWords(action)} ${body.node}`.trim();
  const wanted = { who, path: "/v1/cluster/actions", method: "POST", body, asksForModel: action === "switch_model" };
  confirmWith(WHAT[action](node, lease), wanted);
}

function confirmWith([title, said, words], wanted) {
  pending = wanted;
  set($("confirm-title"), title);
  set($("confirm-said"), said);
  set($("confirm-do"), words);
  $("confirm-label").hidden = !wanted.asksForModel;
  $("confirm-argument").required = Boolean(wanted.asksForModel);
  $("confirm-argument").value = "";
  $("confirm").showModal();
  (wanted.asksForModel ? $("confirm-argument") : $("confirm-cancel")).focus();
}

$("confirm-cancel").addEventListener("click", () => $("confirm").close());
$("confirm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = pending;
  $("confirm").close();
  if (!wanted) return;
  pending = null;
  const { who, path, method, body, after } = wanted;
  if (wanted.asksForModel) body.argument = $("confirm-argument").value.trim();
  try {
    const answer = await ask(path, { method, body: JSON.stringify(body) });
    if (after) after();
    tell(who, (await answer.json()).said, "good");
  } catch (error) {
    tell(who, error.status ? error.message : "the service does not answer", "bad");
    if (error.status === 401) login(`${error.message}.`);
  }
});

function tell(who, said, tone) {
  const sign = tone === "good" ? "✓" : "✕";
  const item = el("li", { class: tone }, el("span", { class: "sign", "aria-hidden": "true" }, sign), ` ${clock(Date.now())} `, el("b", {}, who), ` ${said}`);
  $("messages").prepend(item);
  while ($("messages").children.length > KEPT_MESSAGES) $("messages").lastChild.remove();
}

$("compare").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = new URLSearchParams({ node: $("left").value, other: $("right").value });
  set($("differences-said"), "Asking the nodes what they hold…");
  try {
    const found = await (await ask(`/v1/cluster/differences?${asked}`)).json();
    const rows = found.differences;
    const more = found.count > rows.length ? `; the first ${count(rows.length)} are shown` : "";
    set($("differences-said"), found.count ? `${count(found.count)} charts differ${more}` : "Nothing differs");
    const head = ["node", "compared with", "chart", "difference", "revision", "the other's"];
    const cell = (value) => el("td", {}, value === null ? "—" : value);
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...[row.node, row.other, row.chart_id, row.difference, row.revision, row.other_revision].map(cell)))));
    $("differences").replaceChildren(table);
    $("differences").hidden = !rows.length;
  } catch (error) {
    set($("differences-said"), error.status ? error.message : "the service does not answer");
    $("differences").hidden = true;
  }
});

showToggles();
restart();
