"""How the chapter on adherence looks, on top of the stylesheet of all pages.

Kind: pure.
"""

from typing import Final

STYLE: Final = """
.key .m-base, .m-base .track i:first-child { background: var(--tint); }
.key .m-finetuned, .m-finetuned .track i:first-child { background: var(--accent); }
.key .m-control, .m-control .track i:first-child { background: #c08a3e; }
.verdict { white-space: nowrap; font-weight: 600; color: var(--accent); }
.verdict.missed { color: color-mix(in srgb, #b4533c 82%, var(--ink)); }
.method p { max-width: 46rem; }
.trials { font-size: .88rem; }
.trials > li { display: grid; grid-template-columns: minmax(5.6rem, 9rem) minmax(0, 1fr); gap: .9rem;
  align-items: center; padding: .55rem 0; border-top: 1px solid var(--line); break-inside: avoid; }
.trials > li.all { font-weight: 600; border-top: 0; }
.trial { display: grid; grid-template-columns: minmax(2rem, 1fr) 4.6em 3.4em; gap: .7rem; align-items: center;
  line-height: 1.3; font-weight: 400; }
.all .trial.m-finetuned { font-weight: 600; }
.trial small { white-space: nowrap; text-align: right; }
.track { position: relative; display: block; height: .55rem; background: var(--fill); border-radius: 2px; }
.track i { display: block; height: 100%; border-radius: 0 2px 2px 0; }
.track .chance { position: absolute; top: -.25rem; bottom: -.25rem; width: 0; border-left: 2px solid var(--ink);
  background: none; border-radius: 0; height: auto; }
.key .chance { width: 0; border-left: 2px solid var(--ink); border-radius: 0; }
.learnt .name b { display: block; }
.learnt .trial { margin-top: .5rem; grid-template-columns: minmax(2rem, 1fr) auto; }
.learnt .film { flex-wrap: wrap; }
.learnt .film figure { flex: 0 0 6.6rem; }
.askeds { display: grid; gap: 2.4rem clamp(1.6rem, 5vw, 4rem); }
@media (min-width: 60rem) { .askeds { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.askeds + details { margin-top: 2.4rem; }
.askeds + details > summary { margin-bottom: 2rem; }
.asked { display: grid; grid-template-columns: minmax(0, 1fr) repeat(3, minmax(0, 7.2rem)); gap: .28rem .7rem;
  align-items: center; align-content: start; font-size: .82rem; break-inside: avoid; }
.asked .words { grid-column: 1 / -1; margin: 0 0 .35rem; font-size: .9rem; line-height: 1.4; }
.asked > small { align-self: end; padding: 0 0 .5rem .15rem; }
.asked figure { align-self: start; margin-bottom: .35rem; }
.asked img, .asked .blank { width: 100%; aspect-ratio: 1; object-fit: cover; min-height: 0; }
.asked figcaption { text-align: center; margin-top: .3rem; font-size: .78rem; color: var(--soft); }
.asked figcaption b { color: var(--ink); }
.chip { justify-self: start; max-width: 100%; padding: .06rem .55rem; border: 1px solid var(--line);
  border-radius: 1rem; background: var(--fill); font-size: .78rem; line-height: 1.4; overflow-wrap: anywhere; }
.mark { justify-self: center; font-size: .78rem; line-height: 1.3; padding: 0 .6rem; border-radius: 1rem; }
.mark.there { background: var(--tint); }
.mark.gone { color: color-mix(in srgb, #b4533c 82%, var(--ink)); box-shadow: inset 0 0 0 1px var(--line); }
@media (max-width: 46rem) { .learnt .film figure { flex: 0 0 calc(25% - .4rem); }
  .learnt .name { display: block; } }
@media (max-width: 34rem) { .asked { grid-template-columns: minmax(0, 1fr) repeat(3, minmax(0, 22%)); gap: .3rem; }
  .asked figcaption { font-size: .7rem; } .chip { font-size: .72rem; }
  .trials > li { grid-template-columns: minmax(0, 1fr); gap: .3rem; }
  .goals thead { display: none; }
  .goals tr { display: grid; grid-template-columns: 1fr 1fr auto; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .goals td, .goals td.n { border: 0; padding: 0; text-align: left; }
  .goals td:first-child { grid-column: 1 / -1; }
  .goals td:nth-child(3)::before { content: "measured "; color: var(--soft); } }
@media (max-width: 26rem) { .asked figcaption b { display: block; } }
"""
