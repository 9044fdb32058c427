"SADN by value: index rule, every loss, every row, who moves whom, scores by an oracle, files, scans."
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from torch.testing import assert_close
from xmodseg.core import Bag, XModSegError, count_params
from xmodseg.game import Method, pulls
from xmodseg.loop import fit
from xmodseg.sadn import (ROWS, SIZES, TRAINING, WEIGHTS, AdaptedSegmentor, FeatureCritic, SADN, draw_masks, draw_paths, evaluate, generator_terms, load_sadn,
                          look_scores, mask_scores, outputs, sadn, save_sadn, segmentor_scores)
from xmodseg.segmentors import UNet
from xmodseg.unpaired import Slices
from xmodseg.volume import Volume, from_slices, to_slices, window

torch.set_num_threads(1)
rand = lambda *s, seed=0: torch.rand(*s, generator=torch.Generator().manual_seed(seed))

def batch(n=1, side=32, seed=0):
    x = lambda k: rand(n, 1, side, side, seed=seed + k)*2 - 1
    return Bag(x_l=x(1), x_h=x(2), y_h=(x(3) > .3).float())
def build(row='M5', seed=0, **kw): torch.manual_seed(seed); return sadn(row, 'tiny', **kw)
def reached(table): return {k: {n for n, v in row.items() if v} for k, row in table.items()}

b, movers = batch(), {'E_l', 'E_h', 'E_a', 'G_l', 'G_h', 'G_s', 'S_l', 'S_h'}

@pytest.fixture(scope='module')
def net(): return build()
@pytest.fixture(scope='module')
def table(): return pulls(build(), b)

# ---- the forward map

def grads(net, name, b=b):
    p = net.paths(b)
    return {n for n, m in net.named_children() if any(g is not None and g.any() for g in torch.autograd.grad(p[name].square().sum(), list(m.parameters()), retain_graph=True, allow_unused=True))}

def test_SADN_E1_codes_and_shapes(net):
    p = draw_paths(net, batch(2))
    assert p.c_l.shape == p.c_h.shape == (2, 16, 8, 8) and [tuple(a.shape) for a in p.a] == [(2, 16, 8, 8), (2, 8, 16, 16), (2, 4, 32, 32)]
    two = batch(2); assert_close(p.c_l, net.E_l(two.x_l)); assert_close(p.c_h, net.E_h(two.x_h)); assert all(torch.equal(a, c) for a, c in zip(p.a, net.E_a(two.x_l)))

def test_SADN_E2_look_l_takes_the_code_of_x_l(net):
    p = draw_paths(net, b)
    assert_close(p.x_ll, net.G_l(net.E_l(b.x_l), net.E_a(b.x_l)), atol=1e-5, rtol=1e-4); assert_close(p.x_hl, net.G_l(net.E_h(b.x_h), net.E_a(b.x_l)), atol=1e-5, rtol=1e-4)
    assert grads(net, 'x_ll') == {'E_l', 'E_a', 'G_l'} and grads(net, 'x_hl') == {'E_h', 'E_a', 'G_l'}
    other = draw_paths(net, Bag(b, x_l=batch(seed=9).x_l))
    assert (other.x_hl - p.x_hl).abs().max() > 1e-3 and torch.equal(other.c_h, p.c_h)

def test_SADN_E3_look_h_knows_no_artifact(net):
    p = draw_paths(net, b)
    for d in 'lh':
        c = getattr(net, f'E_{d}')(b[f'x_{d}']); m = net.G_s(c)
        assert_close(p[f'm_{d}'], m, atol=1e-5, rtol=1e-4); assert_close(p[f'x_{d}h'], net.G_h(c, m), atol=1e-5, rtol=1e-4)
    assert grads(net, 'x_lh') == {'E_l', 'G_s', 'G_h'} and grads(net, 'x_hh') == {'E_h', 'G_s', 'G_h'}
    assert 0 < p.m_l.min() and p.m_l.max() < 1 and p.x_lh.abs().max() <= 1 and p.x_lh.shape == b.x_l.shape

def test_SADN_E1_to_E3_index_rule_of_content(net):
    p, q = draw_paths(net, b), draw_paths(net, Bag(b, x_h=batch(seed=9).x_h))
    for n in ('x_ll', 'x_lh', 'm_l'): assert_close(p[n], q[n])
    for n in ('x_hl', 'x_hh', 'm_h', 'x_hlh'): assert (p[n] - q[n]).abs().max() > 1e-3

