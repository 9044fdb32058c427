"What the README says works: its links lead somewhere, its snippet runs."
import re
import pytest
import readme
from tree import root

text = (root/'README.md').read_text(encoding='utf-8')

def test_links_lead_to_files():
    links = [l for l in re.findall(r'\]\(([^)]+)\)', text) if not l.startswith(('http', '#'))]
    assert links and [l for l in links if not (root/l.split('#')[0]).exists()] == []

def test_commands_name_files_that_exist():
    named = re.findall(r'(?:papermill|python) ((?:nbs|dev)/\S+)', text)
    assert named and [n for n in named if not (root/n).exists()] == []

def test_snippet_runs(tmp_path, monkeypatch):
    code, = re.findall(r'```python\n(.*?)```', text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path/'clean.nii.gz').stat().st_size and (tmp_path/'vertebrae.nii.gz').stat().st_size

def test_map_lists_every_chapter():
    assert [p.name for p in sorted((root/'nbs').glob('[0-4]*.ipynb')) if f'](nbs/{p.name})' not in text] == []

def test_filling_replaces_only_between_its_marks():
    was = 'a\n<!-- map -->\nold\n<!-- /map -->\nb'
    assert readme.fill(was, 'map', 'new') == 'a\n<!-- map -->\n\nnew\n\n<!-- /map -->\nb'
    assert readme.fill(readme.fill(was, 'map', r'\1'), 'map', 'x') == readme.fill(was, 'map', 'x') and readme.fill(was, 'results', 'new') == was
