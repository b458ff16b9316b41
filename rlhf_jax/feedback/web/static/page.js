// Everything works without this file: it adds keys, dragging, drafts, sending again, live figures.
"use strict";
document.documentElement.classList.add("scripted");

const form = document.querySelector("form.task");
if (form) label(form);
for (const saved of document.querySelectorAll("[data-saved]")) forget(saved.dataset.saved);
for (const part of document.querySelectorAll("[data-live]")) keepLive(part);
const later = document.querySelector("[data-reload]");
if (later) setTimeout(() => location.replace(later.dataset.next), Number(later.dataset.reload));

function draftKey(task) { return `draft ${task}`; }
function forget(task) { if (task) localStorage.removeItem(draftKey(task)); }

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
  function refresh() {
    for (const bucket of form.querySelectorAll(".bucket"))
      for (const chip of [...bucket.querySelectorAll(".chip")]) chip.remove();
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
    mode = next;
    for (const button of form.querySelectorAll("[data-mode]"))
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }
  function go(to, focus = true) {
    current = Math.max(0, Math.min(answers.length - 1, to));
    answers.forEach((each, n) => each.classList.toggle("current", n === current));
    if (focus) {
      answers[current].focus({ preventScroll: true });
      answers[current].scrollIntoView({ block: "nearest" });
    }
  }

  // --- keys ---
  const keysOn = form.querySelector("#keys-on");
  keysOn.checked = localStorage.getItem("keys") !== "off";
  keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "Enter" && form.contains(at)) { event.preventDefault(); finish(); }
      return;
    }
    if (at.matches("textarea, select, button, summary, a, input:not([type=radio], [type=checkbox])")) return;
    if (event.key === "Enter") { event.preventDefault(); finish(); return; }
    if (!keysOn.checked) return;
    if (event.key === "j") go(current + 1);
    else if (event.key === "k") go(current - 1);
    else if (event.key === "r") setMode(mode === "rank" ? "quality" : "rank");
    else if (/^[1-9]$/.test(event.key)) digit(event.key);
    else return;
    event.preventDefault();
  });
  function digit(value) {
    const radio = radios(mode, answers[current].dataset.letter).find((each) => each.value === value);
    if (!radio) return;
    radio.checked = true;
    keep();
    if (mode === "quality" && missing("quality").length === 0) { setMode("rank"); go(0); }
    else go(answers.findIndex((each, n) => n > current && !chosen(mode, each.dataset.letter)) >= 0
      ? answers.findIndex((each, n) => n > current && !chosen(mode, each.dataset.letter))
      : current + 1);
  }
  for (const button of form.querySelectorAll("[data-mode]"))
    button.addEventListener("click", () => { setMode(button.dataset.mode); go(current); });
  answers.forEach((each, n) => each.addEventListener("focusin", () => go(n, false)));

  // --- dragging, by mouse, pen or finger ---
  const chips = new Map(answers.map(({ dataset: { letter } }) => {
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.textContent = letter;
    chip.addEventListener("pointerdown", (event) => drag(event, chip, letter));
    return [letter, chip];
  }));
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
    if (!sending) send(new URLSearchParams(new FormData(form, event.submitter)));
  });
  async function send(body) {
    sending = true;
    tell(form.dataset.wait);
    try {
      const response = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "application/json" } });
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
  if (missing("quality").length === 0) setMode("rank");
  go(0, !document.querySelector(".alert"));
}

// A part of the page that the server draws anew. Not while somebody types in it.
function keepLive(part) {
  setInterval(async () => {
    if (document.hidden || part.contains(document.activeElement)
      || part.querySelector("details[open]")) return;
    try {
      const response = await fetch(part.dataset.live);
      if (!response.ok) return;
      const text = await response.text();
      if (text === part.dataset.shown) return;
      part.dataset.shown = text;
      part.replaceChildren(document.createRange().createContextualFragment(text));
    } catch { /* the server is away: what is shown stays */ }
  }, 2000);
}
