"use strict";
(() => {
  document.documentElement.classList.add("with-scripts");

  // pictures, enlarged
  const dialog = document.getElementById("zoom");
  const enlarged = dialog.querySelector("img");
  const enlarge = (image) => {
    enlarged.src = image.src;
    enlarged.alt = image.alt;
    dialog.showModal();
  };
  for (const image of document.querySelectorAll("figure img")) {
    image.addEventListener("click", () => enlarge(image));
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter") enlarge(image);
    });
  }
  dialog.addEventListener("click", () => dialog.close());

  // definitions are part of a printed page
  addEventListener("beforeprint", () => {
    for (const group of document.querySelectorAll("details")) group.open = true;
  });

  // series: JSON, compressed
  const section = document.getElementById("series");
  const withoutSeries = () => {
    section.remove();
    document.querySelector('nav a[href="#series"]')?.parentElement.remove();
  };
  const read = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(plain).json();
  };
  read(document.getElementById("data").textContent).then(chart, withoutSeries);

  function chart({ steps, series: all }) {
  if (!all.length) {
    withoutSeries();
    return;
  }
  for (const series of all) series.steps = steps[series.steps];
  const which = document.getElementById("which");
  const log = document.getElementById("log");
  const canvas = document.getElementById("chart");
  const readout = document.getElementById("readout");
  const pen = canvas.getContext("2d");
  const margin = { left: 76, right: 14, top: 14, bottom: 34 };
  all.forEach((series, i) => which.add(new Option(series.name, String(i))));
  let range = null; // first and last step that are shown; null for all
  let pressed = null;
  let at = null;

  const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(2) : String(+x.toPrecision(5)));
  const chosen = () => all[Number(which.value)];
  const limits = (series) => range ?? [series.steps[0], series.steps[series.steps.length - 1]];

  function ticks(low, high, n) {
    const rough = (high - low) / n || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
    const found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) found.push(Math.abs(x) < step * 1e-9 ? 0 : x);
    return found;
  }

  function scales(series) {
    const [first, last] = limits(series);
    const box = canvas.getBoundingClientRect();
    const value = (v) => (log.checked ? (v > 0 ? Math.log10(v) : NaN) : v);
    let low = Infinity;
    let high = -Infinity;
    series.steps.forEach((s, i) => {
      const v = series.values[i] === null ? NaN : value(series.values[i]);
      if (s >= first && s <= last && Number.isFinite(v)) {
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
    });
    if (!(low <= high)) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5];
    const width = box.width - margin.left - margin.right;
    const height = box.height - margin.top - margin.bottom;
    return {
      first, last, low, high, width, height, value,
      x: (s) => margin.left + ((s - first) / (last - first || 1)) * width,
      y: (v) => margin.top + (1 - (v - low) / (high - low)) * height,
      step: (px) => first + ((px - margin.left) / width) * (last - first),
    };
  }

  function draw() {
    const series = chosen();
    const box = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    const s = scales(series);
    pen.font = "13px system-ui, sans-serif";
    pen.fillStyle = "#5a6375";
    pen.strokeStyle = "#e6e9ef";
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const v of ticks(s.low, s.high, 6)) {
      pen.beginPath();
      pen.moveTo(margin.left, s.y(v));
      pen.lineTo(margin.left + s.width, s.y(v));
      pen.stroke();
      pen.fillText(log.checked ? short(10 ** v) : short(v), margin.left - 8, s.y(v));
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const v of ticks(s.first, s.last, Math.max(2, Math.floor(s.width / 110)))) pen.fillText(String(v), s.x(v), margin.top + s.height + 8);
    pen.save();
    pen.beginPath();
    pen.rect(margin.left, margin.top, s.width, s.height);
    pen.clip();
    pen.strokeStyle = "#0b5c97";
    pen.lineWidth = 1.6;
    pen.beginPath();
    let drawing = false;
    series.steps.forEach((step, i) => {
      const v = series.values[i] === null ? NaN : s.value(series.values[i]);
      if (!Number.isFinite(v)) {
        drawing = false;
        return;
      }
      if (drawing) pen.lineTo(s.x(step), s.y(v));
      else pen.moveTo(s.x(step), s.y(v));
      drawing = true;
    });
    pen.stroke();
    if (pressed !== null && at !== null) {
      pen.fillStyle = "rgba(11, 92, 151, 0.15)";
      pen.fillRect(Math.min(pressed, at), margin.top, Math.abs(at - pressed), s.height);
    }
    pen.restore();
    show(series, s);
  }

  function show(series, s) {
    const unit = series.units ? " " + series.units : "";
    if (at === null) {
      readout.textContent = series.what;
      return;
    }
    const step = s.step(at);
    let nearest = 0;
    series.steps.forEach((x, i) => {
      if (Math.abs(x - step) < Math.abs(series.steps[nearest] - step)) nearest = i;
    });
    const v = series.values[nearest];
    readout.textContent = `${series.what}: ${v === null ? "none" : short(v) + unit} at step ${series.steps[nearest]}`;
    const y = v === null ? NaN : s.value(v);
    if (Number.isFinite(y)) {
      pen.fillStyle = "#b45f06";
      pen.beginPath();
      pen.arc(s.x(series.steps[nearest]), s.y(y), 4, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  const place = (event) => event.clientX - canvas.getBoundingClientRect().left;
  canvas.addEventListener("pointermove", (event) => {
    at = place(event);
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    at = null;
    draw();
  });
  canvas.addEventListener("pointerdown", (event) => {
    pressed = place(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    const s = scales(chosen());
    const from = s.step(Math.min(pressed, place(event)));
    const to = s.step(Math.max(pressed, place(event)));
    if (place(event) !== pressed && to - from >= 1) range = [Math.max(from, s.first), Math.min(to, s.last)];
    pressed = null;
    draw();
  });
  canvas.addEventListener("dblclick", () => {
    range = null;
    draw();
  });
  which.addEventListener("change", () => {
    range = null;
    const values = chosen().values.filter((v) => v !== null);
    log.checked = values.every((v) => v >= 0) && Math.max(...values) > 1000 * Math.min(...values.filter((v) => v > 0));
    draw();
  });
  log.addEventListener("change", draw);
  addEventListener("resize", draw);
  which.dispatchEvent(new Event("change"));
  }
})();
