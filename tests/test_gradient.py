"Image gradients, their correlation and its loss: against SciPy, by hand, by finite differences, and with what they must refuse."
import math
import numpy as np
import pytest, torch
from torch.testing import assert_close
from xmodseg.core import XModSegError
from xmodseg.gradient import correlation_map, gc_loss, gradient_correlation, image_gradients, ncc

kinds, polarities = ('sobel', 'central'), ('signed', 'absolute')
rand = lambda *s, seed=0, dtype=torch.float64: torch.randn(*s, generator=torch.Generator().manual_seed(seed), dtype=dtype)
near = lambda a, b, tol=1e-6: assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand(a.shape), atol=tol, rtol=0)

def from_scipy(x, kind):
    "The same gradients by SciPy, sample by sample."
    from scipy.ndimage import correlate1d, sobel
    d = x.ndim - 2
    one = lambda v, k: sobel(v, k, mode='nearest')/(2*4**(d - 1)) if kind == 'sobel' else correlate1d(v, [-.5, 0, .5], k, mode='nearest')
    return [torch.from_numpy(np.stack([[one(c, k) for c in s] for s in x.numpy()])) for k in range(d)]

def by_scipy(a, b, polarity='signed', kind='sobel'):
    "Gradient correlation as the equation has it, on SciPy's gradients: (B,)."
    size = np.abs if polarity == 'absolute' else np.asarray
    corr = lambda p, q: np.corrcoef(size(p).ravel(), size(q).ravel())[0, 1]
    pairs = list(zip(from_scipy(a, kind), from_scipy(b, kind)))
    return torch.tensor([np.mean([corr(p[i, c].numpy(), q[i, c].numpy()) for p, q in pairs for c in range(a.shape[1])]) for i in range(len(a))])

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('shape', [(2, 3, 9, 6), (1, 2, 5, 7, 4), (1, 1, 2, 2), (1, 1, 2, 3, 2)])
def test_gradients_agree_with_scipy(kind, shape):
    x = rand(*shape)
    for mine, theirs in zip(image_gradients(x, kind), from_scipy(x, kind), strict=True): assert_close(mine, theirs, atol=1e-12, rtol=0)

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('dim', (2, 3))
def test_unit_ramp_gives_one_along_its_axis_and_a_flat_image_exactly_nothing(kind, dim):
    for k in range(dim):
        x = torch.arange(6.).view(-1, *[1]*(dim - k - 1)).expand(*[6]*dim)[None, None].clone()
        for i, g in enumerate(image_gradients(x, kind)):
            inner = g[(0, 0) + (slice(1, -1),)*dim]
            near(inner, float(i == k), 0.); assert g.max() <= 1
    assert all((g == 0).all() for g in image_gradients(torch.full((1, 1, *[5]*dim), -1000.1), kind))

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('shape', [(1, 2, 4, 5), (1, 1, 3, 4, 2)])
def test_gradients_pass_finite_differences(kind, shape):
    assert torch.autograd.gradcheck(lambda x: torch.stack(image_gradients(x, kind)), (rand(*shape).requires_grad_(),))

@pytest.mark.parametrize('kind', kinds)
def test_the_way_back_is_the_transpose(kind):
    x, ys = rand(1, 1, 5, 4, 3).requires_grad_(), [rand(1, 1, 5, 4, 3, seed=s) for s in (1, 2, 3)]
    total = sum((g*y).sum() for g, y in zip(image_gradients(x, kind), ys))
    back, = torch.autograd.grad(total, x)
    other = rand(1, 1, 5, 4, 3, seed=9)
    assert_close((back*other).sum(), sum((g*y).sum() for g, y in zip(image_gradients(other, kind), ys)))

# ---- NCC

def test_SCOL_E5b_by_hand():
    row = lambda *v: torch.tensor(v, dtype=torch.float64).view(1, 1, -1, 1).expand(1, 1, -1, 2).contiguous()
    near(ncc(row(1, 2, 3), row(1, 3, 2)), .5); near(ncc(row(1, 2, 3), row(1, -2, 1)), 0.)
    near(ncc(row(0, 0, 1), row(0, 1, 0)), -.5); near(ncc(row(1, 2, 4), 5 - 3*row(1, 2, 4)), -1.)

def test_SCOL_E5b_is_pearson_of_each_sample_and_channel():
    p, q = rand(3, 2, 6, 5) + 4, rand(3, 2, 6, 5, seed=1) - 2
    q = q + torch.linspace(-1, 1, 6).view(3, 2, 1, 1)*p
    want = [np.mean([np.corrcoef(p[i, c].ravel(), q[i, c].ravel())[0, 1] for c in range(2)]) for i in range(3)]
    near(ncc(p, q), want); assert ncc(p, q).std() > .3

