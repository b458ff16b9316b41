// Everything works without this file: it adds keys, dragging, drafts, sending again, live figures.
"use strict";
document.documentElement.classList.add("scripted");

const form = document.querySelector("form.task");
for (const saved of document.querySelectorAll("[data-saved]")) forget(saved.dataset.saved);
measure(document.querySelector(".dock, .say"), "--dock");
measure(document.querySelector(".task:not(.long) .prompt"), "--pinned");
const guide = document.querySelector("dialog.guide");
if (guide) read(guide);
if (form) label(form);
for (const part of document.querySelectorAll("[data-live]")) keepLive(part);
const say = document.querySelector("form.say");
if (say) chat(say);
for (const button of document.querySelectorAll("[data-copy]")) copying(button);
const later = document.querySelector("[data-reload]");
if (later) setTimeout(() => location.replace(later.dataset.next), Number(later.dataset.reload));

function draftKey(task) { return `draft ${task}`; }
function forget(task) { if (task) localStorage.removeItem(draftKey(task)); }

// The height of what lies over the page, so that what is focused stands clear of it.
function measure(bar, name) {
  if (!bar) return;
  const set = () => {
    const lies = getComputedStyle(bar).position === "sticky";
    document.documentElement.style.setProperty(name, `${lies ? bar.offsetHeight : 0}px`);
  };
  new ResizeObserver(set).observe(bar);
  addEventListener("resize", set);
  set();
}

function post(form, body) {
  const headers = { Accept: "application/json" };
  return fetch(form.getAttribute("action"), { method: "POST", body: new URLSearchParams(body), headers });
}

// --- the guide: "?" opens it, and the button, Escape and "?" put it away ---
function read(guide) {
  const open = () => { guide.close(); guide.showModal(); guide.querySelector(".prose").scrollTop = 0; };
  const form = guide.querySelector("form");
  if (guide.open) open();
  form.addEventListener("submit", (event) => { event.preventDefault(); guide.close(); });
  guide.addEventListener("close", () => { post(form, new FormData(form)).catch(() => { /* shown again next time */ }); });
  document.querySelector("#help").addEventListener("click", (event) => { event.preventDefault(); open(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "?" || isTyping(event.target) || localStorage.getItem("keys") === "off") return;
    event.preventDefault();
    if (guide.open) guide.close(); else open();
  });
}
function isTyping(at) {
  return at.matches("textarea, select, input:not([type=radio], [type=checkbox])");
}

