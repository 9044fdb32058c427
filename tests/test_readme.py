"What README and RESULTS say works: their links lead somewhere, the snippet runs."
import re
import pytest
import readme, results_table
from tree import root

told = {name: (root/name).read_text(encoding='utf-8') for name in ('README.md', 'RESULTS.md')}
text = told['README.md']

@pytest.mark.parametrize('name', told)
def test_links_lead_to_files_and_headings(name):
    links = [l for l in re.findall(r'\]\(([^)]+)\)', told[name]) if not l.startswith('http')]
    assert links and [l for l in links if not (root/l.split('#')[0]).exists()] == []
    slugs = {n: [results_table.slug(h) for h in re.findall(r'^#+ (.+)$', t, re.M)] for n, t in told.items()}
    assert [l for l in links if '#' in l and l.split('#')[1] not in slugs[l.split('#')[0] or name]] == []

@pytest.mark.parametrize('name', told)
def test_commands_name_files_that_exist(name):
    named = re.findall(r'(?:papermill|python) ((?:nbs|dev|benchmarks)/\S+?)(?=[`\s])', told[name])
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
