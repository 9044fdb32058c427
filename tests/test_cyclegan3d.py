"The 3D CycleGAN by value: every term, every row, who moves whom, blocks without seams, scans on their own grid, models in mm, files."
from types import SimpleNamespace
import math
import numpy as np, pytest, torch
from torch.testing import assert_close
from xmodseg.core import Bag, XModSegError
from xmodseg.cyclegan3d import (FLOOR, FORMS, ROWS, SIZES, START, TRAINING, WEIGHTS, CycleGAN3d, Negative, SkipUNet, Planes, cyclegan3d, draw_paths, generator_terms,
                                load_cyclegan3d, save_cyclegan3d, spine_model, unforced)
from xmodseg.game import pulls
from xmodseg.gradient import gc_loss
from xmodseg.loop import fit
from xmodseg.run import load_checkpoint, save_checkpoint
from xmodseg.volume import Volume
from torch import nn
from xmodseg.column import stretch

torch.set_num_threads(1)
def noise(*s, seed=0): return torch.rand(*s, generator=torch.Generator().manual_seed(seed))*2 - 1
def batch(seed=0, shape=(16, 32, 16)): return Bag(x_mr=noise(1, 1, *shape, seed=seed), x_ct=noise(1, 1, *shape, seed=seed + 1))
def build(row='gc_signed', seed=0, **kw): torch.manual_seed(seed); return cyclegan3d(row, 'tiny', **kw)
def reached(table): return {k: {n for n, v in row.items() if v} for k, row in table.items()}
b, movers = batch(), {'G_mr2ct', 'G_ct2mr'}

@pytest.fixture(scope='module')
def net(): return build().eval()

# ---- the forward map and the losses

def stub(**kw): return SimpleNamespace(**{**dict(D_ct=lambda x: 0*x, D_mr=lambda x: 0*x, kind='sobel', polarity='signed', weights=WEIGHTS, G_mr2ct=lambda x: x, G_ct2mr=lambda x: x), **kw})
def four(mr2ct=None, ct2mr=None, mr2ct2mr=None, ct2mr2ct=None):
    pick = lambda given, other: other if given is None else given
    return Bag(x_mr2ct=pick(mr2ct, b.x_mr), x_ct2mr=pick(ct2mr, b.x_ct), x_mr2ct2mr=pick(mr2ct2mr, b.x_mr), x_ct2mr2ct=pick(ct2mr2ct, b.x_ct))

def test_SCOL_E2_E3_E4_each_image_by_its_own_net():
    p = draw_paths(stub(G_mr2ct=lambda x: x + 1, G_ct2mr=lambda x: 3*x), b)
    assert_close(p.x_mr2ct, b.x_mr + 1); assert_close(p.x_ct2mr, 3*b.x_ct); assert_close(p.x_mr2ct2mr, 3*(b.x_mr + 1)); assert_close(p.x_ct2mr2ct, 3*b.x_ct + 1)

def test_SCOL_E2_E3_each_critic_judges_its_own_fakes():
    z = dict(D_ct=lambda x: x + .3, D_mr=lambda x: 2*x)
    t = generator_terms(stub(**z), b, four(mr2ct=.5*b.x_mr))
    assert_close(t['adv'], (.5*b.x_mr + .3 - 1).square().mean() + (2*b.x_ct - 1).square().mean())

def test_SCOL_E2_E3_critics_see_their_reality_and_detached_fakes():
    class Spy(torch.nn.Module):
        def __init__(self): super().__init__(); self.seen = []
        def forward(self, x): self.seen.append(x); return x
    n = build(); n.D_ct, n.D_mr = Spy(), Spy()
    p = draw_paths(n, b).detach(); _, P_ct, P_mr = n.players()
    assert (P_ct.name, P_mr.name) == ('D_ct', 'D_mr')
    assert_close(P_ct.terms(b, p)['D_ct'], ((b.x_ct - 1).square().mean() + p.x_mr2ct.square().mean())/2)
    assert_close(P_mr.terms(b, p)['D_mr'], ((b.x_mr - 1).square().mean() + p.x_ct2mr.square().mean())/2)
    assert torch.equal(n.D_ct.seen[0], b.x_ct) and torch.equal(n.D_mr.seen[1], p.x_ct2mr) and not any(x.requires_grad for x in n.D_ct.seen)
    assert [len(n.pool_ct.items), len(n.pool_mr.items)] == [1, 1] and torch.equal(n.pool_ct.items[0][0], p.x_mr2ct)

def test_SCOL_E4_cycle_by_value():
    t = generator_terms(stub(), b, four(mr2ct2mr=b.x_mr + .25, ct2mr2ct=b.x_ct - .5))
    assert_close(t['cyc'], torch.tensor(.75)); assert_close(generator_terms(stub(), b, four())['cyc'], torch.tensor(0.))

