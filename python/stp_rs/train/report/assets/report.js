"use strict";
// The page: every section that the data has something for.

const MAIN = [
  ["Validation, solved", [["eval_solved", "free"], ["eval_solved_prior", "with priors"]]],
  ["Forwards per completion", [["diffusion/nfe", "forwards"]]],
  ["Groups of equal rewards", [["frac_reward_zero_std", "share"]]],
  ["Distinct completions per group", [["diffusion/distinct", "distinct"]]],
  ["Clipped ratios", [["clip_ratio/region_mean", "share"]]],
  ["KL to the reference", [["kl", "nats"]]],
  ["Gradient norm", [["grad_norm", "norm"]]],
  ["Gradient signal to noise", [["diffusion/grad_snr", "SNR"]]],
];
const PARTS = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb"]; // Tol's bright scheme

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const { steps, series, each } = data;
const section = (title, ...kids) => page.append(h("h2", {}, title), ...kids);
const table = (head, rows, mono = true) => h("div", { class: "scroll" }, h("table", { class: "wide" },
  h("thead", {}, h("tr", {}, head.map((cell) => h("th", {}, cell)))),
  h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", { class: mono ? "mono" : "" }, cell)))))));

function rewardChart(height, title) {
  if (!series?.reward) return null;
  const spread = series["diffusion/group_reward_std"];
  const shifted = (sign) => series.reward.map((mean, i) => (mean === null || spread[i] === null ? null : mean + sign * spread[i]));
  const band = spread ? { low: shifted(-1), high: shifted(1) } : undefined;
  return chart({ title, steps, height, band, lines: [{ label: band ? "reward (band: ± 1 sd over groups)" : "reward", values: series.reward }] });
}

function answer(found, extra) {
  const sign = { true: ["yes", "✓"], false: ["no", "! look"], null: ["", ""] };
  return h("section", { class: `answer ${found.state}` }, h("h2", {}, found.question), h("div", { class: "word" }, found.word),
    found.figure ? h("div", { class: "figure" }, found.figure, found.figure_note ? h("span", { class: "soft" }, ` ${found.figure_note.replaceAll(" %", "\u00a0%")}`) : null) : null,
    found.bars ? h("div", {}, found.bars.map(([name, , text]) =>
      h("div", { class: "bar" }, `${name}: ${text}`, h("i", {})))) : null,
    found.readings ? h("table", { class: "readings" }, found.readings.map((row) => h("tr", {}, h("td", {}, row.name),
      h("td", {}, row.value, " ", h("span", { class: sign[row.fine][0] }, sign[row.fine][1]))))) : null,
    h("p", {}, found.text), extra);
}

document.title = `stp_rs: ${data.title}`;
page.append(h("header", {}, h("h1", {}, data.title), h("span", { class: "soft" }, data.about)));
if (data.answers) {
  page.append(h("div", { class: "answers" }, data.answers.map((found, i) => answer(found, i === 0 ? rewardChart(100) : null))));
  page.querySelectorAll(".bar i").forEach((bar, i) => {
    const bars = data.answers.flatMap((found) => found.bars ?? []);
    bar.style.width = `${(100 * bars[i][1]) / Math.max(...bars.map((b) => b[1]))}%`;
  });
}
if (data.kept?.length) {
  section("Samples, and how they were decoded", h("p", { class: "soft" }, data.kept_note), viewer(data.kept));
}
if (steps?.length) {
  const smoothed = each > 1 ? h("p", { class: "soft" }, `Each point is the mean of ${each} lines of the log.`) : null;
  const grid = h("div", { class: "charts" }, rewardChart(190, "Reward"), MAIN.map(([title, names]) => {
    const there = names.filter(([name]) => series[name]);
    const lines = there.map(([name, label], i) => ({ label, values: series[name], colour: i ? "--second" : "--accent" }));
    return lines.length ? chart({ title, steps, lines }) : null;
  }));
  const rest = h("details", {}, h("summary", {}, `All ${Object.keys(series).length} metrics`));
  rest.addEventListener("toggle", () => {
    rest.append(h("div", { class: "charts" }, Object.entries(series).map(([name, values]) =>
      chart({ title: name, steps, lines: [{ label: "value", values }], height: 150 }))));
  }, { once: true });
  section("Curves", ...[smoothed, grid, rest].filter(Boolean));
}
if (data.held_out?.length) {
  section("Held-out problems, greedy", table(["prompt", "before", "after"], data.held_out.map((s) => [
    s.prompt, h("span", {}, s.before, " ", mark(s.before_solved)), h("span", {}, s.after, " ", mark(s.after_solved))])));
}
if (data.ledger?.length) {
  section("What it cost", ...data.ledger.flatMap(({ title, parts }) => {
    const total = parts.reduce((sum, [, value]) => sum + value, 0);
    const piece = (value, i) => h("i", { "--part": PARTS[i % PARTS.length], title: parts[i][0] });
    const stack = h("div", { class: "stack" }, parts.map(([, value], i) => piece(value, i)));
    [...stack.children].forEach((part, i) => { part.style.flexGrow = parts[i][1]; });
    return [h("h3", {}, `${title}: ${Math.round(total).toLocaleString("en")}`), stack,
      h("div", { class: "keys" }, parts.map(([name, value], i) => h("span", {}, h("i", { "--part": PARTS[i % PARTS.length] }),
        `${name} ${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} (${((100 * value) / total).toFixed(0)} %)`)))];
  }));
}
if (data.options?.rest.length) {
  const { changed, rest } = data.options;
  section("Configuration", changed.length ? table(["differs from the preset", "here", "preset"], changed) : h("p", {}, "Nothing differs from the preset."),
    h("details", {}, h("summary", {}, `The other ${rest.length} options`), table(["option", "value"], rest)));
}
if (data.environment?.length) section("Environment", table(["", ""], data.environment));