def test_SADN_E4_E5_segmentor_is_chosen_by_the_last_letter(net):
    p = net.paths(b); x = Bag(x_l=b.x_l, x_h=b.x_h, **{k: p[k] for k in ('x_ll', 'x_hl', 'x_lh', 'x_hh')})
    for n in ('y_l', 'y_ll', 'y_hl'): assert_close(p[n], net.S_l(x['x' + n[1:]]), atol=1e-5, rtol=1e-4)
    for n in ('y_h', 'y_hh', 'y_lh'): assert_close(p[n], net.S_h(x['x' + n[1:]]), atol=1e-5, rtol=1e-4)
    q = Bag(p); draw_masks(net, b, q, ('y_lh',)); assert_close(q.y_lh, p.y_lh, atol=1e-5, rtol=1e-4)

def test_SADN_E4_E5_rows_draw_the_masks_their_terms_read():
    masks = lambda row: {k for k in build(row).paths(b) if k[0] == 'y'}
    assert masks('M2') == set() and masks('M3') == {'y_hl', 'y_h', 'y_hh'} and masks('M4') == masks('M3') | {'y_l', 'y_ll'} and masks('M5') == masks('M4') | {'y_lh'}

def test_SADN_E4_E5_without_segmentors_G_s_reads_the_content():
    net = build('M5-noS')
    assert not hasattr(net, 'S_l') and torch.equal(net.look(b.x_l, 'l'), net.G_s(net.E_l(b.x_l))) and torch.equal(net.look(b.x_h, 'h'), net.G_s(net.E_h(b.x_h)))

# ---- the losses, on images by hand

def stub(parts='', **kw):
    return SimpleNamespace(**{**dict(has=lambda w: w in parts.split(), mode='lsgan', sign='corrected', supervise_hl=True, D_l=lambda x: x*0, D_h=lambda x: x*0), **kw})
def flat(v): return torch.full((1, 1, 2, 2), float(v))
def hand(**kw):
    "Paths whose every term but the named ones is 0."
    z = {n: flat(0) for n in ('x_ll', 'x_hl', 'x_lh', 'x_hh', 'x_hlh', 'm_l', 'm_h', *('y_l', 'y_ll', 'y_hl', 'y_h', 'y_hh', 'y_lh'))}
    return Bag({**z, **kw})
zero = Bag(x_l=flat(0), x_h=flat(0), y_h=torch.tensor([[[[1., 0], [0, 0]]]]))
right = zero.y_h

@pytest.mark.parametrize('mode, want', [('lsgan', lambda z: (z - 1)**2), ('vanilla', lambda z: torch.log1p(torch.exp(-z))), ('minmax', lambda z: torch.log(1 - torch.sigmoid(z)))])
def test_SADN_E6_generators_half_in_three_forms(mode, want):
    z_l, z_h = torch.tensor([[[[.5, -1.], [2., 0.]]]]), torch.tensor([[[[1.5, 1.], [-2., .3]]]])
    t = generator_terms(stub(mode=mode, D_l=lambda x: z_l + x, D_h=lambda x: z_h + x), zero, hand(x_hl=flat(.1), x_lh=flat(.2)))
    assert_close(t['adv'], want(z_l + .1).mean() + want(z_h + .2).mean())

@pytest.mark.parametrize('mode', ['lsgan', 'vanilla', 'minmax'])
def test_SADN_E6_critics_are_named_by_the_domain_they_judge(mode):   # trap 7
    class Spy(nn.Module):
        def forward(self, x): self.x = x; return x
    net = build(mode=mode); net.D_l, net.D_h = Spy(), Spy(); p = draw_paths(net, b).detach(); _, P_l, P_h = net.players()
    r, f = b.x_l, p.x_hl
    want = dict(lsgan=((r - 1)**2).mean()/2 + (f**2).mean()/2)
    want['vanilla'] = want['minmax'] = (torch.log1p(torch.exp(-r)).mean() + torch.log1p(torch.exp(f)).mean())/2
    assert_close(P_l.terms(b, p)['D_l'], want[mode]); P_h.terms(b, p)
    assert torch.equal(net.D_l.x, torch.cat([b.x_l, p.x_hl])) and torch.equal(net.D_h.x, torch.cat([b.x_h, p.x_lh])) and (P_l.name, P_h.name) == ('D_l', 'D_h')

def test_SADN_E7_zero_for_perfect_additive_artifact():
    a, clean, x_h = rand(1, 1, 8, 8) - .3, rand(1, 1, 8, 8, seed=1), rand(1, 1, 8, 8, seed=2)
    c = Bag(x_l=clean + a, x_h=x_h, y_h=x_h); p = hand(x_lh=clean, x_hl=x_h + a, x_ll=clean, x_hh=x_h, x_hlh=x_h)
    assert generator_terms(stub(), c, p)['art'] < 1e-6
    assert_close(generator_terms(stub(sign='as_printed'), c, p)['art'], 2*a.abs().mean())

