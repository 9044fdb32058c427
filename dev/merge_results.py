"""Merge the metrics.json of several seeds (or of several rows of one seed) into one record.

    python dev/merge_results.py results/40_sadn_full.json RUN0/metrics.json RUN1/metrics.json RUN2/metrics.json

Runs of one seed may hold different rows; every row must be there for every seed. `minutes` is the mean over the seeds.
With `--folds` the runs are the parts of one cross-validation, of one seed: a part (`-p fold`) takes the place of a seed.
"""
import argparse, json, os
from pathlib import Path
from results import Refused, flat, load, same

def agreed(runs, key):
    "The one value of a key that every run shares."
    values = {json.dumps(r.get(key)): p for p, r in runs}
    if len(values) > 1: raise Refused(f'{key} differs: ' + ', '.join(f'{v} in {p}' for v, p in values.items()) + '; merge only runs of one setting')
    return json.loads(next(iter(values)))

def plain(command, own=('seed', 'out')):
    "The command without what differs between the runs: seed and folder, or the fold."
    words, out, i = command.split(), [], 0
    while i < len(words):
        if words[i] == '-p' and words[i+1:i+2] and words[i+1] in own: i += 3; continue
        if words[i] == '-p' and words[i+1:i+2] and words[i+1].split('=')[0] in own and '=' in words[i+1]: i += 2; continue
        out.append(words[i]); i += 1
    return ' '.join(out)

def fold_of(command):
    "Which part of a cross-validation a run held out: its `-p fold`, 0 where there is none."
    words = command.split()
    return next((int(v) for a, k, v in zip(words, words[1:], words[2:]) if a == '-p' and k == 'fold'), 0)

def by_seed(runs):
    "seed -> {(row, output, metric): value}, seed -> {row: gap}, seed -> minutes; a number given twice is refused."
    cells, gaps, minutes = {}, {}, {}
    for path, r in runs:
        s = r['seed']
        c, g = cells.setdefault(s, {}), gaps.setdefault(s, {})
        for target, new in ((c, flat(r['rows'])), (g, r.get('gap_closed') or {})):
            twice = sorted(map(str, target.keys() & new.keys()))
            if twice: raise Refused(f'{path}: seed {s} already has {", ".join(twice[:3])}; give each run once, or --folds for the parts of a cross-validation')
            target.update(new)
        minutes[s] = minutes.get(s, 0) + r['minutes']
    return cells, gaps, minutes

def lists(per_seed, seeds, what):
    "{key: value} of each seed as {key: [value per seed]}; a seed that lacks a key is refused."
    keys = list(dict.fromkeys(k for s in seeds for k in per_seed[s]))
    for s in seeds:
        absent = [k for k in keys if k not in per_seed[s]]
        if absent: raise Refused(f'seed {s} lacks {what} {", ".join(map(str, absent[:3]))}; run it, or leave that row out of the other seeds')
    return {k: [per_seed[s][k] for s in seeds] for k in keys}

def merge(paths, folds=False):
    "The record of the runs in `paths`, one for each seed or, with `folds`, for each part of a cross-validation."
    runs = [(p, load(p)) for p in paths]
    for p, r in runs:
        absent = [k for k in (*same, 'seed', 'hardware', 'minutes', 'rows') if k not in r]
        if absent: raise Refused(f'{p}: lacks {", ".join(absent)}; was it written by a 4x notebook?')
    if folds:
        one = agreed(runs, 'seed')
        for _, r in runs: r['seed'] = fold_of(r['command'])
    for _, r in runs: r['command'] = plain(r['command'], ('seed', 'out', *(('fold',) if folds else ())))
    cells, gaps, minutes = by_seed(runs)
    seeds, rows = sorted(cells), {}
    for (row, output, metric), v in lists(cells, seeds, 'the number').items(): rows.setdefault(row, {}).setdefault(output, {})[metric] = v
    return dict(**{k: agreed(runs, k) for k in ('method', 'size')}, **(dict(seeds=[one], folds=seeds) if folds else dict(seeds=seeds)), steps=agreed(runs, 'steps'),
                hardware=' / '.join(dict.fromkeys(r['hardware'] for _, r in runs)), minutes=round(sum(minutes.values())/len(seeds), 2),
                command=agreed(runs, 'command'), rows=rows, gap_closed=lists(gaps, seeds, 'the gap closed of'))

def write(record, path):
    "One file, whole or not at all."
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False) + '\n'
    tmp = path.with_name(path.name + '.part')
    tmp.write_text(text, encoding='utf-8')
    os.replace(tmp, path)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('record', type=Path, help='results/NAME.json, replaced'); ap.add_argument('runs', type=Path, nargs='+', help='metrics.json of each run'); ap.add_argument('--folds', action='store_true', help='the runs are parts of one cross-validation')
    a = ap.parse_args()
    if a.record.name == 'metrics.json': raise Refused(f'{a.record}: looks like a run; the first argument is the record to write')
    record = merge(a.runs, a.folds)
    write(record, a.record)
    print(f'{a.record}: {record["method"]} {record["size"]}, {"folds" if a.folds else "seeds"} {record.get("folds", record["seeds"])}, rows {" ".join(record["rows"])}')
