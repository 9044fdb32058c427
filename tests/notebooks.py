"The cells of a training notebook, run one after the other as a command would, up to a place, with other parameters."
import json
from pathlib import Path
import pytest
from xmodseg.core import XModSegError

def begin(
    name, # of a notebook in nbs
    until, # how the first cell starts that is not run; None: all are
    **given, # parameters
):
    "The names that the notebook knows by then."
    names, path = {'get_ipython': lambda: None}, Path(__file__).resolve().parents[1]/'nbs'/f'{name}.ipynb'
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] != 'code': continue
        if until and source.startswith(until): return names
        exec(source, names)
        if 'parameters' in c['metadata'].get('tags', []): names.update(given)
    if until: pytest.fail(f'no cell of {name} starts with {until!r}')
    return names

def refused(name, until, words, **given):
    "The first cells refuse these parameters, in a sentence that holds all the words."
    with pytest.raises(XModSegError) as e: begin(name, until, size='tiny', **given)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert e.value.found is not None and e.value.needed is not None
