"TD-GAN by value: four paths, every loss, every row, and each trap: U is untouched, maps are soft, pools keep pairs, labels of X-rays are never felt."
import copy
import warnings
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from xmodseg.adversarial import Pool
from xmodseg.core import Bag, XModSegError, count_params, seed_everything
from xmodseg.films import film_folder
from xmodseg.game import monitor, pulls
from xmodseg.loop import Loop, fit
from xmodseg.segmentors import DI2I, OrganUNet, organ_net
from xmodseg.tdgan import (ROWS, SIZES, TRAINING, WEIGHTS, TDGAN, Lessons, Task, critic_drr, critic_xr, doubt, draw_paths, generator_terms, load_tdgan, organ_scores, save_tdgan, score_films, segment_film, tdgan)
from xmodseg.unpaired import Slices, Unpaired

torch.set_num_threads(1)
HOW = SIZES['tiny']['task']
rand = lambda *s, seed=0: torch.rand(*s, generator=torch.Generator().manual_seed(seed))

def batch(n=1, side=32, seed=0):
    x = lambda k: rand(n, 1, side, side, seed=seed + k)*2 - 1
    return Bag(x_l=x(1), x_h=x(2), y_h=(rand(n, 4, side, side, seed=seed + 3) > .6).float())
def teacher(seed=0): torch.manual_seed(seed); return Task(DI2I(**HOW), built=HOW)
def build(row='TD-GAN', seed=0, task=None, **kw): torch.manual_seed(seed); return tdgan(task or teacher(), row, 'tiny', **kw)
def piles(n=6, side=32, seed=0, labels=True):
    r = np.random.default_rng(seed)
    pile = lambda name, y: Slices([r.uniform(-1, 1, (side, side)).astype(np.float32) for _ in range(n)], [f'{name}{k}' for k in range(n)], [(r.random((4, side, side)) > .6).astype(np.uint8) for _ in range(n)] if y else None)
    return pile('xr', labels), pile('drr', True)
def reached(table): return {k: {n for n, v in row.items() if v} for k, row in table.items()}

b, G = batch(), {'G_drr2xr', 'G_xr2drr'}

@pytest.fixture(scope='module')
def net(): return build()
@pytest.fixture(scope='module')
def table(): return pulls(build(), b)

# ---- the frozen task

def test_task_is_frozen_deaf_and_a_copy():
    torch.manual_seed(0); own = DI2I(**HOW); t = Task(own)
    assert not any(p.requires_grad for p in t.parameters()) and all(p.requires_grad for p in own.parameters())   # what is done to the net later is not felt here
    with torch.no_grad(): own.requires_grad_(True); next(own.parameters()).add_(1)
    assert t.mark() == teacher().mark() != Task(own).mark()
    assert not any(m.training for m in t.train(True).modules()) and not any(m.training for m in nn.Sequential(t).train().modules() if m is not None and m in set(t.modules()))

def test_task_lets_gradients_pass_and_no_grad_would_not():
    t, x = teacher(), b.x_l.clone().requires_grad_()
    g, = torch.autograd.grad(t.maps(x).sum(), x)
    with torch.no_grad(): cut = t.maps(x)
    assert g.abs().sum() > 0 and all(p.grad is None for p in t.parameters()) and not cut.requires_grad

def test_TDGAN_Ea_maps_are_four_soft_pairs_not_five_shares():   # trap 5
    t = teacher(); o, p = t(b.x_h), t.maps(b.x_h)
    assert o.shape[1] == 5 and p.shape[1] == 4 == t.n_maps
    assert_close(p, torch.stack([o[:, i].exp()/(o[:, 0].exp() + o[:, i].exp()) for i in range(1, 5)], 1), atol=1e-5, rtol=1e-4)
    assert (p - o.softmax(1)[:, 1:]).abs().max() > 1e-2

def test_mark_sees_buffers_too():
    t, u = teacher(), teacher()
    bn = next(m for m in u.modules() if isinstance(m, nn.BatchNorm2d)); bn.running_mean += 1e-3
    assert t.mark() != u.mark()

# ---- the four paths

def test_TDGAN_Eb_E2_Ec_E3_paths_are_what_their_names_say(net):
    p = draw_paths(net, b)
    assert_close(p.x_drr2xr, net.G_drr2xr(b.x_h)); assert_close(p.x_xr2drr, net.G_xr2drr(b.x_l))
    assert_close(p.x_xr2drr2xr, net.G_drr2xr(net.G_xr2drr(b.x_l))); assert_close(p.x_drr2xr2drr, net.G_xr2drr(net.G_drr2xr(b.x_h)))
    assert_close(p.y_drr, net.U.maps(b.x_h)); assert_close(p.y_xr2drr, net.U.maps(p.x_xr2drr)); assert_close(p.u_drr2xr2drr, net.U(p.x_drr2xr2drr))
    assert not p.y_drr.requires_grad and p.y_xr2drr.requires_grad and p.u_drr2xr2drr.requires_grad

