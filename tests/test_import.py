"`import xmodseg` and each of its modules is quick and brings in no drawing."
import subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
modules = sorted(p.stem for p in (root/'xmodseg').glob('[a-z]*.py'))
heavy = ['matplotlib', 'ipywidgets', 'IPython', 'fastcore', 'nbdev', 'ipyniivue', 'k3d', 'scipy', 'skimage', 'SimpleITK', 'nibabel', 'accelerate', 'monai', 'tqdm']

def brought_in(code):
    "The heavy packages that a line of code imports, in a fresh interpreter, beyond those that torch itself brings."
    check = (f'import sys, torch, numpy\nbefore = {{m.split(".")[0] for m in sys.modules}}\n{code}\n'
             f'print(*sorted(({{m.split(".")[0] for m in sys.modules}} - before) & set({heavy!r})))')
    r = subprocess.run([sys.executable, '-c', check], capture_output=True, text=True, cwd='/')
    assert r.returncode == 0, r.stderr
    return r.stdout.split()

def test_package_alone(): assert brought_in('import xmodseg') == []

def test_every_module_at_once():
    "One interpreter for all: when this passes, each alone passes as well."
    found = brought_in('import importlib\n' + '\n'.join(f'importlib.import_module("xmodseg.{m}")' for m in modules if m != 'view'))
    assert found == [], f'{found}: import them in the functions that need them'

def test_view_alone():
    "view may draw, but what it draws with is loaded at the first picture or widget."
    r = subprocess.run([sys.executable, '-c', 'import xmodseg.view'], capture_output=True, text=True, cwd='/')
    assert r.returncode == 0, r.stderr
