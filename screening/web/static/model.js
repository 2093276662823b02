// Parity and calibration of a model on results that it was not trained on.
const parity = document.getElementById("parity");
const choice = document.getElementById("property");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(x, y, range) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--quiet"), range };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text") },
    margin: { l: 64, r: 16, t: 16, b: 56 }, showlegend: false, hovermode: "closest",
    xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } },
    shapes: [{ type: "line", x0: range[0], y0: range[0], x1: range[1], y1: range[1], line: { color: css("--quiet"), dash: "dash" } }],
  };
}

async function draw() {
  const answer = await fetch(`${parity.dataset.address}?${new URLSearchParams({ property: choice.value })}`);
  const place = document.getElementById("plot-note");
  if (!answer.ok) {
    place.textContent = "The plots could not be made.";
    return;
  }
  const found = await answer.json();
  const all = found.points.flatMap((p) => [p.label, p.mean]);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const margin = 0.05 * (high - low || 1);
  const points = {
    type: "scattergl", mode: "markers", x: found.points.map((p) => p.label), y: found.points.map((p) => p.mean),
    error_y: { type: "data", array: found.points.map((p) => p.std), visible: found.points.length <= 300, color: css("--quiet"), thickness: 1, width: 0 },
    text: found.points.map((p) => p.configuration), marker: { color: css("--bar"), size: 6, opacity: 0.8 },
    hovertemplate: "%{text}<br>calculated %{x:.3f}, predicted %{y:.3f}<extra></extra>",
  };
  points.type = found.points.length > 1000 ? "scattergl" : "scatter";
  const config = { responsive: true, displaylogo: false };
  await window.Plotly.react(parity, [points], layout(`calculated, ${found.title}`, "predicted", [low - margin, high + margin]), config);
  const curve = { type: "scatter", mode: "lines+markers", x: found.levels, y: found.shares, line: { color: css("--bar") } };
  await window.Plotly.react(document.getElementById("calibration"), [curve], layout("share expected inside an interval", "share found inside", [0, 1]), config);
  place.textContent = `${found.points.length} results; dashed is what a perfect model would give.`;
}

if (parity && window.Plotly) {
  choice.addEventListener("change", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