def test_TDGAN_Eb_E2_each_path_starts_from_its_own_domain(net):
    p, q = draw_paths(net, b), draw_paths(net, Bag(b, x_l=batch(seed=9).x_l))
    for n in ('x_drr2xr', 'x_drr2xr2drr', 'y_drr', 'u_drr2xr2drr'): assert torch.equal(p[n], q[n])
    for n in ('x_xr2drr', 'x_xr2drr2xr', 'y_xr2drr'): assert (p[n] - q[n]).abs().max() > 1e-4

@pytest.mark.parametrize('row, more', [('CGAN', set()), ('TD-GAN-A', {'y_drr', 'y_xr2drr'}), ('TD-GAN-S', {'u_drr2xr2drr'}), ('TD-GAN', {'y_drr', 'y_xr2drr', 'u_drr2xr2drr'})])
def test_rows_draw_what_their_terms_read(row, more): assert {k for k in build(row).paths(b) if k[0] != 'x'} == more

# ---- the losses, on images by hand

def flat(v, c=1): return torch.full((1, c, 2, 2), float(v))
def stub(parts='', **kw):
    d = dict(has=lambda w: w in parts.split(), mode='vanilla', detach_condition=False, D_xr=lambda x: x*0, D_drr=lambda x: x*0, pool_xr=Pool(0), pool_drr=Pool(0))
    return SimpleNamespace(**{**d, 'shown': lambda x, y=None: torch.cat([x, y], 1) if 'cond' in parts else x, **kw})
def hand(**kw): return Bag({**{n: flat(0) for n in ('x_drr2xr', 'x_xr2drr', 'x_xr2drr2xr', 'x_drr2xr2drr')}, **kw})
zero = Bag(x_l=flat(0), x_h=flat(0), y_h=flat(0, 4))
FOOL = dict(vanilla=lambda z: torch.log1p(torch.exp(-z)), lsgan=lambda z: (z - 1)**2, minmax=lambda z: torch.log(1 - torch.sigmoid(z)))
def told(mode, r, f): return (((r - 1)**2).mean() + (f**2).mean())/2 if mode == 'lsgan' else (torch.log1p(torch.exp(-r)).mean() + torch.log1p(torch.exp(f)).mean())/2

@pytest.mark.parametrize('mode', FOOL)
def test_TDGAN_Eb_both_halves_in_three_forms(mode):
    z = torch.tensor([[[[.5, -1.], [2., 0.]]]])
    t = generator_terms(stub(mode=mode, D_xr=lambda x: z + x), zero, hand(x_drr2xr=flat(.1), x_xr2drr=flat(9)))
    assert_close(t['DX'], FOOL[mode](z + .1).mean())
    assert_close(critic_xr(stub(mode=mode, D_xr=lambda x: 2*x), Bag(zero, x_l=flat(.7)), hand(x_drr2xr=flat(.3))), told(mode, flat(1.4), flat(.6)))

@pytest.mark.parametrize('mode', FOOL)
def test_TDGAN_E2_both_halves_see_image_and_soft_maps(mode):
    seen, D = [], lambda x: (seen.append(x), x.sum(1, keepdim=True))[1]
    p = hand(x_xr2drr=flat(.1), y_xr2drr=flat(.2, 4), y_drr=flat(.6, 4))
    t = generator_terms(stub('cond', mode=mode, D_drr=D), zero, p)
    assert seen[-1].shape == (1, 5, 2, 2); assert_close(t['XD'], FOOL[mode](flat(.1 + 4*.2)).mean())
    c = critic_drr(stub('cond', mode=mode, D_drr=D), Bag(zero, x_h=flat(.5)), p)
    assert_close(c, told(mode, flat(.5 + 4*.6), flat(.1 + 4*.2)))
    assert_close(generator_terms(stub(mode=mode, D_drr=D), zero, hand(x_xr2drr=flat(.1)))['XD'], FOOL[mode](flat(.1)).mean())   # without the condition: the image alone

def test_TDGAN_E2_default_form_is_the_printed_logarithm(net): assert net.mode == 'vanilla' and build(mode='lsgan').mode == 'lsgan'

def test_TDGAN_Ec_and_E3_cycles():
    t = generator_terms(stub(), Bag(zero, x_l=flat(.5), x_h=flat(-.25)), hand(x_xr2drr2xr=flat(.2), x_drr2xr2drr=flat(.5)))
    assert_close(t['XX'], torch.tensor(.3)); assert_close(t['DD'], torch.tensor(.75)); assert set(t) == {'DX', 'XD', 'XX', 'DD'}

