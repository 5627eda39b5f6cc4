// Markdown -> elements. Text only becomes text nodes: no HTML from a model is ever parsed.

function element(name, text = '', attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[^*]*[^\s*])?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*|\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()]{1,2000})\)/;

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

function markdown(text) {
  const whole = document.createDocumentFragment();
  const lines = text.split('\n');
  for (let i = 0; i < lines.length;) {
    const fence = /^ {0,3}(`{3,}|~{3,})\s*([\w+#-]*)/.exec(lines[i]);
    const heading = /^ {0,3}(#{1,6})\s+(.*)$/.exec(lines[i]);
    const item = /^\s{0,8}([-*+]|\d{1,9}[.)])\s+/.exec(lines[i]);
    if (fence) {
      const code = [];
      for (i++; i < lines.length && !lines[i].trim().startsWith(fence[1]); i++) code.push(lines[i]);
      i++;
      const pre = element('pre', '', { tabindex: '0' });
      pre.append(element('code', code.join('\n')));
      whole.append(pre);
    } else if (heading) {
      const made = element(`h${Math.min(6, heading[1].length + 2)}`);
      inline(made, heading[2]);
      whole.append(made);
      i++;
    } else if (item) {
      const list = element(/\d/.test(item[1]) ? 'ol' : 'ul');
      if (/\d/.test(item[1])) list.start = parseInt(item[1], 10);
      for (let next; i < lines.length && (next = /^\s{0,8}([-*+]|\d{1,9}[.)])\s+(.*)$/.exec(lines[i])); i++) {
        const entry = element('li');
        inline(entry, next[2]);
        list.append(entry);
      }
      whole.append(list);
    } else if (/^ {0,3}>/.test(lines[i])) {
      const quote = element('blockquote');
      const quoted = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i++) quoted.push(lines[i].replace(/^ {0,3}> ?/, ''));
      inline(quote, quoted.join('\n'));
      whole.append(quote);
    } else if (!lines[i].trim()) {
      i++;
    } else {
      const paragraph = [];
      for (; i < lines.length && lines[i].trim() && !/^ {0,3}(```|~~~|#{1,6}\s|>)/.test(lines[i]) && !(paragraph.length && /^\s{0,8}([-*+]|\d{1,9}[.)])\s+/.test(lines[i])); i++) paragraph.push(lines[i]);
      if (!paragraph.length) paragraph.push(lines[i++]);
      const made = element('p');
      paragraph.forEach((line, n) => {
        if (n) made.append(element('br'));
        inline(made, line);
      });
      whole.append(made);
    }
  }
  return whole;
}
