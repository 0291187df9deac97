"""The one stylesheet of the pages: warm paper or night, one accent colour, numbers that stand in columns.

Kind: pure.
"""

from typing import Final

STYLESHEET: Final = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --ink: #1d1c1a; --soft: #69655d; --line: #e3dfd5; --fill: #f1eee6;
  --accent: #0f6b73; --tint: #b9d7d6; --water: #0f6b73; --glow: #0f6b7314;
  --serif: "Iowan Old Style", P052, "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: ui-sans-serif, -apple-system, "Segoe UI", Inter, Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131516; --ink: #eceae4; --soft: #9b978d; --line: #2d3031; --fill: #1d2021;
    --accent: #6fcbc6; --tint: #2c5a5b; --water: #2f7f80; --glow: #6fcbc61a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0 auto; padding: 0 clamp(1.1rem, 4vw, 3rem); max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 400 1rem/1.55 var(--sans); font-variant-numeric: tabular-nums lining-nums; overflow-wrap: break-word;
}
h1, h2, h3 { font-family: var(--serif); font-weight: 500; letter-spacing: -.012em; text-wrap: balance; }
h1 { font-size: clamp(2.5rem, 6.4vw, 4.5rem); line-height: 1.02; margin: .5rem 0 1.1rem; letter-spacing: -.025em; }
h2 { font-size: clamp(1.7rem, 3.4vw, 2.35rem); line-height: 1.12; margin: 0 0 .5rem; }
h3 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .9rem; }
p { margin: 0 0 .8rem; }
a { color: var(--accent); text-underline-offset: .2em; text-decoration-thickness: 1px; }
small { font-size: .82rem; color: var(--soft); }
b { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; background: var(--fill); }
figure { margin: 0; }
ul, ol { list-style: none; margin: 0; padding: 0; }
dl, dd { margin: 0; }
code { font: .86em var(--mono); overflow-wrap: break-word; }
.lead code { color: var(--ink); white-space: nowrap; }
@media (max-width: 30rem) { .lead code { white-space: normal; } }
summary { cursor: pointer; color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 2px; }
.n { text-align: right; white-space: nowrap; }

/* top */
.top { padding: clamp(2.2rem, 6vw, 4.5rem) 0 0; }
.mark-line { color: var(--accent); font: 600 .78rem var(--sans); letter-spacing: .12em; text-transform: uppercase;
  margin: 0; }
.hero { display: grid; gap: clamp(1.8rem, 4vw, 3.5rem); align-items: center; }
@media (min-width: 52rem) { .hero.two { grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); } }
.story { font: 400 clamp(1.12rem, 2vw, 1.35rem)/1.5 var(--serif); max-width: 40rem; margin-bottom: 1.6rem; }
.hero figure img { width: 100%; border-radius: 5px; }
.hero figcaption { margin-top: .7rem; font-size: .85rem; color: var(--soft); }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .4rem;
  margin-top: clamp(1.8rem, 4vw, 3rem); }
.strip img { width: 100%; aspect-ratio: 1; object-fit: cover; }
@media (max-width: 40rem) { .strip { grid-auto-flow: row; grid-template-columns: repeat(5, 1fr); } }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .9rem 1.5rem; }
.facts dt { font-size: .76rem; color: var(--soft); }
.facts dd { font-size: .95rem; overflow-wrap: anywhere; }
.facts.big dd { font: 500 1.65rem/1.2 var(--serif); font-variant-numeric: tabular-nums lining-nums; }
.facts.big { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .9rem 1rem; }
.facts + .facts { margin-top: 1.2rem; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; margin-top: 2.4rem; padding: .85rem 0;
  border: solid var(--line); border-width: 1px 0; font-size: .9rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }

