"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#1f5fbf", "#d9582b", "#2a9d64", "#8b4fc0", "#c23b6b", "#3aa0b8", "#b58900", "#6b4f3a", "#7a8794", "#e07ba8"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const FIRST = 8;
const NUMBERED = 24; // classes, up to which there is room for numbers
const WIDE = 10; // ratio of costs, above which an axis is logarithmic
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500]; // epochs between ticks
const GREY = "#c3cad2";
const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 12, color: "#1f2933" },
  margin: { l: 60, r: 16, t: 10, b: 44 },
  height: 380,
  hoverlabel: { align: "left", namelength: -1 },
  hovermode: "closest",
  showlegend: false,
  paper_bgcolor: "#fff",
  plot_bgcolor: "#fff",
};
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // the usual ones would offer to share it online
  toImageButtonOptions: { format: "svg" },
};

/* Elements and numbers */

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Plotly reads a little HTML in texts; a folder's name is to be shown as it is.
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const fixed = (value) => (value === null || value === undefined ? "–" : value.toFixed(4));
const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(4);

function spread(mean) {
  if (!mean) return "–";
  return fixed(mean.mean) + (mean.std === null ? "" : " ± " + fixed(mean.std));
}

function interval(difference) {
  if (!difference) return "";
  const range = difference.low === null ? "" : ` [${signed(difference.low)}, ${signed(difference.high)}]`;
  return signed(difference.mean) + range;
}