def test_SADN_E7_the_argument_reaches_the_loss():
    nets = {s: build('M0', sign=s) for s in ('corrected', 'as_printed')}; p = draw_paths(nets['corrected'], b)
    d = {s: generator_terms(n, b, p)['art'] for s, n in nets.items()}
    assert_close(d['corrected'], ((b.x_l - p.x_lh) - (p.x_hl - b.x_h)).abs().mean()); assert_close(d['as_printed'], ((b.x_l - p.x_lh) - (b.x_h - p.x_hl)).abs().mean())

def test_SADN_E8_both_reconstructions():
    assert_close(generator_terms(stub(), zero, hand(x_ll=flat(.25), x_hh=flat(-.5)))['rec'], torch.tensor(.75))
    assert_close(generator_terms(stub(), zero, hand(x_lh=flat(.25), x_hl=flat(-.5)))['rec'], torch.tensor(0.))

def test_SADN_E8_moves_encoders_and_decoders_only(table): assert reached(table)['rec'] == movers - {'S_l', 'S_h'}

def test_SADN_E9_way_back_and_value(net):
    p = draw_paths(net, b); c = net.E_l(p.x_hl)
    assert_close(p.x_hlh, net.G_h(c, net.G_s(c))); assert_close(generator_terms(stub(), zero, hand(x_hlh=flat(-.5)))['self'], torch.tensor(.5))

def test_SADN_E9_gradient_passes_through_x_hl(net, table):   # trap 8: not detached
    assert reached(table)['self'] == movers - {'S_l', 'S_h'}   # E_h, E_a and G_l made x_hl; E_l, G_s and G_h clean it
    p = draw_paths(net, b); g, = torch.autograd.grad((p.x_hlh - b.x_h).abs().mean(), p.x_hl); assert g.abs().sum() > 0

def test_SADN_E10_dice_values():
    sx = lambda **kw: float(generator_terms(stub('sx', **kw.pop('net', {})), zero, hand(**kw))['sx'])
    assert sx(y_h=right, y_hh=right, y_hl=right) == pytest.approx(0, abs=1e-5) and sx() == pytest.approx(3)   # empty answers cost 1 each
    assert sx(y_h=flat(1), y_hh=right, y_hl=right) == pytest.approx(1 - 2/5, abs=1e-5) and sx(y_hl=right) == pytest.approx(2, abs=1e-5)
    assert sx(y_h=right, y_hh=right, net=dict(supervise_hl=False)) == pytest.approx(0, abs=1e-5)   # as printed: y_hl is not asked
    empty = generator_terms(stub('sx'), Bag(zero, y_h=flat(0)), hand())['sx']; assert float(empty) == pytest.approx(3) and torch.isfinite(empty)

def test_SADN_E10_as_printed_leaves_S_l_without_a_teacher_in_M3():   # trap 3
    printed, ours = (pulls(build('M3', supervise_hl=s), b) for s in (False, True))
    assert all(row['S_l'] is None for row in printed.values()) and printed['sx']['S_h'] > 0
    assert ours['sx']['S_l'] > 0 and [k for k, row in ours.items() if row['S_l']] == ['sx']

def test_SADN_E10_reaches_image_nets_through_x_hh_and_x_hl(table):   # trap 4
    assert reached(table)['sx'] == {'E_h', 'G_h', 'G_s', 'E_a', 'G_l', 'S_l', 'S_h'}
    assert reached(pulls(build('M5', supervise_hl=False), b))['sx'] == {'E_h', 'G_h', 'G_s', 'S_h'}

def test_SADN_E11_dice_of_the_shape_of_h(table):
    sc = lambda **kw: float(generator_terms(stub('sc'), kw.pop('b', zero), hand(**kw))['sc'])
    assert sc(m_h=right, m_l=flat(1)) == pytest.approx(0, abs=1e-5) and sc(m_l=right) == pytest.approx(1) and sc(m_h=right*.5) == pytest.approx(1 - 1/1.5, abs=1e-5)
    assert sc(b=Bag(zero, y_h=flat(0))) == pytest.approx(1)
    assert reached(table)['sc'] == {'E_h', 'G_s'}

def test_SADN_E12_and_E13_pair_the_right_masks():
    y = dict(y_l=flat(.1), y_ll=flat(.3), y_lh=flat(.6), y_h=flat(.8), y_hh=flat(.9), y_hl=flat(.35))
    t = generator_terms(stub('srec strans'), zero, hand(**y))
    assert_close(t['srec'], torch.tensor(.2 + .1)); assert_close(t['strans'], torch.tensor(.5 + .45))

def test_SADN_E12_E13_reach_every_mover(table):   # trap 4
    assert reached(table)['srec'] == movers and reached(table)['strans'] == movers