@pytest.mark.parametrize('polarity', ['signed', 'absolute'])
def test_SCOL_E6_a_volume_with_its_own_translation(polarity):
    fake = noise(1, 1, 16, 32, 16, seed=7)
    t = generator_terms(stub(polarity=polarity), b, four(mr2ct=fake))
    assert_close(t['gc'], gc_loss(b.x_ct, b.x_ct, b.x_mr, fake, polarity=polarity)); assert .3 < t['gc'] < .6   # one half of it is perfect
    assert generator_terms(stub(polarity=polarity), b, four())['gc'] < 1e-4
    assert generator_terms(stub(polarity=polarity), b, four(mr2ct=b.x_ct, ct2mr=b.x_mr))['gc'] > .6             # the other's volume is no partner
    flipped = generator_terms(stub(polarity=polarity), b, four(mr2ct=-b.x_mr, ct2mr=-b.x_ct))['gc']
    assert_close(flipped, torch.tensor(2. if polarity == 'signed' else 0.), atol=1e-3, rtol=0)

def test_SCOL_E1_weighted_sum():
    t = {k: torch.tensor(v) for k, v in dict(adv=1., cyc=2., gc=4.).items()}
    assert float(build().total(t)) == 25. and float(build('gamma0').total(t)) == 21. and float(build(weights=dict(cyc=5.)).total(t)) == 15.
    assert WEIGHTS == dict(adv=1., cyc=10., gc=1., idt=0.) and WEIGHTS['gc'] == .1*WEIGHTS['cyc']

def test_two_forms_of_the_game():
    paper, bone = (cyclegan3d('gc_absolute', 'small', f) for f in ('paper', 'bone'))
    assert type(paper.G_mr2ct).__name__ == 'LightUNet3d' and type(bone.G_ct2mr) is SkipUNet and bone.G_mr2ct.net.levels == 4
    assert (paper.weights['cyc'], paper.lr, paper.D_ct.flat) == (10., 2e-3, 2) and (bone.weights['cyc'], bone.lr, bone.D_ct.flat) == (3., 1e-3, 1)
    assert any('original' in k for k in paper.D_mr.state_dict()) and not any('original' in k for k in bone.D_mr.state_dict())      # spectral norm
    assert [sum(isinstance(f, nn.InstanceNorm3d) for f in m.D_mr.modules()) for m in (paper, bone)] == [0, 2]
    assert (paper.config['d_base'], bone.config['d_base'], cyclegan3d('gamma0', 'tiny', 'bone').config['d_base']) == (8, 16, 4) and FLOOR == dict(paper=-math.inf, bone=-150., turned=-150.) and FORMS['turned'] == FORMS['bone'] and set(START) == {'turned'}
    assert cyclegan3d('gamma0', 'small', 'bone').weights == {**WEIGHTS, 'cyc': 3., 'gc': 0.} and cyclegan3d('gamma0', 'tiny', 'bone', weights=dict(cyc=7.)).weights['cyc'] == 7.
    assert FORMS['bone']['small'] == dict(d_base=16, lr=1e-3) and cyclegan3d('slice2d', 'tiny', 'bone').G_mr2ct.net.dim == 2                                     # building changed no table
    for words, make in (('no such form', lambda: cyclegan3d('gamma0', 'tiny', 'thin')), ('no such generator', lambda: CycleGAN3d(4, 4, net='deep')), ('no such critic', lambda: CycleGAN3d(4, 4, critic='layer'))):
        with pytest.raises(XModSegError, match=words): make()

