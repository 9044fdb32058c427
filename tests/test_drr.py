"Line integrals against closed forms, gradients against differences, looks against their end points."
import math
import numpy as np
import pytest, torch
from xmodseg.cbct import MU_WATER
from xmodseg.core import XModSegError
from xmodseg.drr import LOOKS, Beam, blur, collimate, curve, drr, enhance, film, line_integrals, mask_from_path, radiograph, topogram, turned
from xmodseg.volume import Volume

close = torch.testing.assert_close
METHODS = ('joseph', 'march', 'siddon')
KINDS = ('cone', 'fan', 'parallel')
f64 = lambda v: torch.tensor(v, dtype=torch.float64)

def refuses(*words, call):
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)

def matrix(turn):
    "Rz Ry Rx by three matrices."
    (i, j, k), (l, m, n) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return f64(np.array([[k, -n, 0], [n, k, 0], [0, 0, 1]]) @ np.array([[j, 0, m], [0, 1, 0], [-m, 0, j]]) @ np.array([[1, 0, 0], [0, i, -l], [0, l, i]]))

def rays(beam, turn, shift): # in mm of the patient: p = R'(q - t)
    return [(q - f64(shift)) @ matrix(turn) for q in beam.ends(f64([]))]

def in_ellipsoid(beam, radii, turn, shift, centre):
    s, e = [q - f64(centre) for q in rays(beam, turn, shift)]
    u, v = s/f64(radii), (e - s)/f64(radii)
    a, b, c = (v*v).sum(1), (u*v).sum(1), (u*u).sum(1) - 1
    return (2*(b*b - a*c).clamp(min=0).sqrt()/a*(e - s).norm(dim=1)).reshape(beam.shape)

def in_box(beam, lo, hi, turn, shift): # lo, hi in mm from the middle of the volume
    s, e = rays(beam, turn, shift)
    way = torch.where((e - s).abs() < 1e-12, 1e-12, e - s)
    a, c = (f64(lo) - s)/way, (f64(hi) - s)/way
    near, far = torch.minimum(a, c).amax(1).clamp(0, 1), torch.maximum(a, c).amin(1).clamp(0, 1)
    return ((far - near).clamp(min=0)*(e - s).norm(dim=1)).reshape(beam.shape)

def solid(radii, centre, n, fine=4): # (1,n,n,n) at 1 mm: share of sub-voxels inside
    out, o = 0., (torch.arange(fine) - (fine - 1)/2)/fine
    axis = lambda k: (torch.arange(n)[:, None] + o - (n - 1)/2 - centre[k]).div(radii[k]).square()
    x, y, z = [axis(k) for k in range(3)]
    for a in range(fine):
        for b in range(fine):
            for c in range(fine): out = out + (x[:, a, None, None] + y[None, :, b, None] + z[None, None, :, c] < 1).float()
    return out[None]/fine**3

def box(dtype=torch.float64):
    mu = torch.zeros(1, 20, 15, 12, dtype=dtype)
    mu[0, 3:13, 4:10, 2:9] = 1
    return mu
BOX = [(np.array(v) - (10, 7.5, 6))*(1.5, 2., 3.) for v in ((3, 4, 2), (13, 10, 9))]
POSES = [((0., 0, 0), (3., 5, -7)), ((13., 22, -31), (1., 2, 3)), ((45., 44, 46), (0., 0, 0)), ((13., 22, -31), (.3, -800.2, .1)), ((0., 0, 90), (0., 90.3, 0)), ((90., 0, 0), (0., 0, 2.1)), ((0., 0, 180), (0., 0, 0))]

# ---- geometry

def test_DRR_E1_turn_is_a_nod_a_tilt_a_turn():
    angles = f64([[10., -20, 30], [0, 0, 90], [77, 5, -140]])
    close(turned(angles), torch.stack([matrix(a) for a in angles.tolist()]))
    close(turned(f64([[0., 0, 90]]))[0] @ f64([1., 0, 0]), f64([0., 1, 0]), atol=1e-12, rtol=0)   # right goes to the front: not the transpose
    close(turned(f64([[90., 0, 0]]))[0] @ f64([0., 1, 0]), f64([0., 0, 1]), atol=1e-12, rtol=0)   # front goes up
    close(turned(f64([[0., 90., 0]]))[0] @ f64([0., 0, 1]), f64([1., 0, 0]), atol=1e-12, rtol=0)  # up goes to the right

