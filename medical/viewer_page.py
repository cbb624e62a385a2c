"""The page of ``viewer``: markup, style and script; @TITLE@ and @DATA@ are filled in by ``viewer.viewer``."""

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: dark; --back: #111418; --ink: #e8ebef; --soft: #a0a9b6; --line: #3a414c; --accent: #78a9ff; }
* { box-sizing: border-box; }
html, body { height: 100%; margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.4 system-ui, sans-serif; }
body { display: flex; flex-direction: column; }
header { padding: 8px 14px; display: flex; gap: 6px 18px; flex-wrap: wrap; align-items: baseline; }
#what { font-weight: 600; } #value { flex-basis: 100%; min-height: 1.4em; }
.soft { color: var(--soft); font-size: 13px; }
#views { flex: 1; min-height: 0; display: flex; gap: 10px; padding: 0 14px; justify-content: center; }
figure { margin: 0; flex: 1; min-width: 0; display: flex; flex-direction: column; align-items: center; }
.frame { flex: 1; min-height: 0; width: 100%; display: flex; align-items: center; justify-content: center; }
canvas { background: #000; max-width: 100%; max-height: 100%; image-rendering: pixelated; cursor: crosshair; }
figcaption { padding: 4px 0; min-height: 40px; display: flex; gap: 8px; align-items: center; flex-wrap: wrap; }
#controls { display: grid; grid-template-columns: auto 1fr auto; gap: 4px 12px; align-items: center;
  padding: 8px 14px 12px; border-top: 1px solid var(--line); }
