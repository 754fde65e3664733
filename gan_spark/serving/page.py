"""The page at /ui, on which a person draws seeds and looks at pictures. It fetches nothing from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gan_spark</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  form { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; margin: 1rem 0; }
  label { display: flex; flex-direction: column; font-size: .85rem; }
  input, select, button { font: inherit; padding: .3rem .5rem; }
  [hidden] { display: none; }
  #pictures { display: flex; flex-wrap: wrap; gap: .5rem; }
  #pictures img { width: 8rem; image-rendering: pixelated; }
  figure { margin: 0; text-align: center; font-size: .75rem; }
  #problem { color: #b00020; }
</style>
<h1 id="name">gan_spark</h1>
<p id="version"></p>
<form id="generate" hidden>
  <label>First seed <input id="seed" type="number" min="0" value="0"></label>
  <label>Images <input id="images" type="number" min="1" max="64" value="16"></label>
  <label id="of-label" hidden>Class <select id="label"><option value="">each in turn</option></select></label>
  <label id="of-caption" hidden>Caption <input id="caption" size="40"></label>
  <label id="of-part" hidden>From <select id="part"></select></label>
  <label id="of-image" hidden>Image <input id="image" type="file" accept="image/*"></label>
  <button>Draw</button>
</form>
<form id="classify" hidden>
  <label>Image <input id="data" type="file" accept="image/*"></label>
  <button>Classify</button>
</form>
<p id="problem" role="alert"></p>
<ol id="predictions"></ol>
<div id="pictures"></div>
<script>
const at = id => document.getElementById(id);
const base64 = file => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",")[1]);
  reader.onerror = fail;
  reader.readAsDataURL(file);
});
let token = "";
const key = localStorage.key_of_visitor ||= crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
async function ask(path, body) {
  at("problem").textContent = "";
  const headers = {"Content-Type": "application/json", "X-Sticky-Key": key};
  if (token) headers.Authorization = "Bearer " + token;
  const answer = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body)});
  if (answer.status === 401 && (token = prompt("Token of the service") || "")) return ask(path, body);
  const value = await answer.json();
  if (!answer.ok) { at("problem").textContent = value.error; throw new Error(value.error); }
  return value;
}
function add(parent, kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  parent.append(element);
  return element;
}
ask("/model").then(model => {
  at("name").textContent = model.name;
  at("version").textContent = `Version ${model.version}, run ${model.run} at step ${model.step}`;
  at("generate").hidden = !model.generates;
  at("classify").hidden = !model.classifies;
  for (const one of model.takes) if (at("of-" + one)) at("of-" + one).hidden = false;
  for (const one of model.classes) add(at("label"), "option", one);
  at("of-part").hidden = !model.parts.length;
  for (const one of model.parts) add(at("part"), "option", one);
  at("generate").takes = model.takes;
});
at("generate").onsubmit = async event => {
  event.preventDefault();
  const takes = event.target.takes;
  const body = {first_seed: Number(at("seed").value), images: Number(at("images").value)};
  if (takes.includes("label") && at("label").value) body.label = at("label").value;
  if (takes.includes("caption")) body.caption = at("caption").value;
  if (takes.includes("image") && at("image").files[0]) body.image = await base64(at("image").files[0]);
  if (!at("of-part").hidden) body.part = at("part").value;
  const answer = await ask("/generate", body);
  at("pictures").replaceChildren(...answer.images.map(one => {
    const figure = document.createElement("figure"), picture = document.createElement("img");
    picture.src = "data:image/png;base64," + one.png;
    picture.alt = "image of seed " + one.seed;
    figure.append(picture);
    add(figure, "figcaption", one.seed);
    return figure;
  }));
};
at("classify").onsubmit = async event => {
  event.preventDefault();
  if (!at("data").files[0]) return;
  const answer = await ask("/", {data: await base64(at("data").files[0])});
  at("predictions").replaceChildren();
  for (const one of answer.predictions) add(at("predictions"), "li", `${one.description}: ${one.probability}%`);
};
</script>
</html>
"""