def test_DRR_E1_ends_of_rays():
    for kind, start in (('cone', [0., -500, 0]), ('fan', [0., -500, 4]), ('parallel', [9., -500, 4])):
        s, e = Beam((5, 7), (2., 3.), 1000., 500., kind).ends()
        close(s[0], torch.tensor(start)); close(e[0], torch.tensor([9., 500, 4])); close(e[6], torch.tensor([-9., 500, 4])); close(e[28], torch.tensor([9., 500, -4]))
    assert Beam(sdd=1000., sid=400.).magnification == 2.5 and Beam(kind='parallel').magnification == 1

@pytest.mark.parametrize('bad,word', [(dict(shape=(0, 4)), 'rows and columns'), (dict(shape=(4,)), 'rows and columns'), (dict(shape=(4.5, 4)), 'rows and columns'), (dict(pixel=(0., 1.)), 'positive'), (dict(pixel=(1., -1.)), 'positive'),
    (dict(sdd=0.), 'positive'), (dict(sid=-5.), 'positive'), (dict(sid=float('nan')), 'positive'), (dict(sdd=float('inf')), 'positive'), (dict(sid=2000.), 'behind the detector'), (dict(kind='pencil'), 'no such beam')])
def test_wrong_machines_are_refused(bad, word): refuses(word, call=lambda: Beam(**bad))

def test_DRR_E1_poses_move_the_shadow_the_right_way():
    dot = torch.zeros(1, 21, 21, 21); dot[0, 14, 10, 16] = 1        # right of and above the middle
    beam = Beam((41, 41), (1., 1.), 1000., 1000., 'parallel')
    where = lambda **kw: np.unravel_index(int(line_integrals(dot, (1., 1., 1.), beam, **kw).argmax()), (41, 41))
    assert where() == (14, 16)                                       # up in the picture, and on its left
    assert where(shift=(3., 0., 0.)) == (14, 13) and where(shift=(0., 0., -5.)) == (19, 16)
    assert where(turn=(0., 0., 180.)) == (14, 24) and where(turn=(180., 0., 0.)) == (26, 16) and where(turn=(0., 90., 0.)) == (24, 14)

# ---- integrals

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('turn,shift', POSES)
def test_DRR_E4_exact_for_boxes_of_voxels(turn, shift, kind):
    beam = Beam((31, 33), (2., 2.), 900., 800., kind)
    exact = in_box(beam, *BOX, turn, shift)
    close(line_integrals(box(), (1.5, 2., 3.), beam, turn, shift, 'siddon')[0, 0], exact, atol=1e-9, rtol=0)

@pytest.mark.parametrize('turn,shift', POSES)
def test_DRR_E3_interpolating_methods_blur_a_box_but_keep_its_sum(turn, shift):
    beam, mm = Beam((90, 90), (.73, .73), 900., 800.), (1.5, 2., 3.)
    exact = in_box(beam, *BOX, turn, shift)
    for m, step in (('joseph', None), ('march', .25)):
        p = line_integrals(box(), mm, beam, turn, shift, m, step)[0, 0]
        assert abs(float(p.sum()/exact.sum()) - 1) < .04, m
    whole = in_box(beam, [-15., -15, -18], [15., 15, 18], turn, shift)   # a volume that is full has nothing to blur into
    close(line_integrals(torch.ones(1, 20, 15, 12, dtype=torch.float64), mm, beam, turn, shift, 'march')[0, 0], whole, atol=1e-9, rtol=0)