function label(form) {
  const answers = [...form.querySelectorAll(".answer")];
  const message = form.querySelector(".message");
  const key = draftKey(form.dataset.task);
  let mode = "quality", current = 0, sending = false;

  const radios = (kind, letter) => [...form.querySelectorAll(`input[name="${kind}-${letter}"]`)];
  const chosen = (kind, letter) => radios(kind, letter).find((radio) => radio.checked);
  const missing = (kind) => answers.filter((each) => !chosen(kind, each.dataset.letter));

  function tell(text, wrong) {
    message.textContent = text;
    message.classList.toggle("wrong", Boolean(wrong));
  }

  // --- the draft ---
  const entries = () => [...new FormData(form)].filter(([name]) =>
    !["csrf", "task", "submission", "started"].includes(name));
  function keep() {
    const mine = { account: form.dataset.account, entries: entries() };
    try { localStorage.setItem(key, JSON.stringify(mine)); } catch { /* no room: nothing is lost yet */ }
    refresh();
  }
  function restore() {
    const draft = JSON.parse(localStorage.getItem(key) ?? "null");
    if (!draft || draft.account !== form.dataset.account) return;
    for (const box of form.querySelectorAll("input[type=checkbox][name]")) box.checked = false;
    for (const [name, value] of draft.entries) {
      for (const field of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
        if (field.type === "radio" || field.type === "checkbox") field.checked ||= field.value === value;
        else if (field.tagName !== "BUTTON") field.value = value;
      }
    }
    for (const fold of form.querySelectorAll("details:has(textarea)"))
      fold.open = fold.querySelector("textarea").value !== "";
  }

  // --- what is shown of what was entered ---
  const chips = new Map([...form.querySelectorAll(".chip")].map((chip) => [chip.dataset.letter, chip]));
  function refresh() {
    for (const { dataset: { letter } } of answers) {
      const rank = chosen("rank", letter)?.value ?? "0";
      form.querySelector(`.bucket[data-rank="${rank}"]`).append(chips.get(letter));
    }
    for (const fold of form.querySelectorAll("details:has(.checks)")) {
      const count = fold.querySelectorAll("input:checked").length;
      fold.querySelector(".count").textContent = count ? `(${count})` : "";
    }
  }
  function setMode(next) {
    mode = form.dataset.mode = next;
    for (const button of form.querySelectorAll("[data-mode]"))
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }
  function choose(next) {
    setMode(next);
    localStorage.setItem("mode", next);
  }
  function mark(to) {
    current = (to + answers.length) % answers.length;
    answers.forEach((each, n) => each.classList.toggle("current", n === current));
  }
  function go(to) {
    mark(to);
    answers[current].focus({ preventScroll: true });
    answers[current].scrollIntoView({ block: "nearest" });
  }

  // --- keys ---
  const keysOn = form.querySelector("#keys-on");
  keysOn.checked = localStorage.getItem("keys") !== "off";
  keysOn.addEventListener("change", () => {
    if (keysOn.checked) localStorage.removeItem("keys"); else localStorage.setItem("keys", "off");
  });
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    if (guide.open || event.isComposing) return;
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "Enter" && form.contains(at)) { event.preventDefault(); finish(); }
      return;
    }
    if (isTyping(at) || at.matches("button, summary, a")) return;
    if (event.key === "Enter") { event.preventDefault(); finish(); return; }
    if (!keysOn.checked) return;
    if (event.key === "j") go(current + 1);
    else if (event.key === "k") go(current - 1);
    else if (event.key === "r") choose(mode === "rank" ? "quality" : "rank");
    else if (event.key === "f") fill();
    else if (/^[1-9]$/.test(event.key)) digit(event.key);
    else return;
    event.preventDefault();
  });
  function digit(value) {
    const radio = radios(mode, answers[current].dataset.letter).find((each) => each.value === value);
    if (!radio) return;
    radio.checked = true;
    keep();
    if (mode === "quality" && missing("quality").length === 0) {
      setMode("rank");
      go(0);
      tell(form.dataset.rated);
      return;
    }
    // The next one that wants a number, around the end; if none does, simply the next.
    const round = answers.map((_, n) => (current + 1 + n) % answers.length);
    go(round.find((n) => !chosen(mode, answers[n].dataset.letter)) ?? current + 1);
  }
  for (const button of form.querySelectorAll("[data-mode]"))
    button.addEventListener("click", () => { choose(button.dataset.mode); go(current); });
  answers.forEach((each, n) => each.addEventListener("focusin", () => mark(n)));

  // --- ranks from ratings: the best rating is rank 1, equal ones tie ---
  function fill() {
    const rated = answers.filter((each) => chosen("quality", each.dataset.letter));
    const rating = ({ dataset: { letter } }) => Number(chosen("quality", letter).value);
    const order = [...new Set(rated.map(rating))].sort((a, b) => b - a);
    for (const each of rated) {
      const rank = String(order.indexOf(rating(each)) + 1);
      for (const radio of radios("rank", each.dataset.letter)) radio.checked = radio.value === rank;
    }
    keep();
    setMode("rank");
    tell(rated.length ? "" : form.dataset.unrated, !rated.length);
  }
  form.querySelector("button[value=fill]").addEventListener("click", (event) => {
    event.preventDefault();
    fill();
  });

  // --- dragging, by mouse, pen or finger ---
  for (const [letter, chip] of chips)
    chip.addEventListener("pointerdown", (event) => drag(event, chip, letter));
  function drag(start, chip, letter) {
    start.preventDefault();
    chip.setPointerCapture(start.pointerId);
    chip.classList.add("lifted");
    const bucketAt = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".bucket");
    const move = (event) => {
      chip.style.transform = `translate(${event.clientX - start.clientX}px, ${event.clientY - start.clientY}px)`;
      for (const bucket of form.querySelectorAll(".bucket"))
        bucket.classList.toggle("over", bucket === bucketAt(event));
    };
    const end = (event) => {
      chip.removeEventListener("pointermove", move);
      const bucket = event.type === "pointerup" ? bucketAt(event) : null;
      chip.classList.remove("lifted");
      chip.style.transform = "";
      for (const each of form.querySelectorAll(".bucket")) each.classList.remove("over");
      if (bucket) {
        for (const radio of radios("rank", letter)) radio.checked = radio.value === bucket.dataset.rank;
        keep();
      }
    };
    chip.addEventListener("pointermove", move);
    chip.addEventListener("pointerup", end, { once: true });
    chip.addEventListener("pointercancel", end, { once: true });
  }

  // --- what is opened or written in is shown, all of it clear of the bars ---
  form.addEventListener("focusin", ({ target }) => {
    if (target.matches("textarea")) target.scrollIntoView({ block: "nearest" });
  });
  for (const fold of form.querySelectorAll("details"))
    fold.addEventListener("toggle", () => {
      if (fold.open && fold.contains(document.activeElement)) fold.scrollIntoView({ block: "nearest" });
    });

  // --- sending: the same submission again and again until the server has it ---
  function finish() {
    const left = missing("rank");
    if (left.length === 0) { form.requestSubmit(form.querySelector("button[value=rank]")); return; }
    setMode("rank");
    go(answers.indexOf(left[0]));
    tell(`${form.dataset.missing} ${left.map((each) => each.dataset.letter).join(", ")}`, true);
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!sending) send(new FormData(form, event.submitter));
  });
  async function send(body) {
    sending = true;
    tell(form.dataset.wait);
    try {
      const response = await post(form, body);
      const answer = await response.json();
      if (response.ok) { forget(form.dataset.task); location.assign(answer.next); return; }
      tell(answer.error, true);
    } catch {
      tell(form.dataset.offline, true);
      const again = () => { removeEventListener("online", again); clearTimeout(timer); send(body); };
      const timer = setTimeout(again, 5000);
      addEventListener("online", again);
      return;
    }
    sending = false;
  }

  form.addEventListener("input", keep);
  restore();
  refresh();
  setMode(missing("quality").length === 0 ? "rank" : localStorage.getItem("mode") ?? "quality");
  mark(0);
  // The page stays where it opened: at the prompt's beginning.
  if (!guide.open && !document.querySelector(".alert")) answers[0].focus({ preventScroll: true });
}

