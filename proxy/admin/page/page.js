// The live page: counts come over /live, the lists are asked for while they are
// looked at. Rates are made here, of two events.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const span = 300; // seconds that the charts show
  const past = []; // {t, logins, reused, clients, upstreams, in, out, opened, kept}
  let last = null, first = null, tab = "pools", timer = 0;

  const bytes = (n) => {
    const u = ["", "k", "M", "G", "T", "P"];
    let i = 0;
    for (; n >= 999.5 && i < u.length - 1; i++) n /= 1000;
    return (i && n < 9.95 ? n.toFixed(1) : Math.round(n)) + u[i];
  };
  const age = (s) => s < 60 ? Math.floor(s) + " s" : s < 3600 ? Math.floor(s / 60) + " min" : s < 172800 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86400) + " d";
  const num = (n) => Math.round(n).toLocaleString("en");
  const rate = (n) => n >= 100 ? num(n) : n >= 9.95 || !n ? n.toFixed(0) : n.toFixed(1);
  const many = (n, what) => num(n) + " " + what + (n === 1 ? "" : "s");
  const share = (part, all) => all ? Math.floor(100 * Math.min(part, all) / all) + " %" : "–";

  const tile = (id, kind, big, small) => {
    const t = $(id);
    t.className = kind;
    t.children[1].textContent = big;
    t.children[2].textContent = small;
  };

  const pause = (p) => (p.all ? "all" : "vhost " + p.vhost) + ", for " + age(p.for_seconds) + (p.left_seconds ? ", ends in " + age(p.left_seconds) : "");

  const tiles = (s) => {
    const off = s.brokers.find((b) => !b.up);
    if (!s.broker_up || off) tile("t-broker", "bad", "Away", s.broker_up ? off.name + ": " + off.reason : s.broker_reason);
    else if (s.blocked_upstreams) tile("t-broker", "warn", "Blocked", "It takes no messages on " + many(s.blocked_upstreams, "connection") + ": its memory or disk is short.");
    else tile("t-broker", "good", "Up", many(s.upstreams, "connection") + " to it, " + num(s.upstreams_total) + " since the start");
    if (s.pauses) tile("t-wait", "warn", "Paused", (s.paused_clients ? many(s.paused_clients, "client") + " waiting" : "Nobody waits") + " for its end: " + s.pauses.map(pause).join("; "));
    else if (s.waiting_clients) tile("t-wait", "warn", num(s.waiting_clients), "the longest for " + s.longest_wait_seconds.toFixed(1) + " s, of " + many(s.clients, "client"));
    else tile("t-wait", "good", "Nobody", many(s.clients, "client") + ", " + many(s.channels, "channel"));
    const r = s.logins_reused / s.logins_ok;
    tile("t-reuse", s.logins_ok < 20 ? "" : r >= .5 ? "good" : "warn", share(s.logins_reused, s.logins_ok),
      !s.logins_ok ? "Nobody has logged in yet." : "of " + num(s.logins_ok) + " logins needed no connection; " + share(s.channels_reused, s.channels_reused + s.channels_opened) + " of the channels were there");
    const each = s.upstream_connect_seconds / s.upstream_connects;
    tile("t-saved", "", num(s.logins_reused), "connections" + (each ? ", " + age(each * s.logins_reused) + " of waiting at " + (1000 * each).toFixed(1) + " ms each" : "") + "; about " + age(s.broker_cpu_saved_seconds) + " of the broker's CPU");
  };

  const wrong = [
    ["upstreams_lost", "connections to the broker were lost: the broker or the network ended them"],
    ["logins_failed", "logins failed for want of a broker or a place"],
    ["late_errors", "publishes were refused by the broker after their channel had closed: messages went nowhere"],
    ["firewall_closes", "clients did what RabbitMQ ends a whole connection for; nobody else noticed"],
    ["slow_client_closes", "consumers read too slowly and were closed"],
    ["slow_publish_closes", "publishers sent too slowly while others waited, and were closed"],
    ["turned_away", "connections were turned away: too many handshakes, or no descriptors"],
    ["heartbeat_timeouts", "peers were silent for two heartbeats and were closed"],
  ];
  const codes = { 311: "content too large", 312: "no route", 313: "no consumers", 320: "connection forced", 402: "invalid path", 403: "access refused",
    404: "not found", 405: "resource locked", 406: "precondition failed", 501: "frame error", 502: "syntax error", 503: "command invalid", 504: "channel error",
    505: "unexpected frame", 506: "resource error", 530: "not allowed", 540: "not implemented", 541: "internal error" };
  const told = (e) => e.of + " " + e.code;
  // Those that came while the page is open.
  const failures = (s) => {
    const before = Object.fromEntries(first.errors.map((e) => [told(e), e.count]));
    const list = s.errors.map((e) => [e, e.count - (before[told(e)] || 0)]).filter(([, n]) => n).sort((a, b) => b[1] - a[1]).slice(0, 6);
    return list.length ? "Clients were told: " + list.map(([e, n]) => (e.code || "another code") + " " + (codes[e.code] || "") + ", " + e.of + " closed, " + num(n) + "×").join("; ") + "." : "";
  };
  const upper = (t) => t.slice(0, 1).toUpperCase() + t.slice(1);
  const make = (tag, textContent, className = "") => Object.assign(document.createElement(tag), { textContent, className });
  const item = ([text, todo]) => {
    const li = make("li", text);
    if (todo) li.append(" ", make("span", todo, "todo"));
    return li;
  };
  let said = "";
  const troubles = (s, advice) => {
    const list = [];
    for (const [key, words] of wrong) {
      const n = s[key] - first[key];
      if (n > 0) list.push([num(n) + " " + words + "."]);
    }
    const errors = failures(s);
    if (errors) list.push([errors]);
    for (const a of advice) {
      const who = ["user " + a.user, "vhost " + a.vhost, a.name, "from " + a.address].filter(Boolean).join(", ");
      list.push([upper(who) + ": " + a.evidence + ".", upper(a.remedy) + " (" + a.rule + ")."]);
    }
    const now = JSON.stringify(list);
    if (now === said) return; // what is read, or marked, stays
    said = now;
    const [, ul, more] = $("troubles").children, least = list.length > 5 ? 4 : 5;
    ul.replaceChildren(...list.slice(0, least).map(item));
    more.hidden = list.length <= least;
    more.children[0].textContent = num(list.length - least) + " more";
    more.children[1].replaceChildren(...list.slice(least).map(item));
    $("troubles").hidden = !list.length;
  };

  const charts = [
    ["c-logins", rate, ["logins", "all"], ["reused", "reused"]],
    ["c-conns", num, ["clients", "clients"], ["upstreams", "to the broker"]],
    ["c-bytes", bytes, ["in", "from clients"], ["out", "to clients"]],
    ["c-channels", rate, ["opened", "opened"], ["kept", "reused"]],
  ];
  const draw = () => {
    const css = getComputedStyle(document.documentElement);
    const now = past.length ? past[past.length - 1].t : 0;
    for (const [id, say, ...lines] of charts) {
      const c = $(id), w = c.clientWidth, h = c.clientHeight, d = devicePixelRatio || 1;
      if (c.width !== Math.round(w * d)) c.width = Math.round(w * d);
      if (c.height !== Math.round(h * d)) c.height = Math.round(h * d);
      const g = c.getContext("2d");
      g.setTransform(d, 0, 0, d, 0, 0);
      g.clearRect(0, 0, w, h);
      let top = say === num ? 2 : say === bytes ? 1000 : 1;
      for (const p of past) for (const [k] of lines) top = Math.max(top, p[k]);
      const unit = 10 ** Math.floor(Math.log10(top));
      top = Math.ceil(top / unit) * unit;
      if (say === num && top % 2) top++; // half of it is marked
      const x = (t) => w - (now - t) * w / span, y = (v) => h - 16 - v * (h - 26) / top;
      g.font = "11px system-ui, sans-serif";
      g.fillStyle = css.getPropertyValue("--soft");
      g.strokeStyle = css.getPropertyValue("--line");
      g.lineWidth = 1;
      for (const v of [0, top / 2, top]) {
        g.beginPath(); g.moveTo(0, Math.round(y(v)) + .5); g.lineTo(w, Math.round(y(v)) + .5); g.stroke();
        if (v) g.fillText(say(v), 2, y(v) + 11);
      }
      g.fillText("5 min ago", 2, h - 3);
      g.textAlign = "right"; g.fillText("now", w - 2, h - 3); g.textAlign = "left";
      const cap = c.previousElementSibling;
      while (cap.children.length < lines.length) cap.append(document.createElement("span"));
      lines.forEach(([k, name], i) => {
        g.strokeStyle = css.getPropertyValue(i ? "--b" : "--a");
        g.lineWidth = 1.75; g.lineJoin = "round";
        g.beginPath();
        past.forEach((p, j) => j ? g.lineTo(x(p.t), y(p[k])) : g.moveTo(x(p.t), y(p[k])));
        g.stroke();
        const v = past.length ? past[past.length - 1][k] : 0;
        cap.children[i].className = i ? "b" : "a";
        cap.children[i].textContent = name + " " + say(v);
      });
      c.setAttribute("aria-label", cap.textContent);
    }
  };

  const N = 1; // a column of numbers
  const mark = (c) => c.state === "waiting" || c.state === "blocked" ? "warn" : c.state === "suspect" ? "bad" : "";
  const tables = {
    pools: { none: "Nobody has logged in yet.", cols: [
      ["User", (p) => p.user], ["Vhost", (p) => p.vhost], ["Clients", (p) => p.clients, N], ["Waiting", (p) => p.waiting_clients, N, null, (p) => p.waiting_clients ? "warn" : ""],
      ["Longest wait", (p) => p.max_wait_seconds, N, (v) => v ? v.toFixed(1) + " s" : "–"], ["Connections", (p) => p.upstreams, N], ["Idle", (p) => p.idle_upstreams, N],
      ["Sessions", (p) => p.session_upstreams, N], ["Channels", (p) => p.channels, N], ["Logins", (p) => p.logins, N],
      ["Reused", (p) => p.logins ? p.reused / p.logins : 0, N, (v, p) => share(p.reused, p.logins), (p) => p.logins < 20 ? "" : p.reused >= p.logins / 2 ? "good" : "warn"]] },
    clients: { none: "No client is connected.", cols: [
      ["ID", (c) => c.id, N, String], ["User", (c) => c.user], ["Vhost", (c) => c.vhost], ["Address", (c) => c.address], ["Name", (c) => c.name],
      ["State", (c) => c.state, 0, null, mark], ["Mode", (c) => c.mode], ["Channels", (c) => c.channels, N], ["In", (c) => c.in_bytes, N, bytes], ["Out", (c) => c.out_bytes, N, bytes],
      ["Queue", (c) => c.queue_bytes, N, bytes], ["Age", (c) => c.age_seconds, N, age], ["Idle", (c) => c.idle_seconds, N, age]] },
    upstreams: { none: "No connection to the broker stands.", cols: [
      ["ID", (u) => u.id, N, String], ["Broker", (u) => u.broker], ["User", (u) => u.user], ["Vhost", (u) => u.vhost],
      ["State", (u) => u.client ? u.state + " of " + u.client : u.state, 0, null, mark], ["Lane", (u) => u.lane || "–"],
      ["Channels", (u) => u.channels, N], ["Kept", (u) => u.kept_channels, N], ["In", (u) => u.in_bytes, N, bytes], ["Out", (u) => u.out_bytes, N, bytes],
      ["Age", (u) => u.age_seconds, N, age], ["Idle", (u) => u.idle_seconds, N, age]] },
  };
  const order = { pools: [2, -1], clients: [0, 1], upstreams: [0, 1] };
  let shown = { pools: [], clients: [], upstreams: [] };

  const fill = () => {
    const { cols, none } = tables[tab], rows = shown[tab].slice(), [by, way] = order[tab];
    const head = document.querySelector("thead tr"), body = document.querySelector("tbody");
    const key = cols[by][1];
    rows.sort((a, b) => { const x = key(a), y = key(b); return way * (x < y ? -1 : x > y ? 1 : 0); });
    if (head.dataset.tab !== tab) {
      head.dataset.tab = tab;
      head.replaceChildren(...cols.map(([name, , n], i) => {
        const th = document.createElement("th"), b = document.createElement("button");
        th.scope = "col"; if (n) th.className = "n";
        b.textContent = name; b.type = "button";
        b.onclick = () => { order[tab] = [i, order[tab][0] === i ? -order[tab][1] : n ? -1 : 1]; fill(); };
        th.append(b);
        return th;
      }));
    }
    [...head.children].forEach((th, i) => i === by ? th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
    body.replaceChildren(...rows.slice(0, 500).map((r) => {
      const tr = document.createElement("tr");
      for (const [, get, n, say, cls] of cols) {
        const td = document.createElement("td"), v = get(r);
        td.textContent = say ? say(v, r) : n ? num(v) : v;
        td.className = (n ? "n " : "") + (cls ? cls(r) : "");
        if (!n) td.title = v;
        tr.append(td);
      }
      return tr;
    }));
    $("none").hidden = rows.length > 0;
    $("none").textContent = none;
  };

  const ask = async () => {
    clearTimeout(timer);
    if (tab === "pools" || document.hidden) return;
    const what = tab;
    try {
      const res = await fetch("api/v1/" + what + (what === "clients" ? "?limit=500" : ""));
      const got = await res.json();
      if (res.ok && what === tab) { shown[what] = got[what]; fill(); }
    } catch { /* /live tells */ }
    clearTimeout(timer);
    timer = setTimeout(ask, 3000);
  };

  const tabs = ["pools", "clients", "upstreams"];
  const choose = (name, focus) => {
    tab = name;
    for (const t of tabs) {
      const b = $("tab-" + t);
      b.setAttribute("aria-selected", t === tab);
      b.tabIndex = t === tab ? 0 : -1;
    }
    $("list").setAttribute("aria-labelledby", "tab-" + tab);
    if (focus) $("tab-" + tab).focus();
    fill(); ask();
  };
  for (const t of tabs) {
    $("tab-" + t).onclick = () => choose(t);
    $("tab-" + t).onkeydown = (e) => {
      const step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[e.key];
      if (step) choose(tabs[(tabs.indexOf(tab) + step) % tabs.length], true);
    };
  }

  const line = (id, list) => $(id).replaceChildren(...list.map((words) => make("span", ...words)));
  const event = (e) => {
    const { time, stats: s, pools, advice, paths } = JSON.parse(e.data);
    if (last && s.uptime_seconds < last.s.uptime_seconds) { past.length = 0; last = first = null; } // it was restarted
    first = first || s;
    if (last && time > last.time) {
      const d = time - last.time, per = (k) => Math.max(0, s[k] - last.s[k]) / d;
      past.push({ t: time, logins: per("logins_ok"), reused: per("logins_reused"), clients: s.clients, upstreams: s.upstreams,
        in: per("received_from_clients_bytes"), out: per("sent_to_clients_bytes"), opened: per("channels_opened"), kept: per("channels_reused") });
      while (past.length && past[0].t < time - span) past.shift();
    }
    last = { time, s };
    $("about").textContent = s.version + ", up " + age(s.uptime_seconds);
    line("listeners", s.listeners.map((l) => [(l.tls ? "amqps " : "amqp ") + l.address + ": " + many(l.clients, "client") + " of " + num(l.clients_total)]));
    line("brokers", paths);
    shown.pools = pools;
    tiles(s); troubles(s, advice || []); draw();
    if (tab === "pools") fill();
  };

  const state = (on, text) => { $("link").className = on ? "on" : "off"; $("link").textContent = text; };
  const live = new EventSource("live");
  live.onopen = () => state(true, "live");
  live.onmessage = event;
  live.onerror = () => state(false, live.readyState === 2 ? "the proxy does not answer: reload the page" : "no answer, trying again …");
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.addEventListener("visibilitychange", ask);
  fill();
})();
