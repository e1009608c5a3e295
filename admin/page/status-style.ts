/** The status page's style: one column on a phone, tables with room; light and dark as the reader has it. */
export const STATUS_STYLE = `
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --text: #1b1f24; --dim: #5b6570; --line: #dfe3e8;
  --good: #1a7f4b; --busy: #0b63c5; --warn: #9a5b00; --bad: #c0262d; --track: #e7eaee; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --card: #1d2126; --text: #e8eaed; --dim: #9aa5b1; --line: #333a42;
  --good: #4cc38a; --busy: #6cb0ff; --warn: #f0b354; --bad: #ff7b80; --track: #2c333b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 16px; background: var(--bg); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; margin-bottom: 12px; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 16px; margin: 0 0 8px; }
h2 small { color: var(--dim); font-weight: normal; font-size: 13px; margin-left: 8px; }
p { margin: 0; }
#state { color: var(--dim); }
#state.bad, .bad { color: var(--bad); }
#state.good, .good { color: var(--good); } .busy { color: var(--busy); } .warn { color: var(--warn); } .dim { color: var(--dim); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; margin-bottom: 12px; }
ul.problems { margin: 0; padding-left: 20px; color: var(--bad); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px 16px; margin: 0; }
dl.facts div { min-width: 0; }
dt { color: var(--dim); font-size: 13px; }
dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.bar { background: var(--track); border-radius: 4px; height: 8px; overflow: hidden; min-width: 60px; margin: 4px 0; }
.bar > i { display: block; height: 100%; background: var(--busy); }
.bar > i.good { background: var(--good); } .bar > i.warn { background: var(--warn); } .bar > i.bad { background: var(--bad); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--dim); font-weight: normal; font-size: 13px; padding: 4px 12px 4px 0; }
td { padding: 6px 12px 6px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 130px; }
@media (min-width: 701px) { td.tight { white-space: nowrap; width: 1%; } }
td small { display: block; color: var(--dim); font-size: 13px; }
form { margin: 0 0 12px; } input, button { font: inherit; padding: 6px 10px; max-width: 100%; }
@media (max-width: 700px) {
  body { padding: 10px; }
  table, tbody, tr, td { display: block; }
  thead { display: none; }
  tr { border-top: 1px solid var(--line); padding: 8px 0; }
  tr:first-child { border-top: 0; }
  td { border: 0; padding: 2px 0; display: grid; grid-template-columns: 92px minmax(0, 1fr); gap: 8px; }
  td::before { content: attr(data-label); color: var(--dim); font-size: 13px; }
  td:first-child { font-weight: 600; }
  td small { font-weight: normal; }
}
`;