def test_TDGAN_E3_task_loss_reads_the_reconstruction_and_the_true_labels():
    calls = []
    U = SimpleNamespace(loss=lambda o, y: (calls.append((o, y)), torch.tensor(7.))[1])
    t = generator_terms(stub('seg', U=U), zero, hand(u_drr2xr2drr=flat(3, 5)))
    assert t['seg'] == 7 and calls[0][0][0, 0, 0, 0] == 3 and calls[0][1] is zero.y_h

def test_TDGAN_E3_by_hand(net):
    p = draw_paths(net, b); o = p.u_drr2xr2drr; q = (o[:, 1:] - o[:, :1]).sigmoid()
    want = -(b.y_h*q.log() + (1 - b.y_h)*(1 - q).log()).mean((0, 2, 3)).sum()
    assert_close(generator_terms(net, b, p)['seg'], want, atol=1e-4, rtol=1e-4)

def test_weights_are_those_of_the_paper_and_of_cyclegan(net):
    assert WEIGHTS == dict(DX=1, XD=1, XX=10, DD=10, seg=1, idt=5)
    t = {k: torch.tensor(float(i + 1)) for i, k in enumerate(('DX', 'XD', 'XX', 'DD', 'seg'))}
    assert float(net.total(t)) == 1 + 2 + 30 + 40 + 5
    assert build(weights=dict(seg=.1)).weights == dict(WEIGHTS, seg=.1)

# ---- who moves whom

@pytest.mark.parametrize('row', ROWS)
def test_pulls_of_every_row(row):
    want = dict(DX={'G_drr2xr'}, XD={'G_xr2drr'}, XX=G, DD=G, D_xr={'D_xr'}, D_drr={'D_drr'})
    if 'seg' in ROWS[row]: want['seg'] = G
    if 'idt' in ROWS[row]: want['idt'] = G
    table = pulls(build(row), b)
    assert reached(table) == want and all(v['U'] is None for v in table.values())   # U teaches and is never taught

def test_no_net_without_a_teacher(table):
    for n in (*G, 'D_xr', 'D_drr'): assert any(row[n] for row in table.values())

def test_players_in_the_papers_order(net): assert [p.name for p in net.players()] == ['G', 'D_xr', 'D_drr']

def test_TDGAN_E2_condition_pulls_and_can_be_cut():
    a, c = build('TD-GAN-A'), build('TD-GAN-A', detach_condition=True); p, q = draw_paths(a, b), draw_paths(c, b)
    u, v = generator_terms(a, b, p)['XD'], generator_terms(c, b, q)['XD']
    assert_close(u, v)                                                       # the same value ...
    gu, = torch.autograd.grad(u, p.x_xr2drr, retain_graph=True); gv, = torch.autograd.grad(v, q.x_xr2drr, retain_graph=True)
    x, y = p.x_xr2drr.detach().requires_grad_(), p.y_xr2drr.detach()
    alone, = torch.autograd.grad(generator_terms(a, b, Bag(p, x_xr2drr=x, y_xr2drr=y))['XD'], x)
    assert_close(gv, alone, atol=1e-7, rtol=1e-4); assert (gu - gv).abs().max() > 1e-9 + 1e-3*gv.abs().max()   # ... another gradient: the one through the maps is gone

# ---- the traps

class Feed:
    fingerprint = 'feed'
    def __getitem__(self, k): return batch(seed=10*k)

def test_trap_1_a_step_leaves_U_as_it_was_and_reaches_both_generators():
    m = build(); before, answer = copy.deepcopy(m.U.state_dict()), m.U.maps(b.x_h)
    fit(m, Feed(), 3, watch=(), device='cpu')
    assert all(torch.equal(v, before[k]) for k, v in m.U.state_dict().items()) and torch.equal(m.U.maps(b.x_h), answer)
    assert not any(p.requires_grad for p in m.U.parameters()) and not any(k.training for k in m.U.modules())
    only = build('TD-GAN-S', weights=dict(DX=0., XD=0., XX=0., DD=0.)); old = {n: copy.deepcopy(getattr(only, n).state_dict()) for n in G}
    fit(only, Feed(), 1, watch=(), device='cpu')                             # the task loss alone moves both
    assert all(any(not torch.equal(v, old[n][k]) for k, v in getattr(only, n).state_dict().items()) for n in G)

def test_trap_1_U_has_buffers_that_would_move():
    u = teacher(); loose = copy.deepcopy(u.net).train(); before = copy.deepcopy(loose.state_dict())
    with torch.no_grad(): loose(b.x_l)
    moved = [k for k, v in loose.state_dict().items() if not torch.equal(v, before[k])]
    assert moved and all('running' in k or 'num_batches' in k for k in moved)   # so the test above can fail

