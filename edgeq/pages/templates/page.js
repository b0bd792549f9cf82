/* Draws the charts of a page with ECharts, and switches between light and dark. */
"use strict";
(() => {
  const root = document.documentElement;
  const SYMBOLS = ["circle", "rect", "triangle", "diamond"];
  const COLORS = 8;
  const NARROW = 560; // pixels of a chart: below, labels and margins are small
  const FORMATS = {
    integer: (value) => Math.round(value).toLocaleString("en"),
    number: (value) => short(value),
    percent: (value) => short(100 * value) + "%",
    bytes: (value) => {
      const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([unit]) => value >= unit) || [1, "bytes"];
      return short(value / unit) + " " + name;
    },
  };

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-5) return value.toExponential(1).replace(".0e", "e");
    return size >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 8 });
  }

  function color(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  /* The series of a view as ECharts takes them; an interval is a line of its own under the same name. */
  function seriesOf(view, narrow) {
    return view.series.flatMap((series, number) => {
      const shade = color("s" + (number % COLORS));
      const symbol = SYMBOLS[number % SYMBOLS.length];
      const dashed = series.dashed || number >= COLORS;
      const known = series.points.map(([x, y, low, high, label]) => ({ value: [x, y], low, high, known: label }));
      const drawn = {
        name: series.name,
        type: series.kind === "line" ? "line" : "scatter",
        data: known,
        symbol,
        symbolSize: series.kind === "line" ? (known.length > 40 ? 4 : 6) : 10,
        itemStyle: { color: shade, opacity: 1 },
        lineStyle: { color: shade, width: 2, type: dashed ? "dashed" : "solid" },
        emphasis: { focus: "none" },
        z: series.kind === "line" ? 2 : 3,
      };
      if (series.kind === "labels") {
        drawn.label = { show: false, color: color("text"), fontSize: fontSize(narrow), formatter: (point) => point.data.short };
      }
      const bounds = known.filter((point) => point.low != null && point.high != null);
      const ends = bounds.flatMap(({ value: [x], low, high }) => [[x, low], [x, high], [x, null]]);
      const whiskers = {
        name: series.name, type: "line", data: ends, symbol: "none", silent: true, z: 1,
        lineStyle: { color: shade, width: 2 }, tooltip: { show: false },
      };
      return ends.length ? [drawn, whiskers] : [drawn];
    });
  }

  /* Names of points, each on the first side where it covers nothing; one that fits nowhere is left out: the legend has it. */
  function placeNames(chart, series, hidden, narrow) {
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `${fontSize(narrow)}px ${getComputedStyle(document.body).fontFamily}`;
    const shown = series.filter((each) => !hidden.has(each.name) && !each.silent);
    const pixel = (point) => chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, point.value);
    const taken = shown.flatMap((each) => each.data.map((point) => {
      const [x, y] = pixel(point);
      return [x - 5, y - 5, x + 5, y + 5];
    }));
    const plot = chart.getModel().getComponent("grid").coordinateSystem.getRect(); // left of it are the axis' numbers
    const free = ([left, top, right, bottom]) => left >= plot.x && right <= chart.getWidth()
      && !taken.some(([l, t, r, b]) => left < r && right > l && top < b && bottom > t);
    for (const each of shown.filter((each) => each.label)) {
      each.data = each.data.map((point) => {
        const short = clipped(point.known || "", narrow ? 20 : 36);
        const [[x, y], width, gap] = [pixel(point), pen.measureText(short).width, 9];
        const sides = {
          right: [x + gap, y - 8, x + gap + width, y + 8], left: [x - gap - width, y - 8, x - gap, y + 8],
          top: [x - width / 2, y - gap - 15, x + width / 2, y - gap], bottom: [x - width / 2, y + gap, x + width / 2, y + gap + 15],
        };
        const order = each.data.length > 1 ? ["top", "right", "bottom", "left"] : ["right", "left", "top", "bottom"];
        const position = order.find((side) => free(sides[side]));
        if (!position) return point;
        taken.push(sides[position]);
        return { ...point, short, label: { show: true, position } };
      });
    }
    return series;
  }

  function fontSize(narrow) {
    return narrow ? 11 : 12;
  }

  function clipped(text, most) {
    const characters = [...text];
    if (characters.length <= most) return text;
    const half = (most - 1) >> 1; // both ends of a path say what it is
    return characters.slice(0, half).join("") + "…" + characters.slice(-half).join("");
  }

  function axisOf(axis, across, narrow) {
    const write = FORMATS[axis.format];
    const soft = color("soft");
    const made = {
      type: axis.log ? "log" : "value",
      name: axis.name,
      nameLocation: across ? "middle" : "end",
      nameGap: across ? 28 : 12,
      nameTextStyle: { color: soft, fontSize: 12, align: across ? "center" : "left" },
      nameTruncate: {},
      scale: !axis.log && axis.least === null,
      axisLabel: { color: soft, formatter: write, hideOverlap: true, fontSize: fontSize(narrow) },
      axisLine: { show: across, lineStyle: { color: color("line") } },
      axisTick: { show: false },
      splitLine: { show: !across, lineStyle: { color: color("line") } },
      splitNumber: narrow ? 4 : 6,
    };
    if (axis.format === "integer") made.minInterval = 1;
    if (axis.least !== null) made.min = axis.least;
    if (axis.most !== null) made.max = axis.most;
    return made;
  }

  /* Built of text nodes: what a model calls its layers and tokens is never read as HTML. */
  function tip(spec, view, shown) {
    const y = view.y || spec.y;
    const points = (Array.isArray(shown) ? shown : [shown]).filter((point) => point.value[1] != null && point.data.value);
    if (!points.length) return "";
    const made = element("div", undefined, "tip");
    const write = FORMATS[spec.x.format];
    const [first] = points;
    const place = first.data.known && spec.x.format === "integer" ? first.data.known : write(first.value[0]);
    made.append(element("b", spec.x.name.replace(/ \(.*\)$/, "") + " " + place));
    for (const point of [...points].sort((a, b) => b.value[1] - a.value[1])) {
      const line = element("div");
      const named = spec.x.format === "bytes" && point.data.known && point.data.known !== point.seriesName;
      line.append(element("span", point.seriesName + (named ? ": " + point.data.known : "")));
      const { low, high } = point.data;
      const between = low != null && high != null ? ` (${FORMATS[y.format](low)} to ${FORMATS[y.format](high)})` : "";
      line.append(element("span", FORMATS[y.format](point.value[1]) + between));
      made.append(line);
    }
    return made;
  }

  function optionsOf(spec, view, hidden, width) {
    const narrow = width < NARROW;
    return {
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
      grid: { left: 8, right: 20, top: 34, bottom: 30, containLabel: true },
      xAxis: axisOf(spec.x, true, narrow),
      yAxis: axisOf(view.y || spec.y, false, narrow),
      legend: { show: false, selected: Object.fromEntries([...hidden].map((name) => [name, false])) },
      tooltip: {
        trigger: spec.x.format === "integer" ? "axis" : "item",
        confine: true, backgroundColor: color("card"), borderColor: color("line"),
        axisPointer: { type: "line", lineStyle: { color: color("soft") } },
        formatter: (shown) => tip(spec, view, shown),
      },
      series: seriesOf(view, narrow),
    };
  }

  function swatch(series, number) {
    const shade = `var(--s${number % COLORS})`;
    const shapes = {
      circle: '<circle cx="12" cy="7" r="4"/>', rect: '<rect x="8" y="3" width="8" height="8"/>',
      triangle: '<path d="M12 2.5 16.5 11h-9z"/>', diamond: '<path d="M12 2 16.5 7 12 12 7.5 7z"/>',
    };
    const dash = series.dashed || number >= COLORS ? ' stroke-dasharray="4 3"' : "";
    const line = series.kind === "line" ? `<path d="M0 7h24" stroke-width="2"${dash}/>` : "";
    const made = element("span");
    made.innerHTML = `<svg width="24" height="14" aria-hidden="true" style="fill:${shade};stroke:${shade}">${line}${shapes[SYMBOLS[number % SYMBOLS.length]]}</svg>`;
    return made.firstChild;
  }

  function pressable(text, pressed, act) {
    const made = element("button", text);
    made.type = "button";
    made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", () => act(made));
    return made;
  }

  function start(spec) {
    const figure = document.getElementById("chart-" + spec.id);
    const [plot, views, legend] = [".plot", ".views", ".legend"].map((name) => figure.querySelector(name));
    const chart = echarts.init(plot, null, { renderer: "svg" });
    const hidden = new Set();
    let view = spec.views[0];

    function draw() {
      const options = optionsOf(spec, view, hidden, plot.clientWidth);
      chart.setOption(options, { notMerge: true });
      if (options.series.some((series) => series.label)) {
        chart.setOption({ series: placeNames(chart, options.series, hidden, plot.clientWidth < NARROW) });
      }
    }

    function list() {
      if (view.series.length < 2) return legend.replaceChildren();
      legend.replaceChildren(...view.series.map((series, number) => {
        const button = pressable(series.name, String(!hidden.has(series.name)), () => {
          if (!hidden.delete(series.name)) hidden.add(series.name);
          button.setAttribute("aria-pressed", String(!hidden.has(series.name)));
          draw();
        });
        button.prepend(swatch(series, number));
        return button;
      }));
    }

    if (spec.views.length > 1) {
      views.append(...spec.views.map((each) => pressable(each.name, String(each === view), (pressed) => {
        view = each;
        for (const button of views.children) button.setAttribute("aria-pressed", String(button === pressed));
        list();
        draw();
      })));
    }
    list();
    draw();
    new ResizeObserver(() => { chart.resize(); draw(); }).observe(plot);
    return draw;
  }

  const drawn = JSON.parse(document.getElementById("charts").textContent).map(start);
  const redraw = () => drawn.forEach((draw) => draw());
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");

  function isDark() {
    return (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  }

  function name() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  }

  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); redraw(); });
  dark.addEventListener("change", () => { name(); redraw(); });
  name();
})();
