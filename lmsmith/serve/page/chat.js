// The chat: conversations live in this browser alone.

let conversations = stored('conversations', []);
let current = conversations[0] ?? null;

function keep() { store('conversations', conversations); }

function start() {
  current = { id: String(Date.now()) + Math.random(), title: 'New conversation', messages: [] };
  conversations.unshift(current);
  draw();
}

function drawList() {
  $('conversations').replaceChildren(...conversations.map((each) => {
    const item = element('li');
    const open = element('button', each.title, { type: 'button', 'aria-current': String(each === current) });
    open.onclick = () => { if (!running) { current = each; draw(); } };
    const remove = element('button', '×', { type: 'button', 'aria-label': `Delete ${each.title}` });
    remove.onclick = () => {
      if (running) return;
      conversations = conversations.filter((other) => other !== each);
      if (each === current) current = conversations[0] ?? null;
      keep();
      draw();
    };
    item.append(open, remove);
    return item;
  }));
}

function drawMessage(message, index) {
  const article = element('article', '', { class: message.role });
  article.append(element('h2', message.role === 'user' ? 'You' : 'Model'));
  const content = element('div', '', { class: 'content' });
  content.append(message.role === 'user' ? plain(message.content) : markdown(message.content.trim()));
  const actions = element('div', '', { class: 'actions' });
  const action = (name, act) => {
    const button = element('button', name, { type: 'button' });
    button.onclick = act;
    actions.append(button);
  };
  action('Copy', () => navigator.clipboard?.writeText(message.content).then(() => say('Copied')));
  if (message.role === 'user') action('Edit', () => edit(article, message, index));
  else action('Retry', () => { if (!running) { current.messages.length = index; draw(); answer(); } });
  article.append(content, actions);
  return article;
}

function plain(text) {
  return element('p', text, { class: 'plain' });
}

function edit(article, message, index) {
  if (running) return;
  const box = element('textarea', '', { 'aria-label': 'Edit the message', rows: '3' });
  box.value = message.content;
  const save = element('button', 'Save and send', { type: 'button' });
  const cancel = element('button', 'Cancel', { type: 'button' });
  save.onclick = () => {
    if (running || !box.value.trim()) return;
    current.messages.length = index;
    current.messages.push({ role: 'user', content: box.value });
    draw();
    answer();
  };
  cancel.onclick = () => {
    draw();
    $('log').children[index].querySelectorAll('.actions button')[1].focus();
  };
  const actions = element('div', '', { class: 'actions' });
  actions.append(save, cancel);
  article.replaceChildren(article.firstChild, box, actions);
  box.focus();
}

function draw() {
  drawList();
  $('log').replaceChildren(...(current?.messages ?? []).map(drawMessage));
  $('log').scrollTop = $('log').scrollHeight;
}

async function answer() {
  const talk = current;
  const message = { role: 'assistant', content: '' };
  const sent = talk.messages.map(({ role, content }) => ({ role, content }));
  talk.messages.push(message);
  const article = drawMessage(message, talk.messages.length - 1);
  const content = article.querySelector('.content');
  const log = $('log');
  log.append(article);
  $('spoken').textContent = '';
  content.classList.add('writing');
  const drawn = new Markdown(content);
  let n = 0; // characters
  const drawing = paced(() => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    drawn.write(message.content.slice(n));
    n = message.content.length;
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  await stoppable($('send'), $('stop'), async (signal) => {
    try {
      for await (const chunk of streamed('v1/chat/completions', { ...settings(), messages: sent }, signal)) {
        message.content += chunk.choices[0]?.delta?.content ?? '';
        drawing.soon();
      }
    } finally { drawing.now(); }
  });
  if (!message.content) talk.messages.pop();
  $('spoken').textContent = content.textContent; // screen readers read the answer once, complete
  keep();
  if (talk === current) draw();
  const { activeElement } = document;
  if (activeElement === document.body || $('composer').contains(activeElement)) $('message').focus();
}

function send() {
  const text = $('message').value;
  if (!text.trim() || running) return;
  if (!current) start();
  if (!current.messages.length) current.title = text.trim().slice(0, 40);
  current.messages.push({ role: 'user', content: text });
  $('message').value = '';
  keep();
  draw();
  answer();
}

$('composer').onsubmit = (event) => { event.preventDefault(); send(); };
$('message').onkeydown = (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
$('new').onclick = () => { if (!running) { start(); $('message').focus(); } };
$('export').onclick = () => {
  const text = JSON.stringify({ conversations }, null, 1);
  const link = element('a', '', { download: 'conversations.json' });
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  link.click();
  URL.revokeObjectURL(link.href);
};
$('clear').onclick = () => {
  if (running || !confirm('Delete all conversations in this browser?')) return;
  conversations = [];
  current = null;
  keep();
  draw();
};
