"""Put a trained row into the package: its weights, and beside them a note that says where they come from.

    python dev/ship.py runs/sadn/M5 [--method sadn]
    python dev/ship.py runs/tdgan/TD-GAN --method tdgan

The folder is one that a notebook 4x wrote. Nothing is chosen here: name the run before its scores are known.
"""
import argparse, hashlib, json, os, shutil
from importlib import import_module
from pathlib import Path
from results import Refused, load, root

limit = 3_000_000   # bytes: what a package may carry for a figure

def note(run, path):
    "Where the weights in `path` come from."
    s = load(run/'scores.json')
    absent = [k for k in ('row', 'seed', 'steps', 'scores') if k not in s]
    if absent: raise Refused(f'{run}/scores.json: lacks {", ".join(absent)}; was it written by a 4x notebook?')
    dice = {k: v['dice'] for k, v in s['scores'].items() if 'dice' in v}
    return dict(row=s['row'], seed=s['seed'], steps=s['steps'], dice=dice, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

def ship(run, method='sadn', into=root/'xmodseg'/'weights'):
    "Copy, or refuse and leave what is there."
    source = Path(run)/'weights.safetensors'
    if not source.is_file(): raise Refused(f'{source}: no such file; train the row first')
    if (size := source.stat().st_size) > limit: raise Refused(f'{source}: {size} bytes; at most {limit} may ship: train size=small')
    getattr(import_module(f'xmodseg.{method}'), f'load_{method}')(source)   # a file that does not load must not ship
    text, name = json.dumps(note(Path(run), source), indent=1) + '\n', f'{method}_small'
    part = into/f'{name}.part'
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, part); os.replace(part, into/f'{name}.safetensors')
    (into/f'{name}.json').write_text(text, encoding='utf-8')
    return text

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('run', type=Path, help='OUT/ROW of a finished run'); ap.add_argument('--method', default='sadn', choices=('sadn', 'tdgan', 'cyclegan3d'))
    a = ap.parse_args()
    print(ship(a.run, a.method), end='')
