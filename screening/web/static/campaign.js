// Progress of a campaign as it happens: server-sent events into the numbers of the page.
const card = document.querySelector("[data-events]");
if (card && window.EventSource) {
  const source = new EventSource(card.dataset.events);
  const spaced = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const bar = card.querySelector("progress");
  const text = bar.nextElementSibling;
  const firstState = document.querySelector("#state .tag").textContent;
  let saidAt = 0;
  source.onmessage = (event) => {
    const found = JSON.parse(event.data);
    bar.value = found.candidates_done;
    const share = found.candidates ? (100 * found.candidates_done) / found.candidates : 0;
    text.textContent =
      `${spaced(found.candidates_done)} of ${spaced(found.candidates)} candidates (${share.toFixed(1)} %)` +
      (found.per_second ? `, ${spaced(found.per_second)}/s` : "") +
      (found.seconds_left && found.state === "running" ? `, about ${spaced(found.seconds_left)} s left` : "");
    for (const place of card.querySelectorAll("[data-value]")) {
      const value = found[place.dataset.value];
      if (value !== null && value !== undefined) place.textContent = spaced(value);
    }
    if (Date.now() - saidAt > 15000) {
      document.getElementById("said").textContent = `${share.toFixed(0)} percent done`;
      saidAt = Date.now();
    }
    if (found.state !== firstState) window.location.reload();
  };
  source.addEventListener("over", () => {
    source.close();
    if (firstState === "running") window.location.reload();
  });
}
