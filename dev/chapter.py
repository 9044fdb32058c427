"""Make a chapter: text -> notebook, run, clean, export, and its figures as PNG files to look at.

    python dev/chapter.py nbs/27_spade.ipynb                     run, clean, export
    python dev/chapter.py nbs/27_spade.ipynb --text my_spade.py  take the cells from a py:percent text first
    python dev/chapter.py nbs/27_spade.ipynb --write-text my_spade.py   the reverse: notebook -> text to edit
    python dev/chapter.py nbs/27_spade.ipynb --figures figures   also write every figure as PNG
"""
import argparse, base64, os, time
from pathlib import Path
import jupytext, nbformat
from nbclient import NotebookClient
from nbdev.clean import process_write
from nbdev.clean import clean_nb
from nbdev.export import nb_export

root = Path(__file__).resolve().parent.parent

def run(path, timeout):
    "Execute the notebook in its own folder, as Lab does; returns seconds."
    nb, t0 = nbformat.read(path, 4), time.time()
    nb.metadata['kernelspec'] = dict(name='python3', language='python', display_name='python3')
    NotebookClient(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, path)
    return time.time() - t0

def figures(path, folder):
    "Every image/png output as a file; returns the names."
    folder.mkdir(parents=True, exist_ok=True)
    pngs = [o.data['image/png'] for c in nbformat.read(path, 4).cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    names = [folder/f'{path.stem}_{i:02d}.png' for i in range(len(pngs))]
    for n, p in zip(names, pngs): n.write_bytes(base64.b64decode(p))
    return names

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('notebook', type=Path); ap.add_argument('--text', type=Path); ap.add_argument('--write-text', type=Path)
    ap.add_argument('--figures', type=Path); ap.add_argument('--timeout', type=int, default=900)
    ap.add_argument('--no-run', action='store_true'); ap.add_argument('--no-export', action='store_true')
    a = ap.parse_args()
    os.chdir(root)
    if a.write_text:
        jupytext.write(jupytext.read(a.notebook), a.write_text, fmt='py:percent'); raise SystemExit
    if a.text:
        nb = jupytext.read(a.text, fmt='py:percent')
        nb.metadata = {'kernelspec': dict(name='python3', language='python', display_name='python3')}
        nbformat.write(nb, a.notebook)
    if not a.no_export: nb_export(a.notebook, lib_path=root/'xmodseg')   # first: a chapter may import what it exports
    if not a.no_run: print(f'{a.notebook.name}: {run(a.notebook.resolve(), a.timeout):.1f} s, {a.notebook.stat().st_size/1e3:.0f} kB')
    process_write(warn_msg='not cleaned', proc_nb=lambda nb: clean_nb(nb, allowed_cell_metadata_keys=['tags']), f_in=a.notebook)
    if a.figures: print(*figures(a.notebook, a.figures), sep='\n')
