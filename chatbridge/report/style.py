"""The page's style sheet, its one small script, and the shell that holds both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from chatbridge.report.markup import Html, tag

STYLE = (
    """
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#15181e;--soft:#5a6270;--edge:#e0e4ea;--grid:#e9ecf1;
--blue:#1d5fd0;--green:#137a43;--amber:#9a5b00;--red:#c62828;--wash:#fff6e5;
--c0:#2a78d6;--c1:#e3681c;--c2:#12956a;--c3:#8a4fd3;--c4:#d1417f;--c5:#a37900;--c6:#0f8fa8;--c7:#6b7280}
@media(prefers-color-scheme:dark){:root{--bg:#0e1014;--card:#16191f;--ink:#e7eaef;--soft:#9ba4b2;--edge:#2a2f39;
--grid:#242932;--blue:#6aa5f8;--green:#4cc38a;--amber:#f0b455;--red:#ff7b72;--wash:#2a2214;
--c0:#5b9df0;--c1:#f08a4b;--c2:#35bd8c;--c3:#b188f0;--c4:#ee74a6;--c5:#d3a92c;--c6:#3cbfd6;--c7:#a0a8b5}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.75rem;line-height:1.2;margin:2px 0 0;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:36px 0 12px;letter-spacing:-.005em}
h3{font-size:.95rem;margin:0;font-weight:600}
p{margin:4px 0}a{color:var(--blue)}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere;unicode-bidi:isolate}
pre{margin:8px 0;padding:12px 14px;background:var(--bg);border:1px solid var(--edge);border-radius:8px;overflow:auto;
max-height:32rem;white-space:pre-wrap;overflow-wrap:anywhere}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.kind{color:var(--soft);font-size:.85rem;margin:0}
.title{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center}
.pill{display:inline-flex;align-items:center;gap:7px;padding:2px 12px;border-radius:99px;font-size:.85rem;
font-weight:600;border:1px solid currentColor}
.pill::before{content:"";width:8px;height:8px;border-radius:50%;background:currentColor}
.running{color:var(--blue)}.finished{color:var(--green)}.stopped{color:var(--red)}
@media(prefers-reduced-motion:no-preference){.pill.running::before{animation:beat 1.6s ease-in-out infinite}}
@keyframes beat{50%{opacity:.25}}
.why{color:var(--soft);overflow-wrap:anywhere}
.progress{height:8px;border-radius:99px;background:var(--edge);overflow:hidden;margin:16px 0 18px}
.progress i{display:block;height:100%;border-radius:99px;background:currentColor}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:12px;margin:0;padding:0}
.tiles>div,.chart,.card{background:var(--card);border:1px solid var(--edge);border-radius:12px}
.tiles>div{padding:12px 16px;min-width:0}
.tiles dt{color:var(--soft);font-size:.82rem}
.tiles dd{margin:0;overflow-wrap:anywhere}
.tiles .big{font-size:1.45rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tiles .more{color:var(--soft);font-size:.82rem}
.alerts{list-style:none;margin:16px 0 0;padding:10px 16px;border-radius:12px;background:var(--wash);
border:1px solid var(--amber)}
.alerts li{margin:4px 0;padding-left:1.5em;text-indent:-1.5em;overflow-wrap:anywhere}
.alerts li::before{content:"\\25B2";color:var(--amber);font-size:.75em;display:inline-block;width:2em;text-indent:0}
nav{position:sticky;top:0;z-index:3;background:var(--bg);margin-top:18px;border-bottom:1px solid var(--edge);
display:flex;gap:4px 18px;overflow-x:auto;padding:9px 0;font-size:.9rem;white-space:nowrap}
nav a{text-decoration:none;color:var(--soft)}nav a:hover,nav a:focus{color:var(--ink)}
section{scroll-margin-top:44px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px}

.chart{margin:0 0 14px;padding:14px 16px 12px;min-width:0}.grid .chart{margin:0}
.card{padding:14px 16px;margin:0 0 14px;min-width:0}
.note,.none{color:var(--soft);font-size:.84rem;margin:1px 0 6px;max-width:75ch}
p.broken{color:var(--red);font-size:.84rem;overflow-wrap:anywhere}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;margin:6px 0;padding:0;font-size:.86rem}
.legend li{display:inline-flex;gap:6px;align-items:center;min-width:0}
.legend .name{overflow-wrap:anywhere}.legend data{color:var(--soft);font-variant-numeric:tabular-nums}
.legend i,.tip i{flex:none;width:16px;height:0;border-top:3px solid var(--c);border-radius:2px}
.legend i.dashed,.tip i.dashed{border-top-style:dashed}
.chart>input{position:absolute;opacity:0}
.chart>label{display:inline-block;font-size:.8rem;padding:1px 11px;border:1px solid var(--edge);color:var(--soft);
cursor:pointer;border-radius:0 7px 7px 0}
.chart>input.log+label{border-radius:7px 0 0 7px;border-right:0}
.chart>input:checked+label{background:var(--ink);color:var(--card);border-color:var(--ink)}
.chart>input:focus-visible+label{outline:2px solid var(--blue);outline-offset:2px}
.chart>input.linear:checked~.plot.log,.chart>input.log:checked~.plot.linear{display:none}
.plot{position:relative;display:grid;grid-template-columns:46px minmax(0,1fr);padding:10px 10px 0 0;font-size:.76rem;
color:var(--soft);font-variant-numeric:tabular-nums;touch-action:pan-y}
.left,.under{position:relative}
.left span{position:absolute;right:8px;transform:translateY(-50%);white-space:nowrap}
.under{grid-column:2;height:24px}
.under span{position:absolute;top:4px;transform:translateX(-50%)}
.under::before{content:"step";position:absolute;top:4px;right:calc(100% + 8px)}
.picture{position:relative;height:190px}
.chart.tall .picture{height:320px}
.plot.events{grid-template-columns:132px minmax(0,1fr)}
.plot.events .picture{height:calc(26px*var(--rows))}
svg{display:block;width:100%;height:100%;overflow:visible}
svg path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .line,svg .raw,svg .dot{stroke:var(--c)}
svg .line{stroke-width:2}svg .raw{stroke-width:1;opacity:.24}
svg .dashed{stroke-dasharray:6 4}
svg .dot{stroke-width:7}svg .dot.bad{stroke:var(--red)}
svg .broken{stroke:var(--red);stroke-width:2;stroke-linecap:butt}
svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:1 4}svg .mark.bad{stroke:var(--red)}
"""
    + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(8))
    + """