def test_SCOL_E5b_finite_differences_for_both_inputs():
    assert torch.autograd.gradcheck(lambda p, q: ncc(p, q), (rand(2, 2, 3, 4).requires_grad_(), rand(2, 2, 3, 4, seed=1).requires_grad_()))
    assert torch.autograd.gradcheck(lambda p, q: ncc(p, q, eps=1.), (rand(1, 1, 3, 4).requires_grad_(), rand(1, 1, 3, 4, seed=1).requires_grad_()))

def test_SCOL_E5b_eps_stands_inside_the_root():
    p = torch.tensor([[[[1., -1], [1, -1]]]])*1e-3                      # sum of squares 4e-6
    near(ncc(p, p, eps=1e-8), 4e-6/math.sqrt(1.6e-11 + 1e-8))

@pytest.mark.parametrize('offset', [0., 100.])
def test_SCOL_E5b_single_precision_keeps_its_digits_in_large_volumes(offset):
    p = rand(1, 1, 96, 96, 96, dtype=torch.float32)
    q = .3*p + rand(1, 1, 96, 96, 96, seed=1, dtype=torch.float32)
    assert_close(ncc(p + offset, q).double(), ncc((p + offset).double(), q.double()), atol=4e-6, rtol=0)

@pytest.mark.parametrize('value', [.3, 1000.1, -1000.1, 3e4])
def test_SCOL_E5b_a_flat_image_scores_zero_however_bright(value):
    flat, q = torch.full((1, 1, 64, 64, 64), value), 300*rand(1, 1, 64, 64, 64, dtype=torch.float32) - 500
    assert ncc(flat, q) == 0 and ncc(q, flat) == 0 and ncc(flat, flat) == 0
    x = flat[..., :8].clone().requires_grad_()
    assert torch.autograd.grad(ncc(x, q[..., :8]).sum(), x)[0].isfinite().all()

def test_SCOL_E5b_an_offset_changes_neither_value_nor_derivative():
    p, q = rand(2, 2, 6, 5, 4).requires_grad_(), rand(2, 2, 6, 5, 4, seed=1)
    want, got = (torch.autograd.grad(ncc(p + d, q).sum(), p)[0] for d in (0., 1e4))
    assert_close(got, want, atol=1e-9, rtol=1e-6); assert_close(ncc(p + 1e4, q), ncc(p, q), atol=1e-9, rtol=0)

@pytest.mark.parametrize('polarity', polarities)
def test_SCOL_E5_two_precisions_meet_in_the_finer(polarity):
    a, b = rand(2, 1, 6, 5, 4), rand(2, 1, 6, 5, 4, seed=1)
    want = gradient_correlation(a, b.float().double(), polarity=polarity)
    for got in (gradient_correlation(a, b.float(), polarity=polarity), gradient_correlation(b.float(), a, polarity=polarity)):
        assert got.dtype == torch.float64; assert_close(got, want, atol=1e-9, rtol=0)
    assert gradient_correlation(a.float(), b.half()).dtype == torch.float32 and correlation_map(a, b.float()).dtype == torch.float64

# ---- gradient correlation

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('polarity', polarities)
def test_SCOL_E5_agrees_with_scipy(kind, polarity):
    for shape in ((3, 1, 12, 9), (2, 2, 6, 7, 5)):
        a = rand(*shape); b = a.roll(1, -1)*torch.linspace(-1, 2, shape[0]).view(-1, *[1]*(len(shape) - 1)) + .5*rand(*shape, seed=1)
        near(gradient_correlation(a, b, kind, polarity), by_scipy(a, b, polarity, kind), 1e-5)

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('shape', [(2, 1, 9, 8), (2, 1, 5, 6, 7)])
def test_SCOL_E5_identity_contrast_offset_and_sign(kind, shape):
    a = rand(*shape, dtype=torch.float32)
    for c, d in ((1, 0), (3, 7), (-1, 0), (-.2, 5)):
        near(gradient_correlation(a, c*a + d, kind), math.copysign(1, c), 1e-4)
        near(gradient_correlation(a, c*a + d, kind, 'absolute'), 1., 1e-4)

def test_SCOL_E5_is_the_mean_of_the_axes_not_half_of_their_sum():
    a = rand(1, 1, 6, 6, 6)
    near(gradient_correlation(a, a), 1., 1e-6)
    x, y = torch.meshgrid(torch.arange(8.), torch.arange(8.), indexing='ij')
    f, g = ((x/2).sin() + (y/3).cos())[None, None], ((x/2).sin() - (y/3).cos())[None, None]
    near(gradient_correlation(f, g, 'central'), 0., 1e-4)               # agrees along one axis, contradicts along the other

