"""Compare one run with the record; the exit code is 1 when a metric is worse than recorded by more than the tolerance.

    python dev/compare_results.py RUN/metrics.json results/40_sadn_full.json --tolerance 0.03 hd=0.3 hd95=0.3

A tolerance is a difference for scores between 0 and 1 where more is better, and a share of the recorded value for everything else.
Rows that the run does not hold are named and not judged; a row that it holds must hold every recorded number.
"""
import argparse
from pathlib import Path
from results import Refused, direction, flat, load, mean

def tolerances(words):
    "'0.03 hd=0.3' as (0.03, {'hd': 0.3})."
    try: named = {k: float(v) for k, v in (w.split('=') for w in words if '=' in w)}; plain = [float(w) for w in words if '=' not in w]
    except ValueError: raise Refused(f'--tolerance {" ".join(words)}: needed numbers and NAME=NUMBER, as in 0.03 hd=0.3')
    if len(plain) > 1: raise Refused(f'--tolerance: one number for all, found {plain}')
    return (plain or [0.])[0], named

def floor(metric, recorded, share):
    "The worst value that still passes."
    sign = direction(metric)
    unit = 1. if sign > 0 and abs(recorded) <= 1 else abs(recorded)
    return recorded - sign*share*unit

def numbers_of(record):
    "Every number of a run or record, gap closed included, as {(row, output, metric): mean}."
    cells = {**flat(record['rows']), **{(r, '', 'gap_closed'): v for r, v in (record.get('gap_closed') or {}).items()}}
    return {k: mean(v) for k, v in cells.items()}

def compare(run, record, plain=0., named={}):
    "(lines for every number, faults)."
    for key in ('method', 'size'):
        if run.get(key) != record.get(key): raise Refused(f'{key}: the run has {run.get(key)!r}, the record {record.get(key)!r}; compare like with like')
    rows, lines, faults = set(run['rows']), [], []
    if not rows & set(record['rows']): raise Refused(f'no common row: the run holds {sorted(rows)}, the record {sorted(record["rows"])}')
    got = numbers_of(run)
    for (row, output, metric), want in numbers_of(record).items():
        name, value = '.'.join(filter(None, (row, output, metric))), got.get((row, output, metric))
        if row not in rows: continue
        if want is None: continue
        least = floor(metric, want, named.get(metric, plain))
        bad = value is None or (value - least)*direction(metric) < -1e-12
        lines.append(f'{"WORSE" if bad else "ok":6}{name:30}{"absent" if value is None else format(value, ".4f"):>10}   recorded {want:.4f}, passes from {least:.4f}')
        if bad: faults.append(name)
    return lines + [f'not run: {r}' for r in record['rows'] if r not in rows], faults

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('run', type=Path); ap.add_argument('record', type=Path); ap.add_argument('--tolerance', nargs='+', default=['0'])
    a = ap.parse_args()
    lines, faults = compare(load(a.run), load(a.record), *tolerances(a.tolerance))
    print('\n'.join(lines))
    if faults: raise Refused(f'under the recorded value: {", ".join(faults)}')
