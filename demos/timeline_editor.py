"""Rows of time and prompt that people can add, remove and reorder; its value is a Timeline as text.

    editor = timeline_editor("0s: a person walks | 4s: waves")         # a gradio component

The value is the same text that the command line takes, so that it can be copied, sent by ``gradio_client`` and kept in
settings. Enter adds a row, Alt with an arrow moves a prompt.
"""

from __future__ import annotations

from typing import Any

_HTML = """
<div class="rows" role="list" aria-label="Timeline: what happens when"></div>
<div class="under"><button type="button" class="add">Add a prompt</button>
<span class="hint">Enter adds one, Alt+↑ and Alt+↓ move a prompt</span></div>
"""

_CSS = """
& { display: block; }
.head, .row { display: grid; grid-template-columns: 5.2rem 1fr auto; gap: .45rem; align-items: center; }
.row { margin-bottom: .45rem; }
input {
  min-width: 0; width: 100%; font: inherit; color: var(--body-text-color); background: var(--input-background-fill);
  border: 1px solid var(--input-border-color, var(--border-color-primary)); border-radius: 8px; padding: .5rem .6rem;
}
input:disabled { opacity: .65; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
input.missing { border-color: var(--error-border-color, #b91c1c); }
.time { position: relative; }
.time input { padding-right: 1.3rem; text-align: right; }
.time span { position: absolute; right: .5rem; top: 50%; transform: translateY(-50%); opacity: .6; }
.tools { display: flex; gap: .2rem; }
button {
  font: inherit; line-height: 1; color: var(--body-text-color); background: var(--button-secondary-background-fill);
  border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .55rem; cursor: pointer;
  min-width: 2.1rem; height: 2.2rem;
}
.tools { align-items: center; }
.tools button { width: 2.2rem; padding: 0; }
button:hover:not(:disabled) { border-color: var(--color-accent); }
button:disabled { opacity: .35; cursor: default; }
.under { margin-top: .2rem; display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; }
.hint { font-size: .82rem; opacity: .7; }
@media (max-width: 620px) {
  .row { grid-template-columns: 5.2rem 1fr; padding-bottom: .5rem; }
  .row .prompt { grid-column: 1 / -1; grid-row: 2; }
  .tools { justify-content: flex-end; }
  .hint { display: none; }
}
"""

_SCRIPT = r"""
const list = element.querySelector('.rows'), add = element.querySelector('.add');
const START = /^\s*(\d+(?:\.\d+)?)\s*(s|ms)?\s*:/;
let told = null;

function read(text) {
  text = String(text || '').trim();
  if (!text) return [{start: 0, prompt: ''}];
  if (!text.includes('|') && !START.test(text)) return [{start: 0, prompt: text}];
  return text.split('|').map(part => {
    const found = START.exec(part);
    if (!found) return {start: 0, prompt: part.trim()};
    const scale = found[2] === 's' ? 1 : found[2] === 'ms' ? 1e-3 : 1 / (props.fps || 1);
    return {start: Math.round(found[1] * scale * 1e3) / 1e3, prompt: part.slice(found[0].length).trim()};
  });
}
function rows() {
  return [...list.children].map(row => ({
    start: Math.max(0, Number(row.querySelector('.start').value) || 0),
    prompt: row.querySelector('.prompt').value.replaceAll('|', '/').trim(),
  }));
}
function write(all) { return all.map(row => row.start + 's: ' + row.prompt).join(' | '); }
function tell() {
  for (const field of list.querySelectorAll('.prompt')) field.classList.toggle('missing', !field.value.trim());
  told = write(rows());
  props.value = told;
  trigger('input');
}
function button(label, sign, act, off) {
  const node = document.createElement('button');
  node.type = 'button'; node.textContent = sign; node.title = label; node.disabled = off;
  node.setAttribute('aria-label', label);
  node.addEventListener('click', act);
  return node;
}
function build(all, focus) {
  list.replaceChildren(...all.map((row, i) => {
    const node = document.createElement('div'), time = document.createElement('div');
    const unit = document.createElement('span');
    const start = document.createElement('input'), prompt = document.createElement('input');
    const tools = document.createElement('div');
    node.className = 'row'; node.setAttribute('role', 'listitem');
    time.className = 'time'; unit.textContent = 's'; tools.className = 'tools';
    start.className = 'start'; start.type = 'number'; start.min = 0; start.step = 0.5; start.value = row.start;
    start.disabled = i === 0; start.setAttribute('aria-label', 'Start of prompt ' + (i + 1) + ' in seconds');
    prompt.className = 'prompt'; prompt.type = 'text'; prompt.value = row.prompt; prompt.maxLength = 300;
    prompt.placeholder = i === 0 ? 'What happens first' : 'What happens then';
    prompt.setAttribute('aria-label', 'Prompt ' + (i + 1));
    start.addEventListener('input', tell);
    start.addEventListener('change', () => { build(rows().sort((a, b) => a.start - b.start)); tell(); });
    prompt.addEventListener('input', tell);
    prompt.addEventListener('keydown', event => {
      if (event.isComposing) return;
      if (event.key === 'Enter') { event.preventDefault(); insert(i); }
      else if (event.altKey && event.key === 'ArrowUp') { event.preventDefault(); move(i, -1); }
      else if (event.altKey && event.key === 'ArrowDown') { event.preventDefault(); move(i, 1); }
    });
    const end = all.length - 1, name = 'prompt ' + (i + 1);
    tools.append(
      button('Move ' + name + ' earlier', '↑', () => move(i, -1), i === 0),
      button('Move ' + name + ' later', '↓', () => move(i, 1), i === end),
      button('Remove ' + name, '✕', () => remove(i), end === 0));
    time.append(start, unit);
    node.append(time, prompt, tools);
    return node;
  }));
  add.disabled = all.length >= props.most;
  if (focus !== undefined) list.children[focus]?.querySelector('.prompt').focus();
}
function insert(after) {
  const all = rows();
  if (all.length >= props.most) return;
  const next = all[after + 1], from = all[after].start;
  const start = next ? Math.round((from + next.start) * 5) / 10 : from + props.gap;
  if (next && (start <= from || start >= next.start)) return;
  all.splice(after + 1, 0, {start, prompt: ''});
  build(all, after + 1); tell();
}
function move(i, by) {
  const all = rows(), j = i + by;
  if (j < 0 || j >= all.length) return;
  [all[i].prompt, all[j].prompt] = [all[j].prompt, all[i].prompt];
  build(all, j); tell();
}
function remove(i) {
  const all = rows();
  all.splice(i, 1);
  all[0].start = 0;
  build(all, Math.min(i, all.length - 1)); tell();
}
add.addEventListener('click', () => insert(rows().length - 1));
watch('value', () => { if (props.value !== told) { told = props.value; build(read(props.value)); } });
told = props.value;
build(read(props.value));
"""


def timeline_editor(value: str, *, fps: float, gap: float, most: int = 40) -> Any:
    """A ``gr.HTML`` whose value is a Timeline as text. gap: seconds between a prompt and one added after the last.
    most: rows. fps: frames a second, for texts that count in frames."""
    import gradio as gr

    return gr.HTML(
        value,
        label="Timeline",
        html_template=_HTML,
        css_template=_CSS,
        js_on_load=_SCRIPT,
        elem_classes="timeline",
        fps=fps,
        gap=gap,
        most=most,
    )
