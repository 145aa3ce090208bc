// What a model is, how good, and what draws it, in words.

const $ = (id) => document.getElementById(id);

/** @param card of GET /models; undefined where there is no such model. */
export function showAbout(card) {
  const teacher = card?.quality?.teacher_evaluations;
  $("tagline").textContent = teacher
    ? `One step of the network draws an image. Its teacher takes ${teacher}.`
    : "One step of the network draws an image.";
  $("about").textContent = "";
  if (!card) return;
  const { description, quality, engine, resolution, licence } = card;
  const measured = quality
    ? ` ${quality.distance}: ${quality.generator.toFixed(2)}, the teacher's ${quality.teacher.toFixed(2)}; lower is better.`
    : "";
  $("about").textContent =
    `${description || `${resolution}×${resolution}`}.${measured} Drawn by ${engine}. Licence: ${licence}.`;
}