def test_SADN_E6_E7_image_terms_reach_no_segmentor(table):
    for k in ('adv', 'art'): assert reached(table)[k] == movers - {'S_l', 'S_h'}
    assert reached(table)['D_l'] == {'D_l'} and reached(table)['D_h'] == {'D_h'}

def test_SADN_E14_total_is_the_weighted_sum(net):
    t = generator_terms(net, b, net.paths(b))
    assert set(t) == {'adv', 'art', 'rec', 'self', 'sx', 'sc', 'srec', 'strans'}
    assert_close(net.total(t), t['adv'] + 5*sum(v for k, v in t.items() if k != 'adv'))
    light = build(weights=dict(art=0, rec=2.)); assert light.weights == {**WEIGHTS, 'art': 0, 'rec': 2.}
    assert_close(light.total(t), t['adv'] + 2*t['rec'] + 5*sum(v for k, v in t.items() if k not in ('adv', 'art', 'rec')))
    assert WEIGHTS == dict(adv=1, art=5, rec=5, self=5, sx=5, sc=5, srec=5, strans=5, idt=5)

# ---- rows

base = {'adv', 'art', 'rec', 'self'}
terms_of = dict(M0=base, M1=base | {'sc'}, M2=base | {'sc'}, M3=base | {'sc', 'sx'}, M4=base | {'sc', 'sx', 'srec'}, M5=base | {'sc', 'sx', 'srec', 'strans'})
terms_of |= {'M5-noS': terms_of['M5'], 'M5+idt': terms_of['M5'] | {'idt'}}

@pytest.mark.parametrize('row', list(ROWS))
def test_SADN_E14_every_row_builds_and_trains(row):
    net = build(row); start = {k: v.clone() for k, v in net.state_dict().items()}
    done = fit(net, [b, batch(seed=5)], 2, device='cpu', watch=(), log_every=1)
    assert done.step == 2 and set(done.log[0]) == terms_of[row] | {'step', 'D_l', 'D_h'} and all(np.isfinite(v) for v in done.log[-1].values())
    for n, m in net.named_children(): assert any(not torch.equal(v, start[f'{n}.{k}']) for k, v in m.state_dict().items()), f'{n} never moved'
    assert set(terms_of) == set(ROWS)

def test_rows_have_the_nets_of_the_table():
    nets = {r: {n for n, _ in build(r).named_children()} for r in ROWS}
    m0 = {'E_l', 'E_h', 'E_a', 'G_l', 'G_h', 'D_l', 'D_h'}
    assert nets['M0'] == m0 and nets['M1'] == nets['M2'] == nets['M5-noS'] == m0 | {'G_s'} and nets['M3'] == nets['M4'] == nets['M5'] == nets['M5+idt'] == m0 | {'G_s', 'S_l', 'S_h'}
    assert [type(build(r).G_h).__name__ for r in ('M0', 'M1', 'M2')] == ['Decoder', 'Decoder', 'ShapeAwareDecoder']

def test_SADN_E3_image_losses_reach_the_shape_decoder_from_M2_on():   # trap 5
    road = lambda row: [k for k, v in pulls(build(row), b).items() if v['G_s']]
    assert road('M1') == ['sc'] and road('M2') == ['adv', 'art', 'rec', 'self', 'sc']

def test_ours_keeps_a_clean_image_clean():
    net = build('M5+idt'); t, plain = generator_terms(net, b, net.paths(b)), generator_terms(build(), b, build().paths(b))
    assert_close(t['idt'], (net.clean(net.E_l(b.x_h)) - b.x_h).abs().mean()); assert 'idt' not in plain
    assert reached(pulls(net, b))['idt'] == {'E_l', 'G_s', 'G_h'}

def test_no_dead_weights(net):   # trap 6; a bias before an instance norm has no effect by construction, so weights are asked
    net.zero_grad(); p = net.paths(b); net.total(generator_terms(net, b, p)).backward()
    for player in net.players()[1:]: sum(player.terms(b, p.detach()).values()).backward()
    dead = [n for n, q in net.named_parameters() if q.grad is None or q.ndim > 1 and not q.grad.any()]
    net.zero_grad(); assert dead == []

def test_artifact_encoder_runs_once_a_step():   # trap 8
    net, calls = build(), []
    for n in ('E_a', 'E_l', 'E_h'): getattr(net, n).register_forward_hook(lambda *_, n=n: calls.append(n))
    fit(net, [b], 1, device='cpu', watch=())
    assert sorted(calls) == ['E_a', 'E_h', 'E_l', 'E_l']   # E_l again for the way back