@pytest.mark.parametrize('radii', [(50., 50, 50), (54., 38, 46)])
@pytest.mark.parametrize('turn', [(0., 0, 0), (9., -14, 25), (0., 0, 46)])
def test_DRR_E2_spheres_and_ellipsoids_within_half_a_percent_at_one_mm(radii, turn):
    beam, shift, centre = Beam((60, 60), (3.1, 3.1), 1000., 800.), (4., 30., -3.), (3., -2., 1.)
    v, exact = solid(radii, centre, 120), in_ellipsoid(beam, radii, turn, shift, centre)
    for m in ('joseph', 'march'):
        p = line_integrals(v, (1., 1., 1.), beam, turn, shift, m)[0, 0].double()
        assert float((p - exact).abs().sum()/exact.sum()) < .005, m
    p = line_integrals(v, (1., 1., 1.), beam, turn, shift, 'siddon')[0, 0].double()
    assert float((p - exact).abs().sum()/exact.sum()) < .01 and abs(float(p.sum()/exact.sum()) - 1) < .002   # a ball of blocks: rough, but no bias

@pytest.mark.parametrize('method', METHODS)
def test_DRR_E2_a_smooth_blob_ray_by_ray(method):
    n, w, beam = 64, 9., Beam((30, 30), (3., 3.), 900., 700.)
    x = (torch.arange(n, dtype=torch.float64) - (n - 1)/2).square()
    mu = torch.exp(-(x[:, None, None] + x[:, None] + x)/(2*w*w))[None]
    s, e = rays(beam, (20., 10, 35), (0., 0, 0))
    d = (e - s)/(e - s).norm(dim=1, keepdim=True)
    far2 = (s*s).sum(1) - (s*d).sum(1).square()                      # squared distance of the ray from the middle
    exact = (w*math.sqrt(2*math.pi)*torch.exp(-far2/(2*w*w))).reshape(30, 30)
    p = line_integrals(mu, (1., 1., 1.), beam, (20., 10, 35), method=method)[0, 0]
    assert ((p - exact).abs()/exact)[exact > 2].max() < (.005 if method != 'siddon' else .02)

def test_DRR_E2_lengths_are_mm_whatever_the_voxel():
    beam = Beam((3, 3), (1., 1.), 500., 400., 'parallel')
    for spacing in ((1., 1., 1.), (3., 1.5, .7)):
        for m in METHODS:
            close(line_integrals(torch.ones(1, 9, 11, 13), spacing, beam, method=m)[0, 0, 1, 1], torch.tensor(11*spacing[1]), rtol=1e-5, atol=1e-4)
            close(line_integrals(torch.ones(1, 9, 11, 13), spacing, beam, (90., 0., 0.), method=m)[0, 0, 1, 1], torch.tensor(13*spacing[2]), rtol=1e-4, atol=1e-3)

@pytest.mark.parametrize('method', METHODS)
def test_DRR_E2_linear_and_empty(method):
    mu, beam = torch.rand(3, 14, 12, 10, generator=torch.Generator().manual_seed(0)), Beam((20, 18), (2., 2.), 300., 250.)
    p = line_integrals(mu, (2., 2., 2.), beam, (5., 6., 7.), method=method)
    assert p.shape == (1, 3, 20, 18)
    close(line_integrals(mu.sum(0, keepdim=True), (2., 2., 2.), beam, (5., 6., 7.), method=method)[:, 0], p.sum(1), rtol=1e-5, atol=1e-4)
    close(line_integrals(3*mu, (2., 2., 2.), beam, (5., 6., 7.), method=method), 3*p, rtol=1e-5, atol=1e-4)
    assert (line_integrals(0*mu, (2., 2., 2.), beam, method=method) == 0).all()
    close(line_integrals(mu, (2., 2., 2.), beam, (360., -360., 720.), method=method), line_integrals(mu, (2., 2., 2.), beam, method=method), rtol=1e-3, atol=2e-2)

def test_DRR_E2_a_batch_is_its_poses():
    mu, beam = torch.rand(2, 14, 12, 10, generator=torch.Generator().manual_seed(0)), Beam((9, 8), (4., 4.), 300., 250.)
    turn, shift = [(0., 0., 0.), (0., 0., 90.), (44., 3., 5.)], [(0., 0., 0.), (1., 2., 3.), (0., 0., 4.)]
    for m in ('joseph', 'siddon'):
        many = line_integrals(mu, (2., 2., 3.), beam, turn, shift, m)
        assert many.shape == (3, 2, 9, 8)
        for i in range(3): close(many[i:i+1], line_integrals(mu, (2., 2., 3.), beam, turn[i], shift[i], m), rtol=1e-4, atol=1e-4)
    close(line_integrals(mu, (2., 2., 3.), beam, turn, (0., 0., 0.)), torch.cat([line_integrals(mu, (2., 2., 3.), beam, t) for t in turn]), rtol=1e-4, atol=1e-4)

