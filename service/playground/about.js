// What a model is, how good, and what draws it, in words.

const $ = (id) => document.getElementById(id);

function stepsOf(card) {
  if (!card) return "The network draws an image.";
  if (card.steps === 1) return "One step of the network draws an image.";
  return `${card.steps} steps of the network draw an image.`;
}

/** @param card of GET /models; undefined where there is no such model. */
export function showAbout(card) {
  const drawn = stepsOf(card);
  const teacher = card?.quality?.teacher_evaluations;
  $("tagline").textContent = teacher ? `${drawn} Its teacher takes ${teacher}.` : drawn;
  $("about").textContent = "";
  if (!card) return;
  const { description, quality, engine, resolution, licence } = card;
  const measured = quality
    ? ` ${quality.distance}: ${quality.generator.toFixed(2)}, the teacher's ${quality.teacher.toFixed(2)}; lower is better.`
    : "";
  $("about").textContent =
    `${description || `${resolution}×${resolution}`}.${measured} Drawn by ${engine}. Licence: ${licence}.`;
}
