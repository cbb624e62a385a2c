"""The page of ``viewer``: markup, style and script; @TITLE@ and @DATA@ are filled in by ``viewer.write_viewer``."""

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none';
 script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --back: #f6f8fa; --ink: #262b33; --soft: #5b6472; --bar: #ffffff; --line: #cbd2da;
  --accent: #2667c9; --ground: #e4e8ed; --grid: #cbd2da; --shadow: #c3cad3; --path: #a9bbdd; --been: #5874b4; }
@media (prefers-color-scheme: dark) { :root { --back: #15181d; --ink: #e8ebef; --soft: #a0a9b6; --bar: #1e2229;
  --line: #3a414c; --accent: #78a9ff; --ground: #20252c; --grid: #363e49; --shadow: #101317; --path: #3f5078;
  --been: #7f9de0; } }
* { box-sizing: border-box; }
html, body { height: 100%; margin: 0; background: var(--back); color: var(--ink); font: 15px/1.35 system-ui,
  sans-serif; }
body { display: flex; flex-direction: column; overflow: hidden; }
#stage { position: relative; flex: 1; min-height: 0; }
canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: grab;
  outline-offset: -3px; }
#caption { position: absolute; top: 14px; left: 16px; right: 16px; font-size: clamp(16px, 2.4vw, 24px);
  pointer-events: none;
  text-wrap: balance; }
#help { position: absolute; right: 16px; bottom: 10px; color: var(--soft); font-size: 12px; pointer-events: none; }
#controls { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; padding: 10px 16px;
  background: var(--bar);
  border-top: 1px solid var(--line); }
button, select { font: inherit; color: inherit; background: transparent; border: 1px solid var(--line);
  border-radius: 6px;
  padding: 4px 10px; min-height: 32px; cursor: pointer; }
button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#scrub { width: 100%; accent-color: var(--accent); margin: 0; }
#track { flex: 1 1 260px; display: flex; flex-direction: column; gap: 2px; min-width: 160px; }
#prompts { position: relative; height: 18px; font-size: 11px; }
#prompts span { position: absolute; top: 0; bottom: 0; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
  border-left: 2px solid var(--accent); padding-left: 4px; color: var(--soft); }
#prompts span.now { color: var(--ink); font-weight: 600; }
#clock { font-variant-numeric: tabular-nums; min-width: 11em; text-align: right; color: var(--soft); }
@media (max-width: 600px) { #help { display: none; } #clock { min-width: 0; } }
</style>
</head>
<body>
<div id="stage">
<canvas id="view" tabindex="0" role="img" aria-label="Stick figures in motion; drag to turn, wheel to zoom"></canvas>
<div id="caption" aria-live="polite"></div>
<div id="help">drag: turn &middot; wheel: zoom &middot; space: play &middot; arrows: step &middot; F: follow
  &middot; R: reset</div>
</div>
<div id="controls">
<button id="play" type="button" aria-label="Play">&#9654;</button>
<div id="track"><div id="prompts" aria-hidden="true"></div>
<input id="scrub" type="range" min="0" value="0" step="1" aria-label="Frame"></div>
<label>Speed <select id="speed" aria-label="Speed"><option value="0.25">&frac14;</option><option
  value="0.5">&frac12;</option>
<option value="1" selected>1</option><option value="2">2</option><option value="4">4</option></select></label>
<button id="follow" type="button" aria-pressed="true">Follow</button>
<button id="reset" type="button">Reset view</button>
<span id="clock"></span>
</div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id), canvas = $("view"), pen = canvas.getContext("2d");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const people = data.people.map((p) => (
  { root: new Float32Array(bytes(p.root)), relative: new Int16Array(bytes(p.relative)), step: p.step }));
const N = data.frames, J = data.joints, FPS = data.fps;
const LIMBS = [["#5c636e", "#266ed6", "#e86e16"], ["#9aa1ab", "#6ea8e8", "#f0a860"]];
const side = data.names.map((n) => n.startsWith("left_") ? 1 : n.startsWith("right_") ? 2 : 0);
const HEAD = data.names.indexOf("head");
let frame = 0, playing = false, follow = true, speed = 1, yaw = 0.5, pitch = 0.28, zoomed = 1, distance = 4,
  last = 0, wanted = true;