def test_a_skip_at_full_size_and_a_bounded_answer():
    torch.manual_seed(0); G = SkipUNet(4); x = noise(1, 1, 16, 16, 16)
    assert_close(G(x), G.net(x, logits=True).tanh()); assert G(50*x).abs().max() <= 1
    again = SkipUNet(4, checkpointing=True); again.load_state_dict(G.state_dict())
    grads = [torch.autograd.grad(g(x).square().mean(), list(g.parameters())) for g in (G, again)]
    for p, q in zip(*grads): assert_close(p, q, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        for f in G.net.down[1:]: f.apply(lambda m: hasattr(m, 'weight') and m.weight is not None and m.weight.zero_())               # nothing but the skip is left
        spot = x.clone(); spot[..., 8, 8, 8] += 1; assert (G(spot) - G(x)).abs()[0, 0, 8, 8, 8] > 1e-3

def test_a_start_from_the_negative_moves_generators_alone():
    n = build(form='turned'); start = Negative(n)
    player, = start.players()
    assert player.nets == [n.G_mr2ct, n.G_ct2mr] and player.lr == n.lr and {k.split('.')[0] for k in start.state_dict()} == movers
    term = lambda mr2ct, ct2mr: player.terms(b, Bag(x_mr2ct=mr2ct, x_ct2mr=ct2mr))['start']
    assert_close(term(-b.x_mr, -b.x_ct), torch.tensor(0.)); assert_close(term(.5 - b.x_mr, -b.x_ct), torch.tensor(.5)); assert_close(term(b.x_mr, -b.x_ct), 2*b.x_mr.abs().mean())
    before = {k: v.clone() for k, v in n.named_parameters()}
    fit(start, [b], 1, device='cpu', watch=())
    assert {k.split('.')[0] for k, v in n.named_parameters() if not torch.equal(v, before[k])} == movers

def test_a_form_is_kept_in_its_file(tmp_path):
    m = build(form='bone', hu=(-150, 400)).eval(); save_cyclegan3d(m, tmp_path/'w.safetensors', half=False)
    back = load_cyclegan3d(tmp_path/'w.safetensors')
    assert type(back.G_mr2ct) is SkipUNet and back.config['critic'] == 'instance' and torch.equal(back.translate(b.x_mr), m.translate(b.x_mr))

def test_a_ct_is_read_from_the_floor_it_was_learned_with():
    v = scan(); ct = v.with_data(4*(v.data - v.data.min()) - 1000)
    m = build(hu=(-150., 300.)).eval(); m.G_ct2mr = nn.Identity()
    got, want = m.translate(ct, 'mr').data, stretch(ct, 'ct', -150.).data
    assert_close(torch.from_numpy(got), torch.from_numpy(want), atol=1e-5, rtol=0); assert np.mean(got == got.min()) > .1

def test_idt_is_off_and_costs_nothing():
    calls = []
    n = stub(G_mr2ct=lambda x: calls.append(1) or x, G_ct2mr=lambda x: x + 1)
    assert 'idt' not in generator_terms(n, b, four()) and not calls
    n.weights = {**WEIGHTS, 'idt': 1.}; assert_close(generator_terms(n, b, four())['idt'], torch.tensor(1.))

# ---- who moves whom

def test_SCOL_E1_pulls():
    for row in ROWS:
        x = b if ROWS[row].get('dim', 3) == 3 else Bag(x_mr=noise(2, 1, 32, 32), x_ct=noise(2, 1, 32, 32, seed=1))
        assert reached(pulls(build(row), x)) == dict(adv=movers, cyc=movers, gc=movers, D_ct={'D_ct'}, D_mr={'D_mr'})

def test_SCOL_E6_a_detached_gc_changes_no_weight():
    class Detached(CycleGAN3d):
        def players(self):
            G, *rest = super().players()
            G.terms = lambda b, p: {**generator_terms(self, b, p), 'gc': gc_loss(b.x_ct, p.x_ct2mr.detach(), b.x_mr, p.x_mr2ct.detach())}
            return [G, *rest]
    def after(kind, **kw):
        torch.manual_seed(3); n = kind(4, 4, lr=1e-3, **kw)
        fit(n, [b, batch(5)], 2, device='cpu', watch=()); return list(n.parameters())
    broken, none, right = after(Detached), after(CycleGAN3d, weights=dict(gc=0.)), after(CycleGAN3d)
    assert all(torch.equal(p, q) for p, q in zip(broken, none)) and not all(torch.equal(p, q) for p, q in zip(none, right))

def test_a_step_moves_everybody_and_fills_the_pools():
    n = build(); start = {k: v.clone() for k, v in n.named_parameters()}
    fit(n, [b], 1, device='cpu', watch=())
    moved = {k.split('.')[0] for k, v in n.named_parameters() if not torch.equal(v, start[k])}
    assert moved == movers | {'D_ct', 'D_mr'} and len(n.pool_ct.items) == 1

def test_resume_is_the_uninterrupted_run(tmp_path):
    data = [batch(s) for s in range(4)]
    one, two = build(pool=2), build(pool=2)
    fit(one, data, 4, device='cpu', watch=())
    fit(two, data, 2, tmp_path, device='cpu', watch=(), save_every=2)
    again = build(seed=9, pool=2); fit(again, data, 4, tmp_path, device='cpu', watch=())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters()))
    with pytest.raises(XModSegError, match='another'): fit(build('gc_absolute', pool=2), data, 4, tmp_path, device='cpu', watch=())

# ---- rows and sizes

