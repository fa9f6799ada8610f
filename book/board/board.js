/* Shows the form and hides the claims that its filters leave out; without it all are listed.
   What is chosen is kept in the address, ?verdict=fails&source=u-mup&text=width. */
(() => {
  "use strict";
  const form = document.getElementById("filter");
  const claims = [...document.querySelectorAll("li.claim")];
  if (!form || !claims.length) return;
  const box = form.elements.text, said = form.querySelector("output");
  const chips = [...form.querySelectorAll("button[data-of]")];
  const names = [...new Set(chips.map(chip => chip.dataset.of))];
  const words = new Map(claims.map(claim => [claim, (claim.id + " " + claim.textContent).toLowerCase()]));
  const on = chip => chip.getAttribute("aria-pressed") === "true";
  const press = (chip, yes) => chip.setAttribute("aria-pressed", yes);
  const chosen = name => chips.filter(chip => chip.dataset.of === name && on(chip)).map(chip => chip.dataset.is);

  function show() {
    const wanted = names.map(name => [name, chosen(name)]).filter(pair => pair[1].length);
    const asked = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    for (const claim of claims) {
      const fits = wanted.every(([name, values]) => values.includes(claim.dataset[name]))
        && asked.every(word => words.get(claim).includes(word));
      claim.hidden = !fits;
      number += fits;
    }
    for (const list of document.querySelectorAll("ul.claims")) {
      const empty = !list.querySelector("li.claim:not([hidden])");
      list.hidden = list.previousElementSibling.hidden = empty;
      list.closest("section").hidden = !list.closest("section").querySelector("li.claim:not([hidden])");
    }
    said.textContent = number === claims.length ? `all ${number} claims` : `${number} of ${claims.length} claims`;
    form.classList.toggle("used", wanted.length + asked.length > 0);
    return [wanted, number];
  }

  function keep() {
    const [wanted] = show();
    const query = new URLSearchParams(wanted.map(([name, values]) => [name, values.join(",")]));
    if (box.value) query.set("text", box.value);
    const text = decodeURI(String(query)).replaceAll("%2C", ",");
    try {
      history.replaceState(null, "", location.pathname + (text && "?" + text) + location.hash);
    } catch { /* a page read from a file keeps its address */ }
  }

  function read() {
    const query = new URLSearchParams(location.search);
    box.value = query.get("text") || "";
    for (const chip of chips) {
      press(chip, (query.get(chip.dataset.of) || "").split(",").includes(chip.dataset.is));
      if (on(chip) && chip.closest("details")) chip.closest("details").open = true;
    }
    show();
  }

  function clear() {
    box.value = "";
    chips.forEach(chip => press(chip, false));
    keep();
  }

  function reveal() {  // a link to a claim shows it, whatever was chosen
    const claim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!claim || !claims.includes(claim)) return;
    if (claim.hidden) clear();
    claim.scrollIntoView();
  }

  form.addEventListener("click", event => {
    const chip = event.target.closest("button[data-of]");
    if (!chip) return;
    press(chip, !on(chip));
    keep();
  });
  box.addEventListener("input", keep);
  form.addEventListener("reset", event => { event.preventDefault(); clear(); });
  form.addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", reveal);
  addEventListener("popstate", read);
  form.hidden = false;
  read();
  reveal();
})();
