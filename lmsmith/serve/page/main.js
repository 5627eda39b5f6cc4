// Starts the page: models, views, and settings that are kept.

let models = [];

function view(name) {
  for (const each of ['chat', 'pad']) {
    $(each).hidden = each !== name;
    $(`view-${each}`).setAttribute('aria-pressed', String(each === name));
  }
}

async function loadModels() {
  const response = await fetch('v1/models', { headers: headers() });
  if (!response.ok) {
    problem(await failure(response));
    if (response.status === 401) { $('settings').open = true; $('key').focus(); }
    return;
  }
  problem('');
  models = (await response.json()).data;
  $('model').replaceChildren(...models.map(({ id }) => element('option', id, { value: id })));
  const last = stored('model', '');
  if (models.some(({ id }) => id === last)) $('model').value = last;
  changed();
}

function changed() {
  store('model', $('model').value);
  const model = models.find(({ id }) => id === $('model').value);
  view(stored(`view.${model?.id}`, model?.lmsmith?.chat ? 'chat' : 'pad'));
}

for (const name of ['chat', 'pad']) {
  $(`view-${name}`).onclick = () => { store(`view.${$('model').value}`, name); view(name); };
}
$('model').onchange = changed;
for (const name of ['temperature', 'length', 'seed']) {
  const last = stored(name, null);
  if (last !== null) $(name).value = last;
  $(name).addEventListener('input', () => store(name, $(name).value));
}
const shown = () => { $('temperature-value').textContent = $('temperature').value; };
$('temperature').addEventListener('input', shown);
shown();
$('key').value = sessionStorage.getItem('lmsmith.key') ?? '';
$('key').onchange = () => { sessionStorage.setItem('lmsmith.key', $('key').value); loadModels(); };
addEventListener('keydown', (event) => { if (event.key === 'Escape') $('settings').open = false; });
draw();
loadModels().catch((error) => problem(`The server cannot be reached: ${error.message}`));