def test_full_size_is_the_papers():
    with torch.device('meta'): net, flat2, wide = sadn('M5', 'full'), sadn('M0', 'full', n_disc=2), sadn('M3', 'full', unet=64)
    n = {k: count_params(m) for k, m in net.named_children()}
    assert n['E_l'] == n['E_h'] == 5_379_584 and n['E_a'] == 5_379_584 - 4_720_640 and n['G_l'] == 5_920_833 and n['G_h'] == 11_075_073 and n['G_s'] == 5_748_353
    assert n['D_l'] == n['D_h'] == 2_762_689 and count_params(flat2.D_l) == 660_929
    assert n['S_l'] == n['S_h'] and round(n['S_l']/1e6, 1) == 8.6 and round(count_params(wide.S_l)/1e6, 1) == 34.5
    assert net.lr == 1e-4 and SIZES['full']['steps'] == 48*4116 and SIZES['full']['side'] == 256 and net.config['hu'] == [-1000, 2000] and net.config['divisor'] == 16

def test_presets_split_into_nets_and_loop():
    for s in SIZES.values(): assert set(TRAINING) < set(s) and set(s) - set(TRAINING) < set(SADN.__init__.__code__.co_varnames)
    net = build(lr=.5, hu=(-400, 1100)); assert {q.lr for q in net.players()} == {.5} and net.config['hu'] == [-400, 1100]
    assert {(q.betas, q.weight_decay) for q in net.players()} == {((.5, .999), 1e-4)} and [q.name for q in net.players()] == ['G', 'D_l', 'D_h']

def test_refused():
    for call, word in ((lambda: sadn('M6', 'tiny'), 'no such row'), (lambda: sadn('M5', 'huge'), 'no such size'), (lambda: build(norm='layer'), 'no such norm'),
                       (lambda: build('M1').segment(b.x_l), 'm_l'), (lambda: build('M0').segment(b.x_l, 'm_l'), 'M1 to M5'), (lambda: build().segment(b.x_l, 'y_hl'), 'm_l or y_l or y_lh'),
                       (lambda: generator_terms(stub(sign='minus'), zero, hand()), 'no such sign'), (lambda: generator_terms(stub(mode='hinge'), zero, hand()), 'no such adv')):
        with pytest.raises(XModSegError, match=word): call()

# ---- answers

def test_answers_on_tensors(net):
    p = outputs(net, b)
    assert set(p) >= {'m_l', 'y_l', 'y_ll', 'y_lh', 'm_h', 'y_h', 'y_hh', 'y_hl', 'x_lh'} and not any(p[k].requires_grad for k in ('x_lh', 'y_lh'))
    assert_close(net.translate(b.x_l), p.x_lh, atol=1e-5, rtol=1e-4); assert_close(net.translate(b.x_l, 'l'), p.x_ll, atol=1e-5, rtol=1e-4)
    for o in ('m_l', 'y_l', 'y_lh'): assert_close(net.segment(b.x_l, o), p[o], atol=1e-5, rtol=1e-4)
    assert_close(net.segment(b.x_l), p.y_lh, atol=1e-5, rtol=1e-4); assert 'y_l' not in outputs(build('M2'), b) and 'm_l' in outputs(build('M2'), b)

@pytest.mark.parametrize('axis', [0, 1, 2])
def test_answers_on_volumes_lie_on_their_grid(axis):
    net = build(axis=axis); data = np.random.default_rng(axis).normal(0, 400, (40, 36, 44)).astype(np.float32)
    flip = np.diag([-1., 1., 1., 1.]); flip[:3, 3] = (39, 5, -7)
    for affine in (np.diag([2., 2.5, 3., 1.]), flip@np.diag([2., 2.5, 3., 1.])):
        v = Volume(data, affine)
        for a, kind in ((net.translate(v), 'image'), (net.segment(v, 'm_l'), 'label')):
            assert a.shape == v.shape and a.kind == kind and np.allclose(a.affine, affine) and np.allclose(a.spacing, v.spacing)
    assert set(np.unique(a.data)) <= {0, 1}

def test_a_volume_is_its_slices():
    net = build(); v = Volume(np.random.default_rng(0).normal(0, 400, (3, 32, 36)).astype(np.float32), np.diag([2., 2., 2., 1.]))
    x = torch.from_numpy(window(to_slices(v.data, 0), -1000, 2000).astype(np.float32))[:, None]
    assert (net.segment(v).data != from_slices((net.segment(x)[:, 0] > .5).numpy(), 0)).mean() < 1e-3
    assert np.abs(net.translate(v).data - (from_slices(net.translate(x)[:, 0].numpy(), 0)*1500 + 500)).max() < 1

# ---- files

def test_saved_and_loaded_masks_agree(tmp_path, net):
    many = batch(4, seed=20); sizes = {}
    for half in (True, False):
        f = tmp_path/f'{half}.safetensors'; save_sadn(net, f, half=half); got = load_sadn(f); sizes[half] = f.stat().st_size
        assert got.config == net.config and got.row == 'M5' and not got.training
        off = ((got.segment(many.x_l) > .5) != (net.segment(many.x_l) > .5)).float().mean()
        assert off <= (1e-3 if half else 0)
    assert torch.equal(got.translate(many.x_l), net.translate(many.x_l)) and sizes[True] < .7*sizes[False]

