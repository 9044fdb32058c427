"A rule that cannot fail guards nothing: each rule of test_house.py meets a small offender here, and its repair."
import json
import pytest
import test_house as house

def module(tmp_path, text, name='mod'):
    p = tmp_path/f'{name}.py'
    p.write_text(text, encoding='utf-8')
    return p

def notebook(tmp_path, *cells, name='26_mod.ipynb', kernel='python3', **more):
    "Cells: a string that starts with 'md:' is prose; a tuple is (source, metadata, outputs)."
    def cell(c):
        source, meta, outputs = c if isinstance(c, tuple) else (c, {}, [])
        if source.startswith('md:'): return dict(cell_type='markdown', metadata={}, source=source[3:])
        if source.startswith('raw:'): return dict(cell_type='raw', metadata={}, source=source[4:])
        return dict(cell_type='code', metadata=meta, source=source, outputs=outputs, execution_count=None)
    p = tmp_path/name
    p.write_text(json.dumps(dict(cells=[cell(c) for c in cells], metadata=dict(kernelspec=dict(name=kernel, language='python', display_name='python3'), **more), nbformat=4, nbformat_minor=5)))
    house.cells.cache_clear()
    return p

def refuses(rule, path): 
    with pytest.raises(pytest.fail.Exception): rule(path)

