"The ground floor: refusals, bags, tables, randomness, names."
import collections, copy, io, pickle, random
import numpy as np
import pytest
import torch
from torch import nn
from xmodseg.core import (Bag, XModSegError, conv, count_params, instance_norm, max_pool, pick_device, pick_size, refuse_unknown,
                          reflect_pad, replicate_pad, rng_state, seed_everything, set_rng_state)

def draw(): return [random.random(), random.gauss(0, 1), *np.random.rand(2).tolist(), float(np.random.randn()), *torch.rand(2).tolist(), float(torch.randn(()))]

def test_refusal_reads_as_one_sentence():
    assert str(XModSegError('wrong', found=1, needed=2, fix='do this', file='a.nii')) == 'a.nii: wrong: found 1, needed 2; do this'
    assert str(XModSegError('wrong', found=0)) == 'wrong: found 0'        # a zero that was found is not nothing
    assert issubclass(XModSegError, ValueError)

def test_refusal_crosses_processes():
    e = pickle.loads(pickle.dumps(XModSegError('wrong', found=(1, 2), needed='x', fix='y', file='z')))
    assert (e.what, e.found, e.needed, e.fix, e.file) == ('wrong', (1, 2), 'x', 'y', 'z') and str(e) == 'z: wrong: found (1, 2), needed x; y'

def test_bag_is_a_dict_with_attributes():
    b = Bag(x=1)
    b.y = 2; b['z'] = 3
    assert (b.x, b['y'], b.z, dict(b), list(b)) == (1, 2, 3, dict(x=1, y=2, z=3), ['x', 'y', 'z'])
    assert b == dict(x=1, y=2, z=3) and copy.deepcopy(b) == b and isinstance(pickle.loads(pickle.dumps(b)), Bag)
    assert 'y' in dir(b) and not hasattr(b, 'w') and getattr(b, 'w', 5) == 5

def test_bag_answers_a_typo():
    with pytest.raises(AttributeError, match="no 'x_h2I' in this bag, which holds: x_l, x_h2l; did you mean 'x_h2l'"): Bag(x_l=1, x_h2l=2).x_h2I
    with pytest.raises(AttributeError, match='holds: nothing$'): Bag().x

@pytest.mark.parametrize('name', ['to', 'map', 'detach', 'keys', 'items', 'get', 'update'])
def test_bag_refuses_names_that_would_hide(name):
    with pytest.raises(XModSegError, match=f'found {name}'): setattr(Bag(), name, 1)
    b = Bag(); b[name] = 1
    assert b[name] == 1 and callable(getattr(b, name))

Pair = collections.namedtuple('Pair', 'a b')

def test_bag_map_reaches_every_tensor_and_nothing_else():
    b = Bag(t=torch.ones(1), l=[torch.ones(1), 's', 3], u=(torch.ones(1), None), d={'k': torch.ones(1)}, b=Bag(t=torch.ones(1)), n=Pair(torch.ones(1), 2), a=np.ones(1))
    seen = []
    m = b.map(lambda t: seen.append(t) or t + 1)
    assert len(seen) == 6 and m.l[1:] == ['s', 3] and m.u[1] is None and m.n.b == 2 and isinstance(m.n, Pair) and isinstance(m.b, Bag) and m.a is b.a
    assert all(float(t) == 2 for t in (m.t, m.l[0], m.u[0], m.d['k'], m.b.t, m.n.a)) and float(b.t) == 1

def test_bag_detach_cuts_the_graph_and_only_in_the_copy():
    w = torch.ones(2, requires_grad=True)
    b = Bag(y=[3*w])
    d = b.detach()
    assert not d.y[0].requires_grad and b.y[0].requires_grad and d.y[0].equal(b.y[0])
    b.y[0].sum().backward()
    assert w.grad.tolist() == [3, 3] and Bag(t=w).to('meta').t.is_meta

