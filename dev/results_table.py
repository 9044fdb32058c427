"""Recorded results in markdown, from results/*.json: mean ± population standard deviation over the seeds.

    python dev/results_table.py            print them;  dev/readme.py puts the short table into README.md, the whole ones into RESULTS.md
"""
import re
from results import Refused, load, mean, root, shown, spread

# lines of the short table: record, what is scored, on whom, metric, then row and output without adaptation, here, and of the bound
headlines = [l.split(' | ') for l in """
40_sadn_small | vertebrae in cone-beam CT | generated | dice | source y_l | M5 y_l | supervised y_l
40_sadn_neck_small | bone in cone-beam CT | real necks, simulated scanner | dice | source y_l | M5 y_l | supervised y_l
41_cyclegan3d_small | surface of vertebrae from MR | generated | p2s_mm | none all | gc all | real_ct all
41_cyclegan3d_spine_mr | vertebral bodies, T2 to T1 | real lumbar spines | dice | T2_to_T1 source | T2_to_T1 adapted | T2_to_T1 supervised
41_cyclegan3d_spine_mr | vertebral bodies, T1 to T2 | real lumbar spines | dice | T1_to_T2 source | T1_to_T2 adapted | T1_to_T2 supervised
41_cyclegan3d_spine_ct | vertebral bodies, MR to CT | real spines and chests | inside | none all | gc_absolute all | –
44_tdgan_small | four organs in X-rays | generated | dice | Vanilla mean | TD-GAN mean | Supervised mean
44_tdgan_films | lungs in X-rays, by translation | real films | dice | Vanilla lung | TD-GAN lung | Supervised lung
44_tdgan_films_long | lungs in X-rays, by own answers | real films | dice | Vanilla lung | Self1 lung | Supervised lung
""".strip().splitlines()]

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
             f'[`results/{name}`](results/{name})', '', f'`{r["command"]}`', '', '| ' + ' | '.join(head) + ' |', '|' + ' --- |'*len(head)]
    for row, outputs in sorted(r['rows'].items(), key=lambda kv: kv[0] not in ('source', 'supervised', 'Vanilla', 'Supervised', 'none', 'real_ct')):   # bounds first
        for i, (output, ms) in enumerate((o, ms) for o, ms in outputs.items() if not re.fullmatch(r'[CTL]\d+', o)):   # single vertebrae stand in the file alone
            gap = [cell('gap_closed', gaps[row]) if i == 0 and row in gaps else ''] if gaps else []
            lines.append('| ' + ' | '.join([row if i == 0 else '', output, *(cell(m, ms[m]) if m in ms else '–' for m in metrics), *gap]) + ' |')
    return '\n'.join(lines)

def headline(folder=root/'results', text=''):
    "The short table: a line for each number that speaks for a method; `text` is RESULTS.md, whose headings are linked."
    head = ['what', 'patients', 'measure', 'row', 'not adapted', 'here', 'bound', 'gap closed']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + ' --- |'*len(head)]
    for name, what, who, metric, *places in headlines:
        r = load(folder/f'{name}.json')
        rows, gaps = r['rows'], r.get('gap_closed') or {}
        values = [rows[p.split()[0]][p.split()[1]][metric] if p != '–' else None for p in places]
        told = [cell(metric, v) if v else '–' for v in values]
        share = mean(gaps.get(places[1].split()[0]))   # the mean of the shares of the seeds, as in the whole table
        lines.append('| ' + ' | '.join([f'[{what}](../RESULTS.md{anchor(text, name)})', who, shown[metric], f'`{places[1]}`', *told, '–' if share is None else f'{100*share:.0f} %']) + ' |')
    return '\n'.join(lines)

def slug(heading):
    "What GitHub makes of a heading."
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')

def anchor(text, name):
    "`#its-heading` of the heading above the block of a record; empty where the text has none."
    heads = re.findall(r'^#+ (.+)$', text.split(f'<!-- {name} -->')[0], re.M) if f'<!-- {name} -->' in text else []
    return f'#{slug(heads[-1])}' if heads else ''

def tables(folder=root/'results'):
    "record -> its whole table, in the order of the notebooks' numbers."
    return {p.stem: section(p.name, load(p)) for p in sorted(folder.glob('*.json'))}

def refuse_untold(text, records):
    "Every record has its place in RESULTS.md, and every place its record."
    places = set(re.findall(r'^<!-- (\w+) -->$', text, re.M))
    if odd := sorted(places ^ set(records)): raise Refused(f'RESULTS.md: {", ".join(odd)} stands on one side only; a record needs <!-- name --> and <!-- /name -->, and a place its results/name.json')

if __name__ == '__main__': print(headline(), *tables().values(), sep='\n\n')