@pytest.mark.parametrize('polarity', polarities)
def test_SCOL_E5_a_batch_changes_no_sample(polarity):
    a, b = rand(4, 1, 6, 5, 4), rand(4, 1, 6, 5, 4, seed=1); b[2] = 50*a[2]
    whole = gradient_correlation(a, b, polarity=polarity)
    assert whole.shape == (4,)
    for i in range(4): assert_close(whole[i:i+1], gradient_correlation(a[i:i+1], b[i:i+1], polarity=polarity))
    order = [2, 0, 3, 1]; assert_close(whole[order], gradient_correlation(a[order], b[order], polarity=polarity))

def test_SCOL_E5_symmetric_and_blind_to_mirrors():
    a, b = rand(1, 1, 7, 6, 5), rand(1, 1, 7, 6, 5, seed=1)
    assert_close(gradient_correlation(a, b), gradient_correlation(b, a))
    for k in (2, 3, 4): assert_close(gradient_correlation(a, b), gradient_correlation(a.flip(k), b.flip(k)))
    assert (gradient_correlation(a, a.roll(2, 2)) < .5).all()

@pytest.mark.parametrize('polarity', polarities)
@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('value', [0., .3, -1000.1])
def test_SCOL_E5_constants_score_zero_exactly_with_a_finite_gradient(kind, polarity, value):
    a = rand(2, 1, 5, 5, 5, dtype=torch.float32)
    for first, second in ((a, torch.full_like(a, value)), (torch.full_like(a, value), a), (torch.full_like(a, value),)*2):
        first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
        gc = gradient_correlation(first, second, kind, polarity)
        assert (gc == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(gc.sum(), (first, second)))

def test_SCOL_E5_a_ramp_and_a_plane_of_noise_stay_finite():
    ramp = torch.arange(32.).view(1, 1, 32, 1).expand(1, 1, 32, 32).clone().requires_grad_()
    for polarity in polarities:
        gc = gradient_correlation(ramp, torch.full_like(ramp, 7.) + 1e-7*rand(1, 1, 32, 32, dtype=torch.float32), polarity=polarity)
        assert gc.isfinite() and gc.abs() <= 1 + 1e-5 and torch.autograd.grad(gc.sum(), ramp)[0].isfinite().all()

def test_SCOL_E5_reversed_bone_is_a_contradiction_only_when_signed():
    r = ((torch.arange(48.) - 24).view(-1, 1)**2 + (torch.arange(48.) - 24)**2).sqrt()[None, None]
    shell, inside = (-(r - 15)**2/4).exp(), (r < 15).float()
    mr, ct = .4 + .4*inside - .7*shell, .2 + .1*inside + .9*shell     # black shell and bright marrow; bright shell
    signed, absolute = (gradient_correlation(mr, ct, polarity=p).item() for p in polarities)
    assert signed < -.3 and absolute > .6

@pytest.mark.parametrize('corner', [1e2, 1e3, 1e4])
def test_SCOL_E5b_an_odd_pixel_costs_no_digits_wherever_it_lies(corner):
    p = rand(1, 1, 48, 48, 48, dtype=torch.float32); q = .5*p + rand(1, 1, 48, 48, 48, seed=1, dtype=torch.float32)
    for place in ((0, 0, 0), (5, 0, 0)):
        x = p.clone(); x[(0, 0, *place)] = corner
        near(ncc(x, q), ncc(x.double(), q.double()).item(), 1e-5); near(ncc(q, x), ncc(q.double(), x.double()).item(), 1e-5)
        mine, = torch.autograd.grad(ncc(y := x.clone().requires_grad_(), q).sum(), y)
        fine, = torch.autograd.grad(ncc(y := x.double().requires_grad_(), q.double()).sum(), y)
        assert (mine - fine).norm() < 1e-3*fine.norm()
    for flat in (1000.1, -.3): assert (ncc(torch.full_like(p, flat), q) == 0).all() and (ncc(torch.full_like(p, flat), torch.full_like(p, 7.7)) == 0).all()

# ---- map

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('polarity', polarities)
@pytest.mark.parametrize('shape', [(2, 2, 7, 6), (2, 1, 5, 6, 4)])
def test_map_has_the_score_as_its_mean(kind, polarity, shape):
    a, b = rand(*shape), rand(*shape, seed=1)
    m = correlation_map(a, b, kind, polarity)
    assert m.shape == a.shape; assert_close(m.flatten(1).mean(1), gradient_correlation(a, b, kind, polarity))

def test_map_points_at_the_place():
    a = rand(1, 1, 32, 32); b = a.clone(); b[..., 16:] = -b[..., 16:]
    m = correlation_map(a, b)
    assert m[..., :14].mean() > .8 and m[..., 18:].mean() < -.8

# ---- loss

