"""How long `import xmodseg` with all its modules takes beyond `import torch`. Medians of interleaved fresh processes.

    python benchmarks/imports.py [--runs 7]
"""
import argparse, pkgutil, statistics, subprocess, sys
import xmodseg

def seconds(code):
    "Of processor time in a fresh process: what a busy neighbour does not change."
    r = subprocess.run([sys.executable, '-c', f'import time; t = time.process_time()\n{code}\nprint(time.process_time() - t)'], capture_output=True, text=True, check=True)
    return float(r.stdout)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--runs', type=int, default=7)
    runs = ap.parse_args().runs
    modules = sorted(m.name for m in pkgutil.iter_modules(xmodseg.__path__) if m.name != '_modidx')
    calls = {'import torch': 'import torch', 'all but view': 'import xmodseg, ' + ', '.join(f'xmodseg.{m}' for m in modules if m != 'view'), 'all modules': 'import xmodseg, ' + ', '.join(f'xmodseg.{m}' for m in modules)}
    times = {k: [] for k in calls}
    for i in range(runs + 1):
        for k, code in calls.items():
            t = seconds(code)
            if i: times[k].append(t)   # the first round warms the disk
    s = {k: statistics.median(v) for k,v in times.items()}
    print(f'{len(modules)} modules, medians of {runs} fresh processes, seconds of processor time')
    for k, v in s.items(): print(f'{k:14s} {v:.2f} s')
    print(f"all modules: +{s['all modules'] - s['import torch']:.2f} s over import torch (goal 0.5)")
