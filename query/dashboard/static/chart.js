/** `<ad-chart>`: a time series on uPlot, on which finality is drawn: open buckets hatched, corrected ones marked, reconciled ones sealed. */

import uPlot from "./vendor/uplot.js";

/**
 * @typedef {{label: string, color: string, values: (number | null)[], text: (index: number) => string, short: (value: number) => string, before?: (number | null)[]}} Series
 * @typedef {{start: number, end: number, critical: boolean, text: string}} Band a time in which an alert held
 * @typedef {{
 *   label: string, times: number[], ends: number[], series: Series[], finality: string[], watermark: number | null,
 *   bands?: Band[], axisTime: (ms: number) => string, describe: (index: number) => [string, string][],
 * }} Model
 */

const HEIGHT = 280;
const STRIP = 7;
/** Room for the label of a bucket. */
const LABEL_WIDTH = 96;

const COLORS = ["--ink-soft", "--line", "--panel", "--open", "--closed", "--corrected", "--reconciled", "--provisional", "--watermark", "--bad",
  "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];

/** What the colours depend on: paper is light whatever the screen is. */
const THEMES = [matchMedia("(prefers-color-scheme: dark)"), matchMedia("print")];

/** The colours of the theme, resolved: a canvas knows neither variables nor themes. @param {HTMLElement} element @returns {Record<string, string>} */
function palette(element) {
  const probe = document.createElement("span");
  element.append(probe);
  const colors = Object.fromEntries(COLORS.map((name) => {
    probe.style.color = `var(${name})`;
    return [name, getComputedStyle(probe).color];
  }));
  probe.remove();
  return colors;
}

/** @param {string} color rgb(…) @param {number} alpha */
function translucent(color, alpha) {
  return color.replace(/^rgba?\(([^,)]+),([^,)]+),([^,)]+).*$/, `rgba($1,$2,$3,${alpha})`);
}

export class AdChart extends HTMLElement {
  constructor() {
    super();
    /** @type {Model | null} */
    this._model = null;
    /** @type {any} */
    this.plot = null;
    this.shape = "";
    /** @type {Record<string, string>} */
    this.colors = {};
    this.tooltip = document.createElement("div");
    this.tooltip.className = "chart-tip";
    this.tooltip.hidden = true;
    this.observer = new ResizeObserver(() => this.resize());
  }

  connectedCallback() {
    this.tabIndex = 0;
    this.setAttribute("role", "img");
    this.observer.observe(this);
    this.addEventListener("keydown", this.onKey);
    this.addEventListener("blur", this.onBlur);
    for (const theme of THEMES) theme.addEventListener("change", this.onTheme);
    this.draw();
  }

  disconnectedCallback() {
    this.observer.disconnect();
    this.removeEventListener("keydown", this.onKey);
    this.removeEventListener("blur", this.onBlur);
    for (const theme of THEMES) theme.removeEventListener("change", this.onTheme);
    this.destroy();
  }

  /** @param {Model} model */
  set model(model) {
    if (model === this._model) return;
    this._model = model;
    if (this.isConnected) this.draw();
  }

  onTheme = () => {
    this.destroy();
    this.draw();
  };

  onBlur = () => {
    this.plot?.setCursor({ left: -10, top: -10 });
  };

  /** @param {KeyboardEvent} event */
  onKey = (event) => {
    if (!this.plot || !this._model || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const last = this._model.times.length - 1;
    const at = this.plot.cursor.idx ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key] ?? 0;
    const index = Math.max(0, Math.min(last, next));
    this.plot.setCursor({ left: this.plot.valToPos(this.plot.data[0][index], "x"), top: 10 });
  };

  destroy() {
    this.plot?.destroy();
    this.plot = null;
    this.shape = "";
  }

  resize() {
    if (this.plot && this.clientWidth > 0 && this.clientWidth !== this.plot.width) this.plot.setSize({ width: this.clientWidth, height: HEIGHT });
  }

  draw() {
    const model = this._model;
    if (!model || this.clientWidth === 0) {
      if (model) requestAnimationFrame(() => this.isConnected && this.clientWidth > 0 && this.draw());
      return;
    }
    this.setAttribute("aria-label", model.label);
    const shape = model.series.map((s) => s.label + s.color + Boolean(s.before)).join("|") + (model.times.length > 62);
    const data = this.dataOf(model);
    if (this.plot && this.shape === shape) {
      this.plot.setData(data);
      return;
    }
    this.destroy();
    this.shape = shape;
    this.colors = palette(this);
    this.plot = new uPlot(this.options(model), data, this);
    this.append(this.tooltip);
  }

