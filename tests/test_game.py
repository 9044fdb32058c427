"Methods, the table of pulls, CycleGAN and the signs of a game gone wrong (chapter 29). The loop itself: test_loop.py."
import copy
import numpy as np
import pytest
import torch
from torch import nn
from xmodseg import game
from xmodseg.adversarial import fool, spot
from xmodseg.core import Bag, XModSegError, rng_state
from xmodseg.game import CycleGAN, Method, Player, Supervised, fit, monitor, pulls, symptoms
from xmodseg.shape import l1
from xmodseg.volume import Volume

def batch(n=2, side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    x_l, x_h = torch.rand(2, n, 1, side, side, generator=g)*2 - 1
    return Bag(x_l=x_l, x_h=x_h, y_h=(x_h > 0).float(), name=[str(i) for i in range(n)])

def gan(seed=0, **kw):
    torch.manual_seed(seed)
    return CycleGAN(2, 0, 1, lr=1e-3, **kw)

def test_the_names_of_the_loop_are_at_home_here():
    assert {'Player', 'Method', 'moves', 'pulls', 'linear_decay', 'Loop', 'fit', 'Supervised', 'CycleGAN'} <= set(game.__all__) and all(hasattr(game, n) for n in game.__all__)

def test_29_1_total_is_weighted_and_a_watched_term_pulls_on_nothing():
    m, one = Method(dict(cyc=10., idt=0)), torch.tensor(1.)
    assert float(m.total(dict(adv=one, cyc=2*one))) == 21 and float(m.total(dict(adv=one, idt=one*float('nan')))) == 1
    for f in (lambda: m.paths(batch()), m.players):
        with pytest.raises(NotImplementedError): f()

def test_on_volume_keeps_the_scan_s_grid_and_refuses_a_method_without_slices():
    vol = Volume(np.random.default_rng(0).uniform(-900, 1900, (3, 40, 36)).astype(np.float32), np.diag([-2., 1, 3, 1]))
    m = gan(slices=dict(hu=(-1000, 2000)))
    with torch.no_grad(): m.G_l2h.net = nn.Sequential()
    back = m.translate(vol)
    assert back.shape == vol.shape and np.allclose(back.affine, vol.affine) and np.abs(back.data - vol.data).max() < .01
    s = Supervised(nn.Identity(), config=dict(axis=0, spacing=None, hu=(-1000, 2000), divisor=4)); s.p = nn.Parameter(torch.zeros(1))
    mask = s.segment(vol)
    assert mask.kind == 'label' and ((mask.data > 0) == (vol.data > 1250)).mean() > .99      # 0.5 in [-1,1] is 1250 HU
    with pytest.raises(XModSegError, match="which slices.*'axis'"): Supervised(nn.Conv2d(1, 1, 1)).segment(vol)

def test_29_2_terms_by_hand():
    m, b = gan(), batch(); p = m.paths(b)
    t = m.pull(b, p)
    assert torch.equal(p.x_h2l2h, m.G_l2h(m.G_h2l(b.x_h))) and torch.equal(p.x_l2h2l, m.G_h2l(m.G_l2h(b.x_l)))
    torch.testing.assert_close(t['cyc'], (p.x_l2h2l - b.x_l).abs().mean() + (p.x_h2l2h - b.x_h).abs().mean())
    torch.testing.assert_close(t['adv'], (m.D_h(p.x_l2h) - 1).square().mean() + (m.D_l(p.x_h2l) - 1).square().mean())
    for name, real, fake in (('D_l', b.x_l, p.x_h2l), ('D_h', b.x_h, p.x_l2h)):      # D_l judges l, D_h judges h
        D = getattr(m, name); terms = next(q for q in m.players() if q.name == name).terms(b, p)
        torch.testing.assert_close(terms[name], ((D(real) - 1).square().mean() + D(fake).square().mean())/2)
    assert m.weights == dict(cyc=10.) and gan(weights=dict(cyc=5)).weights == dict(cyc=5)

def test_29_2_the_loop_equals_the_papers_alternation_in_plain_torch():
    class Data:
        def __getitem__(self, k): return batch(seed=k)
    ours = gan(); m = copy.deepcopy(ours).train()
    fit(ours, Data(), 3, watch=(), device='cpu')
    opts = [torch.optim.Adam(p, 1e-3, (.5, .999)) for p in ([*m.G_l2h.parameters(), *m.G_h2l.parameters()], m.D_l.parameters(), m.D_h.parameters())]
    for k in range(3):
        b = batch(seed=k); p = m.paths(b)
        m.zero_grad(); (fool(m.D_h(p.x_l2h)) + fool(m.D_l(p.x_h2l)) + 10*(l1(p.x_l2h2l, b.x_l) + l1(p.x_h2l2h, b.x_h))).backward(); opts[0].step()
        for D, real, fake, opt in ((m.D_l, b.x_l, p.x_h2l, opts[1]), (m.D_h, b.x_h, p.x_l2h, opts[2])):
            m.zero_grad(); spot(D(real), D(fake.detach())).backward(); opt.step()
    m.eval(); b = batch(seed=9)
    for n, x in (('G_l2h', b.x_l), ('G_h2l', b.x_h), ('D_l', b.x_l), ('D_h', b.x_h)):
        torch.testing.assert_close(getattr(ours, n)(x), getattr(m, n)(x), rtol=1e-3, atol=1e-3)

def test_translate_goes_to_the_named_domain_without_a_graph():
    m, b = gan(), batch()
    assert torch.equal(m.translate(b.x_l), m.G_l2h(b.x_l)) and torch.equal(m.translate(b.x_h, 'l'), m.G_h2l(b.x_h))
    assert not m.translate(b.x_l).requires_grad

def test_29_3_pulls_of_CycleGAN_which_term_reaches_which_net():
    m, b = gan(), batch()
    t = pulls(m, b)
    assert {k: [n for n, v in row.items() if v is not None] for k, row in t.items()} == dict(adv=['G_l2h', 'G_h2l'], cyc=['G_l2h', 'G_h2l'], D_l=['D_l'], D_h=['D_h'])
    assert all(v > 0 for row in t.values() for v in row.values() if v is not None) and set(t['adv']) == {'G_l2h', 'G_h2l', 'D_l', 'D_h'}
    p = m.paths(b); g = torch.autograd.grad(m.pull(b, p)['cyc'], list(m.G_h2l.parameters()))
    assert t['cyc']['G_h2l'] == pytest.approx(float(torch.cat([v.flatten() for v in g]).norm()), rel=1e-4)      # unweighted

def test_29_3_looking_changes_nothing():
    m, b = gan(), batch()
    m.D_l.requires_grad_(False); m.pool_l.size = m.pool_h.size = 1; pulls(m, b)
    flags, state, rng = [p.requires_grad for p in m.parameters()], copy.deepcopy(m.state_dict()), rng_state()['torch']
    pulls(m, b)
    assert flags == [p.requires_grad for p in m.parameters()] and torch.equal(rng, rng_state()['torch']) and not m.pool_l.items
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items() if isinstance(v, torch.Tensor))

