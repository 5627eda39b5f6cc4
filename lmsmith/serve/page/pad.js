// The text pad: continues a text and shows the probability of every token.

let tokens = []; // {text, offset, p, alternatives: [[text, p]]}; offset: characters of `written` before it
let spans = []; // their elements
let line = null; // the element of the last line: the browser lays out each one by itself
let written = ''; // the continuation
let chosen = -1;
let pinned = false; // by a click: the pointer may cross other tokens on its way to an alternative

const percent = (p) => (p >= 0.001 ? `${(100 * p).toFixed(1)} %` : '< 0.1 %');
const visible = (text) => (text.trim() ? text : text.replaceAll(' ', '␣')).replaceAll('\n', '↵').replaceAll('\t', '→') || 'end of the text';
const shade = (p) => `p${[0.05, 0.15, 0.35, 0.7].filter((limit) => p >= limit).length}`;

function drawToken(token, index) {
  const text = token.text.startsWith('bytes:') ? '' : token.text;
  const made = element('span', text || (token.text ? '·' : '∎'), {
    class: shade(token.p), tabindex: index === Math.max(0, chosen) ? '0' : '-1', role: 'button',
    'aria-label': `${visible(token.text)}, ${percent(token.p)}`,
    title: percent(token.p),
  });
  made.onmouseenter = () => { if (!pinned) choose(index, false); };
  made.onfocus = () => choose(index, false);
  made.onclick = () => choose(index, true);
  return made;
}

function choose(index, move) {
  const before = spans[chosen];
  if (before) { before.tabIndex = -1; before.removeAttribute('aria-current'); }
  chosen = index;
  pinned = move;
  const token = tokens[index];
  $('choices').hidden = !token;
  if (!token) return;
  spans[index].tabIndex = 0;
  spans[index].setAttribute('aria-current', 'true');
  const label = element('span', `${visible(token.text)} ${percent(token.p)}. Instead:`);
  $('choices').replaceChildren(label, ...token.alternatives.filter(([text]) => text && text !== token.text && !text.startsWith('bytes:')).map(([text, p]) => {
    const button = element('button', `${visible(text)} ${percent(p)}`, { type: 'button' });
    button.onclick = () => replace(index, text, p);
    return button;
  }));
  if (move) $('choices').querySelector('button')?.focus();
}

function replace(index, text, p) {
  if (running) return;
  const { offset, alternatives } = tokens[index];
  tokens = [...tokens.slice(0, index), { text, offset, p, alternatives }];
  written = characters(written).slice(0, offset).join('') + text;
  redraw();
  spans[index].focus();
  proceed();
}

const characters = (text) => Array.from(text); // as the server counts them, not UTF-16 units

// Draws the tokens that are not drawn yet.
function drawNew() {
  while (spans.length < tokens.length) {
    const token = tokens[spans.length];
    if (!line) {
      line = element('div');
      $('tokens').append(line);
    }
    spans.push(drawToken(token, spans.length));
    line.append(spans.at(-1));
    if (token.text.endsWith('\n')) line = null;
  }
}

function redraw() {
  spans = [];
  line = null;
  $('tokens').replaceChildren();
  drawNew();
  choose(-1, false);
}

async function proceed() {
  const prompt = $('prompt').value + written;
  const begun = written.length;
  const start = characters(written).length;
  $('tokens').setAttribute('aria-busy', 'true');
  const drawing = paced(() => {
    drawNew();
    void $('tokens').offsetHeight; // the layout counts, too
  });
  await stoppable($('continue'), $('pad-stop'), async (signal) => {
    const body = { ...settings(), prompt, logprobs: 5 };
    try {
      for await (const chunk of streamed('v1/completions', body, signal)) {
        const choice = chunk.choices[0];
        written += choice.text;
        const { tokens: texts, token_logprobs: ps, top_logprobs: tops, text_offset: offsets } = choice.logprobs;
        texts.forEach((text, i) => {
          const alternatives = Object.entries(tops[i] ?? {}).map(([other, p]) => [other, Math.exp(p)]);
          tokens.push({ text, offset: start + offsets[i], p: Math.exp(ps[i]), alternatives });
        });
        drawing.soon();
      }
    } finally { drawing.now(); }
  });
  $('tokens').removeAttribute('aria-busy');
  $('spoken').textContent = written.slice(begun);
}

$('tokens').onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
  if (step && spans.length) {
    event.preventDefault();
    spans[Math.min(spans.length - 1, Math.max(0, chosen + step))].focus();
  } else if (event.key === 'Enter' || event.key === ' ') {
    event.preventDefault();
    choose(chosen, true);
  }
};
$('continue').onclick = proceed;
$('undo').onclick = () => { if (!running) { tokens = []; written = ''; redraw(); } };
$('keep').onclick = () => {
  if (running) return;
  $('prompt').value += written;
  tokens = [];
  written = '';
  redraw();
  $('prompt').focus();
};
$('prompt').oninput = () => { if (!running && tokens.length) { tokens = []; written = ''; redraw(); } };
$('prompt').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); proceed(); }
};