def test_rows_build_and_differ_where_they_should():
    nets = {r: build(r) for r in ROWS}
    assert {r: (n.dim, n.polarity, n.weights['gc']) for r, n in nets.items()} == dict(slice2d=(2, 'signed', 0.), gamma0=(3, 'signed', 0.), gc_signed=(3, 'signed', 1.), gc_absolute=(3, 'absolute', 1.))
    assert {r: max(p.ndim for p in n.D_ct.parameters()) for r, n in nets.items()} == {r: max(p.ndim for p in n.G_ct2mr.parameters()) for r, n in nets.items()} == dict(slice2d=4, gamma0=5, gc_signed=5, gc_absolute=5)
    assert cyclegan3d('gc_signed', 'tiny', lr=7.).lr == 7. and set(SIZES) == {'tiny', 'small', 'full'} and TRAINING == ('steps',)
    with pytest.raises(XModSegError, match='no such row'): cyclegan3d('signed', 'tiny')
    with pytest.raises(XModSegError, match='no such size'): cyclegan3d('gamma0', 'huge')
    with pytest.raises(XModSegError, match="did you mean 'cyc'"): cyclegan3d('gamma0', 'tiny', weights=dict(cycl=5.))

def test_planes_are_slices_of_the_steps_own_block():
    class Blocks(list): fingerprint = 'x'
    x = batch(3); x.x_mr[:, :, :10] = 0.; x.name = ['a / b']
    p = Planes(Blocks([x]*3), 4)
    one = p[0]
    assert one.x_mr.shape == (4, 1, 32, 16) and one.name == ['a / b'] and torch.equal(p[0].x_ct, one.x_ct) and not torch.equal(p[1].x_ct, one.x_ct)
    assert one.x_mr.flatten(1).std(1).min() > .1 and all(any(torch.equal(s, t) for t in x.x_mr[0, 0]) for s in one.x_mr[:, 0])
    assert len({s.sum().item() for s in one.x_ct}) == 4 and Planes(Blocks([x]), 5).fingerprint != p.fingerprint
    x.x_mr[:] = 0.; assert Planes(Blocks([x]), 4)[0].x_mr.shape == (4, 1, 32, 16)      # nothing but flat slices: still an answer

def test_unforced_reads_the_last_fifth():
    assert unforced([dict(adv=100., cyc=100.)]*4 + [dict(adv=1., cyc=.5, gc=9.)]) == 6. and unforced([dict(adv=1., cyc=1.)]) == 11.
    for bad in ([], [dict(gc=1.)]):
        with pytest.raises(XModSegError, match='log without'): unforced(bad)

# ---- scans

def scan(shape=(20, 37, 41), spacing=(3., 2., 2.5), seed=0):
    a = np.diag([*spacing, 1.]); a[:3, 3] = 5, -7, 11
    return Volume((np.random.default_rng(seed).gamma(2, 100, shape)).astype(np.float32), a, name='somebody')

@pytest.mark.parametrize('row', ['gc_signed', 'slice2d'])
def test_translation_lies_on_the_scans_own_grid(row):
    n, v = build(row, spacing=(3., 2., 2.5), block=(16, 32, 32), hu=(-500, 700)).eval(), scan()
    y = n.translate(v)
    assert y.shape == v.shape and np.allclose(y.affine, v.affine) and y.kind == 'image' and 'somebody' in y.name and -500 <= y.data.min() < y.data.max() <= 700
    mr = n.translate(v, to='mr'); assert -1 <= mr.data.min() and mr.data.max() <= 1
    assert np.abs(y.data - n.translate(v, block=None).data).max() > 1e-3                   # the block of training is the default
    if row == 'slice2d': assert_close(torch.from_numpy(n.translate(v, block=(1, 32, 32)).data), torch.from_numpy(y.data))

@pytest.mark.parametrize('axis', [0, 1, 2])
def test_orientation_is_read_from_the_affine(axis):
    n, v = build(spacing=(3., 2., 2.5)).eval(), scan()
    a = v.affine.copy(); a[:3, 3] += a[:3, axis]*(v.shape[axis] - 1); a[:3, axis] *= -1
    stored = Volume(np.flip(v.data, axis).copy(), a)
    assert np.allclose(np.flip(n.translate(stored).data, axis), n.translate(v).data, atol=1e-2)
    turned = Volume(v.data.transpose(2, 0, 1).copy(), v.affine[:, [2, 0, 1, 3]])
    assert np.allclose(n.translate(turned).data.transpose(1, 2, 0), n.translate(v).data, atol=1e-2)

