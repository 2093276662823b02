// The plot of the explore page: rows of the query with error bars over the density of all candidates.
const plot = document.getElementById("plot");
const form = document.getElementById("design");

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layout(found, x, y, kind) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--quiet") };
  const bands = [];
  for (const [name, ref] of [[x, "x"], [y, "y"]]) {
    const limits = found.windows[name];
    if (!limits || (ref === "y" && kind === "histogram")) continue;
    for (const value of limits) {
      if (value === null) continue;
      const across = ref === "x";
      bands.push({
        type: "line", line: { color: css("--good"), width: 2, dash: "dash" },
        x0: across ? value : 0, x1: across ? value : 1, xref: across ? "x" : "paper",
        y0: across ? 0 : value, y1: across ? 1 : value, yref: across ? "paper" : "y",
      });
    }
  }
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text") },
    margin: { l: 64, r: 16, t: 16, b: 56 }, showlegend: false, hovermode: "closest", shapes: bands,
    xaxis: { ...axis, title: { text: found.titles[x] } },
    yaxis: { ...axis, title: { text: kind === "histogram" ? "rows" : found.titles[y] } },
  };
}

function traces(found, kind) {
  if (kind === "histogram") {
    return [{ type: "histogram", x: found.points.map((p) => p.x), marker: { color: css("--bar") } }];
  }
  const shown = [];
  const middle = (edges) => edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);
  if (kind !== "points" && found.density && found.density.n_rows) {
    const log = found.density.counts.map((row) => row.map((n) => (n ? Math.log10(n + 1) : null)));
    shown.push({
      type: "heatmap", x: middle(found.density.edges_x), y: middle(found.density.edges_y), z: log,
      text: found.density.counts, hovertemplate: "%{text} candidates<extra></extra>", showscale: false,
      colorscale: [[0, css("--accent-soft")], [1, css("--bar")]], opacity: 0.8,
    });
  }
  if (kind !== "density") {
    for (const [calculated, symbol] of [[false, "circle-open"], [true, "circle"]]) {
      const rows = found.points.filter((p) => p.calculated === calculated);
      if (!rows.length) continue;
      const few = rows.length <= 200;
      const error = (array) => ({ type: "data", array, visible: few, color: css("--quiet"), thickness: 1, width: 0 });
      shown.push({
        type: "scatter", mode: found.front && few ? "lines+markers" : "markers",
        x: rows.map((p) => p.x), y: rows.map((p) => p.y), customdata: rows.map((p) => p.path),
        error_x: error(rows.map((p) => p.dx)), error_y: error(rows.map((p) => p.dy)),
        text: rows.map((p) => `${p.name}, probability ${p.probability.toFixed(2)}${calculated ? ", calculated" : ""}`),
        hovertemplate: "%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        marker: { color: css("--warn"), symbol, size: 8, line: { width: 1.5 } }, line: { color: css("--warn"), width: 1 },
      });
    }
  }
  return shown;
}

function note(found, kind) {
  const place = document.getElementById("plot-note");
  const drawn = `${found.points.length} rows of the query, filled where calculated; a click opens one.`;
  if (kind === "histogram" || kind === "points") place.textContent = drawn;
  else if (!found.density) place.textContent = `${drawn} The density is shown of one campaign at the reference potentials.`;
  else {
    const share = found.density.fraction < 1 ? `, a random ${(100 * found.density.fraction).toPrecision(2)} % of them` : "";
    place.textContent = `${drawn} Shaded: ${found.density.n_rows.toLocaleString("en").replaceAll(",", "\u202f")} candidates of the campaign${share}.`;
  }
}

async function draw() {
  const [x, y, kind] = ["x", "y", "kind"].map((id) => document.getElementById(id).value);
  const place = document.getElementById("plot-note");
  const answer = await fetch(`${plot.dataset.address}&${new URLSearchParams({ x, y })}`, { headers: { accept: "application/json" } });
  if (!answer.ok) {
    place.textContent = answer.headers.get("content-type")?.includes("json") ? (await answer.json()).detail : "The plot could not be made.";
    return;
  }
  const found = await answer.json();
  const rows = traces(found, kind);
  await window.Plotly.react(plot, rows, layout(found, x, y, kind), { responsive: true, displaylogo: false });
  plot.removeAllListeners?.("plotly_click");
  plot.on("plotly_click", (event) => {
    const path = event.points[0].customdata;
    if (typeof path === "string") window.location.assign(path);
  });
  note(found, kind);
}

if (plot && window.Plotly) {
  for (const id of ["x", "y", "kind"]) document.getElementById(id).addEventListener("change", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
// empty fields say nothing; without them the address of a search can be read and kept
form?.addEventListener("submit", () => {
  for (const field of form.elements) {
    const number = field.name.match(/^window(\d)$/)?.[1];
    const isOpen = number && !form.elements[`low${number}`].value && !form.elements[`high${number}`].value;
    if (field.name && (!field.value || isOpen)) field.disabled = true;
  }
});
window.addEventListener("pageshow", () => {
  for (const field of form?.elements ?? []) field.disabled = false;
});