function clock(seconds) {
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// 1, 2 and 5 times the powers of ten around the values, which Plotly would shorten to their first digit.
function ticks(values) {
  const lowest = Math.floor(Math.log10(Math.min(...values)));
  const highest = Math.ceil(Math.log10(Math.max(...values)));
  const powers = Array.from({ length: highest - lowest + 1 }, (_, index) => 10 ** (lowest + index));
  return powers.flatMap((power) => [power, 2 * power, 5 * power]);
}

const COST_TEXT = {
  params: (value) => (value / 1e6).toFixed(2) + " M",
  gmacs: (value) => value.toFixed(3),
  wall_time_s: clock,
  train_images_per_s: (value) => value.toFixed(1),
  peak_memory_mib: (value) => value.toFixed(0),
};

/* One protocol */

class Section {
  constructor(table) {
    this.table = table;
    this.root = document.getElementById("section").content.firstElementChild.cloneNode(true);
    this.sort = { key: null, descending: false }; // as compare.py ordered them
    this.words = [];
    table.rows.forEach((row, index) => {
      row.colour = COLOURS[index % COLOURS.length];
      row.dash = DASHES[Math.floor(index / COLOURS.length) % DASHES.length];
      const names = row.runs.map((run) => run.name).join(" ");
      row.searched = `${row.label} ${names} ${Object.values(row.settings).join(" ")}`.toLowerCase();
    });
    this.picked = new Set(table.rows.slice(0, FIRST).map((row) => row.label));
    this.columns = this.makeColumns();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  show(parent) {
    parent.append(this.root);
    this.showProtocol();
    this.showHead();
    this.fillChoices();
    this.listen();
    this.update();
  }

  showProtocol() {
    const { data, task, ...rest } = this.table.protocol;
    this.find("h2").textContent = `${data} · ${task} · ${this.table.split} ${this.table.metric}`;
    for (const [name, text] of Object.entries(rest)) {
      const short = name === "classes" ? String(this.table.classes.length) : text;
      const differs = DATA.tables.some((other) => other.protocol[name] !== text);
      const chip = element("div", { class: differs ? "differs" : null, title: text }, element("dt", {}, name), element("dd", {}, short));
      this.find(".chips").append(chip);
    }
    this.find(".remarks").append(...this.table.remarks.map((remark) => element("li", {}, remark)));
  }

  /* The table */

  makeColumns() {
    const { rows, metric, higher } = this.table;
    const best = (values, most) => (values.length ? (most ? Math.max(...values) : Math.min(...values)) : null);
    const scores = rows.filter((row) => row.score).map((row) => row.score.mean);
    const columns = [
      { title: "group", key: (row) => row.label, text: true, cell: (row) => [row.label] },
      { title: "seeds", key: (row) => row.score?.n ?? null, cell: (row) => [row.score ? String(row.score.n) : "–"] },
      {
        title: metric, key: (row) => row.score?.mean ?? null, best: best(scores, higher), descending: higher,
        cell: (row) => !row.score ? ["–"] : [
          fixed(row.score.mean),
          row.score.std === null ? null : element("span", { class: "std" }, " ± " + fixed(row.score.std)),
        ],
      },
      {
        title: "difference", key: (row) => (row.label === this.table.baseline ? 0 : row.difference?.mean ?? null),
        descending: higher, cell: (row) => this.differenceCell(row),
      },
    ];
    if (rows.some((row) => row.difference && row.difference.low !== null)) {
      columns.push({ title: "95 % interval", cell: (row) => [this.whisker(row)] });
    }
    columns.push({ title: "best epoch", key: (row) => row.epoch, cell: (row) => [row.epoch === null ? "–" : String(+row.epoch.toFixed(1))] });
    for (const [name, title] of this.costs()) {
      const values = rows.filter((row) => name in row.costs).map((row) => row.costs[name]);
      const most = name === "train_images_per_s";
      columns.push({
        title, key: (row) => row.costs[name] ?? null, best: best(values, most), descending: most,
        cell: (row) => [name in row.costs ? COST_TEXT[name](row.costs[name]) : "–"],
      });
    }
    columns.push({
      title: "Pareto", key: (row) => (row.front ? 0 : 1), cell: (row) => [row.front ? "●" : ""],
      hint: "no other group has at least this score for at most these GMACs",
    });
    return columns;
  }

  costs() {
    return Object.entries(DATA.costs).filter(([name]) => this.table.rows.some((row) => name in row.costs));
  }

  differenceCell(row) {
    if (row.label === this.table.baseline) return [element("span", { class: "std" }, "baseline")];
    if (!row.difference) return [element("span", { class: "std" }, row.score ? "no common seed" : "–")];
    const better = row.difference.mean > 0 === this.table.higher;
    const kind = !row.difference.clear ? null : better ? "good" : "bad";
    return [element("span", { class: kind, title: interval(row.difference) }, signed(row.difference.mean))];
  }

  // The interval as a line with its mean, on one scale for all rows; the upright line is zero.
  whisker(row) {
    const known = this.table.rows.map((one) => one.difference).filter((one) => one && one.low !== null);
    const low = Math.min(0, ...known.map((one) => one.low));
    const high = Math.max(0, ...known.map((one) => one.high));
    const width = 100;
    const at = (value) => 4 + ((value - low) / (high - low || 1)) * (width - 8);
    const parts = [`<line x1="${at(0)}" x2="${at(0)}" y1="0" y2="16" stroke="#9aa5b1" stroke-dasharray="2 2"/>`];
    const one = row.difference;
    if (one && one.low !== null) {
      const better = one.mean > 0 === this.table.higher;
      const colour = !one.clear ? "#66727f" : better ? "#1a7f4b" : "#b3382c";
      parts.push(`<line x1="${at(one.low)}" x2="${at(one.high)}" y1="8" y2="8" stroke="${colour}" stroke-width="2"/>`);
      parts.push(`<circle cx="${at(one.mean)}" cy="8" r="3.5" fill="${colour}"/>`);
    }
    const holder = element("span", { title: one ? interval(one) : "baseline" });
    holder.innerHTML = `<svg class="interval" width="${width}" height="16">${parts.join("")}</svg>`; // numbers only
    return holder;
  }

  showHead() {
    const cells = this.columns.map((column, index) =>
      element("th", { class: column.text ? "text" : null, "data-sort": column.key ? index : null, title: column.hint ?? null }, column.title));
    this.find(".groups thead").append(element("tr", {}, element("th", { title: "drawn below" }, ""), ...cells));
  }

  // Sorted and filtered; what has no value stays last.
  visible() {
    const rows = this.table.rows.filter((row) =>
      this.words.every((word) => word[0] === "-" && word.length > 1 ? !row.searched.includes(word.slice(1)) : row.searched.includes(word)));
    const { key, descending } = this.sort;
    if (!key) return rows;
    return [...rows].sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      if (one === null || other === null) return (one === null) - (other === null);
      const order = typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
      return descending ? -order : order;
    });
  }

  update() {
    const rows = this.visible();
    this.find(".count").textContent = `${rows.length} of ${this.table.rows.length} groups`;
    this.find(".groups tbody").replaceChildren(...rows.map((row) => this.tableRow(row)));
    const drawn = rows.filter((row) => this.picked.has(row.label));
    this.drawCurves(drawn);
    this.drawFront(rows);
    this.drawClasses(drawn);
    this.showPictures(drawn);
    this.showSettings(rows);
  }

  tableRow(row) {
    const box = element("input", { type: "checkbox", "aria-label": "draw " + row.label });
    box.checked = this.picked.has(row.label);
    box.addEventListener("change", () => {
      this.picked[box.checked ? "add" : "delete"](row.label);
      this.update();
    });
    const dot = element("span", { class: "dot" });
    if (box.checked) dot.style.background = row.colour;
    const seeds = row.runs.map((run) => `seed ${run.seed}: ${fixed(run.score)}  ${run.where}`).join("\n");
    const cells = this.columns.map((column) => {
      const best = column.best !== undefined && column.best !== null && column.key(row) === column.best;
      const kind = [column.text ? "text" : "", best ? "best" : ""].join(" ").trim();
      return element("td", { class: kind || null, title: column.text ? seeds : null }, ...column.cell(row));
    });
    return element("tr", { class: row.label === this.table.baseline ? "baseline" : null }, element("td", {}, box, dot), ...cells);
  }

  fillChoices() {
    const column = this.find(".column");
    for (const name of this.table.columns) {
      if (this.table.rows.some((row) => row.curves[name].epoch.length)) column.append(element("option", { value: name }, name));
    }
    for (const [name, title] of this.costs()) {
      this.find(".cost").append(element("option", { value: name, selected: name === "gmacs" }, title));
    }
  }

  listen() {
    this.find(".filter").addEventListener("input", (event) => {
      this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.update();
    });
    for (const head of this.root.querySelectorAll("th[data-sort]")) {
      head.addEventListener("click", () => {
        const column = this.columns[Number(head.dataset.sort)];
        const again = this.sort.key === column.key;
        this.sort = { key: column.key, descending: again ? !this.sort.descending : Boolean(column.descending) };
        for (const other of this.root.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
        this.update();
      });
    }
    for (const button of this.root.querySelectorAll("button[data-pick]")) {
      button.addEventListener("click", () => {
        const rows = button.dataset.pick === "none" ? [] : this.visible();
        const chosen = button.dataset.pick === "first" ? rows.slice(0, FIRST) : rows;
        this.picked = new Set(chosen.map((row) => row.label));
        this.update();
      });
    }
    for (const select of this.root.querySelectorAll("select")) select.addEventListener("change", () => this.update());
    this.find(".size").addEventListener("input", (event) => this.find(".pictures").style.setProperty("--size", event.target.value + "px"));
  }

  /* Plots */

  drawCurves(rows) {
    const column = this.find(".column").value;
    const figure = this.find(".plots figure");
    figure.hidden = !column;
    if (!column) return;
    const traces = [];
    const last = Math.max(1, ...rows.flatMap((row) => row.curves[column].epoch));
    for (const row of rows) {
      const { epoch, mean, std } = row.curves[column];
      if (!epoch.length) continue;
      if (std.some((value) => value !== null)) {
        const edge = (sign) => mean.map((value, index) => value + sign * (std[index] ?? 0));
        traces.push({
          x: [...epoch, ...[...epoch].reverse()], y: [...edge(1), ...edge(-1).reverse()], fill: "toself", mode: "lines",
          line: { width: 0 }, fillcolor: row.colour + "22", hoverinfo: "skip",
        });
      }
      traces.push({
        x: epoch, y: mean, name: escaped(row.label), mode: epoch.length > 40 ? "lines" : "lines+markers",
        line: { color: row.colour, dash: row.dash, width: 2 }, marker: { size: 5 },
        text: std.map((value, index) => fixed(mean[index]) + (value === null ? "" : " ± " + fixed(value))),
        hovertemplate: "%{fullData.name}<br>epoch %{x}: %{text}<extra></extra>",
      });
    }
    Plotly.react(this.find(".curves"), traces, {
      ...LAYOUT,
      xaxis: { title: { text: "epoch" }, gridcolor: "#edf0f3", zeroline: false, tick0: 0, dtick: STEPS.find((step) => 8 * step >= last) ?? last },
      yaxis: { title: { text: escaped(column) }, gridcolor: "#edf0f3", zeroline: false },
    }, CONFIG);
  }

  drawFront(rows) {
    const cost = this.find(".cost").value;
    this.root.querySelectorAll(".plots figure")[1].hidden = !cost;
    if (!cost) return;
    const points = rows.filter((row) => row.score && cost in row.costs);
    const more = cost === "train_images_per_s"; // is better
    const sign = this.table.higher ? 1 : -1;
    const front = [];
    const cheapest = [...points].sort((a, b) => (more ? -1 : 1) * (a.costs[cost] - b.costs[cost]) || sign * (b.score.mean - a.score.mean));
    for (const row of cheapest) {
      if (!front.length || sign * (row.score.mean - front[front.length - 1].score.mean) > 0) front.push(row);
    }
    const title = DATA.costs[cost];
    const costs = points.map((row) => row.costs[cost]).filter((value) => value > 0);
    const logarithmic = costs.length === points.length && Math.max(...costs) > WIDE * Math.min(...costs);
    const colour = (row) => (this.picked.has(row.label) ? row.colour : GREY);
    Plotly.react(this.find(".front"), [
      {
        x: front.map((row) => row.costs[cost]), y: front.map((row) => row.score.mean), mode: "lines",
        line: { color: "#9aa5b1", width: 1.5, dash: "dot", shape: more ? "vh" : "hv" }, hoverinfo: "skip",
      },
      {
        x: points.map((row) => row.costs[cost]), y: points.map((row) => row.score.mean), mode: "markers",
        error_y: { type: "data", array: points.map((row) => row.score.std ?? 0), color: "#9aa5b1", thickness: 1, width: 3 },
        marker: {
          color: points.map(colour), size: 11,
          line: { width: points.map((row) => (front.includes(row) ? 2 : 0)), color: "#1f2933" },
        },
        customdata: points.map((row) => [spread(row.score), COST_TEXT[cost](row.costs[cost]), escaped(row.label)]),
        hovertemplate: `%{customdata[2]}<br>${escaped(this.table.metric)} %{customdata[0]}<br>${title} %{customdata[1]}<extra></extra>`,
      },
    ], {
      ...LAYOUT,
      xaxis: { title: { text: title + (more ? " (more is better)" : "") }, gridcolor: "#edf0f3", zeroline: false, ...(logarithmic ? { type: "log", tickvals: ticks(costs) } : { rangemode: "tozero" }) },
      yaxis: { title: { text: `${this.table.split} ${escaped(this.table.metric)}` }, gridcolor: "#edf0f3", zeroline: false },
    }, CONFIG);
  }

  drawClasses(rows) {
    const figure = this.find(".per-class");
    const classes = this.table.classes.filter((name) => this.table.rows.some((row) => name in row.classes));
    figure.hidden = !classes.length;
    if (!classes.length) return;
    const differences = this.find(".kind").value === "difference" && this.table.rows.length > 1;
    this.find(".kind").hidden = this.table.rows.length === 1;
    const value = (row, name) => {
      if (!differences) return row.classes[name]?.mean ?? null;
      return row.label === this.table.baseline ? (name in row.classes ? 0 : null) : row.classDifferences[name]?.mean ?? null;
    };
    const hover = (row, name) => {
      const difference = row.classDifferences[name];
      return `${escaped(row.label)}<br>${escaped(name)}: ${this.table.classScore} ${spread(row.classes[name])}` +
        (difference ? `<br>to the baseline ${interval(difference)}` : "");
    };
    const shown = [...rows].reverse(); // Plotly draws from the bottom up
    const z = shown.map((row) => classes.map((name) => value(row, name)));
    const most = Math.max(0.01, ...z.flat().map((one) => Math.abs(one ?? 0)));
    const scale = differences
      ? { colorscale: [[0, "#b3382c"], [0.5, "#f7f7f7"], [1, "#1f5fbf"]], zmin: -most, zmax: most }
      : { colorscale: [[0, "#f7f9fc"], [1, "#1f5fbf"]], zmin: 0, zmax: 1 };
    const percent = (value, sign) => (value === null ? "" : (sign && value > 0 ? "+" : "") + (100 * value).toFixed(1));
    const isBase = (row) => differences && row.label === this.table.baseline; // which shows what others differ from
    const numbers = shown.map((row, line) =>
      classes.map((name, at) => (isBase(row) ? percent(row.classes[name]?.mean ?? null, false) : percent(z[line][at], differences))));
    Plotly.react(this.find(".heat"), [{
      type: "heatmap", x: classes.map((name) => escaped(name)), y: shown.map((row) => escaped(row.label) + (isBase(row) ? ` (baseline, ${this.table.classScore})` : "")), z, ...scale,
      text: numbers, texttemplate: classes.length <= NUMBERED ? "%{text}" : "", xgap: 1, ygap: 1,
      customdata: shown.map((row) => classes.map((name) => hover(row, name))), hovertemplate: "%{customdata}<extra></extra>",
      showscale: classes.length > NUMBERED, colorbar: { thickness: 10, tickformat: differences ? "+.2f" : ".2f", outlinewidth: 0 },
    }], {
      ...LAYOUT,
      height: 60 + 26 * Math.max(1, rows.length),
      margin: { l: 20, r: 10, t: 26, b: 30 },
      xaxis: { type: "category", automargin: true, ticks: "", fixedrange: true },
      yaxis: { type: "category", automargin: true, ticks: "", fixedrange: true },
    }, CONFIG);
  }

  /* Pictures and settings */

  showPictures(rows) {
    const { images, groups, left_out: leftOut, colours } = this.table.pictures;
    const shown = rows.filter((row) => row.label in groups);
    this.find(".side-by-side").hidden = !images.length;
    if (!images.length) return;
    if (!this.find(".legend").childElementCount && this.table.protocol.task === "segmentation") {
      for (const [name, colour] of Object.entries(colours)) {
        const patch = element("i");
        patch.style.background = colour;
        this.find(".legend").append(element("span", {}, patch, name));
      }
    }
    const heads = shown.map((row) => {
      const { name, seed } = groups[row.label];
      return element("th", { title: name }, row.label, element("div", { class: "std" }, `seed ${seed}`));
    });
    const picture = (content, what, truth) => {
      if (content === undefined) return element("td", { class: "std" }, "–");
      if (!content.startsWith("data:")) return element("td", { class: truth === undefined ? null : content === truth ? "good" : "bad" }, content);
      const image = element("img", { src: content, alt: what });
      image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 256));
      return element("td", {}, image);
    };
    const lines = images.map(({ key, index, image, truth }) => element("tr", {},
      picture(image, `image ${index}`),
      picture(truth, `truth of image ${index}`),
      ...shown.map((row) => picture(groups[row.label].predictions[key], `${row.label} on image ${index}`, truth))));
    this.find(".pictures").replaceChildren(
      element("thead", {}, element("tr", {}, element("th", {}, "image"), element("th", {}, "truth"), ...heads)),
      element("tbody", {}, ...lines));
    this.find(".left-out").textContent = leftOut ? `${leftOut} groups further down have no pictures here, which keeps the page small enough to mail.` : "";
  }

  showSettings(rows) {
    const names = this.table.differing.filter((name) => name !== "backbone" && name !== "head"); // every label has these
    this.find(".differing").hidden = !names.length;
    const lines = rows.map((row) => element("tr", {}, element("td", { class: "text" }, row.label), ...names.map((name) => element("td", {}, row.settings[name]))));
    this.find(".settings thead").replaceChildren(element("tr", {}, element("th", { class: "text" }, "group"), ...names.map((name) => element("th", {}, name))));
    this.find(".settings tbody").replaceChildren(...lines);
  }
}

/* The page */

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const finished = DATA.tables.flatMap((table) => table.rows.flatMap((row) => row.runs)).length;
const groups = DATA.tables.flatMap((table) => table.rows).length;
const states = ["unfinished", "broken", "foreign"].map((state) => [DATA.others.filter((run) => run.state === state).length, state]);
document.getElementById("summary").textContent = [
  `${count(finished, "finished run")} in ${count(groups, "group")}`,
  ...states.filter(([number]) => number).map(([number, state]) => `${number} ${state}`),
  `made ${DATA.made} by Graft`,
].join(" · ");
document.getElementById("warning").hidden = !DATA.warning;
document.getElementById("warning").textContent = DATA.warning;
document.getElementById("method").textContent = DATA.method;
document.getElementById("others").hidden = !DATA.others.length;
document.querySelector("#others tbody").append(...DATA.others.map((run) =>
  element("tr", {}, element("td", {}, run.where), element("td", {}, run.state), element("td", {}, run.reason))));
for (const table of DATA.tables) new Section(table).show(document.getElementById("tables"));
