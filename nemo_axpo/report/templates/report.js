// Shows one tree at a time: by the picker, the arrow buttons, or the address (#tree-3).
(function () {
  "use strict";
  var picker = document.getElementById("picker");
  if (!picker) return;
  var trees = document.querySelectorAll("article.tree");

  function show(id) {
    trees.forEach(function (tree) { tree.hidden = tree.id !== id; });
    picker.value = id;
  }
  function move(distance) {
    var count = picker.options.length;
    picker.selectedIndex = (picker.selectedIndex + distance + count) % count;
    show(picker.value);
  }
  picker.addEventListener("change", function () { show(picker.value); });
  document.getElementById("previous").addEventListener("click", function () { move(-1); });
  document.getElementById("next").addEventListener("click", function () { move(1); });
  var wanted = window.location.hash.slice(1);
  if (Array.prototype.some.call(trees, function (tree) { return tree.id === wanted; })) show(wanted);
})();