def test_tensors_are_padded_and_cropped_exactly(net):
    x = noise(2, 1, 17, 30, 21)
    assert net.translate(x).shape == x.shape and not net.translate(x).requires_grad
    n = build(); n.G_mr2ct = torch.nn.Identity(); n.config['block'] = [16, 16, 16]
    assert_close(n.translate(x), x, atol=2e-6, rtol=0)
    flat = build('slice2d').eval(); assert_close(flat.translate(x)[0, 0, 5], flat.translate(x[0, :, 5][None])[0, 0], atol=1e-5, rtol=1e-4)

def test_precision_is_the_callers(net):
    x = noise(1, 1, 17, 30, 21)
    for kind, tol in ((torch.float64, 1e-5), (torch.float16, 5e-2), (torch.bfloat16, 3e-1)):
        y = net.translate(x.to(kind)); assert y.dtype == kind; assert_close(y.float(), net.translate(x), atol=tol, rtol=0)
    cut_up = build(block=(16, 32, 16)).eval(); assert cut_up.translate(x.double()).dtype == torch.float64     # also where blocks are blended
    n = build().eval().to(torch.bfloat16); assert n.translate(x).dtype == torch.float32

def test_views_and_batches_are_themselves(net):
    x = noise(2, 1, 21, 30, 17)
    assert_close(net.translate(x.transpose(2, 4)), net.translate(x.transpose(2, 4).contiguous()))
    assert_close(net.translate(x)[1:], net.translate(x[1:]), atol=1e-4, rtol=0)
    flat = build('slice2d').eval(); assert_close(flat.translate(x)[1, 0, 5], flat.translate(x[1:, :, 5])[0, 0], atol=1e-4, rtol=0)

def test_SCOL_E4_E6_the_negative_is_seen_by_signed_edges_and_the_identity_term_alone():
    "Two generators that turn everything over: the cycle and absolute edges have nothing against them."
    def says(s, polarity):
        f = lambda u: s*u
        return generator_terms(stub(G_mr2ct=f, G_ct2mr=f, polarity=polarity, weights={**WEIGHTS, 'idt': 1.}), b, four(f(b.x_mr), f(b.x_ct), f(f(b.x_mr)), f(f(b.x_ct))))
    for polarity, gc in (('absolute', 0.), ('signed', 2.)):
        t = says(-1., polarity)
        assert_close(torch.stack([t['cyc'], t['gc'], t['idt']]), torch.stack([torch.tensor(0.), torch.tensor(gc), 2*(b.x_mr.abs().mean() + b.x_ct.abs().mean())]), atol=1e-3, rtol=0)
    for s in (.2, .7): assert_close(says(s, 'absolute')['cyc'], says(-s, 'absolute')['cyc']); assert says(s, 'absolute')['idt'] < says(-s, 'absolute')['idt']

def test_translation_takes_the_right_generator(net):
    n = build()
    class Say(torch.nn.Module):
        def __init__(self, s): super().__init__(); self.s = s
        def forward(self, x): return 0*x + self.s
    n.G_mr2ct, n.G_ct2mr = Say(.25), Say(-.5)
    assert (n.translate(b.x_mr) == .25).all() and (n.translate(b.x_mr, 'mr') == -.5).all()

def test_translation_refuses(net):
    with pytest.raises(XModSegError, match='no such domain'): net.translate(b.x_mr, to='CT')
    for bad in (b.x_mr[0], b.x_mr[0, 0], b.x_mr[:, :, 0], (100*b.x_mr).int()):
        with pytest.raises(XModSegError, match='no image for this net'): net.translate(bad)
    with pytest.raises(XModSegError, match='no image for this net'): build('slice2d').translate(b.x_mr[0, 0])
    with pytest.raises(XModSegError, match='only an image'): net.translate(Volume(np.zeros((20, 20, 20), np.int16), np.eye(4), 'label'))
    with pytest.raises(XModSegError, match='without contrast'): net.translate(Volume(np.zeros((20, 20, 20)), np.eye(4)))

# ---- bone and its model

def ball(c, r, n=48): return ((np.stack(np.indices((n,)*3), -1) - c)**2).sum(-1) < r*r
centres = dict(L1=(24., 24., 35.), L2=(24., 24., 12.))
two = ball((24, 24, 35), 10) | ball((24, 24, 12), 10)
def ways(r=10., n=150):
    w = np.random.default_rng(0).standard_normal((n, 3)); return r*w/np.linalg.norm(w, axis=1)[:, None]
def volume(mask, spacing=1.): return Volume(mask.astype(np.uint8), np.diag([spacing]*3 + [1.]), 'label')