def test_a_checkpoint_of_a_run_loads(tmp_path):
    net = build('M5+idt', hu=(-400, 1100), spacing=2.); fit(net, [b, b], 2, tmp_path/'run', device='cpu', watch=())
    got = load_sadn(sorted((tmp_path/'run').glob('checkpoint_*.safetensors'))[-1])
    assert got.row == 'M5+idt' and got.config == net.config and torch.equal(got.segment(b.x_l), net.segment(b.x_l))

def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(XModSegError, match='no such checkpoint'): load_sadn(tmp_path/'none.safetensors')

# ---- scores

disc = lambda r, n=48: ((np.indices((n, n)) - n//2)**2).sum(0) < r*r
def pile(radii, truth=False):
    m = [disc(r) for r in radii]
    return Slices([2*v.astype(np.float32) - 1 for v in m], ['p']*len(m), [v.astype(np.uint8) for v in m], [2*v.astype(np.float32) - 1 for v in m] if truth else None, (2., 2.))

class Oracle(nn.Linear):
    "Its images are masks: content is the image, every decoder and segmentor is right."
    config, tiled, E_a = dict(hu=(-1000, 2000)), Method.tiled, staticmethod(lambda x: [x])
    E_l = E_h = clean = staticmethod(lambda x: x)
    G_l = G_h = staticmethod(lambda c, _: c)
    G_s = staticmethod(lambda c: (c > 0).float())
    def has(self, part): return True
    def look(self, x, domain): return (x > 0).float()

def test_evaluate_and_segment_ask_tile_by_tile_when_trained_on_crops():
    seen = []
    class Seeing(Oracle):
        config = dict(hu=(-1000, 2000), tile=16)
        def look(self, x, domain): seen.append(tuple(x.shape[2:])); return (x > 0).float()
    tiles, whole = (evaluate(Seeing(1, 1), pile((6, 8)), pile((14, 16)), **how) for how in ({}, dict(tile=None)))
    assert set(seen) == {(16, 16), pile((6,)).x[0].shape} and tiles.y_l.dice == whole.y_l.dice == 1. and tiles.y_hl.hd == whole.y_hl.hd == 0.
    net = build(tile=32).eval(); x = torch.rand(1, 1, 32, 64, generator=torch.Generator().manual_seed(0))*2 - 1
    w = torch.sin(torch.pi*(torch.arange(32) + .5)/32)**2
    a, b, c = (net.look(x[..., k:k + 32], 'l').detach() for k in (0, 16, 32))
    y = net.segment(x, 'y_l')
    torch.testing.assert_close(y[..., :16], a[..., :16]); torch.testing.assert_close(y[..., 48:], c[..., 16:])
    torch.testing.assert_close(y[..., 16:32], a[..., 16:]*w[16:] + b[..., :16]*w[:16])

def test_evaluate_compares_each_mask_with_the_truth_of_its_content():
    s = evaluate(Oracle(1, 1), pile((6, 8, 10)), pile((14, 16, 18, 20, 22)), batch=2)   # no l shape is an h shape
    assert list(s) == ['m_l', 'y_l', 'y_ll', 'y_lh', 'm_h', 'y_h', 'y_hh', 'y_hl'] and all(v == Bag(dice=1., hd=0., empty=0) for v in s.values())
    class Swapped(Oracle):
        def look(self, x, domain): return torch.flip(x > 0, [0]).float()   # answers for another slice
    assert evaluate(Swapped(1, 1), pile((6, 8, 10)), pile((14, 16, 18)), batch=3).y_l.dice < 1

def test_evaluate_scores_l_against_l_and_h_against_h():
    class Blind(Oracle):
        "Right about h, and says nothing where the picture is an l picture: its discs are small."
        def look(self, x, domain): return (x > 0).float()*((x > 0).sum((2, 3), keepdim=True) > 500)
        G_s = staticmethod(lambda c: (c > 0).float()*((c > 0).sum((2, 3), keepdim=True) > 500))
    s = evaluate(Blind(1, 1), pile((6, 8)), pile((14, 16)))
    for k, v in s.items(): assert (v.dice, v.empty) == ((0., 2) if k[2] == 'l' else (1., 0)), k

def test_evaluate_scores_the_translation_only_with_truth_and_masks_only_where_they_are():
    class Off(Oracle):
        G_h = staticmethod(lambda c, _: (c + .1))
    s = evaluate(Off(1, 1), pile((6, 8), truth=True), pile((14, 16)))
    assert s.x_lh.mae == pytest.approx(150, rel=1e-4) and s.x_lh.ncc == pytest.approx(1, abs=1e-5) and 'x_lh' not in evaluate(Off(1, 1), pile((6, 8)), pile((14, 16)))
    assert set(evaluate(Oracle(1, 1), pile((6, 8)).unlabelled(), pile((14, 16)))) == {'m_h', 'y_h', 'y_hh', 'y_hl'}

def test_mask_scores_by_hand():
    m = np.zeros((20, 20), np.uint8); m[5:15, 5:15] = 1; t = lambda *v: torch.tensor(np.stack(v)).float()[:, None]
    assert mask_scores(t(np.roll(m, 1, 0)), [m], (2., 1.)) == Bag(dice=.9, hd=2., empty=0) and mask_scores(t(np.roll(m, 1, 1)), [m], (2., 1.)).hd == 1.
    s = mask_scores(t(m, 0*m, m), [m, m, 0*m], (3., 4.)); assert (s.dice, s.empty) == (pytest.approx(1/3), 2) and s.hd == pytest.approx(2*100/3)
    assert mask_scores(t(0*m), [0*m], (1., 1.)) == Bag(dice=1., hd=0., empty=0) and mask_scores(t(m)*.5, [m], (1., 1.)).dice == 0   # 0.5 is not above 0.5

def test_look_scores_in_hu():
    x = rand(2, 1, 24, 24); m = [disc(5, 24).astype(np.uint8)]*2
    s = look_scores(x + .1, list(x[:, 0].numpy()), m, (-400, 1100)); assert s.mae == pytest.approx(75, rel=1e-3) == pytest.approx(s.edge_mae, rel=1e-3) and s.ncc == pytest.approx(1, abs=1e-4)
    assert s.psnr == pytest.approx(20*np.log10(20), abs=.01)

def test_segmentor_scores_looks_through_a_translator():
    s = pile((6, 8, 10)); see = lambda x: (x > 0).float()
    assert segmentor_scores(see, s, batch=2) == Bag(dice=1., hd=0., empty=0) and segmentor_scores(see, s, through=lambda x: -x).dice < .5 and segmentor_scores(see, s, through=lambda x: 2*x).dice == 1

# ---- the neighbour of Table 2

def test_feature_critic_reads_the_deeper_levels():
    for levels in (3, 4):
        u = UNet(4, levels); f = [v.detach().requires_grad_() for v in u.features(batch(side=64).x_l)]; D = FeatureCritic(4, levels)
        read = [g is not None and bool(g.any()) for g in torch.autograd.grad(D(f).sum(), f, allow_unused=True)]
        assert read == [1 <= i < levels or i == len(f) - 2 for i in range(len(f))] and [c.out_channels for c in D.cut] == [32]*levels

def test_adapted_segmentor_each_moves_its_own():
    two = batch(2); m = AdaptedSegmentor(UNet(4, 3), ramp=10)
    assert m.weights == dict(feat=.05) and reached(pulls(m, two)) == dict(seg={'net'}, feat={'net'}, D={'D'})
    for turn, (still, moved) in enumerate((('D', 'net'), ('net', 'D'))):
        m = AdaptedSegmentor(UNet(4, 3), ramp=1, lr=1e-2); old = {k: v.clone() for k, v in m.state_dict().items()}
        alone = m.players()[turn]; m.players = lambda: [alone]
        fit(m, [two], 1, device='cpu', watch=())
        same = {n: all(torch.equal(v, old[k]) for k, v in m.state_dict().items() if k.startswith(n + '.')) for n in ('net', 'D')}
        assert same == {still: True, moved: False}

def test_adapted_segmentor_ramp():
    m, two = AdaptedSegmentor(UNet(4, 3), ramp=4), batch(2); S = m.players()[0]
    feat = []
    for _ in range(6): feat.append(float(S.terms(two, m.paths(two))['feat'].detach())); m.moved()
    assert_close(torch.tensor(feat)/feat[-1], torch.tensor([.25, .5, .75, 1, 1, 1]), atol=1e-5, rtol=1e-4)
    m.eval(); m.paths(two); assert int(m.seen) == 6 and torch.equal(m.segment(two.x_l), m.net(two.x_l))
    t = S.terms(two, m.paths(two)); u, y = m.net(two.x_h), two.y_h
    assert_close(t['seg'], (1 - 2*(u*y).sum((1, 2, 3))/((u + y).sum((1, 2, 3)) + 1e-6)).mean()); assert_close(t['feat'], ((m.D(m.net.features(two.x_l)) - 1)**2).mean())
    p = m.paths(two); assert_close(m.players()[1].terms(two, p)['D'], ((m.D(p.f_h) - 1)**2).mean()/2 + (m.D(p.f_l)**2).mean()/2)

def test_evaluate_takes_scans_of_two_sizes():
    big = [disc(r, 64) for r in (14, 16, 18)]
    h = Slices([2*v.astype(np.float32) - 1 for v in big], ['q']*3, [v.astype(np.uint8) for v in big], spacing=(2., 2.))
    s = evaluate(Oracle(1, 1), pile((6, 8), truth=True), h, batch=2)
    assert all(v == Bag(dice=1., hd=0., empty=0) for k, v in s.items() if k != 'x_lh') and s.x_lh.mae == 0

def test_SADN_E3_batch_norm_trains_as_instance_norm_one_image_at_a_time():
    one, run = build('M2').train(), build('M2', norm='batch').train(); run.load_state_dict(one.state_dict(), strict=False); b = batch()
    with torch.no_grad(): p, q = draw_paths(one, b), draw_paths(run, b)
    for k in ('x_lh', 'x_hh', 'x_hlh'): assert_close(p[k], q[k], atol=1e-5, rtol=1e-4)

def test_evaluate_with_truth_and_without_masks_or_with_an_empty_one():
    l, h = pile((6, 8), truth=True), pile((14, 16))
    s = evaluate(Oracle(1, 1), Slices(l.x, l.patient, None, l.truth, l.spacing), h); assert s.x_lh.mae == 0 and 'edge_mae' not in s.x_lh
    x = torch.rand(2, 1, 24, 24); m = disc(5, 24).astype(np.uint8); t = list(x[:, 0].numpy() - np.float32([[.1]]))
    assert look_scores(x, t, [m, 0*m], (-400, 1100)).edge_mae == pytest.approx(75, rel=1e-3)

def test_load_sadn_refuses_the_file_of_another_method(): 
    from xmodseg.core import shipped
    with pytest.raises(XModSegError, match='a file of another method'): load_sadn(shipped('tdgan'))

def test_translate_refuses_a_look_it_does_not_know():
    with pytest.raises(XModSegError, match='no such look'): build().translate(batch().x_l, 'cbct')

def test_evaluate_takes_slices_from_all_of_the_longer_pile():
    class First(Oracle):
        def look(self, x, domain): return (x > 0).float()*((x > 0).sum((2, 3), keepdim=True) < 1200)   # blind to the largest disc
    assert evaluate(First(1, 1), pile((6, 8)), pile((14, 15, 16, 17, 20))).y_h.dice == .5

def test_look_scores_of_a_perfect_slice_leave_the_other_one_finite():
    x = rand(2, 1, 24, 24); t = x[:, 0].numpy().copy(); t[1] -= .1
    assert np.isfinite(look_scores(x, list(t), [disc(5, 24).astype(np.uint8)]*2, (-400, 1100)).psnr)

def test_load_sadn_refuses_a_file_that_lacks_a_net(tmp_path):
    from xmodseg.run import load_checkpoint, save_checkpoint
    save_sadn(build(), tmp_path/'a'); s = load_checkpoint(tmp_path/'a')
    save_checkpoint(tmp_path/'b', {**s, 'method': {k: v for k, v in s['method'].items() if not k.startswith('G_h.')}})
    with pytest.raises(XModSegError, match='a file of other nets.*G_h'): load_sadn(tmp_path/'b')
    save_checkpoint(tmp_path/'c', dict(a=1))
    with pytest.raises(XModSegError, match='a file of another method'): load_sadn(tmp_path/'c')

def test_evaluate_takes_several_sizes_in_one_pile_and_odd_ones():
    odd = [disc(r, 64)[:h, :w] for r, h, w in ((14, 64, 64), (16, 50, 64), (18, 64, 46))]
    h = Slices([2*v.astype(np.float32) - 1 for v in odd], ['q']*3, [v.astype(np.uint8) for v in odd], spacing=(2., 2.))
    s = evaluate(Oracle(1, 1), pile((6, 8, 7), truth=True), h, batch=2)
    assert all(v == Bag(dice=1., hd=0., empty=0) for k, v in s.items() if k != 'x_lh') and s.x_lh.mae == 0
    with pytest.raises(XModSegError, match='nothing to score on: found 3 and 0 slices'): evaluate(Oracle(1, 1), pile((6, 8, 7)), h.where([False]*3))
    with pytest.raises(XModSegError, match='several sizes'): segmentor_scores(lambda x: x, h)

def test_a_net_of_64_pixels_scores_slices_of_70_by_50():
    m = [disc(9, 96)[:70, :50]]*2
    l, h = (Slices([2*v.astype(np.float32) - 1 for v in m], [p]*2, [v.astype(np.uint8) for v in m], spacing=(1., 1.)) for p in 'lh')
    for tile in ('trained', None): assert 0 <= evaluate(build(tile=64), l, h, tile=tile).m_l.dice <= 1
