// Markdown -> elements, line by line: while an answer grows, only its last line is drawn again.
// Text only becomes text nodes: no HTML from a model is ever parsed.

function element(name, text = '', attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const INLINE = /(?<!`)(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[^*]*[^\s*])?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*|\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()]{1,2000})\)/;

function inline(parent, text, depth = 0) {
  for (let rest = text; rest;) {
    const found = depth < 8 && INLINE.exec(rest);
    if (!found) {
      parent.append(rest);
      return;
    }
    parent.append(rest.slice(0, found.index));
    if (found[2] !== undefined) {
      parent.append(element('code', found[2].trim()));
    } else if (found[5] !== undefined) {
      const link = element('a', '', { href: found[6], rel: 'noopener noreferrer', target: '_blank' });
      inline(link, found[5], depth + 1);
      parent.append(link);
    } else {
      const strong = element(found[3] !== undefined ? 'strong' : 'em');
      inline(strong, found[3] ?? found[4], depth + 1);
      parent.append(strong);
    }
    rest = rest.slice(found.index + found[0].length);
  }
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})\s+([^]*)$/;
const ITEM = /^\s{0,8}([-*+]|\d{1,9}[.)])\s+([^]*)$/;
const QUOTE = /^ {0,3}> ?/;

// Draws a text into `root`. The text may come in parts: the elements depend on the text alone.
class Markdown {
  #root;
  #open = null; // the block that the next line may continue: { kind, to, fence }
  #last = ''; // the last line, which may be incomplete
  #mark = null; // what there was before that line
  #begun = false;

  constructor(root) { this.#root = root; }

  write(text) {
    const added = this.#begun ? text : text.trimStart();
    if (!added) return;
    this.#begun = true;
    const lines = (this.#last + added).split('\n');
    this.#last = lines.pop();
    this.#retract();
    lines.forEach((line) => this.#line(line));
    this.#mark = { block: this.#root.lastChild, open: this.#open, child: this.#open?.to.lastChild };
    if (this.#last) this.#line(this.#last);
  }

  // Removes what the last line has drawn.
  #retract() {
    if (!this.#mark) return;
    const { block, open, child } = this.#mark;
    while (this.#root.lastChild !== block) this.#root.lastChild.remove();
    while (open && open.to.lastChild !== child) open.to.lastChild.remove();
    this.#open = open;
  }

  #line(raw) {
    const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (this.#open?.kind === 'code') {
      if (line.trim().startsWith(this.#open.fence)) this.#open = null;
      else this.#open.to.append(element('span', `${line}\n`)); // a block each: the others stay laid out
    } else if (fence) {
      const pre = element('pre', '', { tabindex: '0' });
      this.#root.append(pre);
      this.#open = { kind: 'code', to: element('code'), fence: fence[1] };
      pre.append(this.#open.to);
    } else if (heading) {
      inline(this.#block(`h${Math.min(6, heading[1].length + 2)}`), heading[2]);
      this.#open = null;
    } else if (item) {
      const start = parseInt(item[1], 10);
      const list = this.#continued('list', start >= 0 ? 'ol' : 'ul');
      if (start >= 0 && !list.firstChild) list.start = start;
      const entry = element('li');
      inline(entry, item[2]);
      list.append(entry);
    } else if (QUOTE.test(line)) {
      const quote = this.#continued('quote', 'blockquote');
      if (quote.firstChild) quote.append('\n');
      inline(quote, line.replace(QUOTE, ''));
    } else if (!line.trim()) {
      this.#open = null;
    } else {
      const paragraph = this.#continued('paragraph', 'p');
      if (paragraph.firstChild) paragraph.append(element('br'));
      inline(paragraph, line);
    }
  }

  // The open block, if it is of this kind; else a new one.
  #continued(kind, name) {
    if (this.#open?.kind !== kind) this.#open = { kind, to: this.#block(name) };
    return this.#open.to;
  }

  #block(name) {
    const made = element(name);
    this.#root.append(made);
    return made;
  }
}

function markdown(text) {
  const all = document.createDocumentFragment();
  new Markdown(all).write(text.trim());
  return all;
}