let centre = [0, data.floor + 0.9, 0];
const colour = {};
function colours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ground", "grid", "shadow", "path", "been",
    "back"]) colour[name] = style.getPropertyValue("--" + name).trim();
  wanted = true;
}
function joint(person, f, j) {
  const p = people[person], x = p.root[3 * f], y = p.root[3 * f + 1], z = p.root[3 * f + 2];
  if (j === 0) return [x, y, z];
  const at = 3 * (f * (J - 1) + j - 1), s = p.step, r = p.relative;
  return [x + s * r[at], y + s * r[at + 1], z + s * r[at + 2]];
}
function middle(f) {
  let x = 0, z = 0;
  for (const p of people) { x += p.root[3 * f]; z += p.root[3 * f + 2]; }
  return [x / people.length, data.floor + 0.9, z / people.length];
}
function apart(f) {
  const m = middle(f);
  return Math.max(0, ...people.map((p) => Math.hypot(p.root[3 * f] - m[0], p.root[3 * f + 2] - m[2])));
}
function lookAt(f) {  // the people and how far off to stand, smoothed over a second
  let x = 0, z = 0, far = 0, weight = 0;
  for (let k = -10; k <= 10; k++) {
    const g = Math.min(N - 1, Math.max(0, f + k)), m = middle(g), w = 11 - Math.abs(k);
    x += w * m[0]; z += w * m[2]; far += w * Math.max(0, apart(g) - 0.5); weight += w;
  }
  if (follow) centre = [x / weight, data.floor + 0.9, z / weight];
  distance = zoomed * (4 + 1.8 * Math.min(10, far / weight));
}
let camera = null;
function aim() {
  const w = canvas.width, h = canvas.height, c = Math.cos(pitch);
  const eye = [centre[0] + distance * c * Math.sin(yaw), centre[1] + distance * Math.sin(pitch),
    centre[2] + distance * c * Math.cos(yaw)];
  const ahead = [-c * Math.sin(yaw), -Math.sin(pitch), -c * Math.cos(yaw)], across = [Math.cos(yaw), 0,
    -Math.sin(yaw)];
  const up = [across[1] * ahead[2] - across[2] * ahead[1], across[2] * ahead[0] - across[0] * ahead[2],
    across[0] * ahead[1] - across[1] * ahead[0]];
  camera = { eye, ahead, across, up, focal: Math.min(h, 1.3 * w) * 1.45, w, h };
}
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
function project(p) {
  const v = [p[0] - camera.eye[0], p[1] - camera.eye[1], p[2] - camera.eye[2]], depth = dot(v, camera.ahead);
  const s = camera.focal / Math.max(depth, 0.05);
  return { x: camera.w / 2 + s * dot(v, camera.across), y: camera.h / 2 - s * dot(v, camera.up), s, depth };
}
function stroke(points, style, width) {  // what lies behind the camera is left out
  pen.strokeStyle = style; pen.lineWidth = width; pen.beginPath();
  let open = false;
  for (const p of points) {
    const q = project(p);
    if (q.depth < 0.1) { open = false; continue; }
    if (open) pen.lineTo(q.x, q.y); else pen.moveTo(q.x, q.y);
    open = true;
  }
  pen.stroke();
}
function ground() {
  const reach = 2.5 + distance, y = data.floor, dpr = window.devicePixelRatio || 1;
  const rim = [];
  for (let k = 0; k < 90; k++) rim.push([centre[0] + reach * Math.cos(k * Math.PI / 45), y,
    centre[2] + reach * Math.sin(k * Math.PI / 45)]);
  pen.fillStyle = colour.ground; pen.beginPath();
  for (const p of rim) { const q = project(p); if (q.depth > 0.1) pen.lineTo(q.x, q.y); }
  pen.fill();
  for (const axis of [0, 2]) {
    for (let v = Math.ceil((centre[axis] - reach) * 2) / 2; v < centre[axis] + reach; v += 0.5) {
      const half = Math.sqrt(Math.max(0, reach * reach - (v - centre[axis]) ** 2)), other = 2 - axis, line = [];
      for (let k = 0; k <= 24; k++) { const p = [0, y, 0]; p[axis] = v;
        p[other] = centre[other] + half * (k / 12 - 1); line.push(p); }
      stroke(line, colour.grid, (Math.abs(v - Math.round(v)) < 1e-6 ? 1.6 : 0.8) * dpr);
    }
  }
}
function path(person) {
  const dpr = window.devicePixelRatio || 1, reach = 2.5 + distance, root = people[person].root;
  const near = (f) => Math.hypot(root[3 * f] - centre[0], root[3 * f + 2] - centre[2]) < reach;
  const points = (from, to) => {
    const out = [];
    for (let f = from; f <= to; f++) if (near(f)) out.push([root[3 * f], data.floor, root[3 * f + 2]]);
      else if (out.length) out.push([NaN, 0, 0]);
    return out;
  };
  for (const [from, to, style] of [[Math.max(0, frame - 600), Math.min(N - 1, frame + 600), colour.path],
    [Math.max(0, frame - 600), frame, colour.been]]) {
    let part = [];
    for (const p of points(from, to)) { if (Number.isNaN(p[0])) { stroke(part, style, 2.5 * dpr); part = [];
      } else part.push(p); }
    if (part.length > 1) stroke(part, style, 2.5 * dpr);
  }
}
function limb(a, b, ra, rb, style) {
  const dx = b.x - a.x, dy = b.y - a.y, length = Math.hypot(dx, dy) || 1, nx = -dy / length, ny = dx / length;
  pen.fillStyle = style; pen.beginPath();
  pen.moveTo(a.x + nx * ra, a.y + ny * ra); pen.lineTo(b.x + nx * rb, b.y + ny * rb);
  pen.lineTo(b.x - nx * rb, b.y - ny * rb); pen.lineTo(a.x - nx * ra, a.y - ny * ra); pen.fill();
  for (const [p, r] of [[a, ra], [b, rb]]) { pen.beginPath(); pen.arc(p.x, p.y, r, 0, 7); pen.fill(); }
}
const darker = (hex) => "#" + [1, 3, 5].map((k) => Math.round(parseInt(hex.slice(k, k + 2),
  16) * 0.72).toString(16).padStart(2, "0")).join("");