@pytest.mark.parametrize('spacing', [1., 2.])
def test_model_of_two_balls(spacing):
    c = {n: spacing*np.array(p) for n, p in centres.items()}
    marks = dict(L1=c['L1'] + spacing*ways() + (3, -2, 2), L2=c['L2'] + spacing*ways() + (-2, 3, 1))
    m = spine_model(volume(two, spacing), c, marks)
    assert max(m.error.values()) < .3*spacing and m.lost == [] and set(m.surfaces) == set(m.placed) == {'L1', 'L2'}
    assert all(abs(s.volume/(4/3*math.pi*(10*spacing)**3) - 1) < .06 for s in m.surfaces.values())
    assert all(np.allclose(np.linalg.norm(m.placed[n] - m.placed[n].mean(0), axis=1), np.linalg.norm(marks[n] - marks[n].mean(0), axis=1)) for n in marks)   # rigid
    larger = spine_model(volume(two, spacing), c, {n: c[n] + 1.3*spacing*ways() for n in c}, rounds=1)
    assert all(abs(e - 3*spacing) < .5*spacing for e in larger.error.values())             # mm: 30 % of the radius off

def test_surfaces_without_landmarks(): assert (lambda m: (set(m.surfaces), m.error, m.placed))(spine_model(volume(two), centres)) == ({'L1', 'L2'}, {}, {})

def test_a_lost_level_is_named_and_charged():
    marks = {n: np.array(c) + ways() for n, c in centres.items()}
    m = spine_model(volume(ball((24, 24, 35), 10) & (np.indices((48,)*3)[2] > 25)), centres, marks)
    assert m.lost == ['L2'] and abs(m.error['L2'] - 10) < .3 and m.error['L1'] < .3
    none = spine_model(volume(np.zeros((48,)*3)), centres, marks)
    assert none.lost == ['L1', 'L2'] and none.surfaces == {} and all(abs(e - 10) < .3 for e in none.error.values())

@pytest.mark.parametrize('rounds', [1, 2, 3])
def test_crumbs_are_lost_levels_in_every_round(rounds):
    m = np.zeros((48,)*3, np.uint8); m[24, 24, 35] = 1                                     # one voxel has no shape
    model = spine_model(volume(m), centres, {n: np.array(c) + ways() for n, c in centres.items()}, rounds=rounds)
    assert model.lost == ['L1', 'L2'] and model.surfaces == {} and model.placed == {} and all(abs(e - 10) < .3 for e in model.error.values())

def test_a_model_takes_a_round():
    with pytest.raises(XModSegError, match='rounds=0'): spine_model(volume(two), centres, rounds=0)

@pytest.mark.parametrize('bad', [dict(L1=ways()[:, :2]), dict(T3=ways()), dict(L1=ways()[:3]), dict(L1=np.full((74, 3), np.nan)), dict(L1=[])])
def test_levels_that_cannot_be_scored(bad):
    with pytest.raises(XModSegError, match='cannot be scored'): spine_model(volume(two), centres, bad)

def test_landmarks_take_back_what_a_centre_gave_away():
    "A process that hangs past the next level's centre line: the second round returns it."
    long = two | (np.indices((48,)*3)[2] > 14) & (np.abs(np.indices((48,)*3)[0] - 24) < 3) & (np.abs(np.indices((48,)*3)[1] - 40) < 3) & (np.indices((48,)*3)[2] < 36)
    long |= (np.abs(np.indices((48,)*3)[0] - 24) < 3) & (np.indices((48,)*3)[1] > 24) & (np.indices((48,)*3)[1] < 42) & (np.abs(np.indices((48,)*3)[2] - 34) < 3)
    tail = np.array([(24 + dx, 40 + dy, z) for z in range(15, 36, 2) for dx, dy in ((-2.5, 0), (2.5, 0), (0, 2.5))], float)
    marks = dict(L1=np.concatenate([np.array(centres['L1']) + ways(), tail]), L2=np.array(centres['L2']) + ways())
    once, twice = (spine_model(volume(long), centres, marks, rounds=r) for r in (1, 2))
    assert twice.error['L1'] < once.error['L1'] and twice.surfaces['L1'].points[:, 2].min() < once.surfaces['L1'].points[:, 2].min() - 3

def test_segment_on_tensors_and_volumes():
    class Paint(torch.nn.Module):
        def forward(self, x): return torch.where(x > 0, .8, .1)
    n = build(hu=(-1000, 1000)); n.G_mr2ct = Paint()
    x = torch.where(torch.from_numpy(ball((24, 24, 24), 12)), .5, -.5)[None, None]
    y = n.segment(x); assert y.shape == x.shape and set(y.unique().tolist()) == {0., 1.} and ((y > 0) == (x > 0)).float().mean() > .99
    v = n.segment(Volume(x[0, 0].numpy()*100, np.eye(4)), centres=dict(L1=(24., 24, 24))); assert v.kind == 'label' and abs(v.data.sum()/float((x > 0).sum()) - 1) < .05