@pytest.mark.parametrize('row', ['TD-GAN-A', 'TD-GAN'])
def test_trap_2_real_radiographs_are_shown_with_soft_maps_not_with_labels(row):
    m, seen = build(row), []; m.D_drr.register_forward_pre_hook(lambda _, a: seen.append(a[0].detach()))
    critic_drr(m, b, m.paths(b).detach()); real, fake = seen
    assert real.shape[1] == fake.shape[1] == 5 and torch.equal(real[:, :1], b.x_h)
    for maps in (real[:, 1:], fake[:, 1:]): assert ((maps > 0) & (maps < 1)).all() and len(maps.unique()) > 100
    assert torch.equal(real[:, 1:], m.U.maps(b.x_h)) and not torch.equal(real[:, 1:], b.y_h)

def test_trap_3_a_pooled_image_never_meets_fresh_maps():
    m, seen = build('TD-GAN-A', pool=2), []; m.D_drr.register_forward_pre_hook(lambda _, a: seen.append(a[0].detach()))
    torch.manual_seed(0); old = 0
    for k in range(12):
        p = m.paths(batch(seed=10*k)).detach(); seen.clear(); critic_drr(m, batch(seed=10*k), p)
        fake = seen[1]; assert_close(fake[:, 1:], m.U.maps(fake[:, :1]), atol=1e-6, rtol=1e-4)
        old += not torch.equal(fake[:, :1], p.x_xr2drr)
    assert 2 <= old <= 10                                                    # some were old: the pool was at work

def test_trap_4_labels_of_x_rays_are_never_felt():
    xr, drr = piles(); other = Slices(xr.x, xr.patient, xr.y[::-1], spacing=xr.spacing)
    def end(l):
        m = build(); fit(m, Unpaired(l, drr, flip=False), 3, watch=(), device='cpu')
        return m.state_dict()
    a = end(xr)
    for l in (other, xr.unlabelled()):
        z = end(l); assert all(torch.equal(v, z[k]) for k, v in a.items() if torch.is_tensor(v))
    drr.y = drr.y[::-1]; z = end(xr); assert any(not torch.equal(v, z[k]) for k, v in a.items() if torch.is_tensor(v))   # those of radiographs are

def test_trap_6_inverted_polarity_is_said_and_identity_is_an_option(capsys):
    m = build('CGAN'); m.G_xr2drr = m.G_drr2xr = nn.Identity(); x = batch(4).x_l
    look = lambda sign: Bag(step=1, steps=9, log=dict(D_drr=.5), method=SimpleNamespace(translate=lambda x: sign*x, parameters=m.D_xr.parameters), batch=Bag(x_l=x, x_h=x))
    monitor()(look(1.)); assert 'inversion' not in capsys.readouterr().out
    monitor()(look(-1.)); assert 'inversion' in capsys.readouterr().out
    assert 'idt' not in generator_terms(build('CGAN'), b, build('CGAN').paths(b))
    m.row = 'TD-GAN+idt'; m.has = lambda w: w == 'idt'; assert float(generator_terms(m, b, m.paths(b))['idt']) == 0.                     # faithful painters cost nothing
    class Flip(nn.Module):
        def forward(self, x): return -x
    m.G_xr2drr = m.G_drr2xr = Flip(); t = generator_terms(m, b, m.paths(b))
    assert float(t['XX']) == float(t['DD']) == 0. and float(t['idt']) == pytest.approx(float(2*b.x_l.abs().mean() + 2*b.x_h.abs().mean()), rel=1e-5)   # the cycle forgives inversion, identity does not

def test_24_1_the_row_with_a_mean_plays_the_same_game_and_reads_with_the_mean(tmp_path):
    xr, drr = piles()
    trained = {}
    for row in ('TD-GAN', 'TD-GAN+mean'):
        trained[row] = build(row); fit(trained[row], Unpaired(xr, drr, 1, flip=False), 6, tmp_path/row, device='cpu', watch=(), save_every=3)
    plain, mean = trained.values()
    for k, v in plain.state_dict().items(): assert not torch.is_tensor(v) or torch.equal(v, mean.state_dict()[k]), k          # nothing in the game knows of the mean
    assert int(mean.G_mean.n) == 6 and not torch.equal(mean.translate(b.x_l), mean.G_xr2drr(b.x_l)) and torch.equal(mean.translate(b.x_l), mean.G_mean.net(b.x_l))
    assert torch.equal(mean.translate(b.x_h, 'xr'), mean.G_drr2xr(b.x_h)) and torch.equal(plain.translate(b.x_l), plain.G_xr2drr(b.x_l))
    with torch.no_grad(): mean.paths(b)
    assert int(mean.G_mean.n) == 6                                                                  # looking is no step
    save_tdgan(mean, tmp_path/'m.safetensors', half=False); again = load_tdgan(tmp_path/'m.safetensors')
    assert_close(again.segment(b.x_l), mean.segment(b.x_l)); assert again.row == 'TD-GAN+mean'
    part = build('TD-GAN+mean'); fit(part, Unpaired(xr, drr, 1, flip=False), 3, tmp_path/'r', device='cpu', watch=(), save_every=3)
    part = build('TD-GAN+mean'); fit(part, Unpaired(xr, drr, 1, flip=False), 6, tmp_path/'r', device='cpu', watch=(), save_every=3)
    for k, v in mean.state_dict().items(): assert not torch.is_tensor(v) or torch.equal(v, part.state_dict()[k]), k