def test_DRR_E1_what_lies_near_the_source_is_larger():
    v, beam = solid((8.,)*3, (0., 0., 0.), 24), Beam((120, 120), (1., 1.), 1000., 500.)
    size = lambda y: float(line_integrals(v, (1., 1., 1.), beam, shift=(0., y, 0.)).sum())**.5   # the shadow holds volume times magnification squared
    assert abs(size(-100.)/size(100.) - 600/400) < .01 and abs(size(0.)/float(v.sum())**.5 - 2) < .01

@pytest.mark.parametrize('method', METHODS)
def test_DRR_E4_source_inside_the_volume(method):
    full, beam = torch.ones(1, 40, 40, 40), Beam((1, 1), (1., 1.), 1000., 800.)
    p = lambda y: float(line_integrals(full, (1., 1., 1.), beam, shift=(0., y, 0.), method=method))
    assert abs(p(0.) - 40) < 1e-3 and abs(p(-800.) - 20) < .02 and abs(p(-790.3) - 29.7) < .02 and abs(p(195.) - 25) < .02

@pytest.mark.parametrize('method', METHODS)
def test_DRR_E3_gradients_agree_with_differences(method):
    g = torch.Generator().manual_seed(0)
    mu, beam = torch.rand(1, 4, 5, 3, dtype=torch.float64, generator=g), Beam((3, 2), (2.5, 2.5), 90., 70.)
    turn, shift = [f64(v).requires_grad_() for v in ([[3., -4, 8], [20, 10, -50]], [[.3, -.7, .2], [.6, .5, -.4]])]
    call = lambda m, t, s: line_integrals(m, (2., 1.3, 1.6), beam, t, s, method)
    assert torch.autograd.gradcheck(lambda t, s: call(mu, t, s), (turn, shift), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda m: call(m, turn.detach()[:1], shift.detach()[:1]), (mu.clone().requires_grad_(),), eps=1e-4, atol=1e-6)

@pytest.mark.parametrize('method', METHODS)
def test_gradients_are_finite_along_axes_and_beside_the_volume(method):
    mu = torch.rand(1, 6, 6, 6).requires_grad_()
    for beam, shift in ((Beam((3, 3), (1., 1.), 90., 70., 'parallel'), (0., 0., 0.)), (Beam((9, 9), (9., 9.), 90., 70.), (20., 0., 0.)), (Beam((3, 3), (1., 1.), 90., 70.), (0., -70., 0.))):
        turn, shift = torch.zeros(3, requires_grad=True), torch.tensor(shift, requires_grad=True)
        p = line_integrals(mu, (1., 1., 1.), beam, turn, shift, method)
        assert torch.isfinite(p).all()
        for v in torch.autograd.grad(p.sum(), (mu, turn, shift)): assert torch.isfinite(v).all()

def test_wrong_calls_are_refused():
    mu, beam = torch.ones(1, 9, 9, 9), Beam((9, 9))
    refuses('never meets', 'pose 1', call=lambda: line_integrals(mu, (1., 1., 1.), beam, shift=[(0., 0., 0.), (500., 0., 0.)]))
    refuses('never meets', call=lambda: line_integrals(mu, (1., 1., 1.), beam, shift=(0., 400., 0.)))      # behind the detector
    refuses('never meets', call=lambda: line_integrals(mu, (1., 1., 1.), beam, shift=(0., -1700., 0.)))   # behind the source
    for bad in (math.nan, math.inf):
        v = mu.clone(); v[0, 1, 1, 1] = bad
        refuses('no numbers', call=lambda: line_integrals(v, (1., 1., 1.), beam))
        refuses('pose needs numbers', call=lambda: line_integrals(mu, (1., 1., 1.), beam, turn=(0., bad, 0.)))
        refuses('positive length', call=lambda: line_integrals(mu, (1., 1., bad), beam))
    refuses('do not pair', '2 and 3', call=lambda: line_integrals(mu, (1., 1., 1.), beam, [(0., 0., 0.)]*2, [(0., 0., 0.)]*3))
    refuses('three axes', call=lambda: line_integrals(mu[0], (1., 1., 1.), beam))
    refuses('three axes', call=lambda: line_integrals(mu.int(), (1., 1., 1.), beam))
    refuses('no such method', call=lambda: line_integrals(mu, (1., 1., 1.), beam, method='rays'))
    refuses('no such step', call=lambda: line_integrals(mu, (1., 1., 1.), beam, method='march', step=0.))