def test_segment_knows_the_voxels_of_training():
    "At 3 mm a sheet of one voxel stays; at 1 mm the majority vote takes it. Centres are in mm."
    sheet = torch.full((1, 1, 32, 32, 32), -.5); sheet[:, :, 16, 4:28, 4:28] = .5; sheet[:, :, 2, 2:30, 2:30] = .5
    def bone(mm, **how):
        n = build(spacing=(mm,)*3); n.G_mr2ct = torch.nn.Identity(); return n.segment(sheet, lo=-1000, **how)
    assert bone(3.)[0, 0, 2].sum() == 28*28 and bone(3., centres=dict(L1=(48., 48, 48)))[0, 0, 16].sum() == 24*24
    with pytest.raises(XModSegError, match='no bone'): bone(1.)

# ---- files

def test_files(tmp_path, net):
    save_cyclegan3d(net, tmp_path/'n.safetensors'); save_cyclegan3d(net, tmp_path/'w.safetensors', half=False)
    near, exact = load_cyclegan3d(tmp_path/'n.safetensors'), load_cyclegan3d(tmp_path/'w.safetensors')
    assert torch.equal(exact.translate(b.x_mr), net.translate(b.x_mr)) and near.config == net.config and not near.training
    assert (near.translate(b.x_ct, 'mr') - net.translate(b.x_ct, 'mr')).abs().mean() < .02
    assert not [k for k in load_checkpoint(tmp_path/'n.safetensors')['method'] if not k.startswith('G_')]
    with pytest.raises(XModSegError, match='no such checkpoint'): load_cyclegan3d(tmp_path/'x.safetensors')
    save_checkpoint(tmp_path/'other.safetensors', dict(config=dict(row='M5', size='tiny'), method={}))
    with pytest.raises(XModSegError, match='a file of another method'): load_cyclegan3d(tmp_path/'other.safetensors')

def test_a_checkpoint_of_a_run_loads_too(tmp_path):
    n = build(block=(16, 32, 16)); fit(n, [b], 1, tmp_path, device='cpu', watch=())
    again = load_cyclegan3d(next(tmp_path.glob('*.safetensors')))
    assert torch.equal(again.translate(b.x_mr), n.eval().translate(b.x_mr)) and again.config['block'] == [16, 32, 16]

def test_unforced_leaves_out_lines_of_refused_batches():
    good = [dict(adv=100., cyc=100.)]*8 + [dict(adv=1., cyc=.5)]*2
    for bad in (None, float('nan'), float('inf')): assert unforced(good + [dict(adv=bad, cyc=1.)]) == 6.

def test_a_file_without_its_nets_is_refused(tmp_path):
    torch.manual_seed(0); n = CycleGAN3d(4, 4); save_cyclegan3d(n, tmp_path/'a.safetensors')
    s = load_checkpoint(tmp_path/'a.safetensors'); s['method'] = {k: v for k, v in s['method'].items() if k.startswith('G_ct2mr')}
    save_checkpoint(tmp_path/'b.safetensors', s)
    with pytest.raises(XModSegError, match='a file of other nets'): load_cyclegan3d(tmp_path/'b.safetensors')
    load_cyclegan3d(tmp_path/'a.safetensors')

def test_segment_takes_bf16():
    torch.manual_seed(0); n = CycleGAN3d(4, 4).eval(); x = torch.rand(1, 1, 16, 32, 16)*2 - 1
    assert n.segment(x.bfloat16()).shape == x.shape