  /** @param {Model} model @returns {any} */
  dataOf(model) {
    const columns = [model.times.map((ms) => ms / 1000)];
    for (const series of model.series) {
      columns.push(/** @type {any} */ (series.values));
      if (series.before) columns.push(/** @type {any} */ (series.before));
    }
    return columns;
  }

  /** @param {Model} model @returns {any} */
  options(model) {
    const ink = this.colors["--ink-soft"];
    const grid = this.colors["--line"];
    const font = `12px ${getComputedStyle(this).fontFamily}`;
    const bars = model.times.length <= 62;
    const shapes = /** @type {any} */ (uPlot.paths);
    const lines = bars ? shapes.stepped({ align: 1 }) : shapes.linear();
    /** @type {any[]} */
    const series = [{}];
    /** @type {any[]} */
    const axes = [{ stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid }, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((s) => this._model?.axisTime(s * 1000) ?? ""), space: LABEL_WIDTH, ...(bars ? { splits: () => this.bucketSplits() } : {}) }];
    model.series.forEach((one, number) => {
      const scale = number === 0 ? "y" : "y2";
      const stroke = this.colors[one.color];
      series.push({
        label: one.label, scale, stroke, width: 2, fill: number === 0 ? translucent(stroke, bars ? 0.35 : 0.12) : undefined, points: { show: false },
        paths: bars && number === 0 ? shapes.bars({ size: [0.94, Infinity], align: 1 }) : lines,
      });
      if (one.before) series.push({ label: `${one.label} before`, scale, stroke: ink, width: 1.5, dash: [5, 4], points: { show: false }, paths: lines });
      axes.push({ scale, side: number === 0 ? 3 : 1, stroke: number === 0 ? ink : stroke, font, size: 62, grid: { show: number === 0, stroke: grid, width: 1 }, ticks: { show: false }, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((v) => this._model?.series[number]?.short(v) ?? "") });
    });
    const zero = { range: (/** @type {any} */ _, /** @type {number} */ _low, /** @type {number} */ high) => [0, high > 0 ? high * 1.08 : 1] };
    return {
      width: this.clientWidth, height: HEIGHT, series, axes, legend: { show: false }, padding: [14, 8, 0, 0],
      scales: { x: { time: true, range: () => this.xRange() }, y: zero, y2: zero },
      cursor: { y: false, drag: { x: false, y: false }, points: bars ? { show: false } : { size: 7 } },
      hooks: { drawClear: [() => this.drawBands(), () => this.drawOpen()], draw: [() => this.drawFinality()], setCursor: [() => this.showTip()] },
    };
  }

  /** Starts of buckets, as many as there is room for their labels. @returns {number[]} */
  bucketSplits() {
    const times = this._model?.times ?? [];
    const width = Math.max(LABEL_WIDTH, this.clientWidth - 90) / Math.max(1, times.length);
    const every = Math.max(1, Math.ceil(LABEL_WIDTH / width));
    return times.filter((_, n) => n % every === 0 && (n === 0 || (times.length - n) * width >= LABEL_WIDTH / 2)).map((ms) => ms / 1000);
  }

  xRange() {
    const model = this._model;
    if (!model || !model.times.length) return [0, 1];
    return [model.times[0] / 1000, model.ends[model.ends.length - 1] / 1000];
  }

  /** Shade the times in which alerts held. */
  drawBands() {
    const { plot, _model: model } = this;
    if (!plot || !model) return;
    const { ctx, bbox } = plot;
    ctx.save();
    for (const band of model.bands ?? []) {
      const [from, to] = this.xRange();
      const left = plot.valToPos(Math.max(band.start / 1000, from), "x", true);
      const right = plot.valToPos(Math.min(band.end / 1000, to), "x", true);
      if (right <= left) continue;
      const color = this.colors[band.critical ? "--bad" : "--corrected"];
      const width = Math.max(2 * devicePixelRatio, right - left);
      ctx.fillStyle = translucent(color, 0.1);
      ctx.fillRect(left, bbox.top, width, bbox.height);
      ctx.fillStyle = color;
      ctx.fillRect(left, bbox.top, width, 3 * devicePixelRatio);
    }
    ctx.restore();
  }

  /** Hatch what is open. */
  drawOpen() {
    const { plot, _model: model } = this;
    if (!plot || !model) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    model.finality.forEach((finality, index) => {
      if (finality !== "provisional") return;
      const left = plot.valToPos(model.times[index] / 1000, "x", true);
      const right = plot.valToPos(model.ends[index] / 1000, "x", true);
      ctx.rect(left, bbox.top, Math.min(right, bbox.left + bbox.width) - left, bbox.height);
    });
    ctx.clip();
    ctx.strokeStyle = this.colors["--open"];
    ctx.lineWidth = devicePixelRatio;
    const step = 8 * devicePixelRatio;
    ctx.beginPath();
    for (let x = bbox.left - bbox.height; x < bbox.left + bbox.width; x += step) {
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x + bbox.height, bbox.top);
    }
    ctx.stroke();
    ctx.restore();
  }

  /** The strip of finality under the plot, marks on corrected buckets, and the watermark. */
  drawFinality() {
    const { plot, _model: model } = this;
    if (!plot || !model) return;
    const { ctx, bbox } = plot;
    const strip = STRIP * devicePixelRatio;
    const bottom = bbox.top + bbox.height;
    ctx.save();
    model.finality.forEach((finality, index) => {
      const left = plot.valToPos(model.times[index] / 1000, "x", true);
      const right = Math.min(plot.valToPos(model.ends[index] / 1000, "x", true), bbox.left + bbox.width);
      const width = Math.max(1, right - left - (right - left > 4 ? devicePixelRatio : 0));
      ctx.fillStyle = this.colors[`--${finality}`];
      if (finality === "provisional") {
        ctx.strokeStyle = this.colors["--open"];
        ctx.strokeRect(left, bottom - strip, width, strip);
      } else {
        ctx.fillRect(left, bottom - strip, width, strip);
      }
      if (finality === "reconciled" && width > 6) {
        ctx.fillStyle = this.colors["--panel"];
        ctx.fillRect(left, bottom - strip / 2 - devicePixelRatio / 2, width, devicePixelRatio);
      }
      if (finality === "corrected" && width > 3) {
        const middle = left + width / 2;
        ctx.beginPath();
        ctx.moveTo(middle - strip / 2, bottom - strip - 1);
        ctx.lineTo(middle + strip / 2, bottom - strip - 1);
        ctx.lineTo(middle, bottom - strip * 1.9);
        ctx.fill();
      }
    });
    const [from, to] = this.xRange();
    if (model.watermark !== null && model.watermark / 1000 > from && model.watermark / 1000 < to) {
      const x = plot.valToPos(model.watermark / 1000, "x", true);
      ctx.strokeStyle = this.colors["--watermark"];
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bottom);
      ctx.stroke();
    }
    ctx.restore();
  }

  showTip() {
    const { plot, _model: model, tooltip } = this;
    const index = plot?.cursor.idx;
    if (!plot || !model || index === null || index === undefined || plot.cursor.left < 0) {
      tooltip.hidden = true;
      return;
    }
    tooltip.replaceChildren(
      ...model.describe(index).map(([name, value]) => {
        const line = document.createElement("div");
        const label = document.createElement("span");
        const text = document.createElement("b");
        label.textContent = name;
        text.textContent = value;
        line.append(label, text);
        return line;
      }),
    );
    tooltip.hidden = false;
    const left = plot.valToPos(model.times[index] / 1000, "x") + plot.bbox.left / devicePixelRatio;
    const flip = left > this.clientWidth / 2;
    tooltip.style.transform = `translateX(${flip ? left - tooltip.offsetWidth - 14 : left + 14}px)`;
  }

  /** The picture as PNG, on the page's background. @returns {Promise<Blob | null>} */
  async png() {
    const source = this.querySelector("canvas");
    if (!source) return null;
    const canvas = document.createElement("canvas");
    canvas.width = source.width;
    canvas.height = source.height;
    const context = canvas.getContext("2d");
    if (!context) return null;
    context.fillStyle = this.colors["--panel"];
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(source, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve));
  }
}

customElements.define("ad-chart", AdChart);