# ---- arithmetic of a training loop, and grids askew

@pytest.mark.parametrize('method', METHODS)
def test_DRR_E1_autocast_leaves_the_rays_where_they_are(method):
    mu, beam = torch.rand(2, 30, 26, 22, generator=torch.Generator().manual_seed(0)), Beam((30, 30), (3., 3.))
    plain = line_integrals(mu, (2., 2., 2.), beam, (5., 6., 7.), method=method)
    with torch.autocast('cpu', torch.bfloat16): under = line_integrals(mu, (2., 2., 2.), beam, (5., 6., 7.), method=method)
    assert under.dtype == torch.float32 and (under == plain).all()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_DRR_E2_half_precision_is_summed_in_float32(dtype):
    mu, beam = torch.rand(1, 64, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(), Beam((20, 20), (6., 6.))
    p = line_integrals(mu, (2., 2., 2.), beam, (5., 6., 7.))
    assert p.dtype == torch.float32 and (p == line_integrals(mu.float(), (2., 2., 2.), beam, (5., 6., 7.))).all()
    p.sum().backward(); assert mu.grad.dtype == dtype and mu.grad.sum() > 0
    assert line_integrals(torch.ones(1, 64, 64, 64, dtype=dtype), (2., 2., 2.), beam).amax() > 120      # its sum is no number in float16
    assert line_integrals(mu.double(), (2., 2., 2.), beam).dtype == torch.float64

def tilted_ball(tilt, axis, spacing=(3., 3., 3.)): # the same ball of water, in grids that share their middle
    affine, n = np.eye(4), (60, 64, 62)
    affine[:3, :3] = matrix([tilt*(axis == k) for k in range(3)]).numpy()*spacing
    affine[:3, 3] = (7, 8, 9) - affine[:3, :3] @ ((np.array(n) - 1)/2)
    at = np.stack(np.meshgrid(*map(np.arange, n), indexing='ij'), -1) @ affine[:3, :3].T + affine[:3, 3] - (7, 8, 9)
    ball = np.linalg.norm(at - [45, 30, 40], axis=-1) < 20
    return Volume(np.where(ball, 0, -1000).astype(np.float32), affine), Volume(ball.astype(np.int16), affine, 'label')

@pytest.mark.parametrize('tilt, axis', [(20, 1), (-20, 1), (15, 0), (30, 2), (70, 1)])
def test_DRR_E1_a_grid_askew_throws_the_same_shadow(tilt, axis):
    at, beam = torch.arange(100.), Beam((100, 100), (3., 3.), 1000., 850.)
    def centre(p): return torch.stack([(p.sum(k)*at).sum()/p.sum() for k in (1, 0)])
    flat, askew = [drr(*tilted_ball(t, axis, (3., 2.6, 2.8)), beam=beam, turn=(4., 5., 6.), shift=(1., 2., 3.)) for t in (0, tilt)]
    for a, b in ((flat.p, askew.p), (flat.path, askew.path)):
        close(centre(b[0, 0]), centre(a[0, 0]), atol=.1, rtol=0)
        assert abs(float(b.sum()/a.sum()) - 1) < .02

def test_DRR_E1_a_frame_that_is_none_is_refused():
    mu, beam = torch.ones(1, 9, 9, 9), Beam((9, 9))
    close(line_integrals(mu, (1., 1., 1.), beam, frame=torch.eye(3)), line_integrals(mu, (1., 1., 1.), beam), rtol=0, atol=0)
    for bad in (2*np.eye(3), np.eye(4), np.ones((3, 3)), np.full((3, 3), np.nan)):
        refuses('right angles', 'affine', call=lambda: line_integrals(mu, (1., 1., 1.), beam, frame=bad))

# ---- masks and volumes

def test_DRR_E5_one_voxel_is_wider_when_interpolated():
    one, beam = torch.zeros(1, 9, 9, 9), Beam((60, 60), (.5, .5), 1000., 500., 'parallel')
    one[0, 4, 4, 4] = 1
    area = {m: float(mask_from_path(line_integrals(one, (4., 4., 4.), beam, method=m)).sum())*.25 for m in ('joseph', 'siddon')}
    assert area == dict(joseph=64., siddon=16.)

def test_DRR_E5_masks():
    path = torch.tensor([0., 1e-3, 5., 30., 31.])
    assert mask_from_path(path).tolist() == [0, 1, 1, 1, 1] and mask_from_path(path, 30.).tolist() == [0, 0, 0, 0, 1]
    ball = line_integrals(solid((30.,)*3, (0., 0., 0.), 70), (1., 1., 1.), Beam((91, 91), (1., 1.), 900., 500., 'parallel'))
    for t in (20., 40.): assert abs(float(mask_from_path(ball, t).sum())/(math.pi*(900 - t*t/4)) - 1) < .03
    for t in (-1., math.nan): refuses('no such length', call=lambda: mask_from_path(path, t))

def scan():
    hu, y = np.full((24, 20, 16), -1000., np.float32), np.zeros((24, 20, 16), np.int16)
    hu[4:20, 4:16] = 0; y[14:19, 6:10, 9:14], y[6:10, 6:10, 2:6] = 1, 2
    a = np.diag([2., 3., 4., 1.]); a[:3, 3] = -20, 10, 5
    return Volume(hu, a), Volume(y, a, 'label')

def test_DRR_E2_drr_holds_attenuation_and_mm():
    ct, y = scan()
    d = drr(ct, y, beam=Beam((60, 60), (1., 1.), 900., 500., 'parallel'))
    assert d.organs == ['1', '2'] and d.p.shape == (1, 1, 60, 60) and d.path.shape == (1, 2, 60, 60)
    assert abs(float(d.p[0, 0, 30, 30]) - 12*3*MU_WATER) < 1e-4 and abs(float(d.path.amax()) - 4*3) < 1e-3
    one, two = [np.argwhere(d.path[0, k].numpy() > 6).mean(0) for k in (0, 1)]
    assert one[0] < two[0] - 5 and one[1] < two[1] - 5                # label 1 is up and right: top left of the picture
    assert (drr(ct, y, dict(both=(1, 2)), Beam((60, 60))).path.sum() - drr(ct, y, beam=Beam((60, 60))).path.sum()).abs() < 1e-2
    air = drr(ct.with_data(np.where(ct.data < -500, -1100, ct.data)), beam=Beam((60, 60)))
    close(air.p, drr(ct, beam=Beam((60, 60))).p)                      # nothing attenuates less than nothing
    assert drr(ct, beam=Beam((60, 60))).path.shape == (1, 0, 60, 60)

def test_axes_of_the_file_do_not_matter():
    ct, y = scan()
    m = np.diag([-1., -1, 1, 1]); m[:2, 3] = 23, 19
    lps = [Volume(v.data[::-1, ::-1], v.affine @ m, v.kind) for v in (ct, y)]
    a, b = drr(ct, y, beam=Beam((40, 40)), turn=(3., 4., 5.)), drr(*lps, beam=Beam((40, 40)), turn=(3., 4., 5.))
    close(a.p, b.p); close(a.path, b.path)

def test_unfit_volumes_are_refused():
    ct, y = scan()
    refuses('different grids', 'mm apart', call=lambda: drr(ct, Volume(y.data, y.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 30.]), 'label')))
    refuses('different grids', 'shapes', call=lambda: drr(ct, y.crop((0, 0, 0), (10, 10, 10))))
    refuses('different grids', 'spacings', call=lambda: drr(ct, Volume(y.data, np.diag([1., 1, 1, 1]), 'label')))
    refuses('whole numbers', call=lambda: drr(ct, ct))
    bad = ct.with_data(np.where(ct.data == 0, np.nan, ct.data))
    refuses('no numbers', call=lambda: drr(bad, y))
    with pytest.warns(UserWarning, match='do not look like HU'): drr(ct.with_data(ct.data + 1024))