// --- the chat: what is sent and chosen changes the turns, not the page ---
function chat(say) {
  const turns = document.querySelector("#turns");
  const field = say.querySelector("textarea");
  const message = say.querySelector(".message");
  let sending = false;

  const showNewest = () => {
    const newest = turns.querySelector(".turn:last-child");
    if (!newest) return;
    const room = innerHeight - say.offsetHeight;
    newest.scrollIntoView({ block: newest.offsetHeight < room ? "end" : "start" });
  };
  async function send(form, body) {
    if (sending) return false;
    sending = true;
    message.textContent = "";
    let sent = false;
    try {
      const response = await post(form, body);
      if (!response.ok) message.textContent = (await response.json()).error;
      else { sent = true; await turns.update(); }
    } catch { message.textContent = say.dataset.offline; }
    sending = false;
    return sent;
  }

  field.addEventListener("keydown", (event) => {
    // The Enter that ends a word in an input method belongs to the word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    say.requestSubmit(say.querySelector("button"));
  });
  say.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    if (await send(say, new FormData(say, event.submitter))) { field.value = ""; showNewest(); }
    field.focus();
  });
  turns.addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.target, new FormData(event.target, event.submitter));
  });
  turns.addEventListener("drawn", showNewest);
  showNewest();
  if (matchMedia("(pointer: fine)").matches) field.focus({ preventScroll: true });
}

// --- a part of the page that the server draws anew; not while somebody types in it ---
function keepLive(part) {
  const typesIn = () => part.contains(document.activeElement) && isTyping(document.activeElement);
  part.update = async () => {
    const response = await fetch(part.dataset.live);
    if (!response.ok) return;
    const text = await response.text();
    if (text === part.dataset.shown) return;
    const length = part.querySelectorAll(".reply").length;
    part.dataset.shown = text;
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    part.replaceChildren(document.createRange().createContextualFragment(text));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    if (part.querySelectorAll(".reply").length > length) part.dispatchEvent(new Event("drawn"));
  };
  setInterval(() => {
    if (document.hidden || typesIn() || part.querySelector("details[open]")) return;
    part.update().catch(() => { /* the server is away: what is shown stays */ });
  }, 2000);
}

// --- copying a link, where the browser lets us; else it is selected, ready to be copied ---
function copying(button) {
  const field = document.getElementById(button.dataset.copy);
  button.addEventListener("click", async () => {
    field.select();
    try { await navigator.clipboard.writeText(field.value); } catch {
      // No permission, or plain HTTP, where there is no clipboard object.
      if (!document.execCommand("copy")) { button.textContent = button.dataset.byHand; return; }
      field.select();
    }
    button.textContent = button.dataset.copied;
  });
}
