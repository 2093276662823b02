// The structure in three dimensions, beside the drawings, where 3Dmol.js is installed.
async function show(place) {
  const answer = await fetch(place.dataset.structure);
  if (!answer.ok || !window.$3Dmol) return;
  const text = await answer.text();
  place.hidden = false;
  const background = getComputedStyle(document.documentElement).getPropertyValue("--surface").trim();
  const viewer = window.$3Dmol.createViewer(place, { backgroundColor: background, antialias: true });
  viewer.addModel(text, "xyz");
  viewer.setStyle({}, { sphere: { scale: 0.3 }, stick: { radius: 0.12 } });
  for (const entry of document.querySelectorAll(".legend li")) {
    const atom = entry.querySelector(".atom[class*=species]"); // in the colours of the drawings
    if (!atom || atom.closest(".defect")) continue;
    const color = getComputedStyle(atom).fill;
    viewer.setStyle({ elem: entry.textContent.trim() }, { sphere: { scale: 0.3, color }, stick: { radius: 0.12, color } });
  }
  viewer.zoomTo();
  viewer.render();
}
document.querySelectorAll(".viewer").forEach((place) => {
  show(place).catch((error) => {
    place.hidden = true;
    console.warn("no view in three dimensions:", error.message);
  });
});