def test_organs_without_labels_are_refused():
    ct, labels = scan()
    refuses('no labels are given', "['liver']", 'pass labels', call=lambda: drr(ct, None, dict(liver=[2]), beam=Beam((9, 9), (8., 8.))))
    alone = drr(ct, beam=Beam((9, 9), (8., 8.)))                       # neither is fine, and so is a dictionary without organs
    assert alone.organs == [] and alone.path.shape == (1, 0, 9, 9) and drr(ct, None, {}, beam=Beam((9, 9), (8., 8.))).organs == []

# ---- looks

def test_DRR_E6_grey_values():
    close(radiograph(torch.tensor([[[[0., 1., 2., 4.]]]]), hi=2.), torch.tensor([[[[-1., 0, 1, 1]]]]))
    close(radiograph(torch.tensor([[[[0., 1., 2., 4.]]]]), lo=1., hi=2.), torch.tensor([[[[-1., -1, 1, 1]]]]))
    p = torch.rand(2, 1, 30, 30, generator=torch.Generator().manual_seed(0))*torch.tensor([1., 5.])[:, None, None, None]
    x = radiograph(p)
    assert x.amax((1, 2, 3)).tolist() == [1., 1.] and (radiograph(p, 'dark') == -x).all()
    assert torch.corrcoef(torch.stack([x[0].flatten(), p[0].flatten()]))[0, 1] > .99      # bright is dense
    assert (radiograph(torch.zeros(1, 1, 5, 5)) == -1).all()
    for word in ('negative', 'Bright', ''):
        for call in (lambda: radiograph(p, word), lambda: topogram(p, polarity=word), lambda: film(p, torch.Generator(), word)): refuses('no such polarity', call=call)
    for lo, hi in ((.8, .4), (.5, .5), (0., 0.), (0., math.nan)): refuses('above black', f'lo={lo}', call=lambda: radiograph(p, lo=lo, hi=hi))
    close(radiograph(p, hi=torch.tensor([1., 5.])[:, None, None, None])[1], radiograph(p[1:], hi=5.)[0])

