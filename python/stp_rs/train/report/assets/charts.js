"use strict";
// Elements and curves. Texts are always text nodes: what a model wrote is never markup.

function h(tag, props, ...kids) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...kids.flat().filter((kid) => kid !== null && kid !== undefined));
  return element;
}

const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((plot) => plot.redraw(false)));

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// lines: [{label, values, colour}]; band: {low, high} is drawn behind them.
function chart({ title, note, steps, lines, band, height = 190 }) {
  const box = h("div", { class: "chart" }, title ? h("h3", {}, title) : null, note ? h("div", { class: "soft" }, note) : null);
  const few = (values) => values.filter((value) => value !== null).length < 40;
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const value = (_, number) => shown(number);
  const options = {
    width: 320, height,
    scales: { x: { time: false } },
    cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
    axes: [{ ...axis, size: 26 }, { ...axis, size: 46, values: (_, ticks) => ticks.map(shown) }],
    series: [
      { label: "step", value: (_, number) => (number === null ? "–" : String(number)) },
      ...lines.map((line) => ({
        label: line.label, stroke: colour(line.colour ?? "--accent"), width: 1.75, spanGaps: true, value,
        points: { show: few(line.values), size: 5 },
      })),
      ...(band ? ["high", "low"].map((label) => ({ label, stroke: "transparent", value, points: { show: false }, spanGaps: true })) : []),
    ],
    bands: band ? [{ series: [lines.length + 1, lines.length + 2], fill: colour("--band") }] : [],
  };
  const data = [steps, ...lines.map((line) => line.values), ...(band ? [band.high, band.low] : [])];
  const plot = new uPlot(options, data, box);
  drawn.push(plot);
  new ResizeObserver(([entry]) => plot.setSize({ width: Math.max(120, entry.contentRect.width), height })).observe(box);
  return box;
}