def test_SCOL_E6_by_hand():
    v, w = rand(2, 1, 5, 5, 5), rand(3, 1, 4, 6, 5, seed=1)           # two domains with batches and grids of their own
    near(gc_loss(v, 2*v + 1, w, .1*w), 0.); near(gc_loss(v, -v, w, -w), 2.); near(gc_loss(v, v, w, -w), 1.); near(gc_loss(v, -v, w, w), 1.)
    mixed = torch.cat([w[:1], -w[1:2], 0*w[2:]])                      # 0, 2 and 1 in the second half
    near(gc_loss(v, v, w, mixed), .5*(0 + 2 + 1)/3)

def test_SCOL_E6_only_the_signed_form_tells_an_answer_from_its_negative():
    x, y, fx, fy = (rand(2, 1, 5, 6, 4, seed=s) for s in range(4))
    of = lambda f, polarity: gc_loss(x, f*fx, y, f*fy, polarity=polarity)
    assert_close(of(1, 'absolute'), of(-1, 'absolute'), atol=1e-9, rtol=0)
    assert_close(of(1, 'signed') + of(-1, 'signed'), torch.tensor(2., dtype=torch.float64)); assert of(1, 'signed') != of(-1, 'signed')

def test_SCOL_E6_is_half_of_each_direction():
    a, b, c, d = (rand(2, 1, 5, 6, 4, seed=s) for s in range(4))
    want = .5*((1 - gradient_correlation(a, b)).mean() + (1 - gradient_correlation(c, d)).mean())
    assert_close(gc_loss(a, b, c, d), want); assert 0 <= want <= 2

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('polarity', polarities)
def test_SCOL_E6_gradcheck_on_five_cubed(kind, polarity):
    v, w = rand(1, 1, 5, 5, 5), rand(1, 1, 5, 5, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: gc_loss(v, w, w, v, kind, polarity), (w,))

def test_SCOL_E6_descending_brings_the_edges_back():
    a = rand(1, 1, 8, 8, 8); x = (a + rand(1, 1, 8, 8, 8, seed=1)).requires_grad_()
    first = gc_loss(a, x, a, x)
    for _ in range(30):
        g, = torch.autograd.grad(gc_loss(a, x, a, x), x)
        assert g.abs().sum() > 0
        with torch.no_grad(): x -= 60*g
    assert gc_loss(a, x, a, x) < .2*first

@pytest.mark.parametrize('polarity', polarities)
def test_SCOL_E6_flat_translations_cost_exactly_one(polarity):
    v = rand(2, 1, 6, 6, 6, dtype=torch.float32); flat = torch.full_like(v, .7).requires_grad_()
    loss = gc_loss(v, flat, v, flat, polarity=polarity)
    assert loss == 1 and torch.autograd.grad(loss, flat)[0].isfinite().all()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.int16, torch.uint8])
def test_SCOL_E6_half_precision_and_whole_numbers_become_float32(dtype):
    v = (rand(1, 1, 40, 40, 40)*20 + 100).to(dtype)
    with torch.autocast('cpu', torch.bfloat16): loss = gc_loss(v, v, v, v.flip(2).flip(2))
    assert loss.dtype == torch.float32; near(loss, 0., 1e-5)

def test_works_on_views():
    a, b = rand(4, 6, 5, 7, 1).movedim(-1, 1), rand(4, 6, 5, 7, 1, seed=1).movedim(-1, 1)
    assert_close(gradient_correlation(a, b), gradient_correlation(a.contiguous(), b.contiguous()))
    assert_close(gradient_correlation(a[:, :, ::2], b[:, :, ::2]), gradient_correlation(a[:, :, ::2].clone(), b[:, :, ::2].clone()))

# ---- refused

x = torch.zeros(1, 1, 6, 6)
@pytest.mark.parametrize('call,match', [
    (lambda: gradient_correlation(x, x[..., :1]), 'one grid'), (lambda: gradient_correlation(x, x[0]), 'one grid'), (lambda: ncc(x, x.repeat(2, 1, 1, 1)), 'one grid'),
    (lambda: correlation_map(x, x[..., 1:]), 'one grid'), (lambda: gc_loss(x, x, x, x[..., 1:]), 'one grid'), (lambda: image_gradients(x[0, 0]), 'None,None'),
    (lambda: image_gradients(torch.zeros(1, 1, 6, 1)), 'at least 2'), (lambda: image_gradients(x, 'prewitt'), "'sobel' or 'central'"),
    (lambda: gradient_correlation(x, x, 'Sobel'), "'sobel' or 'central'"), (lambda: gradient_correlation(x, x, polarity='unsigned'), "'signed' or 'absolute'"),
    (lambda: gc_loss(x, x, x, x, polarity=None), "'signed' or 'absolute'"), (lambda: ncc(x[:0], x[:0]), 'or more'), (lambda: gc_loss(x, x, x[:0], x[:0]), 'or more')])
def test_refused(call, match):
    with pytest.raises(XModSegError, match=match): call()
