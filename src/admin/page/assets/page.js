// What the operator's page does beside htmx: looks again while somebody looks, keeps the tail short, copies, and says when the daemon
// is away or the session is over. The page can be read without any of it.
(() => {
  "use strict";

  const LOOK_AGAIN_MS = 5000;
  const TAIL_ROWS_MAX = 60;

  const notice = document.getElementById("notice");

  /** Says one thing at the top of the page; nothing takes it away again. */
  const say = (kind, text, link) => {
    if (!notice || notice.dataset.kind === kind) return;
    notice.dataset.kind = kind;
    notice.replaceChildren(text);
    if (link) {
      const a = document.createElement("a");
      a.href = link.href;
      a.textContent = link.text;
      notice.append(" ", a);
    }
    notice.hidden = kind === "";
  };

  const signIn = () => ({
    href: "/sign-in?next=" + encodeURIComponent(location.pathname + location.search),
    text: "Sign in again",
  });

  const answered = (status) => {
    if (status === 401) {
      say("signed-out", "Your session is over: the daemon was started anew, or 12 hours have passed.", signIn());
    } else {
      say("", "");
    }
  };

  const isAway = () => say("away", "The daemon does not answer. This page goes on by itself when it is back.");

  // Parts that look again. A hidden page asks nothing.
  setInterval(() => {
    if (document.hidden) return;
    for (const part of document.querySelectorAll("[data-refresh]")) {
      part.dispatchEvent(new CustomEvent("refresh"));
    }
  }, LOOK_AGAIN_MS);

  // What is asked beside the page must neither replace it by the sign-in page nor put an error into its middle.
  document.addEventListener("htmx:before:response", (event) => {
    const { status } = event.detail.ctx.response;
    answered(status);
    if (status === 401) event.preventDefault();
    else if (status >= 400) {
      say("refused", `This part of the page could not be brought up to date (${status}).`);
      event.preventDefault();
    }
  });
  document.addEventListener("htmx:error", isAway);
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) answered(401);
    else isAway();
  });
  document.addEventListener("htmx:sse:after:connection", (event) => answered(event.detail.connection?.status ?? 200));

  // What a tail has let go of is older than its last event: all of that is where the way to older events leads from now on.
  const leadOnFrom = (tail) => {
    const seqs = [...tail.children].map((row) => row.id).filter((id) => id.startsWith("event-"));
    const last = seqs.at(-1)?.slice("event-".length);
    if (!tail.dataset.older || last === undefined) return;
    // What a search has found behind it would be behind the hole, and one that still runs would go on behind it.
    while (tail.nextElementSibling) tail.nextElementSibling.remove();
    const link = document.createElement("a");
    link.className = "button";
    link.href = `${tail.dataset.older}before=${last}`;
    link.textContent = "Older events";
    const cell = document.createElement("td");
    cell.colSpan = Number(tail.dataset.columns);
    cell.append(link);
    const row = document.createElement("tr");
    row.className = "progress";
    row.append(cell);
    const more = document.createElement("tbody");
    more.id = "more";
    more.append(row);
    tail.after(more);
  };

  // The tail keeps so many rows.
  document.addEventListener("htmx:sse:after:message", (event) => {
    const rows = event.target.children;
    if (rows.length <= TAIL_ROWS_MAX) return;
    while (rows.length > TAIL_ROWS_MAX) rows[rows.length - 1].remove();
    leadOnFrom(event.target);
  });

  // Copying says that it is done, where it was asked for.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });

  // Only what the kind of draft needs is shown; without this all of it is.
  const kinds = document.querySelector("[data-kinds]");
  if (kinds) {
    const follow = () => {
      const kind = kinds.querySelector("input[name=kind]:checked")?.value;
      for (const field of document.querySelectorAll("[data-for]")) {
        field.hidden = !field.dataset.for.split(" ").includes(kind);
      }
    };
    kinds.addEventListener("change", follow);
    follow();
  }

  // What came of a draft is of the draft as it was run.
  const draft = document.getElementById("draft");
  const outcome = document.getElementById("outcome");
  draft?.addEventListener("input", () => outcome.classList.toggle("stale", outcome.childElementCount > 0));
  draft?.addEventListener("submit", () => outcome.classList.remove("stale"));

  // Where events are looked at in UTC, the reader's own time is a hint away.
  document.addEventListener("mouseover", (event) => {
    const time = event.target.closest?.("time[datetime]");
    if (time && !time.title) time.title = new Date(time.dateTime).toLocaleString();
  });
})();