def test_29_3_a_wiring_fault_is_seen():
    class Miswired(CycleGAN):
        def players(self):
            G, D_l, D_h = super().players()
            return [Player('all', [*G.nets, *D_h.nets], lambda b, p: {**G.terms(b, p), **D_h.terms(b, p)}), D_l]
    assert pulls(Miswired(2, 0, 1), batch())['adv']['D_h'] > 0
    class Idle(CycleGAN):
        def pull(self, b, p): return dict(adv=fool(self.D_h(p.x_l2h)))
    table = pulls(Idle(2, 0, 1), batch())
    assert all(not row['G_h2l'] for row in table.values())       # a column without an entry: a net that nobody teaches

def test_supervised_learns_and_is_a_game_of_one():
    class Data:
        def __getitem__(self, k):
            g = torch.Generator().manual_seed(k); y = (torch.rand(4, 1, 16, 16, generator=g) > .7).float()
            return Bag(x_h=.8*y - .4 + .1*torch.randn(y.shape, generator=g), y_h=y)
    torch.manual_seed(0)
    m = Supervised(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid()), lr=.1)
    assert list(pulls(m, Data()[0])) == ['seg'] and [p.betas for p in m.players()] == [(.9, .999)]
    log = fit(m, Data(), 60, log_every=1, watch=(), device='cpu').log
    assert log[-1]['seg'] < .15 < log[0]['seg'] and torch.equal(m.segment(Data()[0].x_h), m.net(Data()[0].x_h))

