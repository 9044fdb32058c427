"The rules of the house, one test a rule and a notebook, module or file."
import ast, io, json, re, statistics, subprocess, sys, tokenize
from functools import lru_cache
from pathlib import Path
import pytest
import tree
from tree import root

nbs = sorted((root/'nbs').glob('*.ipynb'))
chapters = [p for p in nbs if re.match(r'[0-3]\d_', p.name)]
runs = [p for p in nbs if re.match(r'4\d_', p.name)]
modules = sorted(p for p in (root/'xmodseg').glob('*.py') if not p.name.startswith('_'))
name = lambda p: p.stem

def each(paths): return pytest.mark.parametrize('path', paths, ids=name)
def check(faults):
    "One line a fault."
    faults = [f for f in faults if f]
    if faults: pytest.fail(f'{len(faults)} faults\n  ' + '\n  '.join(faults), pytrace=False)

# ---- reading notebooks

class Cell:
    def __init__(self, i, c):
        self.i, self.kind, self.source, self.raw = i, c['cell_type'], ''.join(c['source']), c
        self.tags, self.outputs = c['metadata'].get('tags', []), c.get('outputs', [])
        self.directives = re.findall(r'^#\|\s*(\w+)(?:[ \t]+(.*))?$', self.source, re.M) if self.kind == 'code' else []
        self.exported = any(d in ('export', 'exporti', 'exports') for d, _ in self.directives)
        self.lines = [l for l in self.source.splitlines() if l.strip() and not l.startswith('#|')] if self.kind == 'code' else []
    @property
    def tree(self):
        "The code as Python; lines that start with ! or % are shell and magic."
        return ast.parse('\n'.join('pass' if l.lstrip()[:1] in '!%' and l.strip() else l for l in self.source.splitlines()))

