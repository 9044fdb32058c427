"""Every equation: where it is taught, which function holds it, which test guards it. The source of EQUATIONS.md.

    python dev/equations.py             print the table
    python dev/equations.py --write     write EQUATIONS.md

An id such as SADN.E7 is found in docstrings of xmodseg/, in names of tests (test_SADN_E7_...), and in headings of chapters, whose next
$$...$$ is the equation.
"""
import argparse, ast, re
from collections import defaultdict
from pathlib import Path
import nbformat
from tree import root

required = [f'SADN.E{i}' for i in range(1, 15)] + [f'TDGAN.{i}' for i in 'Ea E1 Eb E2 Ec E3'.split()] + [f'SCOL.{i}' for i in 'E1 E2 E3 E4 E5 E5b E6'.split()]      # without a function and a test for each of these, the gates fail
order = ['SADN', 'SCOL', 'CSGAN', 'GMMT', 'TDGAN']   # the papers first, then the chapters' own
_part, _sep = r'E(?:\d+[a-z]?|[a-z])(?![a-z])', r'(?:\s*,\s*|\s*/\s*|\s+and\s+|\s+to\s+|\s*[-–]\s*)'
_ids = re.compile(rf'\b([A-Z]{{3,}})\.({_part}(?:{_sep}(?:\1\.)?{_part})*)')
_test = re.compile(r'test_([A-Z]{3,})((?:_to)?(?:_E(?:\d+[a-z]?|[a-z])(?:_to)?(?=_|$))+)')

def _span(words):
    "['E1','to','E3'] as E1 E2 E3."
    out = []
    for i, w in enumerate(words):
        if w == 'to': out += [f'E{n}' for n in range(int(words[i-1][1:]) + 1, int(words[i+1][1:]))]
        else: out.append(w)
    return out

def ids(text):
    "Equation ids in a text: 'SADN.E8, E9' and 'SADN.E1 to E3' are several."
    found = []
    for paper, rest in _ids.findall(text):
        rest = re.sub(r'\s+to\s+|\s*[-–]\s*', ' to ', rest.replace(paper + '.', ''))
        found += [f'{paper}.{e}' for e in _span(re.findall(rf'{_part}|to', rest))]
    return list(dict.fromkeys(found))

def ids_of_test(name):
    "Equation ids in the name of a test."
    m = _test.match(name)
    return [f'{m[1]}.{e}' for e in _span(m[2].strip('_').split('_'))] if m else []

def functions(root=root):
    "id -> the functions, classes and methods whose docstring names it."
    out = defaultdict(list)
    def visit(node, path, module):
        for d in ast.iter_child_nodes(node):
            if not isinstance(d, (ast.FunctionDef, ast.ClassDef)): continue
            if d.name.startswith('_'): continue
            for i in ids(ast.get_docstring(d) or ''): out[i].append(f'{module}.{".".join([*path, d.name])}')
            if isinstance(d, ast.ClassDef): visit(d, [*path, d.name], module)
    for p in sorted((root/'xmodseg').glob('[a-z]*.py')): visit(ast.parse(p.read_text(encoding='utf-8')), [], p.stem)
    return out

def tests(root=root):
    "id -> the tests whose name carries it."
    out = defaultdict(list)
    for p in sorted((root/'tests').glob('test_*.py')):
        for d in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(d, ast.FunctionDef):
                for i in ids_of_test(d.name): out[i].append((p.name, d.name))
    return out

def headings(root=root):
    "id -> [(number of ids in the heading, chapter, title, equation or '')]."
    out = defaultdict(list)
    for p in sorted((root/'nbs').glob('[0-3]*.ipynb')):
        text = '\n\n'.join(c.source for c in nbformat.read(p, 4).cells if c.cell_type == 'markdown')
        parts = re.split(r'^(#{2,6} .*)$', text, flags=re.M)
        for head, body in zip(parts[1::2], parts[2::2]):
            found = ids(head)
            m = re.search(r'\$\$(.+?)\$\$', body, re.S)
            title = _ids.sub('', head.lstrip('#')).strip(' :,()–-')
            for i in found: out[i].append((len(found), p.stem, title, ' '.join(m[1].split()) if m else ''))
    return out

def best(heads):
    "The heading that tells most about one id: it has an equation, few other ids, and stands in a method's chapter."
    return min(heads, key=lambda h: (not h[3], h[0], not h[1].startswith('3'), h[1]), default=(0, '', '', ''))

def _key(i):
    paper, e = i.split('.E')
    n = re.match(r'\d+', e)
    return (order.index(paper) if paper in order else len(order), paper, n is None, int(n[0]) if n else 0, e)

def table(root=root):
    "One row an id: (id, title, equation, functions, tests, chapters)."
    f, t, h = functions(root), tests(root), headings(root)
    rows = []
    for i in sorted({*f, *t, *h, *required}, key=_key):
        _, _, title, equation = best(h.get(i, []))
        rows.append((i, title, equation, f.get(i, []), t.get(i, []), list(dict.fromkeys(c for _, c, *_ in h.get(i, [])))))
    return rows

def faults(rows):
    "What a required id lacks, one line each."
    return [f'{i}: no {what}' for i, _, equation, f, t, c in rows if i in required
            for what, there in (('function names it in its docstring', f), ('test carries it in its name', t), ('chapter heads it with its equation', equation)) if not there]

def _math(e):
    "Inside a table cell a bar would end the cell."
    return f'${e.replace(chr(92) + "|", chr(92) + "Vert ").replace("|", chr(92) + "vert ")}$' if e else ''

def markdown(rows):
    lines = ['# Equations', '', 'Written by `python dev/equations.py --write` from docstrings, names of tests and headings of chapters.', '']
    for paper in dict.fromkeys(i.split('.')[0] for i, *_ in rows):
        lines += [f'## {paper}', '', '| id | equation | function | test | chapter |', '| --- | --- | --- | --- | --- |']
        for i, title, equation, f, t, c in rows:
            if i.split('.')[0] != paper: continue
            cells = [i, '<br>'.join(filter(None, (title.replace('|', r'\|'), _math(equation)))), '<br>'.join(f'`{x}`' for x in f),
                     '<br>'.join(f'[`{name}`](tests/{file})' for file, name in t), ' '.join(f'[{x.split("_")[0]}](nbs/{x}.ipynb)' for x in c)]
            lines.append('| ' + ' | '.join(cells) + ' |')
        lines.append('')
    return '\n'.join(lines).rstrip() + '\n'

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--write', action='store_true')
    a = ap.parse_args()
    rows = table()
    if a.write: (root/'EQUATIONS.md').write_text(markdown(rows), encoding='utf-8')
    else: print(markdown(rows))
    for f in faults(rows): print('lacking', f)
