"use strict";
// The denoising of a completion, forward by forward: pruned, and beside it the same prompt and random numbers unpruned.

const PRIOR = -1, UNDRAWN = -3;

function visible(token) {
  return token.replaceAll(" ", "␣") || "∅";
}

function decodePanel(title, decode, readout) {
  const last = Math.max(1, decode.nfe - 1);
  const cells = decode.tokens.map((token, i) => {
    const step = decode.steps[i];
    const kind = step === PRIOR ? "prior" : step === UNDRAWN ? "filler" : step === decode.tail ? "tail" : "drawn";
    const cell = h("span", { class: `t ${kind}`, "--at": Math.max(0, step) / last }, visible(token));
    const read = () => {
      readout.textContent = !cell.classList.contains("on") ? `place ${i + 1}: masked until forward ${step + 1}`
        : kind === "prior" ? `place ${i + 1}: “${token}”, fixed by a prior before the first forward`
        : kind === "filler" ? `place ${i + 1}: “${token}”, filled in behind the end of the text; nobody drew it`
        : `place ${i + 1}: “${token}”, revealed by forward ${step + 1} of ${decode.nfe}` +
          `${kind === "tail" ? ", with all that was left" : ""}; ${certainty(decode.logprob[i])}`;
    };
    cell.addEventListener("pointerenter", read);
    cell.addEventListener("click", read);
    return { cell, from: step === PRIOR ? 0 : step === UNDRAWN ? decode.nfe : step + 1 };
  });
  const count = h("span", { class: "count" }), fixed = h("span", { class: "soft" });
  const panel = h("div", { class: "decode" }, h("h3", {}, title), count, " ", fixed,
    h("div", { class: "tokens" }, cells.map(({ cell }) => cell)),
    h("div", { class: "soft" }, mark(decode.solved), ` ${earned(decode)}; ended by ${decode.stop}`));
  const show = (forwards) => {
    const done = Math.min(forwards, decode.nfe);
    let on = 0;
    for (const { cell, from } of cells) {
      cell.classList.toggle("on", from <= done);
      on += from <= done;
    }
    count.textContent = `${done} of ${decode.nfe} forwards`;
    fixed.textContent = `${on} of ${cells.length} tokens fixed`;
    panel.dataset.forwards = done;
    panel.dataset.tokens = on;
  };
  return { panel, show };
}

function certainty(logprob) {
  return logprob === null ? "log-prob not recorded" : `log-prob ${logprob.toFixed(3)} (probability ${Math.exp(logprob).toFixed(3)})`;
}

function earned({ reward, rewards }) {
  const parts = Object.entries(rewards).map(([name, value]) => `${name} ${shown(value)}`);
  if (!parts.length) return "not scored";
  return parts.length === 1 ? parts[0] : `reward ${shown(reward)} = ${parts.join(" + ")}`;
}

function mark(solved) {
  if (solved === undefined || solved === null) return null;
  return solved ? h("span", { class: "yes" }, "✓ right") : h("span", { class: "no" }, "✗ wrong");
}

function viewer(kept) {
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "forwards made" });
  const play = h("button", { "aria-label": "play" }, "▶ play");
  const batches = h("select", { "aria-label": "training step" }, kept.map((batch, i) => h("option", { value: i }, `step ${batch.step}`)));
  const rows = h("div", { class: "rows" }), scene = h("div", {}), readout = h("div", { class: "readout", "aria-live": "polite" });
  let panels = [], timer = null;

  const show = () => panels.forEach((panel) => panel.show(Number(slider.value)));
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ play"; };
  const move = (by) => { slider.value = Number(slider.value) + by; show(); };
  const start = () => {
    if (Number(slider.value) >= Number(slider.max)) { slider.value = 0; show(); }
    play.textContent = "❚❚ pause";
    timer = setInterval(() => { move(1); if (Number(slider.value) >= Number(slider.max)) stop(); }, Math.max(60, 4000 / slider.max));
  };
  const choose = (chosen) => {
    stop();
    [...rows.children].forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
    const { prompt, pruned, unpruned } = kept[batches.value].scenes[chosen];
    panels = [decodePanel("Pruned", pruned, readout), decodePanel("Unpruned: same prompt, same random numbers", unpruned, readout)];
    readout.textContent = "Point at a token to read it.";
    slider.max = Math.max(pruned.nfe, unpruned.nfe);
    slider.value = slider.max;
    scene.replaceChildren(h("h3", {}, "Prompt"), h("div", { class: "mono prompt" }, prompt),
      h("div", { class: "pair" }, panels.map(({ panel }) => panel)));
    show();
  };
  const open = () => {
    const scenes = kept[batches.value].scenes, groups = [...new Set(scenes.map((s) => s.group))];
    rows.replaceChildren(...scenes.map((s, i) => h("button", { onclick: () => choose(i) },
      h("span", {}, `prompt ${groups.indexOf(s.group) + 1}, ${s.place}`), h("span", { class: "mono" }, s.pruned.tokens.join("")),
      h("span", { class: "soft" }, earned(s.pruned)), mark(s.pruned.solved))));
    choose(0);
  };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => (timer === null ? start() : stop()));
  batches.addEventListener("change", open);
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined || event.target.closest("input, select, textarea")) return;
    stop();
    move(by);
  });
  const key = (kind, text) => h("span", {}, h("span", { class: `t ${kind}`, "--at": 0.5 }, kind === "masked" ? "" : "a"), text);
  const box = h("div", { class: "viewer" },
    h("div", { class: "controls" }, batches, play, slider, h("span", { class: "soft" }, "or the arrow keys")), rows, scene, readout,
    h("div", { class: "legend" }, key("masked", "masked"), key("on prior", "fixed by a prior"), key("on", "drawn"),
      h("span", {}, "first", h("span", { class: "ramp" }), "last forward"), key("on tail", "merged tail"), key("on filler", "filler, not drawn")));
  batches.value = kept.length - 1;
  open();
  return box;
}
