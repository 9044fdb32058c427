"""Put a trained row into the package: its weights, and beside them a note that says where they come from.

    python dev/ship.py runs/sadn/M5+idt [--name sadn_small]

The folder is one that nbs/40_train_sadn.ipynb wrote. Nothing is chosen here: name the run before its scores are known.
"""
import argparse, hashlib, json, os, shutil
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

def ship(run, name, into=root/'xmodseg'/'weights'):
    "Copy, or refuse and leave what is there."
    source = Path(run)/'weights.safetensors'
    if not source.is_file(): raise Refused(f'{source}: no such file; train the row with nbs/40_train_sadn.ipynb first')
    if (size := source.stat().st_size) > limit: raise Refused(f'{source}: {size} bytes; at most {limit} may ship: train size=small')
    from xmodseg.sadn import load_sadn
    load_sadn(source)   # a file that does not load must not ship
    text, part = json.dumps(note(Path(run), source), indent=1) + '\n', into/f'{name}.part'
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, part); os.replace(part, into/f'{name}.safetensors')
    (into/f'{name}.json').write_text(text, encoding='utf-8')
    return text

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('run', type=Path, help='OUT/ROW of a finished run'); ap.add_argument('--name', default='sadn_small')
    a = ap.parse_args()
    print(ship(a.run, a.name), end='')
