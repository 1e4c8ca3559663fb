"use strict";
// What a model wrote reaches the page as text nodes alone: nothing here reads a text as HTML.
(async () => {
  const PAGE = 50; // episodes of a list
  const SAME = 300; // episodes of one problem to choose from
  const at = (id) => document.getElementById(id);

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  async function unpack(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function tableOf({ title, columns, rows }) {
    const table = make("table", {}, make("caption", {}, title));
    table.append(make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)))));
    const body = make("tbody");
    for (const [first, ...others] of rows) {
      const cells = others.map((value) => make("td", {}, value === null ? "" : value));
      body.append(make("tr", {}, make("th", { scope: "row" }, first), ...cells));
    }
    table.append(body);
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table);
  }

  function show(data) {
    const runs = data.runs;
    const several = runs.length > 1;
    at("facts").textContent = runs.map((run) => (several ? `${run.name}: ` : "") + run.steps).join("; ");

    // ---- Tables ----
    for (const box of document.querySelectorAll("details.numbers")) {
      const fill = () => box.append(tableOf(data.curves[Number(box.dataset.curve)]));
      box.addEventListener("toggle", fill, { once: true });
    }
    if (data.evaluations.length) {
      at("evaluation").hidden = false;
      document.querySelector('nav a[href="#evaluation"]').hidden = false;
      for (const { run, tables } of data.evaluations) {
        if (several) at("evaluation").append(make("h3", {}, run));
        at("evaluation").append(...tables.map(tableOf));
      }
    }
    for (const table of data.about) {
      const box = make("details", {}, make("summary", {}, table.title), tableOf(table));
      at("about").append(box);
    }

    // ---- Episodes ----
    const cell = (e, column) => {
      const values = column && e.run.columns[column];
      return values ? values[e.i] : null;
    };
    const ofEpisode = (e, name) => cell(e, e.run.about.episode[name]);
    const anyRole = (e, flag) => e.run.about.roles.some((role) => cell(e, role.columns[flag]));
    const episodes = [];
    const byProblem = new Map();
    for (const run of runs) {
      run.texts = Object.entries(run.columns).filter(([, values]) => values.some((v) => typeof v === "string"));
      for (let i = 0; i < run.columns.step.length; i++) {
        const e = { run, i, step: run.columns.step[i] };
        episodes.push(e);
        const problem = ofEpisode(e, "problem");
        if (!byProblem.has(problem)) byProblem.set(problem, []);
        byProblem.get(problem).push(e);
      }
    }
    episodes.sort((a, b) => a.step - b.step);
    for (const same of byProblem.values()) same.sort((a, b) => a.step - b.step);

    const logged = runs.reduce((sum, run) => sum + run.logged, 0);
    const number = (value) => value.toLocaleString("en");
    at("sample").textContent = !logged
      ? "This run logged no episodes. Set log_completions: true, and train again."
      : logged === episodes.length
        ? `All ${number(logged)} episodes that were logged.`
        : `${number(episodes.length)} of ${number(logged)} logged episodes, ${number(logged - episodes.length)} are left out: ` +
          "a sample with every kind of outcome in its proportion, and at least some of each.";

    const effectColumn = (e, role) => {
      const removal = e.run.about.removals.find((one) => one.role === role);
      return removal ? removal.columns.effect : null;
    };
    const effectOf = (e) => cell(e, effectColumn(e, at("removal").value));
    const verdict = (outcome) =>
      outcome === null || outcome === undefined
        ? "unscorable"
        : outcome === 1
          ? "right"
          : outcome === -1
            ? "wrong"
            : (outcome > 0 ? "+" : "") + Number(outcome).toFixed(2);
    const side = (outcome) => (outcome === null ? "unscorable" : outcome > 0 ? "right" : "wrong");

    const removed = new Set();
    for (const run of runs)
      for (const one of run.about.removals)
        if ((run.columns[one.columns.effect] || []).some((value) => value)) removed.add(one.role);
    at("unseen").hidden = !episodes.length || removed.size > 0 || !runs.some((run) => run.about.removals.length);
    at("removal").append(...[...removed].map((role) => make("option", { value: role }, role)));
    at("removal-label").hidden = removed.size < 2;
    at("run").append(make("option", { value: "" }, "all"));
    at("run").append(...runs.map((run, i) => make("option", { value: String(i) }, run.name)));
    at("run-label").hidden = !several;
    const kinds = [...(removed.size ? data.effects : []), "right", "wrong", "unscorable"];
    at("category").append(make("option", { value: "" }, "any"), ...kinds.map((kind) => make("option", { value: kind }, kind)));

    let found = [];
    let first = 0; // of the list's page
    let chosen = null;

    function matches(e, asked) {
      if (asked.run !== "" && e.run !== runs[Number(asked.run)]) return false;
      if (asked.from !== "" && e.step < Number(asked.from)) return false;
      if (asked.to !== "" && e.step > Number(asked.to)) return false;
      if (asked.category && asked.category !== (data.effects.includes(asked.category) ? effectOf(e) : side(ofEpisode(e, "outcome"))))
        return false;
      if (asked.leaked && !anyRole(e, "leaked")) return false;
      if (asked.truncated && !anyRole(e, "truncated")) return false;
      if (asked.no_answer && !ofEpisode(e, "no_answer")) return false;
      if (!asked.query) return true;
      return e.run.texts.some(([, values]) => typeof values[e.i] === "string" && values[e.i].toLowerCase().includes(asked.query));
    }

    function filter() {
      const asked = { query: at("query").value.trim().toLowerCase() };
      for (const name of ["run", "from", "to", "category"]) asked[name] = at(name).value;
      for (const name of ["leaked", "truncated", "no_answer"]) asked[name] = at(name).checked;
      found = episodes.filter((e) => matches(e, asked));
      at("count").textContent = `${number(found.length)} of ${number(episodes.length)} episodes`;
      list(0);
    }

    const chip = (text, kind) => make("span", { class: `chip ${kind || ""}`.trim() }, text);
    const COLORS = { right: "good", wrong: "bad", helped: "good", hurt: "bad" };

    function chipsOf(e) {
      const chips = [chip(verdict(ofEpisode(e, "outcome")), COLORS[side(ofEpisode(e, "outcome"))])];
      const effect = effectOf(e);
      if (effect) chips.push(chip(effect, COLORS[effect]));
      for (const [flag, word] of [["leaked", "leak"], ["truncated", "truncated"]]) if (anyRole(e, flag)) chips.push(chip(word, "odd"));
      if (ofEpisode(e, "no_answer")) chips.push(chip("no answer", "odd"));
      return chips;
    }

    function list(from, focus) {
      first = from;
      const rows = found.slice(from, from + PAGE).map((e, i) => {
        const problem = String(ofEpisode(e, "problem") || "");
        const roles = e.run.about.roles;
        const speaker = roles.find((role) => role.name === ofEpisode(e, "answer_role")) || roles[roles.length - 1];
        const answer = String(cell(e, speaker.columns.text) || "");
        const short = (text) => (text.length > 160 ? `${text.slice(0, 160)} …` : text);
        const button = make("button", { type: "button", tabindex: i ? "-1" : "0" });
        const where = `step ${e.step}` + (several ? `, ${e.run.name}` : "");
        button.append(make("span", { class: "where" }, where), " ", ...chipsOf(e).flatMap((c) => [c, " "]), make("bdi", { class: "short" }, short(problem)), " ", make("bdi", { class: "short answer" }, short(answer)));
        if (e === chosen) button.setAttribute("aria-current", "true");
        button.addEventListener("click", () => open(e));
        return make("li", {}, button);
      });
      at("list").replaceChildren(...rows);
      at("list").start = from + 1;
      at("page").textContent = found.length ? `${number(from + 1)} to ${number(from + rows.length)}` : "none";
      at("previous").disabled = from === 0;
      at("next").disabled = from + PAGE >= found.length;
      if (focus !== undefined) move(focus);
    }

    const buttons = () => [...at("list").querySelectorAll("button")];

    function move(place) {
      const all = buttons();
      if (!all.length) return;
      const target = all[Math.max(0, Math.min(all.length - 1, place))];
      for (const button of all) button.tabIndex = button === target ? 0 : -1;
      target.focus();
    }

    at("list").addEventListener("keydown", (event) => {
      const all = buttons();
      const place = all.indexOf(document.activeElement);
      const last = all.length - 1;
      const keys = {
        ArrowDown: () => (place < last ? move(place + 1) : found.length > first + PAGE && list(first + PAGE, 0)),
        ArrowUp: () => (place > 0 ? move(place - 1) : first > 0 && list(first - PAGE, PAGE - 1)),
        Home: () => move(0),
        End: () => move(last),
        PageDown: () => found.length > first + PAGE && list(first + PAGE, 0),
        PageUp: () => first > 0 && list(first - PAGE, 0),
      };
      if (keys[event.key]) {
        event.preventDefault();
        keys[event.key]();
      }
    });

    // ---- One episode, or two side by side ----
    const block = (value) => make("pre", { dir: "auto", tabindex: "0" }, value === null || value === undefined ? "" : String(value));
    const signed = (value) => (value > 0 ? "+" : "") + Number(value).toFixed(3);

    function part(title, chips, ...content) {
      return make("section", { class: "part" }, make("h4", {}, title, " ", ...chips.flatMap((c) => [c, " "])), ...content);
    }

    function articleOf(e) {
      const about = e.run.about;
      const known = new Set(["step", ...Object.values(about.episode)]);
      const article = make("article");
      const title = make("h3", {}, `Step ${e.step}` + (several ? `, ${e.run.name}` : ""), " ", ...chipsOf(e).flatMap((c) => [c, " "]));
      article.append(title, part("Problem", [], block(ofEpisode(e, "problem"))));
      if (ofEpisode(e, "gold") !== null) article.append(part("Gold answer", [], block(ofEpisode(e, "gold"))));
      const speaker = ofEpisode(e, "answer_role");
      for (const role of about.roles) {
        for (const column of Object.values(role.columns)) known.add(column);
        const of = (kind) => cell(e, role.columns[kind]);
        const chips = [];
        if (speaker === role.name) chips.push(chip("the team's answer"));
        if (of("outcome") !== null) chips.push(chip(verdict(of("outcome")), COLORS[side(of("outcome"))]));
        if (of("leaked")) chips.push(chip("leak", "odd"));
        if (of("truncated")) chips.push(chip("truncated", "odd"));
        for (const kind of ["credit", "advantage"]) if (of(kind) !== null) chips.push(chip(`${kind} ${signed(of(kind))}`));
        const content = [];
        if (of("prompt") !== null) content.push(make("details", {}, make("summary", {}, `What ${role.name} was asked`), block(of("prompt"))));
        content.push(block(of("text")));
        if (of("shares") !== null || of("rating") !== null) {
          const shares = of("shares") === null ? null : Object.entries(JSON.parse(of("shares")));
          const told = shares ? shares.map(([name, share]) => `${name} ${share}`).join(", ") : "could not be read";
          content.push(make("p", { class: "rating" }, `Its rating of the episode: ${told}`));
          if (of("rating") !== null) content.push(make("details", {}, make("summary", {}, `What ${role.name} wrote as its rating`), block(of("rating"))));
        }
        article.append(part(role.name, chips, ...content));
      }
      for (const one of about.removals) {
        for (const column of Object.values(one.columns)) known.add(column);
        const of = (kind) => cell(e, one.columns[kind]);
        if (of("text") === null) continue;
        const chips = [chip(verdict(of("outcome")), COLORS[side(of("outcome"))])];
        if (of("effect")) chips.push(chip(of("effect"), COLORS[of("effect")]));
        article.append(part(`Without ${one.role}`, chips, block(of("text"))));
      }
      const rest = Object.keys(e.run.columns).filter((name) => !known.has(name) && cell(e, name) !== null);
      if (rest.length) {
        const pairs = rest.flatMap((name) => [make("dt", {}, name), make("dd", {}, block(cell(e, name)))]);
        article.append(part("Logged beside it", [], make("dl", {}, ...pairs)));
      }
      return article;
    }

    function open(e, other) {
      chosen = e;
      const same = byProblem.get(ofEpisode(e, "problem"));
      const back = make("button", { type: "button", class: "back" }, "Back to the list");
      back.addEventListener("click", close);
      const tools = make("div", { class: "tools" }, back);
      if (same.length > 1) {
        const [early, late] = [same[0], same[same.length - 1]];
        const both = make("button", { type: "button", class: "both" }, "Early and late");
        both.addEventListener("click", () => open(early, late));
        const choice = make("select", { class: "beside" }, make("option", { value: "" }, "nothing"));
        const others = same.length > SAME ? [...same.slice(0, SAME / 2), ...same.slice(-SAME / 2)] : same;
        others.forEach((one, i) => {
          if (one === e) return;
          const words = `step ${one.step}` + (several ? `, ${one.run.name}` : "") + `: ${verdict(ofEpisode(one, "outcome"))}`;
          const option = make("option", { value: String(i) }, words);
          option.selected = one === other;
          choice.append(option);
        });
        choice.addEventListener("change", () => open(e, others[Number(choice.value || -1)]));
        if (late.step > early.step) tools.append(both);
        const more = same.length > SAME ? `, the first and the last ${SAME / 2} of them` : "";
        tools.append(make("label", {}, `Beside it, of ${number(same.length)} with this problem${more} `, choice));
      }
      const pair = make("div", { class: other ? "pair" : "single" }, articleOf(e), other ? articleOf(other) : null);
      at("detail").replaceChildren(tools, pair);
      at("detail").hidden = false;
      at("browser").classList.add("open");
      at("detail").focus({ preventScroll: true });
      at("browser").scrollIntoView({ block: "start" });
      for (const [i, button] of buttons().entries()) {
        if (found[first + i] === e) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      }
    }

    function close() {
      at("detail").hidden = true;
      at("browser").classList.remove("open");
      const place = found.indexOf(chosen);
      chosen = null;
      for (const button of buttons()) button.removeAttribute("aria-current");
      if (place >= first && place < first + PAGE) move(place - first);
      else move(0);
    }

    at("detail").addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
    });
    at("previous").addEventListener("click", () => list(first - PAGE));
    at("next").addEventListener("click", () => list(first + PAGE));
    let waiting = 0;
    at("filters").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(filter, 150);
    });
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("filters").addEventListener("reset", () => setTimeout(filter, 0));
    at("filters").hidden = !episodes.length;
    at("browser").hidden = !episodes.length;
    filter();
  }

  try {
    show(await unpack(at("data").textContent));
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  } catch (error) {
    at("trouble").textContent = `The page cannot show its data (${error}). Chrome 80, Firefox 113, Safari 16.4 or newer can.`;
    at("trouble").hidden = false;
    throw error;
  }
})();
