// The API of this server, and what both views share.

const $ = (id) => document.getElementById(id);

function say(text) { $('status').textContent = text; }

function problem(text) {
  $('problem').textContent = text;
  $('problem').hidden = !text;
}

function stored(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`lmsmith.${name}`)) ?? fallback;
  } catch { return fallback; }
}

function store(name, value) {
  try {
    localStorage.setItem(`lmsmith.${name}`, JSON.stringify(value));
  } catch {
    problem('The browser has no room left: export conversations and delete some.');
  }
}

function headers() {
  const key = $('key').value;
  return { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function settings() {
  const [seed, length] = [$('seed').value, $('length').value];
  return {
    model: $('model').value,
    temperature: Number($('temperature').value),
    max_tokens: length === '' ? 200 : Number(length), // the server checks it and says what it expects
    ...(seed === '' ? {} : { seed: Number(seed) }),
  };
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch { return `the server answered ${response.status}`; }
}

// Yields the chunks of a streamed answer. `signal` stops it.
async function* streamed(path, body, signal) {
  const response = await fetch(path, {
    method: 'POST', headers: headers(), body: JSON.stringify({ ...body, stream: true }), signal,
  });
  if (!response.ok) throw new Error(await failure(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let kept = '';;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (kept + value).split('\n\n');
    kept = events.pop();
    for (const event of events) {
      const data = event.slice(6);
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

// Calls `draw` soon, at most twenty times a second and for at most a tenth of the time: an answer
// that grows may take longer and longer to draw.
function paced(draw) {
  let timer = null;
  let free = 0; // when it may draw again
  const now = () => {
    clearTimeout(timer);
    timer = null;
    const began = performance.now();
    draw();
    const end = performance.now();
    free = end + Math.max(50, 9 * (end - began));
  };
  return { now, soon() { timer ??= setTimeout(now, Math.max(0, free - performance.now())); } };
}

// Runs `work(signal)` while `stop` is shown instead of `start`.
let running = null;
async function stoppable(start, stop, work) {
  if (running) return;
  running = new AbortController();
  problem('');
  const focused = document.activeElement === start;
  start.hidden = true;
  stop.hidden = false;
  if (focused) stop.focus(); // a hidden button loses the focus
  stop.onclick = () => running?.abort();
  say('Writing');
  try {
    await work(running.signal);
    say('Complete');
  } catch (error) {
    if (error.name === 'AbortError') say('Stopped');
    else { problem(error.message); say('Failed'); }
  } finally {
    running = null;
    const left = document.activeElement === stop;
    start.hidden = false;
    stop.hidden = true;
    if (left) start.focus();
  }
}

addEventListener('keydown', (event) => { if (event.key === 'Escape') running?.abort(); });