function bodies() {
  const parts = [], dpr = window.devicePixelRatio || 1;
  people.forEach((_, person) => {
    const spots = [], look = LIMBS[person % 2];
    for (let j = 0; j < J; j++) spots.push(joint(person, frame, j));
    const seen = spots.map(project), flat = spots.map((p) => project([p[0], data.floor, p[2]]));
    for (let j = 1; j < J; j++) {
      const p = data.parents[j], name = data.names[j];
      if (flat[j].depth > 0.1 && flat[p].depth > 0.1) limb(flat[p], flat[j], 0.036 * flat[p].s,
        0.036 * flat[j].s, colour.shadow);
      const half = side[j] && !/hip|collar/.test(name) ? 0.045 : 0.065, end = /wrist|foot|ankle/.test(name) ? 0.8 : 1;
      parts.push([(seen[p].depth + seen[j].depth) / 2, seen[p], seen[j], half * seen[p].s,
        half * end * seen[j].s, look[side[j]]]);
    }
    if (HEAD > 0) {
      const a = spots[HEAD], b = spots[data.parents[HEAD]], up = [a[0] - b[0], a[1] - b[1], a[2] - b[2]],
        l = Math.hypot(...up) || 1;
      const top = project(a.map((v, k) => v + 0.06 * up[k] / l));
      parts.push([top.depth, top, top, 0.105 * top.s, 0.105 * top.s, look[0]]);
    }
  });
  parts.filter((p) => p[0] > 0.15).sort((a, b) => b[0] - a[0]).forEach(([, a, b, ra, rb, style]) => {
    limb(a, b, ra + 1.2 * dpr, rb + 1.2 * dpr, darker(style)); limb(a, b, ra, rb, style);
  });
}
function captionAt(f) {
  let now = -1;
  data.captions.forEach((c, k) => { if (c[0] <= f) now = k; });
  return now;
}
let shown = -2;
function draw() {
  const dpr = window.devicePixelRatio || 1, w = Math.round(canvas.clientWidth * dpr),
    h = Math.round(canvas.clientHeight * dpr);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  lookAt(frame);
  aim();
  pen.lineCap = pen.lineJoin = "round"; pen.fillStyle = colour.back; pen.fillRect(0, 0, w, h);
  ground(); people.forEach((_, k) => path(k)); bodies();
  const now = captionAt(frame);
  if (now !== shown) {
    $("caption").textContent = now < 0 ? "" : data.captions[now][1];
    [...$("prompts").children].forEach((e, k) => e.classList.toggle("now", k === now));
    shown = now;
  }
  $("scrub").value = frame;
  $("scrub").setAttribute("aria-valuetext", `frame ${frame} of ${N}`);
  $("clock").textContent = `${(frame / FPS).toFixed(2)} s · ${frame + 1} / ${N}`;
}
let clock = 0;
function tick(time) {
  if (playing) {
    clock += Math.min(0.25, (time - last) / 1000) * FPS * speed;
    const step = Math.floor(clock);
    if (step > 0) { clock -= step; frame = (frame + step) % N; wanted = true; }
  }
  last = time;
  if (wanted) { wanted = false; draw(); }
  requestAnimationFrame(tick);
}
function show(f) { frame = Math.min(N - 1, Math.max(0, Math.round(f))); clock = 0; wanted = true; }
function play(on) {
  playing = on;
  if (on && frame === N - 1) show(0);
  $("play").textContent = on ? "❚❚" : "▶"; $("play").setAttribute("aria-label", on ? "Pause" : "Play"); wanted = true;
}
function setFollow(on) { follow = on; $("follow").setAttribute("aria-pressed", on); wanted = true; }
function zoom(factor) { zoomed = Math.min(8, Math.max(0.3, zoomed * factor)); wanted = true; }
function reset() { yaw = 0.5; pitch = 0.28; zoomed = 1; setFollow(true); }
function setSpeed(by) { const s = $("speed"); s.selectedIndex = Math.min(s.options.length - 1, Math.max(0,
  s.selectedIndex + by)); speed = +s.value; }