def test_resume_with_another_U_is_refused(tmp_path):
    fit(build(), Feed(), 1, tmp_path, watch=(), device='cpu')
    with pytest.raises(XModSegError, match='another config'): fit(build(task=teacher(5)), Feed(), 2, tmp_path, watch=(), device='cpu')

def test_resumed_run_equals_unbroken_one_with_its_pools(tmp_path):
    a, c = build(pool=1), build(pool=1); fit(a, Feed(), 6, watch=(), device='cpu', seed=3)
    fit(c, Feed(), 3, tmp_path, watch=(), device='cpu', seed=3); d = build(pool=1, seed=8); fit(d, Feed(), 6, tmp_path, watch=(), device='cpu', seed=3)
    z = d.state_dict(); assert all(torch.equal(v, z[k]) for k, v in a.state_dict().items() if torch.is_tensor(v))
    assert all(torch.equal(u, v) for s, t in zip(a.pool_drr.items, d.pool_drr.items) for u, v in zip(s, t))

# ---- rows, sizes, answers

@pytest.mark.parametrize('row', ROWS)
def test_every_row_trains_at_tiny(row):
    m = build(row); r = fit(m, Feed(), 2, watch=(), device='cpu', log_every=1)
    assert m.D_drr.c_in == (5 if 'cond' in ROWS[row] else 1) and m.D_xr.c_in == 1 and len(r.log) == 2
    assert m.segment(b.x_l).shape == (1, 4, 32, 32) and m.translate(b.x_h, 'xr').shape == b.x_h.shape

def test_unknown_rows_and_sizes_are_refused():
    for f in (lambda: build('TD-GAN-B'), lambda: tdgan(teacher(), 'TD-GAN', 'huge'), lambda: build().translate(b.x_l, 'ct')):
        with pytest.raises(XModSegError) as e: f()
        assert e.value.found is not None and e.value.needed is not None

def test_full_size_is_the_papers():
    f = SIZES['full']; assert (f['base'], f['n_blocks'], f['n_disc'], f['lr'], f['batch']) == (64, 7, 3, 2e-4, 1)
    m = TDGAN(teacher(), **{k: v for k, v in f.items() if k not in TRAINING})
    convs = sum(isinstance(k, nn.Conv2d) for k in m.G_drr2xr.modules())
    assert count_params(m.D_drr) == 2_766_785 and convs == 20

def test_segment_is_U_after_the_translation(net):
    net.eval(); assert torch.equal(net.segment(b.x_l), net.U.maps(net.G_xr2drr(b.x_l))) and torch.equal(net.translate(b.x_l), net.G_xr2drr(b.x_l)) and torch.equal(net.translate(b.x_h, 'xr'), net.G_drr2xr(b.x_h))

def test_the_row_without_a_translator_is_U_and_a_file_of_U(tmp_path):
    m = build('Vanilla').eval(); save_tdgan(m, tmp_path/'u.safetensors', half=False); back = load_tdgan(tmp_path/'u.safetensors')
    assert torch.equal(m.segment(b.x_l), m.U.maps(b.x_l)) and torch.equal(back.segment(b.x_l), m.segment(b.x_l)) and back.row == 'Vanilla'
    assert m.translate(b.x_l) is b.x_l and m.players() == [] and {k[:2] for k in m.state_dict()} == {'U.'}

def test_files_come_back_with_U(tmp_path):
    m = build(seed=4, weights=dict(seg=.1)).eval(); save_tdgan(m, tmp_path/'m.safetensors', half=False); back = load_tdgan(tmp_path/'m.safetensors')
    assert torch.equal(back.segment(b.x_l), m.segment(b.x_l)) and back.row == m.row and back.weights == m.weights and not any(p.requires_grad for p in back.U.parameters())
    save_tdgan(m, tmp_path/'h.safetensors'); h = load_tdgan(tmp_path/'h.safetensors')
    assert (h.segment(b.x_l) - m.segment(b.x_l)).abs().max() < .05 and (tmp_path/'h.safetensors').stat().st_size < (tmp_path/'m.safetensors').stat().st_size
    fit(m, Feed(), 1, tmp_path/'run', watch=(), device='cpu'); late = load_tdgan(sorted((tmp_path/'run').glob('*.safetensors'))[-1])
    assert torch.equal(late.segment(b.x_l), m.segment(b.x_l))                # a checkpoint of a run will do as well

