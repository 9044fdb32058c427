"""Every gate, in order, with its time; the exit code is 0 only when all of them hold.

    python dev/test.py                      all gates
    python dev/test.py --only pytest        some of them: export chapters pytest train wheel browser
    python dev/test.py --skip browser wheel
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tree
from tree import root

dead = 'http://127.0.0.1:9'     # a proxy that nobody answers: a download fails at once instead of working on one machine only
offline = dict(http_proxy=dead, https_proxy=dead, HTTP_PROXY=dead, HTTPS_PROXY=dead, ALL_PROXY=dead, all_proxy=dead,
               no_proxy='127.0.0.1,localhost', NO_PROXY='127.0.0.1,localhost', HF_HUB_OFFLINE='1')
quiet = dict(JUPYTER_PREFER_ENV_PATH='1', PYDEVD_DISABLE_FILE_VALIDATION='1', PYTHONWARNINGS='ignore::DeprecationWarning', MPLBACKEND='agg')
one_thread = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')   # two workers, two cores

class Failed(Exception): pass

def sh(*words, cwd=root, threads=None, net=False, **env):
    "Run a command with its output on our own; a non-zero exit ends the gate."
    words = [str(w) for w in words]
    print('$', ' '.join(words), flush=True)
    e = {**os.environ, **quiet, **({} if net else offline), **(threads or {}), **env}
    code = subprocess.run(words, cwd=cwd, env=e, stdin=subprocess.DEVNULL).returncode
    if code: raise Failed(f'{" ".join(words)} ended with exit code {code}')

def tool(name): return Path(sys.executable).with_name(name)

def export(tmp):
    "nbdev_export and nbdev_clean change nothing; README.md, RESULTS.md and EQUATIONS.md are in step."
    there = tree.copy(tmp/'export')
    before = tree.state(there)
    for name in ('nbdev_export', 'nbdev_clean'): sh(tool(name), cwd=there, PYTHONPATH=str(there))
    for name in ('equations', 'readme'): sh(sys.executable, f'dev/{name}.py', '--write', cwd=there, PYTHONPATH=str(there))
    lines = tree.changes(before, tree.state(there))
    if lines: raise Failed('out of step with the notebooks (run nbdev_export, nbdev_clean, dev/equations.py --write, dev/readme.py --write):\n  ' + '\n  '.join(lines))

def chapters(tmp):
    "Every chapter executes, each within its minute."
    log = tmp/'chapters.log'
    with open(log, 'w') as f:
        words = [tool('nbdev_test'), '--n_workers', '2', '--timing']
        print('$', *words, flush=True)
        code = subprocess.run([str(w) for w in words], cwd=root, env={**os.environ, **quiet, **offline, **one_thread}, stdout=f, stderr=subprocess.STDOUT).returncode
    text = log.read_text(encoding='utf-8', errors='replace')
    print(text[-20000:], flush=True)
    if code: raise Failed('a chapter does not execute')
    slow = [l for l in text.splitlines() if l.endswith(' secs') and '.ipynb: ' in l and int(l.split()[-2]) > 60]
    if slow: raise Failed('over 60 s: ' + '; '.join(slow))

def pytest(tmp):
    "Values, faults, promises and the rules of the house."
    sh(sys.executable, '-m', 'pytest', 'tests', '-q', '--durations', '10', '-p', 'no:cacheprovider', threads=one_thread)

def train(tmp):
    "Each training notebook runs through papermill at size tiny and leaves a metrics.json."
    def one(nb):
        out, t = tmp/'train'/nb.stem, time.time()
        out.mkdir(parents=True)
        words = [tool('papermill'), nb.relative_to(root), out/nb.name, '-p', 'size', 'tiny', '-p', 'out', out/'run', '--no-progress-bar']
        r = subprocess.run([str(w) for w in words], cwd=root, env={**os.environ, **quiet, **offline, **one_thread}, capture_output=True, text=True, encoding='utf-8')
        print(f'{nb.name}: exit code {r.returncode}, {time.time() - t:.0f} s', flush=True)
        if r.returncode: return f'{nb.name}: {r.stderr[-3000:]}'
        found = list((out/'run').rglob('metrics.json'))
        if len(found) != 1: return f'{nb.name}: {len(found)} metrics.json, one is needed'
        try: rows = json.loads(found[0].read_text(encoding='utf-8'))['rows']
        except Exception as e: return f'{nb.name}: metrics.json cannot be read: {e!r}'
        return None if rows else f'{nb.name}: metrics.json holds no rows'
    nbs = sorted((root/'nbs').glob('4*.ipynb'))
    print(f'$ papermill nbs/4*.ipynb -p size tiny: {len(nbs)} notebooks, two at a time', flush=True)
    with ThreadPoolExecutor(2) as pool: faults = [f for f in pool.map(one, nbs) if f]
    if faults: raise Failed('\n'.join(faults))

def wheel(tmp):
    "The wheel, installed into an empty environment, segments a volume there."
    there = tree.copy(tmp/'source')
    sh(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp/'dist', there)
    built, = (tmp/'dist').glob('*.whl')
    print(f'{built.name}: {built.stat().st_size/1e6:.2f} MB', flush=True)
    sh(sys.executable, '-m', 'venv', tmp/'empty')
    python = tmp/'empty/bin/python'
    sh(python, '-m', 'pip', 'install', '--quiet', 'torch==2.13.0', net=True)
    sh(python, '-m', 'pip', 'install', '--quiet', '-c', root/'constraints.txt', built, net=True)
    away = tmp/'away'; away.mkdir()
    shutil.copy(root/'dev/smoke.py', away/'smoke.py')
    sh(python, '-I', 'smoke.py', cwd=away, threads=one_thread)      # -I: neither the checkout nor PYTHONPATH can help

def browser(tmp):
    "Eight chapters in JupyterLab in a real browser: all cells run, every control changes its picture, nothing is fetched from elsewhere."
    there = tree.copy(tmp/'lab')
    sh(sys.executable, root/'dev/browser.py', there, *'27_spade 12_cbct 13_drr 34_tdgan 03_geometry 08_rigid 25_gradient 31_cyclegan3d'.split(), threads=one_thread)

gates = dict(export=export, chapters=chapters, pytest=pytest, train=train, wheel=wheel, browser=browser)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='+', choices=gates, default=list(gates), metavar='GATE')
    ap.add_argument('--skip', nargs='+', choices=gates, default=[], metavar='GATE')
    a = ap.parse_args()
    before, table = tree.state(), []
    for name, gate in gates.items():
        if name not in a.only or name in a.skip: continue
        print(f'\n=== {name}: {gate.__doc__}', flush=True)
        t = time.time()
        with tempfile.TemporaryDirectory(prefix='xmodseg-') as tmp:
            try: gate(Path(tmp)); fault = ''
            except Failed as e: fault = str(e)
        if fault: print(f'--- {name} failed: {fault}', flush=True)
        table.append((name, fault, time.time() - t))
    left = tree.changes(before, tree.state())
    if left: table.append(('tree', 'the gates changed the checkout: ' + ', '.join(left), 0.))
    print('\n=== summary')
    for name, fault, s in table: print(f'{"FAILED" if fault else "ok":7}{name:10}{s:7.0f} s' + (f'  {fault.splitlines()[0]}' if fault else ''))
    print(f'{sum(s for *_, s in table)/60:.1f} minutes')
    sys.exit(any(fault for _, fault, _ in table))