def test_29_4_the_geometry_attack_leaves_the_cycle_from_l_alone_to_the_last_bit():
    m, b = gan(), batch()
    T, back = (lambda x: x.roll(3, -1)), (lambda x: x.roll(-3, -1))
    with torch.no_grad():
        assert torch.equal(m.G_h2l(back(T(m.G_l2h(b.x_l)))), m.G_h2l(m.G_l2h(b.x_l)))
        assert not torch.equal(m.G_h2l(T(T(m.G_l2h(b.x_l)))), m.G_h2l(m.G_l2h(b.x_l)))
        C = lambda x: m.G_l2h(m.G_h2l(x))
        torch.testing.assert_close(l1(T(C(back(b.x_h))), b.x_h), l1(C(back(b.x_h)), back(b.x_h)))

# ---- signs

x, real = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))

@pytest.mark.parametrize('fake, critic, signs', [(.8*x + .1, .3, []), (x[:1].expand(4, 1, 16, 16) + .01*x, .3, ['collapse']), (x + .01, .01, ['identity']), (x + .01, .3, []),
    (x + .03, .01, []), (-x, .3, ['inversion'])], ids=['healthy', 'collapse', 'identity', 'nothing to change', 'changed enough', 'inversion'])
def test_29_5_each_sign_alone(fake, critic, signs): assert list(symptoms(x, fake, real, critic)) == signs

def test_29_5_one_image_says_nothing_about_collapse(): assert symptoms(x[:1], .9*x[:1] + .1, real[:1]) == {}

def test_29_5_monitor_says_each_sign_once_and_counts_steps(capsys):
    look = monitor(lambda run: (x, .8*x, real), spell=200)
    def said(k, v): look(Bag(step=k, log=dict(adv=1., D_h=v, cyc=.001, DD=.001))); return capsys.readouterr().out
    assert [said(k, .01) for k in (100, 250)] == ['', ''] and said(260, .5) == ''       # it recovered: counted anew
    assert [said(k, .01) for k in (300, 499)] == ['', ''] and 'step 500: sure D_h' in said(500, .01) and said(600, .01) == ''

def test_29_5_collapse_is_seen_over_looks_of_one_image_and_the_right_critic_is_asked(capsys):
    at = []
    def look(run): at.append(run.step); k = run.step % len(x); return x[k:k + 1], x[:1], real[k:k + 1]
    watch = monitor(look, looks=4)
    watch(Bag(step=0, log=dict(D_h=.3))); assert capsys.readouterr().out == ''
    watch(Bag(step=1, log=dict(D_h=.3))); assert 'collapse' in capsys.readouterr().out
    for name, told in (('D_h', ''), ('D_l', 'identity')):
        monitor(lambda run: (x, x + .01, real), critic=name)(Bag(step=0, log=dict(D_h=.45, D_l=.01)))
        out = capsys.readouterr().out; assert told in out and bool(out) == bool(told)

def test_29_5_monitor_translates_by_itself(capsys):
    m = gan()
    with torch.no_grad(): m.translate = lambda x: -x
    monitor()(Bag(step=10, log=dict(D_h=.3), method=m, batch=batch(4)))
    assert 'step 10: inversion' in capsys.readouterr().out

def test_no_such_domain():
    x = torch.rand(1, 1, 16, 16)*2 - 1
    for to in ('H', 'ct', ''):
        with pytest.raises(XModSegError, match="no such domain.*'h' or 'l'"): CycleGAN(2, 0, 1).translate(x, to)
    with pytest.raises(XModSegError, match="did you mean 'spacing'"): CycleGAN(2, 0, 1, slices=dict(spacin=1.))

def test_29_3_a_watch_may_ask_for_the_table_in_the_middle_of_a_run():
    class Data:
        fingerprint = 'a'
        def __getitem__(self, k): x_l, x_h = torch.rand(2, 1, 1, 16, 16, generator=torch.Generator().manual_seed(k))*2 - 1; return Bag(x_l=x_l, x_h=x_h)
    torch.manual_seed(0); m, asked = CycleGAN(2, 0, 1), []
    m.D_h.net[0].weight.requires_grad_(False)
    reached = lambda t: {k: {n for n, v in row.items() if v} for k, row in t.items()}
    want = reached(pulls(m, Data()[0]))
    fit(m, Data(), 2, watch=(lambda run: asked.append(reached(pulls(m, Data()[0]))),), device='cpu', log_every=1)
    assert asked == [want, want] and want['adv'] == {'G_l2h', 'G_h2l'}
    assert [n for n, p in m.named_parameters() if not p.requires_grad] == ['D_h.net.0.weight']