doc = '"What it does."'
@pytest.mark.parametrize('rule, bad, good', [
    (house.test_docstrings, 'def f(): return 1', f'def f():\n    {doc}\n    return 1'),
    (house.test_docstrings, 'def f():\n    """One.\n\n    Two."""', f'def f(): {doc}'),
    (house.test_docstrings, f'class A:\n    {doc}\n    def go(self): return 1', f'class A:\n    {doc}\n    def go(self): {doc}'),
    (house.test_docstrings, f'class A:\n    {doc}\n    def go(self): return 1', f'class B:\n    {doc}\n    def go(self): {doc}'),
    (house.test_arguments_carry_a_comment, f'def f(\n    a, # mm\n    b,\n): {doc}', f'def f(\n    a, # mm\n    b, # (B,1) mask\n): {doc}'),
    (house.test_arguments_carry_a_comment, f'def f(a, b): # a: mm\n    {doc}', f'def f(a, b): # a in mm, b a mask\n    {doc}'),
    (house.test_arguments_carry_a_comment, f'def f(a):\n    {doc}', f'def f(a): # mm\n    {doc}'),
    (house.test_arguments_carry_a_comment, f'class A:\n    {doc}\n    def __init__(self, a): self.a = a', f'class A:\n    {doc}\n    def __init__(self,\n        a, # mm\n    ): self.a = a'),
    (house.test_public_constants_and_fields_carry_a_comment, '__all__ = ["X"]\nX = 1', '__all__ = ["X"]\nX = 1 # mm'),
    (house.test_public_constants_and_fields_carry_a_comment, f'class A:\n    {doc}\n    a: int', f'class A:\n    {doc}\n    a: int # voxels'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def f(): raise ValueError("no")', 'def f(): raise XModSegError("no", found=1, needed=2)'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def f(): raise XModSegError("no", needed=2)', 'def f(): raise XModSegError("no", found=1, fix="do")'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def f(): raise XModSegError("no", found=2)', 'def f():\n    try: g()\n    except OSError as e: raise e'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def f(): raise NotImplementedError', 'class Method:\n    def f(self): raise NotImplementedError'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def f(): assert 1', 'def _bad(x): return XModSegError("no", found=x, fix="do")\ndef f(): raise _bad(1)'),
    (house.test_every_refusal_names_what_was_found_and_what_to_do, 'def _bad(x): return XModSegError("no")\ndef f(): raise _bad(1)', 'refuse = partial(XModSegError, file=1)\ndef f(): raise refuse("no", found=1, needed=2)'),
    (house.test_functions_are_short, 'def f():\n' + '    x = 1\n'*40, 'def f():\n' + '    x = 1\n'*5),
    (house.test_functions_are_short, 'def f():\n' + '    x = 1\n'*11, 'def f():\n' + '    x = 1\n'*9),
    (house.test_module_is_short, 'x = 1\n'*301, 'x = 1\n'*300),
    (house.test_imports_are_light_and_named, 'from numpy import *', 'from numpy import array'),
    (house.test_imports_are_light_and_named, 'def f(): import matplotlib', 'def f(): import scipy'),
    (house.test_imports_are_light_and_named, 'import scipy', 'import torch, re'),
])
def test_module_rules(tmp_path, rule, bad, good):
    bad, good = module(tmp_path, bad, 'bad'), module(tmp_path, good, 'good')
    refuses(rule, bad)
    rule(good)

@pytest.mark.parametrize('me, other, fine', [(26, 'core', True), (26, 'nets', False), (26, 'later', False), (31, 'paper', False), (31, 'nets', True), (26, 'view', False), (0, 'core', False)])
def test_floors(tmp_path, monkeypatch, me, other, fine):
    monkeypatch.setattr(house, 'number_of', dict(mod=me, core=0, view=1, nets=21, later=29, paper=30))
    for line in (f'from xmodseg.{other} import f', f'from .{other} import f', f'def g():\n    from xmodseg.{other} import f'):
        p = module(tmp_path, line)
        house.parsed.cache_clear()
        if fine: house.test_floors(p)
        else: refuses(house.test_floors, p)

png = [dict(output_type='display_data', data={'image/png': 'x'}, metadata={})]
err = [dict(output_type='error', ename='E', evalue='', traceback=[])]
parts = ['md:# T\n\n> promise', '#| default_exp mod', 'md:Needs 20; 3 seconds.', 'md:## Symbols', 'md:## Break it', 'md:## Paper versus code', 'md:## Exercises']
check = lambda k: [f'md:**{k}.** Do. *Hint: so.*', f'def check_{k}(f): assert f', f'check_{k}(1)\nwith ExceptionExpected(AssertionError): check_{k}(0)']
tasks = [c for k in (1, 2, 3) for c in check(k)]
par = lambda s: ('raw:---\nskip_exec: true\n---', (s, {'tags': ['parameters']}, []))
@pytest.mark.parametrize('rule, bad, good', [
    (house.test_prose_per_line_of_code, ('md:one two', 'x = 1'), ('md:one two three', 'x = 1')),
    (house.test_prose_per_line_of_code, ('md:$$one two three$$ ```one two```', 'x = 1'), ('md:one two $x$', 'x = 1')),
    (house.test_no_six_code_cells_in_a_row, ('x = 1',)*6, (*('x = 1',)*5, 'md:so', 'x = 1')),
    (house.test_exported_cells_are_short, ('#| export\nx = 1', '#| export\nx = 1', '#| export\n' + 'x = 1\n'*31), ('#| export\nx = 1', '#| export\nx = 1', '#| export\nclass A:\n' + '    x = 1\n'*40)),
    (house.test_exported_cells_are_short, ('#| export\n' + 'x = 1\n'*11,), ('#| export\n' + 'x = 1\n'*10, 'x = 1\n'*99)),
    (house.test_two_figures, (('x', {}, png),), (('x', {}, png), ('x', {}, png))),
    (house.test_opening, ('md:# T', 'md:Needs 20; 3 seconds.'), parts),
    (house.test_opening, ('md:# T\n\n> p', 'md:Needs 20.'), parts),
    (house.test_parts_in_order, parts, (*parts, 'md:## Summary')),
    (house.test_parts_in_order, (*parts[:4], *reversed(parts[4:]), 'md:## Summary'), (*parts, 'md:## Summary')),
    (house.test_three_exercises, ('md:## Exercises', *tasks[:6]), ('md:## Before\n\n## Exercises', *tasks, 'md:## Summary')),
    (house.test_three_exercises, ('md:## Exercises', *tasks[:-1], 'check_3(1)'), ('md:## Exercises', *tasks)),
    (house.test_three_exercises, ('md:## Exercises\n\n', *[t.replace('Hint', 'So') for t in tasks]), ('md:## Exercises', *tasks)),
    (house.test_plain_words, ('md:This is simply so.',), ('md:This is so.',)),
    (house.test_saved_clean, (('x', {}, err),), (('x', {'tags': ['slow']}, png),)),
    (house.test_saved_clean, (('x', {'collapsed': True}, []),), ('x',)),
    (house.test_saved_clean, (('x', {}, [dict(output_type='stream', name='stderr', text=['warn'])]),), (('x', {}, [dict(output_type='stream', name='stdout', text=['told'])]),)),
    (house.test_weight, ('md:' + 'x'*701_000,), ('md:' + 'x'*600_000,)),
    (house.test_chapter_needs_no_network, ('import requests',), ('fix = "pip install requests"',)),
    (house.test_chapter_needs_no_network, ('!pip install x',), ('fetched = 1',)),
    (house.test_one_parameters_cell, ('size = 1',), par("size, out, seed = 'auto', 'runs', 0")),
    (house.test_one_parameters_cell, par("size = out = seed = f()"), par("size = 'auto'\nout = 'runs'\nseed = -1")),
    (house.test_one_parameters_cell, par("size = out = seed = 0\n" + '\n'.join(f'p{k} = 0' for k in range(13))), par("size = out = seed = 0\n" + '\n'.join(f'p{k} = 0' for k in range(12)))),
    (house.test_kept_out_of_chapter_tests, ('md:# T',), par('size = 1')),
])
def test_notebook_rules(tmp_path, rule, bad, good):
    refuses(rule, notebook(tmp_path, *bad))
    rule(notebook(tmp_path, *good))

def test_asserts_are_counted(tmp_path):
    p = notebook(tmp_path, 'assert a\ntest_eq(1, 1)', 'torch.testing.assert_close(a, b)', 'with ExceptionExpected(ValueError): f()', 'f(test=1)', '%matplotlib inline\nprint(1)')
    assert house.asserts(p) == 4

def test_words_leave_out_code_and_mathematics():
    assert house.words('one **two** [three](a/b.md) $x$ and $y+1$ 7 <b>six</b> `seven` $$eight nine$$\n```\nten eleven\n```\n') == 8