@lru_cache(None)
def cells(path): return [Cell(i, c) for i, c in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells'])]
def code(path): return [c for c in cells(path) if c.kind == 'code' and c.lines]
def exported(path): return [c for c in code(path) if c.exported]
def prose(path): return '\n\n'.join(c.source for c in cells(path) if c.kind == 'markdown')
def default_exp(path): return next((w for c in cells(path) for d, w in c.directives if d == 'default_exp'), None)
module_of = {p.stem: default_exp(p) for p in chapters}
number_of = {m: int(n.split('_')[0]) for n, m in module_of.items() if m}      # module -> number of its chapter

def words(text):
    "Words a reader reads: code, displayed equations, links' targets and tags are not counted."
    for pattern in (r'```.*?```', r'\$\$.*?\$\$', r'<[^>]+>', r'\]\([^)]*\)', r'data:image\S+'): text = re.sub(pattern, ' ', text, flags=re.S)
    return sum(any(ch.isalpha() for ch in w) for w in text.split())

def headings(path): return [(len(h), t.strip()) for h, t in re.findall(r'^(#+) (.+)$', prose(path), re.M)]

# ---- reading modules

@lru_cache(None)
def parsed(path): return ast.parse(path.read_text(encoding='utf-8'))
def all_of(path):
    return next((ast.literal_eval(n.value) for n in parsed(path).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
def functions(path):
    "Functions and methods, not those inside functions."
    return [(n.name, n) for n in parsed(path).body if isinstance(n, ast.FunctionDef)] + \
           [(f'{c.name}.{n.name}', n) for c in parsed(path).body if isinstance(c, ast.ClassDef) for n in c.body if isinstance(n, ast.FunctionDef)]
def size(node): return node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1
def public(path):
    "(name, node) of every public function, class and method."
    for n in parsed(path).body:
        if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) or n.name.startswith('_'): continue
        yield n.name, n
        if isinstance(n, ast.ClassDef):
            yield from ((f'{n.name}.{m.name}', m) for m in n.body if isinstance(m, ast.FunctionDef) and (m.name == '__init__' or not m.name.startswith('_')))
@lru_cache(None)
def classes(): return {n.name: (p, n) for p in modules for n in parsed(p).body if isinstance(n, ast.ClassDef)}
def inherited(cls, method):
    "(path, node) of the documented method that this one overrides, in a class of ours; a chapter documents a noun once."
    for b in cls.bases:
        path, base = classes().get(ast.unparse(b).split('.')[-1], (None, None))
        if base is None: continue
        for m in base.body:
            if isinstance(m, ast.FunctionDef) and m.name == method and ast.get_docstring(m): return path, m
        if found := inherited(base, method): return found
protocol = ('get_extra_state', 'set_extra_state', 'extra_repr', 'state_dict', 'load_state_dict', 'train')   # documented by torch
def owner(path, qualified):
    cls, _, method = qualified.partition('.')
    return (classes().get(cls, (None, None))[1], method) if method else (None, qualified)
@lru_cache(None)
def comments(path):
    return {t.start[0]: t.string for t in tokenize.generate_tokens(io.StringIO(path.read_text(encoding='utf-8')).readline) if t.type == tokenize.COMMENT}
def imports(node):
    "(line, module, names) of every import below a node."
    for n in ast.walk(node):
        if isinstance(n, ast.Import): yield from ((n.lineno, a.name, ()) for a in n.names)
        if isinstance(n, ast.ImportFrom): yield n.lineno, '.'*n.level + (n.module or ''), tuple(a.name for a in n.names)
def ours(node):
    "Modules of this package that a piece of code imports."
    for line, module, names in imports(node):
        m = re.fullmatch(r'(?:xmodseg|\.)(?:\.?(\w+))?', module)
        if m: yield from ((line, x) for x in ([m[1]] if m[1] else [n for n in names if (root/'xmodseg'/f'{n}.py').exists()]))

# ---- the house

def test_one_notebook_is_one_module():
    made = {m for m in module_of.values() if m}
    check([f'{n}: no #| default_exp' for n, m in module_of.items() if not m] +
          [f'xmodseg/{p.name}: no chapter exports it' for p in modules if p.stem not in made] +
          [f'{n}: exports {m}; the name after the number is the name of the module' for n, m in module_of.items() if m and n.split('_', 1)[1] != m] +
          [f'number {k} twice' for k in {v for v in number_of.values() if list(number_of.values()).count(v) > 1}])

@each(modules)
def test_floors(path):
    "A floor imports from floors below it; floor 3 never from its neighbours; losses never from nets; nobody from view."
    me, faults = number_of.get(path.stem), []
    if me is None: pytest.skip('no chapter yet')
    for line, other in ours(parsed(path)):
        it = number_of.get(other)
        if it is None: faults.append(f'line {line}: {other} has no chapter'); continue
        if it >= me: faults.append(f'line {line}: {me:02} {path.stem} imports {it:02} {other}, which is not below it')
        if me//10 == 3 and it//10 == 3: faults.append(f'line {line}: a method imports its neighbour {other}')
        if me in (24, 25, 26) and 20 <= it <= 23: faults.append(f'line {line}: a loss imports a net, {other}')
        if other == 'view': faults.append(f'line {line}: exported code imports view')
    check(faults)

@each(chapters)
def test_chapter_imports_from_below(path):
    me = int(path.name[:2])
    check([f'cell {c.i}: imports {other} of chapter {number_of[other]:02}' for c in code(path) if not c.exported
           for _, other in ours(c.tree) if number_of.get(other, 0) > me])

@each(modules)
def test_imports_are_light_and_named(path):
    heavy = ('matplotlib', 'ipywidgets', 'fastcore', 'ipyniivue', 'k3d', 'itkwidgets')
    std, faults = sys.stdlib_module_names, []
    for line, module, names in imports(parsed(path)):
        top = module.split('.')[0]
        if '*' in names: faults.append(f'line {line}: from {module} import *')
        if top in heavy and path.stem != 'view': faults.append(f'line {line}: {top}')
    for n in parsed(path).body:
        if not isinstance(n, (ast.Import, ast.ImportFrom)): continue
        for line, module, _ in imports(n):
            top = module.split('.')[0]
            if top not in std and top not in ('numpy', 'torch', 'xmodseg', ''): faults.append(f'line {line}: {top} at the top; import it in the function that needs it')
    check(faults)

def test_no_star_imports_anywhere():
    found = [f'{p.name} line {line}' for f in ('tests', 'dev') for p in (root/f).glob('*.py') for line, _, names in imports(ast.parse(p.read_text(encoding='utf-8'))) if '*' in names]
    check(found + [f'{p.name} cell {c.i}' for p in nbs for c in code(p) for _, _, names in imports(c.tree) if '*' in names])

def test_no_utils_helpers_base():
    bad = re.compile(r'(?i)^_*(utils?|helpers?|misc|common)$|^Base([A-Z]|$)|Base$')
    check([f'xmodseg/{p.name}' for p in modules if bad.search(p.stem)] +
          [f'{p.name}: class {n.name}' for p in modules for n in ast.walk(parsed(p)) if isinstance(n, ast.ClassDef) and bad.search(n.name)])

@each(modules)
def test_module_is_short(path):
    check([f'{n} lines, at most 300' for n in [len(path.read_text(encoding='utf-8').splitlines())] if n > 300])

@each(modules)
def test_functions_are_short(path):
    sizes = {n: size(f) for n, f in functions(path)}
    if not sizes: return
    mean = statistics.fmean(sizes.values())
    check([f'{n}: {s} lines, at most 40' for n, s in sizes.items() if s > 40] + [f'mean {mean:.1f} lines, at most 10: {sorted(sizes.items(), key=lambda x: -x[1])[:6]}' if mean > 10 else ''])

@each(modules)
def test_docstrings(path):
    faults = []
    for n, node in public(path):
        doc = ast.get_docstring(node, clean=False)
        if n.endswith('__init__'): continue
        cls, method = owner(path, n)
        if doc is None: faults += [] if method in ('forward', *protocol) or cls and inherited(cls, method) else [f'{n}: no docstring']
        elif '\n' in doc.strip(): faults.append(f'{n}: the docstring has {len(doc.splitlines())} lines, one is enough')
    check(faults)

def _uncommented(path, node):
    "Arguments without a comment on their line; a line with several arguments must name each in its comment."
    a, text = node.args, comments(path)
    args = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x is not None and x.arg not in ('self', 'cls') and not x.arg.startswith('_')]
    on_line = {}
    for x in args: on_line.setdefault(x.lineno, []).append(x)
    body = node.body[0].lineno
    for line, xs in on_line.items():
        following = min([l for l in on_line if l > line], default=body)
        said = ' '.join(text.get(l, '') for l in range(line, max(following, line + 1)))
        if not said: yield from (x.arg for x in xs)
        elif len(xs) > 1: yield from (x.arg for x in xs if not re.search(rf'\b{re.escape(x.arg)}\b', said))

@each(modules)
def test_arguments_carry_a_comment(path):
    faults = []
    for n, node in public(path):
        if not isinstance(node, ast.FunctionDef): continue
        cls, method = owner(path, n)
        if cls and method in protocol: continue
        first = inherited(cls, method) if cls else None
        told = {a.arg for a in (*first[1].args.args, *first[1].args.kwonlyargs)} - set(_uncommented(*first)) if first else set()
        faults += [f'{n}: {arg}' for arg in _uncommented(path, node) if arg not in told]
    check(faults)

@each(modules)
def test_public_constants_and_fields_carry_a_comment(path):
    said, faults, names = comments(path), [], all_of(path)
    near = lambda n: any(l in said for l in range(n.lineno - 1, n.end_lineno + 1))
    for n in parsed(path).body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') in names and not near(n): faults.append(n.targets[0].id)
        if isinstance(n, ast.ClassDef) and not n.name.startswith('_'):
            faults += [f'{n.name}.{f.target.id}' for f in n.body if isinstance(f, ast.AnnAssign) and not f.target.id.startswith('_') and f.lineno not in said]
    check(faults)

@each(modules)
def test_every_refusal_names_what_was_found_and_what_to_do(path):
    faults = []
    def visit(node, stack):
        for n in ast.iter_child_nodes(node):
            if isinstance(n, ast.Raise) and not allowed(n, stack): faults.append(f'line {n.lineno}: {ast.unparse(n)[:90]}')
            if isinstance(n, ast.Assert): faults.append(f'line {n.lineno}: assert in exported code; raise XModSegError(found=, needed=)')
            visit(n, [*stack, n])
    def allowed(n, stack):
        caught = {h.name for h in stack if isinstance(h, ast.ExceptHandler)}
        where = [x.name for x in stack if isinstance(x, (ast.FunctionDef, ast.ClassDef))]
        return n.exc is None or fine(n.exc, caught, where)
    def fine(exc, caught, where):
        if isinstance(exc, ast.IfExp): return fine(exc.body, caught, where) and fine(exc.orelse, caught, where)
        if isinstance(exc, ast.Name) and exc.id in caught: return True
        kind = ast.unparse(exc.func if isinstance(exc, ast.Call) else exc)
        if isinstance(exc, ast.Call) and (kind == 'XModSegError' or kind in makers):
            keys = {k.arg for k in exc.keywords} | makers.get(kind, set())
            return 'found' in keys and bool(keys & {'needed', 'fix'})
        if kind == 'NotImplementedError': return 'Method' in where
        if kind == 'AttributeError': return '__getattr__' in where           # the protocol of attribute access
        return kind in ('KeyboardInterrupt', 'SystemExit') and path.stem in ('run', 'loop')
    makers = {}                                   # name of a function that returns our error, or of a partial of it -> keywords it sets
    for n in ast.walk(parsed(path)):
        body = n.body if isinstance(n, ast.FunctionDef) else [n] if isinstance(n, ast.Assign) else []
        called = [x for s in body for x in ast.walk(s) if isinstance(x, ast.Call) and 'XModSegError' in (ast.unparse(x.func), *(ast.unparse(a) for a in x.args[:1]))]
        returns = isinstance(n, ast.Assign) or any(isinstance(s, ast.Return) and s.value in called for s in body)
        if called and returns: makers[n.name if isinstance(n, ast.FunctionDef) else ast.unparse(n.targets[0])] = {k.arg for k in called[0].keywords}
    visit(parsed(path), [])
    check(faults)

# ---- chapters

@each(chapters)
def test_prose_per_line_of_code(path):
    lines, said = sum(len(c.lines) for c in code(path)), words(prose(path))
    check([f'{said} words, {lines} lines of code: {said/lines:.2f} words a line, at least 2.5' if said < 2.5*lines else ''])

@each(chapters)
def test_no_six_code_cells_in_a_row(path):
    row, faults = 0, []
    for c in cells(path):
        row = 0 if c.kind == 'markdown' else row + bool(c.lines)
        if row == 6: faults.append(f'cell {c.i} is the sixth in a row')
    check(faults)

@each(chapters)
def test_exported_cells_are_short(path):
    argument = re.compile(r'^\s+\*{0,2}\w+.*,\s+# ')   # a documented argument on its own line is documentation, and not counted in the median
    whole = lambda c: any(isinstance(n, ast.ClassDef) for n in c.tree.body)   # a class has a limit of its own
    sizes = [sum(not argument.match(l) for l in c.lines) for c in exported(path) if not whole(c)]
    limit = lambda c: 45 if whole(c) else 30
    check([f'cell {c.i}: {len(c.lines)} lines, at most {limit(c)}: {c.lines[0][:60]}' for c in exported(path) if len(c.lines) > limit(c)] +
          [f'median {statistics.median(sizes)} lines, at most 10: {sizes}' if sizes and statistics.median(sizes) > 10 else ''])

def asserts(path):
    n = 0
    for c in code(path):
        for x in ast.walk(c.tree):
            called = ast.unparse(x.func).split('.')[-1] if isinstance(x, ast.Call) else ''
            n += isinstance(x, ast.Assert) or called in ('assert_close', 'ExceptionExpected', 'gradcheck', 'raises') or called.startswith(('test_', 'assert_'))
    return n

@each(chapters)
def test_two_asserts_per_public_name(path):
    module = root/'xmodseg'/f'{default_exp(path)}.py'
    if not module.exists(): pytest.skip('exports nothing yet')
    names, n = all_of(module), asserts(path)
    check([f'{n} asserts for {len(names)} public names' if n < 2*len(names) else ''])

@each(chapters)
def test_two_figures(path):
    n = sum('image/png' in o.get('data', {}) or 'image/svg+xml' in o.get('data', {}) for c in code(path) for o in c.outputs)
    check([f'{n} figures in the saved outputs, at least 2' if n < 2 else ''])

@each(nbs)
def test_weight(path):
    kb = path.stat().st_size/1000
    check([f'{kb:.0f} kB, at most 700' if kb > 700 else ''])

@each(chapters)
def test_opening(path):
    text = '\n'.join(c.source for c in cells(path)[:6] if c.kind == 'markdown')
    opening = re.match(r'# \S.*\n+> \S', text)
    needs = re.search(r'^Needs? .+', text, re.M) or re.search(r'^Needs nothing', text, re.M)
    seconds = re.search(r'\bseconds?\b', text)
    check(['the first cell is not "# title" and "> promise"' if not opening else '', 'no line "Needs ..." among the first six cells' if not needs else '',
           'the line "Needs ..." does not say the seconds' if needs and not seconds else ''])

@each(chapters)
def test_parts_in_order(path):
    heads = [t.lower() for _, t in headings(path)]
    parts = ['symbols', 'break it', 'paper versus code', 'exercises', 'summary']
    at = {p: next((i for i, h in enumerate(heads) if p in h), None) for p in parts}
    faults = [f'no heading "{p}"' for p, i in at.items() if i is None]
    there = [i for i in at.values() if i is not None]
    check(faults + ([f'order: {[p for _, p in sorted((i, p) for p, i in at.items() if i is not None)]}, wanted {parts}'] if there != sorted(there) else []))

def exercises(path):
    "The cells from the heading Exercises to the next heading of its rank."
    out, rank = [], None
    for c in cells(path):
        for h, t in re.findall(r'^(#+) (.*)$', c.source, re.M) if c.kind == 'markdown' else []:
            if rank is None and 'exercises' in t.lower(): rank = len(h)
            elif rank is not None and len(h) <= rank: return out
        if rank is not None: out.append(c)
    return out

@each(chapters)
def test_three_exercises(path):
    found = exercises(path)
    if not found: check(['no heading "Exercises"'])
    src = '\n'.join(c.source for c in found if c.kind == 'code')
    defined, hints = sorted(set(re.findall(r'def (check_\w+)\(', src))), sum(len(re.findall(r'\bhint', c.source, re.I)) for c in found)
    faults = [f'checks {defined}, wanted check_1 check_2 check_3' if defined != ['check_1', 'check_2', 'check_3'] else '', f'{hints} hints for three exercises' if hints < 3 else '']
    check(faults + [f'{d}: used {n} times; one right answer that passes and one wrong answer that is refused' for d in defined
                    for n in [len(re.findall(rf'\b{d}\b', src)) - 1] if n < 2])

@each(chapters)
def test_plain_words(path):
    check([f'"{w}": ...{prose(path)[max(0, m.start()-40):m.end()+20]!r}' for w in ('simply', 'obviously') for m in re.finditer(rf'(?i)\b{w}\b', prose(path))])

@each(nbs)
def test_saved_clean(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    faults = [f'cell {c.i}: execution count {c.raw["execution_count"]}' for c in cells(path) if c.raw.get('execution_count') is not None]
    faults += [f'cell {c.i}: output with execution count' for c in cells(path) for o in c.outputs if o.get('execution_count') is not None]
    faults += [f'cell {c.i}: error {o["ename"]}' for c in cells(path) for o in c.outputs if o['output_type'] == 'error']
    faults += [f'cell {c.i}: text on stderr: {"".join(o["text"])[:80]!r}' for c in cells(path) for o in c.outputs if o.get('name') == 'stderr']
    faults += [f'cell {c.i}: metadata {sorted(set(c.raw["metadata"]) - {"tags"})}' for c in cells(path) if set(c.raw['metadata']) - {'tags'}]
    spec = nb['metadata'].get('kernelspec', {})
    check(faults + ['widget state is saved' if 'widgets' in nb['metadata'] else '', f'kernelspec {spec}' if (spec.get('name'), spec.get('language')) != ('python3', 'python') else ''])

@each(chapters)
def test_chapter_needs_no_network(path):
    fetch = re.compile(r'urlopen|urlretrieve|urlsave|untar_data|hf_hub_download|snapshot_download|download\w*|fetch\w*')
    check([f'cell {c.i}: imports {m}' for c in code(path) for _, m, _ in imports(c.tree) if m.split('.')[0] in ('requests', 'urllib', 'http', 'pooch', 'httpx', 'socket')] +
          [f'cell {c.i}: {ast.unparse(x.func)}(...)' for c in code(path) for x in ast.walk(c.tree) if isinstance(x, ast.Call) and fetch.fullmatch(ast.unparse(x.func).split('.')[-1])] +
          [f'cell {c.i}: {l[:60]}' for c in code(path) for l in c.lines if re.match(r'\s*[!%]+\s*(pip|wget|curl|git)\b', l)])

# ---- full runs

@each(runs)
def test_one_parameters_cell(path):
    tagged = [c for c in cells(path) if 'parameters' in c.tags]
    if len(tagged) != 1 or tagged[0].kind != 'code': check([f'{len(tagged)} cells tagged parameters, wanted one code cell'])
    body = tagged[0].tree.body
    names = [n for b in body if isinstance(b, ast.Assign) for t in b.targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    flat = [isinstance(b, ast.Assign) and all(isinstance(x, (ast.Constant, ast.Tuple, ast.UnaryOp, ast.USub, ast.Load)) for x in ast.walk(b.value)) for b in body]
    check([f'not a flat assignment: {ast.unparse(b)[:60]}' for b, ok in zip(body, flat) if not ok] +
          [f'{len(names)} parameters, at most 15' if len(names) > 15 else ''] + [f'no parameter {p}' for p in ('size', 'out', 'seed') if p not in {ast.unparse(n) for n in names}])

@each(runs)
def test_kept_out_of_chapter_tests(path):
    first = cells(path)[0]
    check(['the first cell is not raw with "skip_exec: true"' if first.kind != 'raw' or 'skip_exec: true' not in first.source else ''])

@each(runs)
def test_unknown_parameter_is_refused(path, tmp_path):
    r = subprocess.run([str(Path(sys.executable).with_name('papermill')), str(path), str(tmp_path/path.name), '-p', 'sizes', 'tiny', '-p', 'out', str(tmp_path/'out'), '--no-progress-bar'],
                       cwd=root, capture_output=True, text=True, encoding='utf-8', timeout=300)
    said = r.stderr + r.stdout
    check([f'-p sizes tiny ended with exit code {r.returncode}' if r.returncode == 0 else '', f'the message does not name the nearest parameter: {said[-600:]}' if "'size'" not in said else ''])

# ---- reading distance

def definitions(path):
    "name -> node of everything a module defines at its top."
    out = {}
    for n in parsed(path).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): out[n.name] = n
        if isinstance(n, ast.Assign): out.update({t.id: n for t in n.targets if isinstance(t, ast.Name) and t.id != '__all__'})
    return out

def methods(path): return [n.name for n in parsed(path).body if isinstance(n, ast.ClassDef) and any(ast.unparse(b) == 'Method' for b in n.bases)]

def reach(start):
    "Definitions that a reader meets who follows every name from a method's class: {(module, name): lines}. The ground floors are known by then."
    paths = {p.stem: p for p in modules if number_of.get(p.stem, 0) >= 20}
    todo, seen = [(start, methods(paths[start])[0])], {}
    while todo:
        module, which = todo.pop()
        node = definitions(paths[module]).get(which) if module in paths else None
        if (module, which) in seen or node is None: continue
        seen[module, which] = node.end_lineno - node.lineno + 1
        origin = {a.asname or a.name: ((n.module or '').split('.')[-1], a.name) for n in ast.walk(parsed(paths[module])) if isinstance(n, ast.ImportFrom)
                  and (n.level == 1 or (n.module or '').startswith('xmodseg.')) for a in n.names}
        todo += [origin.get(n.id, (module, n.id)) for n in ast.walk(node) if isinstance(n, ast.Name)]
    return seen

@each([p for p in modules if number_of.get(p.stem, 0)//10 == 3])
def test_reading_distance(path):
    "A method's class, its nets, losses and players: at most 8 modules beside its own, at most 700 lines."
    rooms = {}
    for (m, _), n in reach(path.stem).items(): rooms[m] = rooms.get(m, 0) + n
    others, lines = set(rooms) - {path.stem}, sum(rooms.values())
    check([f'{len(others)} modules beside its own, at most 8: {rooms}' if len(others) > 8 else '', f'{lines} lines, at most 700: {rooms}' if lines > 700 else ''])

# ---- files

def test_no_machine_paths():
    bad, faults = re.compile(r'(?<![\w.}$/-])/(?:home|root|work|Users|opt)/[\w.-]+|[A-Z]:\\\\?Users'), []
    for f in tree.files():
        if f.suffix in ('.png', '.safetensors', '.gz', '.nii', '.pt'): continue
        text = (root/f).read_text(encoding='utf-8', errors='replace')
        faults += [f'{f}:{text[:m.start()].count(chr(10)) + 1}: {m[0]}' for m in bad.finditer(text)]
    for p in nbs:
        for c in code(p):
            faults += [f'{p.name} cell {c.i}: output names {m[0]}' for o in c.outputs for m in re.finditer(r'/tmp/[\w.-]+', json.dumps({k: v for k, v in o.get('data', {}).items() if k.startswith('text')}) + ''.join(o.get('text', [])))]
    check(faults)

def test_readme_is_in_step():
    r = subprocess.run([sys.executable, root/'dev/readme.py'], capture_output=True, text=True, encoding='utf-8')
    check([r.stderr if r.returncode else ''])

def test_wheel_carries_no_notebook_and_every_module_has_a_licence():
    assert 'Apache License' in (root/'LICENSE').read_text(encoding='utf-8')
    setup = (root/'setup.py').read_text(encoding='utf-8')
    assert "include=['xmodseg', 'xmodseg.*']" in setup
