"A trained row goes into the package with a note of where it comes from, or not at all."
import hashlib, json
import pytest
import torch
import ship
from tree import root
from xmodseg.sadn import load_sadn, sadn, save_sadn

@pytest.fixture
def run(tmp_path):
    net = sadn('M5+idt', 'tiny')
    save_sadn(net, tmp_path/'weights.safetensors')
    (tmp_path/'scores.json').write_text(json.dumps(dict(row='M5+idt', seed=3, steps=40, scores=dict(y_l=dict(dice=.5, hd=9.), x_lh=dict(mae=80.)))))
    return tmp_path

def test_ships_weights_and_their_origin(run, tmp_path):
    ship.ship(run, into=tmp_path/'into')
    kept = tmp_path/'into'/'sadn_small.safetensors'
    told = json.loads(kept.with_suffix('.json').read_text())
    assert told == dict(row='M5+idt', seed=3, steps=40, dice=dict(y_l=.5), sha256=hashlib.sha256(kept.read_bytes()).hexdigest())
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(load_sadn(kept).segment(x), load_sadn(run/'weights.safetensors').segment(x))
    assert sorted(p.name for p in kept.parent.iterdir()) == ['sadn_small.json', 'sadn_small.safetensors']

@pytest.mark.parametrize('spoil, word', [
    (lambda d: (d/'weights.safetensors').unlink(), 'no such file'), (lambda d: (d/'scores.json').write_text('{}'), 'lacks row'),
    (lambda d: (d/'weights.safetensors').write_bytes(b'0'*(ship.limit + 1)), 'may ship'), (lambda d: (d/'weights.safetensors').write_bytes(b'0'*99), 'checkpoint')])
def test_refused_and_nothing_written(run, tmp_path, spoil, word):
    spoil(run)
    with pytest.raises((SystemExit, ValueError), match=word): ship.ship(run, into=tmp_path/'into')
    assert not (tmp_path/'into').exists()

def test_a_net_of_another_method_ships_only_under_its_own(run, tmp_path):
    with pytest.raises(ValueError, match='another method'): ship.ship(run, 'tdgan', into=tmp_path/'into')
    assert not (tmp_path/'into').exists()

def test_the_shipped_net_is_the_one_its_note_tells_of():
    w = root/'xmodseg'/'weights'
    for f in w.glob('*.safetensors'):
        assert f.stat().st_size <= ship.limit
        assert json.loads(f.with_suffix('.json').read_text())['sha256'] == hashlib.sha256(f.read_bytes()).hexdigest(), f.name