def test_DRR_E7_blur_keeps_the_mean_and_has_its_variance():
    spike, at = torch.zeros(1, 1, 41, 41), torch.arange(41.) - 20
    spike[..., 20, 20] = 1
    for sigma in (1.5, 3.):
        assert abs(float((blur(spike, sigma).sum(-2)*at**2).sum()) - sigma**2) < .02*sigma**2
    close(blur(torch.full((1, 2, 9, 7), .3), 2.), torch.full((1, 2, 9, 7), .3)); assert (blur(spike, 0.) == spike).all()

def test_DRR_E7_enhancing_adds_detail():
    edge = torch.cat([torch.full((1, 1, 20, 10), -.3), torch.full((1, 1, 20, 10), .3)], -1)
    out = enhance(edge, 1.)
    assert out[..., 10].mean() > .35 and out[..., 9].mean() < -.35 and abs(float(out[..., 0].mean()) + .3) < .01
    close(enhance(edge, 0.), edge); assert enhance(edge, 50.).abs().max() <= 1

@pytest.mark.parametrize('kw', [dict(gamma=.5), dict(gamma=2.), dict(steep=6.), dict(gamma=.6, steep=5., middle=.3)])
def test_DRR_E7_curves_rise_between_fixed_ends(kw):
    x = torch.linspace(-1, 1, 201)
    y = curve(x, **kw)
    close(y[[0, -1]], torch.tensor([-1., 1.])); assert (y.diff() > 0).all() and not torch.allclose(x, y, atol=.05)
    close(curve(x), x, rtol=1e-5, atol=1e-6)
def test_DRR_E7_gamma_below_one_lifts():
    assert abs(float(curve(torch.tensor(0.), .5)) - (2*math.sqrt(.5) - 1)) < 1e-6 and abs(float(curve(torch.tensor(0.), 2.)) + .5) < 1e-6
    for kw in (dict(gamma=0.), dict(gamma=-1.), dict(steep=-1.)): refuses('must rise', call=lambda: curve(torch.zeros(1), **kw))