# ---- files

@pytest.fixture(scope='module')
def ready():
    ramp = np.linspace(-1, 1, 24)[:, None].repeat(24, 1)
    return build(films=dict(side=32, organs=['bone', 'heart', 'liver', 'lung'], reference=ramp.tolist())).eval()

def picture(path, a): Image.fromarray(a.astype(np.uint8)).save(path); return path
def shaded(h=96, w=64, frame=0):
    x = np.linspace(20, 230, h)[:, None] + 20*np.random.default_rng(0).random((h, w))
    return np.pad(x, frame)

@pytest.mark.parametrize('frame', [0, 12])
def test_a_file_is_prepared_as_the_training_films_were(tmp_path, ready, frame):
    (tmp_path/'f').mkdir(); path = picture(tmp_path/'f'/'a.png', shaded(frame=frame)); asked = []
    with pytest.warns(UserWarning) if frame else warnings.catch_warnings(): want = film_folder(tmp_path/'f', 32).films.x[0]
    spy = SimpleNamespace(config=ready.config, parameters=ready.parameters, segment=lambda x: (asked.append(x), ready.segment(x))[1])
    m = segment_film(spy, path)
    assert_close(asked[0][0, 0], torch.from_numpy(want)); assert list(m) == ['bone', 'heart', 'liver', 'lung'] and all(v.shape == (96 + 2*frame, 64 + 2*frame) and v.dtype == np.uint8 for v in m.values())

def test_masks_come_back_onto_the_files_own_pixels(tmp_path, ready):
    p = torch.zeros(1, 4, 32, 32); p[:, 0] = 1; p[:, 1, :16] = 1; p[:, 2, :, :8] = 1          # everything, the upper half, the left quarter
    stub = SimpleNamespace(config=ready.config, parameters=ready.parameters, segment=lambda x: p)
    m = segment_film(stub, picture(tmp_path/'a.png', shaded(frame=((6, 18), (4, 20)))))
    inner = np.s_[6:-18, 4:-20]
    assert m.bone.sum() == m.bone[inner].sum() == 96*64 and m.lung.sum() == 0
    assert m.heart[inner][:48].all() and not m.heart[inner][48:].any() and m.liver[inner][:, :16].all() and not m.liver[inner][:, 16:].any()

def test_negatives_are_refused_turned_or_kept_as_asked(tmp_path, ready):
    a, n = picture(tmp_path/'a.png', shaded()), picture(tmp_path/'n.png', 255 - shaded())
    with pytest.raises(XModSegError, match='inverted.*fix'): segment_film(ready, n)
    seen = []; spy = SimpleNamespace(config=ready.config, parameters=ready.parameters, segment=lambda x: (seen.append(x), ready.segment(x))[1])
    segment_film(spy, a); segment_film(spy, n, inverted='fix'); segment_film(spy, n, inverted='keep')
    assert_close(seen[0], seen[1], atol=.02, rtol=0); assert_close(seen[0], -seen[2], atol=.02, rtol=0)

def test_a_net_that_knows_no_films_refuses_files(net, tmp_path):
    with pytest.raises(XModSegError, match='what its films were'): net.segment(picture(tmp_path/'a.png', shaded()))

def test_segment_takes_a_path_and_files_remember_how(tmp_path, ready):
    path = picture(tmp_path/'a.png', shaded()); save_tdgan(ready, tmp_path/'m.safetensors', half=False); back = load_tdgan(tmp_path/'m.safetensors')
    m, z = ready.segment(path), back.segment(str(path)); assert all((m[k] == z[k]).all() for k in m)

def test_a_folder_is_scored_in_one_call(tmp_path, ready):
    f = tmp_path/'f'; (f/'masks').mkdir(parents=True); picture(f/'a.png', shaded()); picture(f/'b.png', shaded(64, 64))
    with pytest.raises(XModSegError, match='no film has a mask'): score_films(ready, f)
    lungs = ready.segment(f/'a.png').lung; picture(f/'masks'/'a.png', lungs)
    s = score_films(ready, f, dict(lung=())); assert s.lung.dice > .7 and set(s) == {'lung', 'mean'}
    picture(f/'masks'/'a.png', 1 - lungs); assert score_films(ready, f, dict(lung=())).lung.dice < .2

def test_a_folder_with_an_organ_that_the_net_does_not_know_is_refused(tmp_path, ready):
    with pytest.raises(XModSegError, match='no such organ: found spleen, needed some of .*lung') as e: score_films(ready, tmp_path, dict(lung=(1,), spleen=(2,)))
    assert e.value.found == 'spleen' and e.value.fix and e.value.file == tmp_path        # said before any film is opened: the folder is empty