input[type=range] { width: 100%; accent-color: var(--accent); margin: 0; }
select { font: inherit; color: inherit; background: #1e2229; border: 1px solid var(--line); border-radius: 6px;
  padding: 3px 8px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
output { min-width: 12em; font-variant-numeric: tabular-nums; }
#bar { width: 110px; height: 10px; border: 1px solid var(--line); }
@media (max-width: 640px) { #views { flex-direction: column; } output { min-width: 6em; } }
</style>
</head>
<body>
<header><span id="what"></span><span class="soft">synthetic forecasts, not for clinical use</span>
<span class="soft" id="value" aria-live="polite">point at a voxel for its values</span></header>
<div id="views">
<figure><div class="frame"><canvas id="left" role="img" aria-label="scan or forecast"></canvas></div>
<figcaption><label>Shown <select id="layer"></select></label></figcaption></figure>
<figure><div class="frame"><canvas id="right" role="img" aria-label="uncertainty or change"></canvas></div>
<figcaption><label>Beside it <select id="beside"></select></label><span class="soft" id="from"></span>
<canvas id="bar" width="110" height="10" aria-hidden="true"></canvas><span class="soft" id="to"></span>
</figcaption></figure>
</div>
<div id="controls">
<label for="time">Time</label><input id="time" type="range" min="0" step="1"><output id="when"></output>
<label for="slice">Slice</label><input id="slice" type="range" min="0" step="1"><output id="where"></output>
</div>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = (id) => document.getElementById(id);
const [D, H, W] = data.grid, F = data.frames;
const unpack = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
for (const frame of F) for (const key of Object.keys(frame))
  if (typeof frame[key] === "string" && key !== "name") frame[key] = unpack(frame[key]);
const made = F.filter((f) => f.made), first = made[0] || F[F.length - 1];
const grey = Object.keys(first).filter((key) => key === "mean" || key.startsWith("sample") || key === "scan");
const maps = { std: "std of samples", interval: Math.round(100 * data.level) + " % interval, width",
  change: "mean minus last visit", "sample 1": "sample 1", "sample 2": "sample 2" };
for (const key of grey) $("layer").add(new Option(key === "mean" ? "mean of " + data.samples + " (smooth)" : key, key));
for (const [key, name] of Object.entries(maps)) if (first[key]) $("beside").add(new Option(name, key));
$("time").max = F.length - 1; $("slice").max = D - 1; $("slice").disabled = D === 1;
let at = Math.max(0, F.indexOf(made[0])), slice = D >> 1;
const heat = (v) => [Math.min(255, 3.2 * v * 255), Math.max(0, Math.min(255, (v - 0.3) * 400)),
  Math.max(0, Math.min(255, v < 0.5 ? v * 260 : (v - 0.6) * 600))];
const signed = (v) => v < 0.5 ? [510 * v, 510 * v, 255] : [255, 510 * (1 - v), 510 * (1 - v)];
function colour(key, byte) {
  const v = byte / 255;
  return key === "change" ? signed(v) : key === "std" || key === "interval" ? heat(v) : [byte, byte, byte];
}
function paint(canvas, values, key) {
  canvas.width = W; canvas.height = H;
  const room = canvas.parentElement, ratio = H * data.aspect / W;
  const wide = Math.min(room.clientWidth, room.clientHeight / ratio);
  canvas.style.width = wide + "px"; canvas.style.height = wide * ratio + "px";
  const pen = canvas.getContext("2d"), image = pen.createImageData(W, H);
  if (values) for (let k = 0, n = slice * H * W; k < H * W; k++) {
    const [r, g, b] = colour(key, values[n + k]);
    image.data.set([r, g, b, 255], 4 * k);
  }
  pen.putImageData(image, 0, 0);
}
const round = (v) => Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 1 ? v.toFixed(1) : v.toPrecision(2);
function ends(key) {
  return key === "change" ? [-data.change, data.change] : key === "std" ? [0, data.std]
    : key === "interval" ? [0, data.interval] : data.range;
}
function draw() {
  const frame = F[at], layer = frame.scan ? "scan" : $("layer").value;
  const key = $("beside").value, here = frame.made ? frame[key] : null;
  paint($("left"), frame[layer], "grey"); paint($("right"), here, key);
  $("what").textContent = data.subject + ": " + frame.name;
  $("when").textContent = frame.name + " (" + (at + 1) + " of " + F.length + ")";
  $("where").textContent = D > 1 ? "slice " + (slice + 1) + " of " + D : "one slice";
  $("time").value = at; $("slice").value = slice;
  $("time").setAttribute("aria-valuetext", frame.name);
  const [low, high] = ends(key);
  $("from").textContent = here ? round(low) : "a visit";
  $("to").textContent = here ? round(high) : "";
  const bar = $("bar").getContext("2d");
  for (let k = 0; k < 110; k++) {
    bar.fillStyle = here ? "rgb(" + colour(key, k / 109 * 255).map((v) => Math.max(0, Math.min(255, v))).join() + ")"
      : "transparent";
    bar.clearRect(k, 0, 1, 10); bar.fillRect(k, 0, 1, 10);
  }
}
function show(time, place) {
  at = Math.max(0, Math.min(F.length - 1, time)); slice = Math.max(0, Math.min(D - 1, place)); draw();
}
$("time").oninput = () => show(+$("time").value, slice);
$("slice").oninput = () => show(at, +$("slice").value);
$("layer").onchange = $("beside").onchange = draw;
for (const canvas of [$("left"), $("right")]) {
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (D > 1) show(at, slice + Math.sign(event.deltaY)); else show(at + Math.sign(event.deltaY), slice);
  }, { passive: false });
  canvas.onpointermove = (event) => {
    const x = Math.floor(event.offsetX / canvas.clientWidth * W);
    const y = Math.floor(event.offsetY / canvas.clientHeight * H);
    if (x < 0 || y < 0 || x >= W || y >= H) return;
    const frame = F[at], n = (slice * H + y) * W + x, told = [];
    const value = (key, values) => {
      const [low, high] = ends(key);
      return round(low + (high - low) * values[n] / 255);
    };
    if (frame.scan) told.push("value " + value("grey", frame.scan));
    else {
      told.push("mean " + value("grey", frame.mean));
      for (const key of ["std", "interval", "change"]) told.push(maps[key] + " " + value(key, frame[key]));
    }
    $("value").textContent = "column " + x + ", row " + y + ": " + told.join(", ");
  };
}
addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.target.tagName === "INPUT") return;
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (step) { event.preventDefault(); show(at + step[0], slice + step[1]); }
});
addEventListener("resize", draw);
draw();
</script>
</body>
</html>
"""
