"""The table of recorded results in markdown, from results/*.json: mean ± population standard deviation over the seeds.

    python dev/results_table.py            print it;  dev/readme.py puts it into nbs/index.ipynb and README.md
"""
import re
from results import load, mean, root, shown, spread

def cell(metric, values):
    "`0.879 ± 0.004`; a single seed has no spread; a missing number is a dash."
    m = mean(values)
    if m is None: return '–'
    digits = 3 if metric in ('dice', 'dice_whole', 'precision', 'recall', 'ssim', 'ncc', 's_score', 'gap_closed') else 2
    text = f'{m:.{digits}f}'
    return text if not isinstance(values, list) or len(values) < 2 else f'{text} ± {spread(values):.{digits}f}'

def section(name, r):
    "One record: a line that says how it was made, and its table."
    told = [(m, v) for outputs in r['rows'].values() for ms in outputs.values() for m, v in ms.items()]
    metrics = [m for m in dict(told) if m != 'empty' or any(mean(v) for k, v in told if k == m)]   # no slice without an answer: no column
    metrics.sort(key=lambda m: list(shown).index(m) if m in shown else len(shown))
    gaps = r.get('gap_closed') or {}
    head = ['row', 'output', *(shown.get(m, m) for m in metrics), *(['gap closed'] if gaps else [])]
    over = 'fold' if 'folds' in r else 'seed'
    lines = [f'**{r["method"]}, size {r["size"]}**: {r["steps"]} steps, {over}s {" ".join(map(str, r.get("folds", r["seeds"])))}, {r["minutes"]:.0f} minutes a {over} on {r["hardware"]}; '
             f'[`results/{name}`](../results/{name})', '', f'`{r["command"]}`', '', '| ' + ' | '.join(head) + ' |', '|' + ' --- |'*len(head)]
    for row, outputs in sorted(r['rows'].items(), key=lambda kv: kv[0] not in ('source', 'supervised', 'Vanilla', 'Supervised', 'none', 'real_ct')):   # bounds first
        for i, (output, ms) in enumerate((o, ms) for o, ms in outputs.items() if not re.fullmatch(r'[CTL]\d+', o)):   # single vertebrae stand in the file alone
            gap = [cell('gap_closed', gaps[row]) if i == 0 and row in gaps else ''] if gaps else []
            lines.append('| ' + ' | '.join([row if i == 0 else '', output, *(cell(m, ms[m]) if m in ms else '–' for m in metrics), *gap]) + ' |')
    return '\n'.join(lines)

def table(folder=root/'results'):
    "Every record of the folder, in the order of the notebooks' numbers."
    records = sorted(folder.glob('*.json'))
    return '\n\n'.join(section(p.name, load(p)) for p in records) or 'No run is recorded yet.'

if __name__ == '__main__': print(table())