@pytest.mark.parametrize('h', [96, 192])
def test_distances_of_a_folder_are_pixels_of_what_the_net_sees(tmp_path, ready, h):
    p = torch.zeros(1, 4, 32, 32); p[:, 3, :16] = 1                                      # the upper half; a reader marks three quarters
    stub = SimpleNamespace(config=ready.config, parameters=ready.parameters, segment=lambda x: p)
    (tmp_path/'masks').mkdir(); picture(tmp_path/'a.png', shaded(h, 64)); picture(tmp_path/'masks'/'a.png', (np.arange(h)[:, None] < .75*h)*np.ones((1, 64)))
    assert abs(score_films(stub, tmp_path, dict(lung=())).lung.hd95 - 8) < .6            # a quarter of 32, however many rows the file has

# ---- another task, lessons, scores

class Heat(nn.Module):
    def __init__(self): super().__init__(); self.c = nn.Conv2d(1, 3, 9, padding=4)
    def forward(self, x): return self.c(x)

def test_another_task_plays_the_same_game(tmp_path):
    torch.manual_seed(0); task = Task(Heat(), torch.sigmoid, lambda o, y: (o.sigmoid() - y).square().mean(), 3); marks = Bag(b, y_h=rand(1, 3, 32, 32))
    m = build(task=task); table = pulls(m, marks)
    assert m.D_drr.c_in == 4 and reached(table)['seg'] == G and reached(table)['XD'] == {'G_xr2drr'} and m.segment(b.x_l).shape == (1, 3, 32, 32)
    save_tdgan(m, tmp_path/'m.safetensors', half=False)
    with pytest.raises(XModSegError, match='task'): load_tdgan(tmp_path/'m.safetensors')
    other = Task(Heat(), torch.sigmoid, task.loss, 3); assert torch.equal(load_tdgan(tmp_path/'m.safetensors', other).segment(b.x_l), m.eval().segment(b.x_l))

def test_a_task_knows_its_maps_or_asks():
    one = Task(DI2I(**HOW, organs=1)); assert one.n_maps == 1 == one.maps(torch.zeros(1, 1, 32, 32)).shape[1]
    assert TDGAN(one, base=4, n_blocks=1, n_disc=2).D_drr.c_in == 2
    with pytest.raises(XModSegError, match='how many maps'): Task(Heat(), torch.sigmoid)

def test_a_file_makes_a_unet_again_too(tmp_path):
    how = dict(base=4, levels=3, organs=2)
    seed_everything(1); m = TDGAN(Task(organ_net(**how), built=how), base=4, n_blocks=1, n_disc=2); save_tdgan(m, tmp_path/'u.safetensors', half=False)
    x = torch.randn(1, 1, 32, 32).clamp(-1, 1); back = load_tdgan(tmp_path/'u.safetensors'); m.eval()
    assert isinstance(back.U.net, OrganUNet) and back.U.mark() == m.U.mark() and torch.equal(back.segment(x), m.segment(x)) and m.U.n_maps == 2

def test_a_loaded_net_leaves_the_callers_task_alone_and_marks_its_own_U(tmp_path):
    seed_everything(4); task = Task(DI2I(**HOW), built=HOW); m = TDGAN(task, base=4, n_blocks=1, n_disc=2); save_tdgan(m, tmp_path/'m.safetensors', half=False)
    seed_everything(5); other = Task(DI2I(**HOW), built=HOW); mark = other.mark()
    back = load_tdgan(tmp_path/'m.safetensors', other)
    assert other.mark() == mark != task.mark() and back.U.mark() == task.mark() == back.config['U']

def test_TDGAN_E1_lessons_lower_the_loss_and_end_in_a_frozen_task():
    seed_everything(0); l = Lessons(DI2I(**HOW), lr=1e-2); one = batch(2, seed=3); x = one.x_h
    one.y_h = torch.cat([(x > .4), (x < -.4), (x > 0), (x < 0)], 1).float()
    class Same:
        fingerprint = 'same'
        def __getitem__(self, k): return one
    r = fit(l, Same(), 25, watch=(), device='cpu', log_every=1)
    assert r.log[-1]['seg'] < .8*r.log[0]['seg'] and [p.name for p in l.players()] == ['seg']
    assert torch.equal(l.segment(x), l.task().maps(x))