def test_COLUMN_E6_a_scan_is_stretched_as_what_it_is():
    n, seen = cyclegan3d('gc_signed', 'tiny'), []
    class Spy(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
        def forward(self, x): seen.append(x[0, 0].numpy()); return x
    n.G_mr2ct, n.G_ct2mr = Spy(), Spy()
    v = Volume(np.random.default_rng(0).gamma(2, 100, (16, 32, 32)), np.eye(4))
    n.translate(v); n.translate(v, to='mr')
    assert np.allclose(seen[0], stretch(v, 'mr').data, atol=1e-6) and np.allclose(seen[1], stretch(v, 'ct').data, atol=1e-6) and np.abs(seen[0] - seen[1]).max() > .01

# ---- what a caller meets first

def test_bone_by_default_is_bone_and_not_flesh():
    "The shipped net on a person whom nobody has met: the default votes from -50 HU, as every number of RESULTS.md does."
    from xmodseg.metrics import dice
    from xmodseg.spines import spine_cases
    case, = spine_cases([(7000, 30.)], 'opposed', world=dict(shape=(48, 56, 80), spacing=(2.5, 2.5, 2.5)), workers=1)
    bone = (case.labels.data >= 1) & (case.labels.data <= 17)
    got = load_cyclegan3d().segment(case.mr)
    assert dice(got.data, bone) > .45 and got.data.mean() < 3*bone.mean()

def test_a_tensor_and_a_volume_have_one_range_in_HU():
    n = build(spacing=(3.,)*3, hu=(-200, 400)); n.G_mr2ct = torch.nn.Identity()
    x = torch.full((1, 1, 32, 32, 32), -.8); x[..., 4:28, 4:28, :] = -.2; x[..., 12:20, 12:20, :] = .9      # -140, 40 and 370 HU
    for lo, share in ((-50., 64/1024), (-190., 576/1024), (380., None)):
        if share is None:
            with pytest.raises(XModSegError, match='no slice has contrast'): n.segment(x, lo=lo)
        else: assert abs(float(n.segment(x, lo=lo).mean()) - share) < 1e-6

@pytest.mark.parametrize('block', [(20, 32, 32), (-16, 32, 32), (32,), 32, 'train', (32., 32., 32.)])
def test_a_block_that_no_net_takes_is_refused_before_training(block):
    with pytest.raises(XModSegError, match='no such block'): build(block=block)
    if block != 'train':
        with pytest.raises(XModSegError, match='no such block'): build().translate(torch.zeros(1, 1, 32, 32, 32), block=block)

@pytest.mark.parametrize('spacing', [(2.5, 2.5), (1., 0., 1.), 2.])
def test_a_spacing_is_three_positive_numbers(spacing):
    with pytest.raises(XModSegError, match='no such spacing'): build(spacing=spacing)

def test_polarity_and_gradient_are_known_when_the_net_is_built():
    with pytest.raises(XModSegError, match='no such polarity'): CycleGAN3d(4, 4, polarity='abs')
    with pytest.raises(XModSegError, match='no such gradient'): CycleGAN3d(4, 4, kind='prewitt')

def test_numbers_that_are_none_are_refused_not_spread():
    x = torch.zeros(1, 1, 32, 32, 32); x[0, 0, 3, 3, 3] = torch.nan
    with pytest.raises(XModSegError, match='1 NaN or Inf'): build().translate(x)

def test_a_small_scan_is_padded_to_what_the_net_takes():
    for form in ('paper', 'turned'):
        y = cyclegan3d('gamma0', 'tiny', form).eval().translate(torch.rand(1, 1, 12, 12, 12)*2 - 1)
        assert y.shape == (1, 1, 12, 12, 12) and y.isfinite().all()

def test_a_file_of_something_else_is_named(tmp_path):
    save_checkpoint(tmp_path/'a.safetensors', dict(foo=1))
    with pytest.raises(XModSegError, match='a file of another method'): load_cyclegan3d(tmp_path/'a.safetensors')
    save_checkpoint(tmp_path/'b.safetensors', dict(config={**build().config, 'later': 1}, method={}))
    with pytest.raises(XModSegError, match='a file of another method'): load_cyclegan3d(tmp_path/'b.safetensors')

def test_the_error_does_not_depend_on_how_a_mask_is_stored():
    marks = {n: np.array(c) + ways() + (2, -1, 1) for n, c in centres.items()}
    one = volume(two)
    other = Volume(one.data[::-1, ::-1].copy(), np.diag([-1., -1, 1, 1]) + np.array([[0, 0, 0, 47], [0, 0, 0, 47], [0]*4, [0]*4]), 'label')
    assert spine_model(one, centres, marks).error == spine_model(other, centres, marks).error

def test_landmarks_in_whole_millimetres_may_coincide():
    marks = {n: (np.array(c) + ways()).round().repeat(2, 0) for n, c in centres.items()}
    m = spine_model(volume(two), centres, marks)
    assert m.lost == [] and max(m.error.values()) < .6

def test_planes_follow_the_seed_of_their_stream():
    class Stream:
        fingerprint = 'f'
        def __init__(self, seed): self.seed = seed
        def __getitem__(self, step): return Bag(x_mr=torch.arange(32.).view(1, 1, 32, 1, 1) + torch.rand(1, 1, 32, 8, 8), x_ct=torch.rand(1, 1, 32, 8, 8))
    a, b = ([int(p[0, 0, 0].round()) for p in Planes(Stream(s), 8)[3].x_mr] for s in (0, 1))
    assert a != b and Planes(Stream(0), 8).fingerprint != Planes(Stream(0), 8, least=.5).fingerprint

def test_a_start_belongs_to_its_game():
    "Its checkpoint names the game's parts, so that a start with another step size is not taken up."
    g = cyclegan3d('gamma0', 'tiny', 'turned')
    assert Negative(g).config == g.config