.hair{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);opacity:.6;pointer-events:none}
.tip{position:absolute;top:4px;z-index:2;pointer-events:none;background:var(--card);color:var(--ink);
border:1px solid var(--edge);border-radius:8px;padding:6px 10px;box-shadow:0 4px 14px rgb(0 0 0/.14);max-width:70%}
.tip div{display:flex;gap:7px;align-items:center}.tip b{margin-left:auto;padding-left:10px}
details{margin-top:8px;font-size:.88rem}
summary{cursor:pointer;color:var(--soft);width:fit-content}summary:hover{color:var(--ink)}
.scroll{overflow-x:auto;position:relative;margin:6px 0}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--edge);vertical-align:top}
thead th{color:var(--soft);font-weight:500;white-space:nowrap}
tbody th{font-weight:500;overflow-wrap:anywhere}
tbody th,td:not(.n){min-width:7rem}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td:last-child,th:last-child{padding-right:0}
.mix{list-style:none;margin:8px 0 0;padding:0}.mix li{margin:0 0 12px}
.mix .words{display:flex;flex-wrap:wrap;gap:0 14px;font-size:.9rem}.mix .words .name{font-weight:500}
.mix .words span:last-child{margin-left:auto;color:var(--soft);font-variant-numeric:tabular-nums}
.bar{position:relative;height:12px;border-radius:4px;background:var(--grid);margin-top:3px}
.bar i{display:block;height:100%;border-radius:4px;background:var(--c,var(--soft))}
.bar b{position:absolute;top:-3px;bottom:-3px;width:2px;background:var(--ink)}
.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 18px;margin:0;font-size:.9rem}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:.82rem;padding-top:26px;padding-bottom:34px}
@media(min-width:1120px){.grid>.chart:last-child:nth-child(3n+1){grid-column:1/-1}}
@media(min-width:740px) and (max-width:1119px){.grid>.chart:last-child:nth-child(2n+1){grid-column:1/-1}}
@media(max-width:900px){.tiles{grid-template-columns:repeat(3,minmax(0,1fr))}}
@media(max-width:600px){main,header,footer{padding-left:12px;padding-right:12px}header{padding-top:18px}
h1{font-size:1.4rem}.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px}.tiles>div{padding:10px 12px}
.tiles .big{font-size:1.2rem}.chart,.card{padding:12px}.chart.tall .picture{height:240px}
.under .odd{display:none}.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:8px}
.plot.events{grid-template-columns:104px minmax(0,1fr)}}
@media print{nav,details:not([open]){display:none}body{background:#fff}.chart,.card,.tiles>div{break-inside:avoid}}
"""
)

# A pointer over a plot reads the curves there: their path data is the only copy of the numbers on the page.
SCRIPT = """
'use strict';
const points=path=>{if(path._p)return path._p;const out=[];let x=0,y=0,n=[],at='';
for(const t of path.getAttribute('d').match(/[Ml]|-?\\d+/g)){if(t==='M'||t==='l'){at=t;n=[];continue}
n.push(+t);if(n.length===2){if(at==='M'){[x,y]=n}else{x+=n[0];y+=n[1];out.push([x,y])}n=[]}}
return path._p=out};
const near=(p,x)=>{let a=0,b=p.length-1;while(b-a>1){const m=(a+b)>>1;p[m][0]<x?a=m:b=m}
return x-p[a][0]<p[b][0]-x?p[a]:p[b]};
const make=(name,style,text)=>{const e=document.createElement(name);e.className=style;e.textContent=text||'';return e};
const plots=[...document.querySelectorAll('.plot')];
for(const plot of plots){const box=plot.querySelector('.picture'),d=plot.dataset;
plot._hair=make('div','hair');plot._hair.hidden=true;box.append(plot._hair);
const tip=make('div','tip');tip.hidden=true;box.append(tip);
const leave=()=>{tip.hidden=true;for(const p of plots)p._hair.hidden=true};
const move=e=>{const r=box.getBoundingClientRect(),f=Math.min(1,Math.max(0,(e.clientX-r.left)/r.width));
for(const p of plots){p._hair.hidden=false;p._hair.style.left=100*f+'%'}
tip.replaceChildren(make('div','','step '+Math.round(+d.x0+f*(d.x1-d.x0)).toLocaleString('en')));
if('y0' in d)for(const path of plot.querySelectorAll('path.line')){const p=points(path);if(!p.length)continue;
const h=1-near(p,f*4000)[1]/1000,log=plot.classList.contains('log');
let v=log?d.y0*Math.pow(d.y1/d.y0,h):+d.y0+h*(d.y1-d.y0);if('share' in d)v*=100;
const row=make('div','');row.append(make('i',path.getAttribute('class')),make('span','',path.dataset.name),
make('b','',(Math.abs(v)>=1e4?Math.round(v).toLocaleString('en'):String(+v.toPrecision(3)))+('share' in d?'%':'')));
tip.append(row)}
tip.hidden=false;tip.style.left=f<.5?`calc(${100*f}% + 12px)`:'auto';
tip.style.right=f<.5?'auto':`calc(${100*(1-f)}% + 12px)`};
box.addEventListener('pointermove',move);box.addEventListener('pointerdown',move);box.addEventListener('pointerleave',leave)}
const open='open:'+location.pathname,all=[...document.querySelectorAll('details,.chart>input')];
try{const kept=JSON.parse(sessionStorage.getItem(open)||'null');
if(kept&&kept.length===all.length)all.forEach((e,i)=>{'open' in e?e.open=kept[i]:e.checked=kept[i]});
addEventListener('pagehide',()=>sessionStorage.setItem(open,JSON.stringify(all.map(e=>'open' in e?e.open:e.checked))))
}catch{}
"""


def _policy() -> str:
    """Nothing may be fetched, and no script may run but this one, whatever a file name in the run tries."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


POLICY = _policy()


def page(
    title: str, header: Html, sections: Sequence[tuple[str, str, Html | None]], footer: Html, refresh: int | None = None
) -> str:
    """A whole HTML document.

    Args:
        sections: title, key and body of each; those without a body are left out.
        refresh: seconds after which a browser reads it again; None for a page that will not change.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="refresh", content=refresh) if refresh else None,
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    filled = [section for section in sections if section[2]]
    links = [tag("a", name, href=f"#{key}-section") for name, key, _ in filled]
    parts = [tag("section", tag("h2", name), body, id=f"{key}-section") for name, key, body in filled]
    main = tag("main", tag("nav", *links, aria_label="sections"), *parts)
    body = tag("body", header, main, footer, tag("script", Html(SCRIPT)))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"