def test_scores_of_an_oracle_and_of_its_opposite():
    xr, _ = piles(3, 16); full = np.zeros((4, 16, 16), np.uint8); full[:, 4:12, 4:12] = 1; xr.y = [full]*3
    truth = torch.from_numpy(full).float()
    s = organ_scores(lambda x: truth.expand(len(x), -1, -1, -1), xr, ('bone', 'heart', 'liver', 'lung'), batch=2)
    assert all(s[k].dice == 1 and s[k].hd95 == 0 for k in ('bone', 'heart', 'liver', 'lung', 'mean'))
    assert organ_scores(lambda x: 1 - truth.expand(len(x), -1, -1, -1), xr, ('bone', 'heart', 'liver', 'lung')).mean.dice == 0
    half = truth.clone(); half[1, :, :8] = 0
    s = organ_scores(lambda x: half.expand(len(x), -1, -1, -1), xr, ('bone', 'heart', 'liver', 'lung'))
    assert s.heart.dice == pytest.approx(2*32/(32 + 64)) and s.lung.dice == 1 and s['mean'].dice == pytest.approx((3 + 2/3)/4)
    with pytest.raises(XModSegError, match='organs'): organ_scores(lambda x: truth[None], xr, ('lung',))
    with pytest.raises(XModSegError, match='without masks'): organ_scores(lambda x: truth[None], xr.unlabelled(), ('lung',))

def test_distances_are_in_mm_of_the_pile():
    y = np.zeros((1, 16, 16), np.uint8); y[0, 4:12, 4:12] = 1; s = Slices([np.zeros((16, 16), np.float32)], ['a'], [y], spacing=(3., 1.))
    moved = torch.from_numpy(np.roll(y, 2, 1)).float()[None]; assert organ_scores(lambda x: moved, s, ('heart',)).heart.hd95 == pytest.approx(6.)

def test_doubt_in_bits():
    assert doubt(torch.full((2, 3, 4, 4), .5)) == pytest.approx(1.) and doubt(torch.tensor([[0., 1.]])) == pytest.approx(0., abs=1e-9)
    assert doubt(torch.tensor([[.25]])) == pytest.approx(2 - .75*np.log2(3)) == pytest.approx(doubt(torch.tensor([[.75]])))

def test_identity_shows_each_generator_what_it_should_draw():
    m = build('TD-GAN+idt'); t = generator_terms(m, b, m.paths(b))['idt']
    assert_close(t, (m.G_drr2xr(b.x_l) - b.x_l).abs().mean() + (m.G_xr2drr(b.x_h) - b.x_h).abs().mean())

def test_organ_scores_mean_distance_and_empty_answers():
    y = np.zeros((1, 16, 16), np.uint8); y[0, 4:12, 4:12] = 1; s = Slices([np.zeros((16, 16), np.float32)]*2, list('ab'), [y]*2, spacing=(1., 1.))
    p = torch.from_numpy(np.stack([np.roll(y, 2, 1), 0*y])).float(); o = organ_scores(lambda x: p, s, ('heart',)).heart
    far = float(np.hypot(16, 16)); assert o.empty == .5 and o.hd95 == pytest.approx((2 + far)/2) and o.assd < o.hd95 - .2

def test_a_film_s_masks_have_smooth_rims(tmp_path):
    p = torch.zeros(1, 4, 32, 32); p[:, 0, 11:21, 11:21] = 1; p[:, 0, 11, 11] = 0
    m = segment_film(SimpleNamespace(config=dict(films=dict(side=32, organs=['a', 'b', 'c', 'd'])), parameters=lambda: iter([p]), segment=lambda x: p), picture(tmp_path/'a.png', shaded(320, 320)))
    assert not m.a[110:120, 120].all() and m.a[115, 129] and not m.a[111, 121]            # a cut corner is a slope, not a step

def test_lessons_are_not_a_trained_translator(tmp_path):
    fit(Lessons(organ_net(**HOW), built=HOW), [batch()], 1, tmp_path, device='cpu', watch=())
    with pytest.raises(XModSegError, match='a file of another method'): load_tdgan(next(tmp_path.glob('*.safetensors')))

@pytest.mark.parametrize('films', [dict(side=32, organs=['lung']), dict(side=32), dict(side=32, organs=['bone', 'heart', 'liver', 'lung'], window=3)])
def test_films_name_every_map_of_U(films):
    with pytest.raises(XModSegError, match='not those of U'): build(films=films)

def test_a_reference_may_be_an_array():
    assert build(films=dict(side=32, organs=['bone', 'heart', 'liver', 'lung'], reference=np.zeros((2, 2)))).config['films']['reference'] == [[0., 0.], [0., 0.]]

def test_what_is_odd_about_a_film_is_said(tmp_path):
    x = np.random.default_rng(0).integers(60, 255, (64, 64)).astype(np.uint8); x[:12] = 0; x[-12:] = 0
    Image.fromarray(x).save(tmp_path/'a.png')
    net = build(films=dict(side=32, organs=['bone', 'heart', 'liver', 'lung'])).eval()
    with pytest.warns(UserWarning, match='a plain border'): net.segment(tmp_path/'a.png')