def test_29_2_each_critic_is_shown_what_its_own_pool_hands_out():
    m, shown = gan(), {}
    for name in 'lh':
        getattr(m, f'pool_{name}').forward = lambda new, name=name: torch.full_like(new, .25 if name == 'l' else -.25)
        getattr(m, f'D_{name}').register_forward_hook(lambda D, x, y, name=name: shown.setdefault(name, []).append(x[0].clone()))
    b = batch()
    p = m.paths(b).detach()
    for player in m.players()[1:]: player.terms(b, p)
    for name, fake in (('l', .25), ('h', -.25)):
        real, old = shown[name]
        assert torch.equal(real, b[f'x_{name}']) and (old == fake).all()

def test_on_volume_asks_on_the_plane_pixels_and_tiles_of_training():
    "Axis 1 of a scan of 2 mm, asked at 4 mm in tiles of 8: what the net is shown, and where its answer lies."
    scan, seen = Volume(np.random.default_rng(0).uniform(-900, 900, (72, 6, 80)).astype(np.float32), np.diag([2., 5, 2, 1])), []
    m = Method(config=dict(axis=1, spacing=4., hu=(-1000, 1000), divisor=4, tile=8)); m.net = nn.Conv2d(1, 1, 1)
    back = m.on_volume(lambda x: seen.append(tuple(x.shape)) or x, scan, 'image')
    assert {s[2:] for s in seen} == {(8, 8)} and back.shape == scan.shape and np.allclose(back.affine, scan.affine)
    m.config['tile'] = None; seen.clear(); m.on_volume(lambda x: seen.append(tuple(x.shape)) or x, scan, 'image')
    assert {s[2:] for s in seen} == {(40, 36)} and sum(s[0] for s in seen) == 6      # 80 x 72 pixels of 2 mm are 40 x 36 of 4 mm, on six coronal slices

def test_29_5_a_monitor_forgets_the_run_before(capsys):
    watch = monitor(lambda run: (x, .8*x, real), spell=200)
    def said(k, v): watch(Bag(step=k, log=dict(D_h=v))); return capsys.readouterr().out
    assert [said(k, .01) for k in (800, 900)] == ['', ''] and said(50, .01) == '' and said(249, .01) == '' and 'step 250: sure D_h' in said(250, .01)
    assert said(10, .01) == '' and 'sure' in said(300, .01)      # and says in a third run what it has said in the second
    watch = monitor(lambda run: (x, .8*x, real), spell=200)
    assert [said(k, float('nan')) for k in (1, 300)] == ['', '']

@pytest.mark.parametrize('ask', [lambda v: gan().translate(v), lambda v: Supervised(nn.Conv2d(1, 1, 1), config=dict(tile=None)).segment(v)])
def test_a_path_is_no_scan(ask):
    with pytest.raises(XModSegError, match='neither a tensor nor a scan: found a str.*read_volume'): ask('scan.nii.gz')

def test_a_file_with_weights_missing_or_unknown_is_refused(tmp_path):
    from xmodseg.game import saved_method, take_up
    from xmodseg.run import save_checkpoint
    net = lambda: Supervised(nn.Conv2d(1, 2, 1), config=dict(tile=8))
    state = net().state_dict()
    save_checkpoint(tmp_path/'run', dict(names=dict(config=dict(tile=8), weights=dict(seg=2.)), loop=dict(method=state)))
    s = saved_method(tmp_path/'run', {'tile'}, {'tile', 'row'})
    assert s.config == dict(tile=8) and s.weights == dict(seg=2.) and torch.equal(take_up(net(), s.state, ('net.',), 'f').net.weight, state['net.weight'])
    for wrong in ({}, {'net.weight': state['net.weight']}, {**state, 'net.more': torch.ones(1)}, {**state, 'net.bias': torch.ones(3)}):
        with pytest.raises(XModSegError, match='a file of other nets'): take_up(net(), wrong, ('net.',), 'f')
    take_up(net(), {**state, 'D.weight': torch.ones(1)}, ('net.',), 'f')     # a critic's weights are not asked for
    for what in (dict(a=1), dict(config=dict(tile=8, later=1), method={})):
        save_checkpoint(tmp_path/'other', what)
        with pytest.raises(XModSegError, match='a file of another method'): saved_method(tmp_path/'other', {'tile'}, {'tile'})
