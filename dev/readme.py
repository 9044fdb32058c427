"""README.md from nbs/index.ipynb, whose two generated parts are filled first, the map of floors and the short table of results; and the tables of RESULTS.md.

    python dev/readme.py             say what is out of step (exit code 1)
    python dev/readme.py --write     bring the three files into step
"""
import argparse, json, re, sys
import nbformat
from nbconvert import MarkdownExporter
from nbdev.clean import clean_nb, process_write
import results_table
from tree import root

index, told = root/'nbs/index.ipynb', root/'RESULTS.md'
floors = {'0': 'ground: what everything stands on', '1': 'patients and scanners', '2': 'nets, losses and the game', '3': 'methods, one paper each', '4': 'full runs'}

def chapter(path):
    "(number, title, promise, module) of a notebook, read from its own first cells."
    cells = nbformat.read(path, 4).cells
    text = '\n'.join(c.source for c in cells[:3] if c.cell_type == 'markdown')
    title, promise = re.search(r'^# (.+)$', text, re.M), re.search(r'^> (.+)$', text, re.M)
    module = re.search(r'^#\|\s*default_exp (\w+)', '\n'.join(c.source for c in cells if c.cell_type == 'code'), re.M)
    return path.stem.split('_')[0], title[1] if title else path.stem, promise[1] if promise else '', module[1] if module else ''

def map_of_floors(folder):
    "One table; each chapter that exists, under its floor."
    lines = ['| | chapter | module | what it promises |', '| --- | --- | --- | --- |']
    for floor, name in floors.items():
        found = sorted(folder.glob(f'{floor}[0-9]_*.ipynb'))
        if found: lines.append(f'| **{floor}** | **{name}** | | |')
        for p in found:
            number, title, promise, module = chapter(p)
            lines.append(f'| {number} | [{title}]({p.name}) | {f"`{module}`" if module else ""} | {promise} |'.replace('  ', ' '))
    return '\n'.join(lines)

def fill(text, name, body):
    "The part of a text between <!-- name --> and <!-- /name --> replaced."
    return re.sub(rf'(<!-- {name} -->\n).*?(\n<!-- /{name} -->)', lambda m: f'{m[1]}\n{body}\n{m[2]}', text, flags=re.S)

def filled(nb):
    "index.ipynb with its generated parts as they should be."
    parts = dict(map=map_of_floors(root/'nbs'), results=results_table.headline(root/'results', told.read_text(encoding='utf-8')))
    for c in nb['cells']:
        if c['cell_type'] != 'markdown': continue
        text = was = ''.join(c['source'])
        for name, body in parts.items(): text = fill(text, name, body)
        if text != was: c['source'] = text.splitlines(True)
    return nb

def retold(text):
    "RESULTS.md with its tables as they should be."
    tables = results_table.tables(root/'results')
    results_table.refuse_untold(text, tables)
    for name, body in tables.items(): text = fill(text, name, body)
    return text

def readme(nb):
    "The same text for the root of the project: links start there, notes to nbdev are left out."
    text, _ = MarkdownExporter().from_notebook_node(nbformat.from_dict(nb))
    text = re.sub(r'\]\((?!https?:|#|/)([^)]+)\)', lambda m: f']({m[1][3:]})' if m[1].startswith('../') else f'](nbs/{m[1]})', text)
    return re.sub(r'^#\|.*\n', '', text, flags=re.M).strip() + '\n'

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--write', action='store_true')
    a = ap.parse_args()
    if a.write: process_write('not written', lambda nb: clean_nb(filled(nb), allowed_cell_metadata_keys=['tags']), index)
    was = nbformat.read(index, 4)
    now = filled(json.loads(index.read_text(encoding='utf-8')))
    text = readme(nbformat.reads(json.dumps(now), 4))
    results = retold(told.read_text(encoding='utf-8'))
    if a.write: (root/'README.md').write_text(text, encoding='utf-8'); told.write_text(results, encoding='utf-8')
    late = [] if told.read_text(encoding='utf-8') == results else ['RESULTS.md']
    late += [] if [c.source for c in was.cells] == [''.join(c['source']) for c in now['cells']] else ['nbs/index.ipynb']
    if not (root/'README.md').exists() or (root/'README.md').read_text(encoding='utf-8') != text: late.append('README.md')
    if late: sys.exit(f'out of step: {", ".join(late)}; run python dev/readme.py --write')
