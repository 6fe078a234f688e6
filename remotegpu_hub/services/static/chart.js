"use strict";
// Draws the table of a page as bars, one on the other; the table stays for who reads it.
(() => {
  const HEIGHT = 260, NARROW = 480;
  const figure = document.querySelector("[data-chart]");
  const table = figure && document.getElementById(figure.dataset.chart);
  if (!table || !window.uPlot) return;

  const place = figure.querySelector(".rg-canvas");
  const rows = [...table.tBodies[0].rows];
  const days = rows.map((row) => Number(row.cells[0].dataset.day));
  const names = [...table.tHead.rows[0].cells].filter((cell) => cell.dataset.color);
  const values = names.map((_, column) => rows.map((row) => Number(row.cells[column + 1].dataset.value)));
  const stacked = values.map((_, top) => days.map((_, day) => values.slice(0, top + 1).reduce((sum, one) => sum + one[day], 0)));
  const look = getComputedStyle(figure);
  const color = (name) => look.getPropertyValue(name).trim();
  const ink = look.color, paper = color("--bs-body-bg"), line = color("--bs-border-color");
  const number = new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 3 });

  // The numbers of the day under the pointer stand in the legend; without one, the month's.
  const texts = [...figure.querySelectorAll("[data-value]")], when = figure.querySelector("[data-when]");
  const month = texts.map((one) => one.textContent), whole = when.textContent;
  function tell(day) {
    const row = day == null ? null : rows[day];
    texts.forEach((one, column) => { one.textContent = row ? row.cells[column + 1].textContent : month[column]; });
    when.textContent = row ? `${row.cells[0].textContent} · ${row.cells[row.cells.length - 1].textContent}` : whole;
  }

  // The whole bar is drawn first, in the colour of the last; the others over it.
  const order = names.map((_, column) => column).reverse();
  const bars = uPlot.paths.bars({ size: [0.75, 46] });
  const width = () => Math.max(240, place.clientWidth);
  const plot = new uPlot({
    width: width(),
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
    scales: { x: { time: false, range: [0.4, Math.max(days.length, 7) + 0.6] }, y: { range: (_, __, most) => [0, (most || 1) * 1.05] } },
    axes: [
      { stroke: ink, grid: { show: false }, ticks: { stroke: line }, incrs: [1, 2, 5, 10], space: 28, values: (_, marks) => marks.map((one) => (one >= 1 && one % 1 === 0 ? one : "")) },
      { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, size: 56, values: (_, marks) => marks.map((one) => number.format(one)) },
    ],
    series: [{}, ...order.map((column) => {
      const fill = color(`--rg-series-${names[column].dataset.color}`);
      return { fill, stroke: paper, width: 1, paths: bars, points: { show: false } };
    })],
    hooks: { setCursor: [(one) => tell(one.cursor.left < 0 ? null : one.cursor.idx)] },
  }, [days, ...order.map((column) => stacked[column])], place);
  place.addEventListener("mouseleave", () => tell(null));
  new ResizeObserver(() => plot.setSize({ width: width(), height: place.clientWidth < NARROW ? HEIGHT * 0.8 : HEIGHT })).observe(place);
})();
