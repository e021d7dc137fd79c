// What ipywidgets has no trait for: names that say whom a button concerns, a card as one stop of the Tab key with arrows
// between its buttons, and named regions that the keyboard scrolls.

const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

// An observer watches attributes, so one that is right already is left alone.
function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// A tooltip is the whole name, "Kill node-1", and, after a colon, what it does.
function name(panel) {
  for (const button of panel.querySelectorAll("button[title]")) set(button, "aria-label", button.title.split(": ")[0]);
  for (const box of panel.querySelectorAll(".cl-scroller")) {
    set(box, "role", "region");
    set(box, "tabindex", "0");
    set(box, "aria-label", box.querySelector("[aria-label]")?.getAttribute("aria-label") ?? "Empty");
    set(box, "data-lm-suppress-shortcuts", "true"); // else JupyterLab takes the arrows
  }
}

function enabled(toolbar) {
  return [...toolbar.querySelectorAll("button:enabled")];
}

function gather(panel) {
  for (const card of panel.querySelectorAll(".cl-card")) {
    const toolbar = card.querySelector(".cl-card-buttons");
    if (toolbar === null) continue;
    set(toolbar, "role", "toolbar");
    set(toolbar, "aria-label", `${toolbar.matches(".cl-actions") ? "Actions" : "Faults"} of ${card.querySelector(".cl-name")?.textContent ?? "this node"}`);
    set(toolbar, "data-lm-suppress-shortcuts", "true");
    const buttons = enabled(toolbar);
    const stop = buttons.find((button) => button.tabIndex === 0 && button.hasAttribute("tabindex")) ?? buttons[0];
    for (const button of toolbar.querySelectorAll("button")) set(button, "tabindex", button === stop ? "0" : "-1");
  }
}

function move(event) {
  const toolbar = event.target.closest(".cl-card-buttons");
  if (toolbar === null || event.altKey || event.ctrlKey || event.metaKey) return;
  const buttons = enabled(toolbar);
  const at = buttons.indexOf(event.target);
  let next;
  if (event.key in ARROWS) next = buttons[(at + ARROWS[event.key] + buttons.length) % buttons.length];
  else if (event.key === "Home") next = buttons[0];
  else if (event.key === "End") next = buttons[buttons.length - 1];
  else return;
  event.preventDefault();
  event.stopPropagation();
  for (const button of buttons) set(button, "tabindex", button === next ? "0" : "-1");
  next?.focus();
}

function render({ el }) {
  let panel = null;
  let frame = 0;
  let last = null; // what had the focus

  const observer = new MutationObserver(() => {
    name(panel);
    gather(panel);
    if (last?.disabled && [document.body, last].includes(document.activeElement)) {
      // Pressed, and disabled by that: the focus goes on to what comes next, not to the top of the page.
      const all = [...panel.querySelectorAll("button, input, select")];
      const rest = all.slice(all.indexOf(last) + 1).concat(all);
      rest.find((other) => !other.disabled && other.tabIndex >= 0)?.focus();
    }
  });
  const remember = (event) => { last = event.target; };

  function attach() {
    panel = el.closest(".copilotlab");
    if (panel === null) {
      frame = requestAnimationFrame(attach); // not on the page yet
      return;
    }
    name(panel);
    gather(panel);
    const attributeFilter = ["title", "disabled", "tabindex"];
    observer.observe(panel, { childList: true, subtree: true, attributes: true, attributeFilter });
    panel.addEventListener("keydown", move);
    panel.addEventListener("focusin", remember);
  }

  attach();
  return () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
    panel?.removeEventListener("keydown", move);
    panel?.removeEventListener("focusin", remember);
  };
}

export default { render };