/* sections */
h2:not(:has(+ .lead)) { margin-bottom: clamp(1.5rem, 3vw, 2.3rem); }
section { padding: clamp(2.8rem, 6vw, 5rem) 0 0; scroll-margin-top: 0; }
.lead { max-width: 44rem; color: var(--soft); font-size: 1.05rem; margin-bottom: clamp(1.5rem, 3vw, 2.3rem); }
.lead b { color: var(--ink); }
.block { margin-top: clamp(2.2rem, 4vw, 3.4rem); }
.pair { display: grid; gap: 2.6rem clamp(2rem, 6vw, 5rem); }
@media (min-width: 52rem) { .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.trio { display: grid; gap: 2.2rem clamp(1.6rem, 4vw, 3rem); }
@media (min-width: 46rem) { .trio { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
.nothing { color: var(--soft); font-style: italic; margin: 0; }
.sum { border-left: 3px solid var(--accent); padding: .15rem 0 .15rem 1rem; margin: 1.8rem 0 0; max-width: 46rem; }
footer { margin-top: clamp(3.5rem, 8vw, 6rem); padding: 1.3rem 0 3rem; border-top: 1px solid var(--line);
  color: var(--soft);
  font-size: .85rem; }

/* tables */
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { font-weight: 500; color: var(--soft); font-size: .8rem; text-align: left; vertical-align: bottom; }
th, td { padding: .42rem 1.2rem .42rem 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
th.n, td.n { text-align: right; }
th.words, td.words { padding: .42rem 1.2rem .42rem 0; min-width: 17rem; }
tbody tr:hover { background: var(--glow); }

.parameters { break-inside: avoid; margin-bottom: 2.2rem; }
.parameters h3 { margin: 0 0 .3rem; }
.parameters td:first-child { width: 58%; }

/* the river */
.river li:has(> .reach) { display: grid; grid-template-columns: minmax(5rem, 34%) minmax(0, 1fr);
  column-gap: clamp(.8rem, 2vw, 1.6rem); }
.reach { position: relative; min-height: 5.6rem; }
.river > li:first-child .reach { border-radius: 5px 5px 0 0; overflow: hidden; }
.reach svg { position: absolute; inset: 0 0 -1px; width: 100%; height: calc(100% + 1px); }
.water { fill: var(--water); }
.flow { fill: none; stroke: #fff; stroke-opacity: .2; stroke-width: 1; vector-effect: non-scaling-stroke; }
.leaving { fill: var(--tint); }
.river .words { padding: .15rem 0 1.6rem; }
.words > p { margin: 0; }
.words > p:first-child { display: flex; align-items: baseline; gap: .6rem; flex-wrap: wrap; }
.words > p:first-child b { font: 500 1.75rem/1.1 var(--serif); font-variant-numeric: tabular-nums lining-nums; }
.meaning { font-size: .86rem; color: var(--soft); }
.reasons { margin-top: .55rem; font-size: .88rem; }
.reasons li { display: grid; grid-template-columns: minmax(4.2em, max-content) minmax(0, 1fr);
  gap: .7rem; padding: .12rem 0; }
.reasons b { text-align: right; white-space: nowrap; }
.reasons + details, .words details { margin-top: .3rem; font-size: .88rem; }

/* bars */
.bars { font-size: .88rem; }
.bars li { display: grid; grid-template-columns: minmax(4rem, 11rem) minmax(2rem, 1fr) minmax(3.2em, auto);
  gap: .8rem;
  align-items: center; padding: .17rem 0; break-inside: avoid; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .track { height: .55rem; }
.bars i { display: block; height: 100%; background: var(--tint); border-radius: 0 2px 2px 0; }
.bars .mark i { background: var(--accent); }
.bars.wide li { grid-template-columns: minmax(5rem, 9rem) minmax(2rem, 1fr) minmax(9em, auto); }
.stack { display: flex; height: .8rem; min-width: 9rem; background: var(--fill); border-radius: 2px; overflow: hidden; }
.stack i { display: block; min-width: 1px; }
.s5 { background: var(--accent); } .s4 { background: var(--tint); }
.s3 { background: color-mix(in srgb, var(--soft) 90%, var(--paper)); }
.s2 { background: color-mix(in srgb, var(--soft) 28%, var(--paper)); }
.s1 { background: color-mix(in srgb, var(--soft) 46%, var(--paper)); }
.s0 { background: color-mix(in srgb, var(--soft) 66%, var(--paper)); }
@media (min-width: 52rem) { .twice { columns: 2; column-gap: clamp(2rem, 6vw, 5rem); } }
.columns { display: flex; align-items: flex-end; gap: clamp(2px, .6vw, .5rem); height: 11rem; font-size: .78rem;
  overflow-x: auto; }
.columns li { flex: 1 1 0; min-width: 2.1rem; max-width: 6rem; height: 100%; display: flex; flex-direction: column;
  justify-content: flex-end; }
.columns .n { text-align: center; color: var(--soft); }
.columns i { display: block; min-height: 1px; flex-shrink: 1; background: var(--accent); border-radius: 2px 2px 0 0; }
.columns .name { text-align: center; padding-top: .3rem; border-top: 1px solid var(--line); }

/* histogram with bands */
.ladder { display: grid; grid-template-columns: 2.6rem minmax(0, 1fr) minmax(10.6rem, 40%); height: 430px;
  font-size: .86rem; }
@media (max-width: 30rem) { .ladder { grid-template-columns: 2.6rem minmax(0, 1fr) 12.4rem; font-size: .8rem; } }
.ladder .ticks, .lines .ticks { position: relative; color: var(--soft); font-size: .76rem; }
.ticks span { position: absolute; right: .6rem; transform: translateY(-50%); white-space: nowrap; }
.plot { position: relative; border-left: 1px solid var(--soft); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot line { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
.plot .all { fill: var(--tint); }
.plot .pick { fill: var(--accent); }
.ladder ol { position: relative; }
.ladder ol li { position: absolute; left: .9rem; right: 0; transform: translateY(-50%); display: flex; gap: .6rem;
  justify-content: space-between; white-space: nowrap; line-height: 1.2; }
.ladder .none { color: var(--soft); }
.ladder .none b { font-weight: 400; }
.key { font-size: .82rem; color: var(--soft); margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .45rem;
  vertical-align: -.08rem; }
.key .all { background: var(--tint); } .key .pick, .key .smooth { background: var(--accent); }
.key .raw { background: var(--tint); }
.key .smooth, .key .raw { height: 3px; vertical-align: .22rem; }

/* histogram from left to right, with marks */
.histogram { display: grid; grid-template-rows: 1.7rem 11rem 1.6rem; font-size: .82rem; margin-right: 3.5rem; }
.histogram .marks, .histogram .below { position: relative; color: var(--soft); }
.histogram .marks span { position: absolute; left: 0; padding-left: .35rem; white-space: nowrap; }
.histogram .below { font-size: .76rem; }
@media (max-width: 40rem) { .histogram { margin-right: 2rem; } .histogram .marks small { display: none; } }
.histogram .plot { border-left: 0; border-bottom: 1px solid var(--soft); }
.histogram .plot line { stroke: var(--soft); stroke-dasharray: 3 3; }

/* lines */
.lines { display: grid; grid-template-columns: 3.4rem minmax(0, 1fr); grid-template-rows: auto 9.5rem 1.6rem; }
.lines.tall, .tall .lines { grid-template-rows: auto clamp(15rem, 34vw, 23rem) 1.6rem; }
.lines .label { grid-row: 1; grid-column: 1 / -1; margin: 0 0 .8rem; font-weight: 500; font-size: .92rem; }
.lines .ticks { grid-row: 2; } .lines .plot { grid-row: 2; grid-column: 2; border-left: 0;
  border-bottom: 1px solid var(--soft); }
.lines .below { grid-row: 3; grid-column: 2; position: relative; color: var(--soft); font-size: .76rem; }
.below span { position: absolute; top: .35rem; transform: translateX(-50%); }
.plot polyline { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.plot polyline.raw { stroke: var(--tint); stroke-width: 1.4; }
.t0 { --shade: color-mix(in srgb, var(--accent) 100%, var(--ink)); }
.t1 { --shade: color-mix(in srgb, var(--accent) 62%, var(--paper)); }
.t2 { --shade: #c08a3e; } .t3 { --shade: #b4533c; }
.plot polyline.t0, .plot polyline.t1, .plot polyline.t2, .plot polyline.t3 { stroke: var(--shade); stroke-width: 1.8; }
.key .t0, .key .t1, .key .t2, .key .t3 { background: var(--shade); height: 3px; vertical-align: .22rem; }

/* pictures */
.sheet { columns: 2 11rem; column-gap: 1.4rem; }
@media (min-width: 40rem) { .sheet { columns: 4 13rem; } }
.sheet figure { break-inside: avoid; margin-bottom: 1.9rem; }
.sheet img { width: 100%; }
figcaption { font-size: .82rem; line-height: 1.45; margin-top: .55rem; }
figcaption .file { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figcaption small { display: block; margin-top: .2rem; }
.caption summary { color: var(--ink); list-style: none; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 4; overflow: hidden; }
.caption summary::-webkit-details-marker { display: none; }
.caption[open] summary { -webkit-line-clamp: none; }
.caption b { color: var(--accent); font-weight: 500; }
.refused { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: 1.6rem 1.2rem; }
.refused img, .refused .blank { width: 100%; aspect-ratio: 4 / 3; object-fit: cover; }
.refused img { opacity: .82; filter: saturate(.75); }
.veiled img { filter: blur(18px); clip-path: inset(0); transition: filter .2s; }
.veiled:hover img, .veiled:focus-within img, .veiled:active img { filter: none; }
.blank { display: grid; place-items: center; text-align: center; padding: .8rem; border: 1px dashed var(--line);
  border-radius: 3px;
  color: var(--soft); font-size: .78rem; line-height: 1.35; min-height: 6rem; overflow: hidden;
  background: repeating-linear-gradient(135deg, transparent 0 9px, var(--fill) 9px 10px); }
.blank span { background: var(--paper); padding: .1rem .4rem; }
.groups { display: grid; gap: 2rem clamp(1.6rem, 4vw, 3rem);
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.group { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .7rem; align-items: start; }
.group img, .group .blank { width: 100%; aspect-ratio: 4 / 3; object-fit: cover; min-height: 0; }
.group .kept img, .group .kept .blank { outline: 2.5px solid var(--accent); outline-offset: 2px; }
.group .kept figcaption b { color: var(--accent); }
.reel { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: .4rem 1.2rem; padding: .9rem 0;
  border-top: 1px solid var(--line); }
.reel .name { display: grid; align-content: start; }
.film { display: flex; gap: .5rem; align-items: start; }
.film figure { flex: 0 1 6.6rem; min-width: 3.6rem; }
.film img, .film .blank { width: 100%; aspect-ratio: 1; object-fit: cover; min-height: 0; padding: .2rem; }
.film img { padding: 0; }
.film figcaption { text-align: center; color: var(--soft); font-size: .76rem; margin-top: .25rem; }
.film.whole img { aspect-ratio: auto; }
.film .gap { flex: 1 1 auto; align-self: center; text-align: center; color: var(--soft); font-size: .76rem;
  padding: 0 .2rem; }
@media (max-width: 46rem) { .reel { grid-template-columns: minmax(0, 1fr); } .film { flex-wrap: wrap; }
  .film figure { flex: 0 0 calc(25% - .4rem); } .film .gap { flex: 1 0 100%; text-align: left; }
  .reel .name { display: flex; flex-wrap: wrap; gap: .1rem .8rem; align-items: baseline; } }

/* search */
.search label { display: grid; gap: .4rem; max-width: 34rem; margin-bottom: .7rem; font-size: .88rem; }
.search label[hidden], .search li[hidden] { display: none; }
.search input { font: inherit; font-size: 1.05rem; color: inherit; background: var(--fill); padding: .6rem .8rem;
  border: 1px solid var(--line); border-radius: 4px; width: 100%; }
.search output { color: var(--soft); font-size: .88rem; }
.search ol { max-height: 30rem; overflow-y: auto; margin-top: .7rem; border: solid var(--line); border-width: 1px 0; }
.search li { padding: .55rem 0; border-bottom: 1px solid var(--line); font-size: .88rem; line-height: 1.45;
  content-visibility: auto; contain-intrinsic-size: auto 3.4rem; }
.search li::after { content: ""; display: block; clear: both; }
.search li small { display: block; }
.search li img { float: left; width: 4.2rem; height: 4.2rem; object-fit: cover; margin-right: .9rem; }
.painted { display: grid; gap: 1.4rem clamp(1.6rem, 4vw, 3.2rem); align-items: start; }
.painted + .painted { margin-top: 3rem; }
@media (min-width: 46rem) { .painted { grid-template-columns: minmax(0, 1fr) minmax(0, 1.1fr); } }
.painted img { width: 100%; }
blockquote { margin: 0 0 1.4rem; font: 400 1.2rem/1.45 var(--serif); }
blockquote small { display: block; margin-top: .5rem; font-family: var(--sans); }
@media print { nav { display: none; } section { break-inside: avoid-page; } body { max-width: none; } }
"""