$("scrub").max = N - 1;
data.captions.forEach(([start, text], k) => {
  const stop = k + 1 < data.captions.length ? data.captions[k + 1][0] : N, e = document.createElement("span");
  e.textContent = text; e.title = text; e.style.left = 100 * start / N + "%";
    e.style.width = 100 * (stop - start) / N + "%";
  e.onclick = () => show(start); $("prompts").append(e);
});
$("play").onclick = () => play(!playing);
$("scrub").oninput = (e) => { play(false); show(+e.target.value); };
$("speed").onchange = (e) => { speed = +e.target.value; };
$("follow").onclick = () => setFollow(!follow);
$("reset").onclick = reset;
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  const step = e.shiftKey ? Math.round(FPS) : 1;
  const keys = { " ": () => play(!playing), ArrowRight: () => { play(false); show(frame + step); },
    ArrowLeft: () => { play(false); show(frame - step); },
    Home: () => show(0), End: () => show(N - 1), "+": () => zoom(0.9), "=": () => zoom(0.9),
      "-": () => zoom(1.1), f: () => setFollow(!follow),
    r: reset, ",": () => setSpeed(-1), ".": () => setSpeed(1), ArrowUp: () => { pitch = Math.min(1.5,
      pitch + 0.06); wanted = true; },
    ArrowDown: () => { pitch = Math.max(-0.1, pitch - 0.06); wanted = true; }, a: () => { yaw -= 0.1;
      wanted = true; }, d: () => { yaw += 0.1; wanted = true; } };
  const act = keys[e.key] || keys[e.key.toLowerCase()];
  if (!act || (e.key === " " && e.target.tagName === "BUTTON")) return;
  e.preventDefault(); act();
});
const fingers = new Map();
canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId,
  [e.clientX, e.clientY]); });
canvas.addEventListener("pointermove", (e) => {
  const was = fingers.get(e.pointerId);
  if (!was) return;
  const gap = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1; };
  const before = fingers.size === 2 ? gap() : 0;
  fingers.set(e.pointerId, [e.clientX, e.clientY]);
  if (fingers.size === 2) zoom(before / gap());
  else { yaw -= (e.clientX - was[0]) * 0.008; pitch = Math.min(1.5, Math.max(-0.1,
    pitch + (e.clientY - was[1]) * 0.006)); wanted = true; }
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => fingers.delete(e.pointerId));
canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(e.deltaY * 0.001)); }, {
  passive: false });
window.addEventListener("resize", () => { wanted = true; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colours);
colours(); reset(); show(0);
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
requestAnimationFrame((t) => { last = t; tick(t); });
</script>
</body>
</html>
"""
