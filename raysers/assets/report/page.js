(function () {
  "use strict";
  document.querySelectorAll("table.clips").forEach(function (table) {
    var body = table.tBodies[0], rows = Array.from(body.rows);
    var tools = table.closest("section").querySelector(".tools");
    var kind = tools.querySelector("select"), words = tools.querySelector("input");
    function show() {
      var shown = rows.filter(function (row) {
        row.hidden = (kind.value && !row.dataset.why.split("|").includes(kind.value)) ||
          !row.textContent.toLowerCase().includes(words.value.toLowerCase());
        return !row.hidden;
      });
      tools.querySelector("output").textContent = shown.length + " of " + rows.length + " clips";
    }
    function key(row, place) {
      var cell = row.cells[place];
      return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent;
    }
    function order(a, b) {
      if (typeof a === "string") { return a.localeCompare(b); }
      return (isNaN(a) - isNaN(b)) || a - b || 0;
    }
    table.tHead.addEventListener("click", function (event) {
      var head = event.target.closest("th"), place = head.cellIndex;
      var down = head.getAttribute("aria-sort") === "ascending";
      Array.from(head.parentNode.cells).forEach(function (th) { th.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort(function (a, b) {
        var one = key(a, place), other = key(b, place);
        return one !== one || other !== other || !down ? order(one, other) : order(other, one);
      });
      body.append.apply(body, rows);
    });
    table.addEventListener("play", function (event) {
      table.querySelectorAll("audio").forEach(function (one) {
        if (one !== event.target) { one.pause(); }
      });
    }, true);
    kind.addEventListener("input", show);
    words.addEventListener("input", show);
    tools.hidden = false;
    show();
  });
  var closed = [];
  addEventListener("beforeprint", function () {
    closed = Array.from(document.querySelectorAll("figure details:not([open])"));
    closed.forEach(function (one) { one.open = true; });
  });
  addEventListener("afterprint", function () {
    closed.forEach(function (one) { one.open = false; });
  });
})();