def test_DRR_E7_lead_covers_the_border():
    x = collimate(torch.ones(2, 1, 20, 10), (.1, .2, 0., .3), -.5)
    assert (x[:, :, 2:16, :7] == 1).all() and (x == -.5).sum() == 2*(200 - 14*7)

def fan_p(): return drr(scan()[0], beam=Beam((40, 50), (2., 2.), 900., 500., 'fan')).p
def test_DRR_E7_topogram_has_photons_and_a_polarity():
    p, g = fan_p(), lambda k: torch.Generator().manual_seed(k)
    t = topogram(p, g(0))
    assert (topogram(p, g(0)) == t).all() and (topogram(p, g(1)) != t).any() and t.abs().max() <= 1
    assert (topogram(p, g(0), polarity='dark') == -t).all()
    noise = lambda dose: float((topogram(p, g(0), dose, 0., 1., 0.) - topogram(p, g(1), dose, 0., 1., 0.)).std())
    assert 2.5 < noise(1e4)/noise(1e5) < 4                            # ten times the photons, a root of ten less noise
    assert (t - radiograph(p)).abs().mean() > .05

def test_DRR_E7_films_are_seeded_and_all_effects_can_be_off():
    p, g = fan_p().expand(3, -1, -1, -1), lambda k: torch.Generator().manual_seed(k)
    x = film(p, g(0))
    assert x.shape == p.shape and (film(p, g(0)) == x).all() and x.abs().max() <= 1 and (film(p, g(0), 'dark') == -x).all()
    assert min(float((x[i] - x[j]).abs().mean()) for i in range(3) for j in range(i)) > .01
    off = dict(dose=(1e9, 1e9), gamma=(1., 1.), steep=(0., 0.), blur=(0., 0.), sharp=(0., 0.), lo=(0., 0.), hi=(1., 1.), lead=(0., 0.))
    close(film(p, g(0), **off), radiograph(p), rtol=0, atol=2e-3)
    refuses('unknown parameter', 'gamma', call=lambda: film(p, g(0), gama=(1., 1.)))
    assert set(off) | {'middle'} == set(LOOKS)

def test_DRR_E7_a_thin_part_is_seen_in_every_look():
    wedge = torch.linspace(0, .4, 40).expand(1, 1, 40, 40)
    off = dict(gamma=(1., 1.), steep=(0., 0.), blur=(0., 0.), sharp=(0., 0.), lead=(0., 0.))
    for seed in range(50):
        x = film(wedge, torch.Generator().manual_seed(seed), **off)[0, 0].mean(0)
        assert x[-1] > .5 and x[30] > -.4 and x[20] < x[30] < x[36] and x[0] < -.8, seed
def test_DRR_E7_a_thick_part_and_an_empty_one():
    p, g = 4*fan_p(), lambda: torch.Generator().manual_seed(5)
    off = dict(gamma=(1., 1.), steep=(0., 0.), blur=(0., 0.), sharp=(0., 0.), lead=(0., 0.), dose=(1e9, 1e9))
    first = [torch.rand(1, generator=(r := g())), torch.poisson(torch.exp(-p)*1e9, generator=r), torch.rand(1, generator=r), torch.rand(1, generator=r)]
    lo, hi = .8*float(first[2]), (.75 + .35*float(first[3]))*float(torch.quantile(p, .995))    # dose, photons, lo, hi: the order of a seed
    assert lo < .5*hi
    close(film(p, g(), **off), radiograph(-(first[1].clamp_min(1)/1e9).log().clamp(max=0), lo=lo, hi=hi), rtol=0, atol=1e-5)
    assert film(torch.zeros(1, 1, 30, 30), g()).mean() < -.8

def test_DRR_E6_a_shadow_smaller_than_one_pixel_in_two_hundred_keeps_its_greys():
    p = torch.zeros(1, 1, 100, 100); p[0, 0, :5, :5] = torch.linspace(.1, 1, 25).view(5, 5)
    x = radiograph(p)
    assert len(x.unique()) == 26 and x.max() == 1 and x.min() == -1