@pytest.mark.parametrize('dim', [2, 3])
def test_tables(dim):
    x = torch.randn(2, 4, *[6]*dim)
    assert conv(dim)(4, 5, 3, padding=1)(x).shape == (2, 5, *[6]*dim) and max_pool(dim)(2)(x).shape == (2, 4, *[3]*dim)
    for pad in (reflect_pad, replicate_pad): assert pad(dim)(2)(x).shape == (2, 4, *[10]*dim)
    assert not reflect_pad(dim)(1)(x).equal(replicate_pad(dim)(1)(x))
    n = instance_norm(dim)(4)
    assert not list(n.parameters()) and not list(n.buffers())
    torch.testing.assert_close(n(x), n.eval()(5*x + 9), atol=1e-3, rtol=1e-3)

@pytest.mark.parametrize('table', [conv, instance_norm, max_pool, reflect_pad, replicate_pad])
@pytest.mark.parametrize('dim', [1, 4, '2', None])
def test_tables_refuse_other_dimensions(table, dim):
    with pytest.raises(XModSegError, match='2 or 3'): table(dim)

def test_CORE_E1_same_seed_same_numbers():
    seed_everything(3); a = draw()
    seed_everything(3); b = draw()
    seed_everything(4); c = draw()
    assert a == b and not any(u == v for u, v in zip(a, c))
    seed_everything(2**40 + 1)          # larger than NumPy's limit

@pytest.mark.parametrize('warm', range(5))
def test_CORE_E1_state_from_the_middle_through_a_strict_loader(warm):
    seed_everything(warm)
    for _ in range(warm): draw()
    np.random.randn()                   # leaves a second Gaussian waiting inside NumPy
    state, future = rng_state(), draw()
    torch.save(state, f := io.BytesIO()); f.seek(0)
    seed_everything(99); draw()
    set_rng_state(torch.load(f, weights_only=True))
    assert draw() == future

@pytest.mark.parametrize('one', ['torch', 'numpy', 'python'])
def test_CORE_E1_every_generator_counts(one):
    seed_everything(0); old, future = rng_state(), draw()
    seed_everything(1); new = rng_state()
    set_rng_state({**old, one: new[one]})
    assert draw() != future

def test_CORE_E1_taking_the_state_draws_nothing():
    seed_everything(0); a = draw()
    seed_everything(0); rng_state(); assert draw() == a

def test_CORE_E2_count():
    for dim in (2, 3): assert count_params(conv(dim)(3, 5, 4)) == 5*(3*4**dim + 1)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert count_params(net) == 9 + 6 and count_params(nn.ModuleList([net, net])) == 15
    net[0].requires_grad_(False); assert count_params(net) == 6

def test_devices():
    assert pick_device('cpu').type == 'cpu' and pick_device('auto').type == ('cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu')
    for bad, words in (('cuda:99', "'cuda:99', . of its kind"), ('gpu', "no such kind.*'gpu'")):
        with pytest.raises(XModSegError, match=words): pick_device(bad)

@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_no_cuda_is_refused_with_a_way_out():
    with pytest.raises(XModSegError, match="0 of its kind.*device='cpu' or 'auto'"): pick_device('cuda')

def test_sizes():
    assert [pick_size(s) for s in ('tiny', 'small', 'full')] == ['tiny', 'small', 'full'] and pick_size() in ('small', 'full')
    for bad in ('big', '', 'TINY'):
        with pytest.raises(XModSegError, match='tiny, small, full or auto'): pick_size(bad)

def test_unknown_parameters():
    refuse_unknown([], []); refuse_unknown(iter(['a']), iter(['a', 'b']))
    with pytest.raises(XModSegError, match="found setps, needed seed, steps; did you mean 'steps'"): refuse_unknown(['seed', 'setps'], ['steps', 'seed'])
    with pytest.raises(XModSegError, match='found zzz'): refuse_unknown(['zzz'], ['steps'])

@pytest.mark.parametrize('device, ahead', [('cpu', False), ('cuda', True), (torch.device('cuda', 1), True)])
def test_only_the_way_to_a_GPU_goes_on_without_waiting(monkeypatch, device, ahead):
    asked = []
    monkeypatch.setattr(torch.Tensor, 'to', lambda t, d, non_blocking: asked.append((d, non_blocking)) or t)
    Bag(x=torch.ones(1)).to(device)
    assert asked == [(device, ahead)]
