"Overlap, distance and artifact losses by hand, by gradient, and with the grids they must refuse."
import math
import pytest, torch
import torch.nn.functional as F
from torch.testing import assert_close
from xmodseg.core import XModSegError
from xmodseg.shape import artifact_consistency, di2i_loss, dice_ce_loss, dice_loss, inverse_frequency, l1

near = lambda a, b, tol=1e-6: assert_close(a, torch.tensor(b, dtype=a.dtype), atol=tol, rtol=0)
rand = lambda *s, seed=0: torch.rand(*s, generator=torch.Generator().manual_seed(seed))

def test_SADN_E8_l1_is_the_mean():
    near(l1(torch.tensor([[1., -2], [0, 4]]), torch.tensor([[3., 2], [0, 3]])), 7/4)
    a, b = rand(2, 1, 8, 8), rand(2, 1, 8, 8, seed=1)
    near(l1(a, a), 0.); assert l1(a, b) == l1(b, a); assert_close(l1(a.repeat(2, 1, 2, 2), b.repeat(2, 1, 2, 2)), l1(a, b))

def test_SADN_E9_l1_gradient():
    a, b = rand(1, 1, 4, 4).requires_grad_(), rand(1, 1, 4, 4, seed=1)
    g, = torch.autograd.grad(l1(a, b), a); assert_close(g, (a - b).sign().detach()/16)

def test_SADN_E12_l1_half_precision():
    a = rand(1, 1, 64, 64).bfloat16(); b = rand(1, 1, 64, 64, seed=1).bfloat16()
    assert l1(a, b).dtype == torch.float32 and l1(a, b) == l1(a.float(), b.float())
    with torch.autocast('cpu', torch.bfloat16): assert l1(a, b).dtype == torch.float32

@pytest.mark.parametrize('shape', [(2, 1, 4, 1), (1, 1, 4, 4), (2, 1, 4), (2, 1, 4, 5)])
def test_SADN_E13_grids_that_would_broadcast_are_refused(shape):
    x = torch.zeros(2, 1, 4, 4)
    for f in (l1, dice_loss):
        with pytest.raises(XModSegError, match='one grid'): f(x, torch.zeros(shape))
    with pytest.raises(XModSegError, match='one grid'): artifact_consistency(x, x, x, torch.zeros(shape))

y = torch.zeros(1, 1, 4, 4); y[..., 0] = 1

def test_SADN_E10_dice_by_hand():
    near(dice_loss(y, y), 0.); near(dice_loss(1 - y, y), 1.); near(dice_loss(torch.full_like(y, .5), y), 2/3)
    p = torch.zeros_like(y); p[0, 0, 0, 0] = p[0, 0, 1, 0] = p[0, 0, 2, 2] = 1
    near(dice_loss(p, y), 1 - 4/7); near(dice_loss(p, y > 0), 1 - 4/7); near(dice_loss(p, y.long()), 1 - 4/7)

def test_SADN_E10_dice_per_sample_and_channel_then_mean():
    p, q = rand(3, 2, 8, 8), (rand(3, 2, 8, 8, seed=1) > torch.linspace(.1, .9, 6).view(3, 2, 1, 1)).float()
    each = [dice_loss(p[i:i+1, j:j+1], q[i:i+1, j:j+1]) for i in range(3) for j in range(2)]
    assert_close(dice_loss(p, q), torch.stack(each).mean())
    pooled = 1 - 2*(p*q).sum()/(p + q).sum()
    assert (dice_loss(p, q) - pooled).abs() > .01

def test_SADN_E11_dice_gradient_in_closed_form():
    p, q = rand(1, 1, 8, 8).double().requires_grad_(), (rand(1, 1, 8, 8, seed=1) > .7).double()
    g, = torch.autograd.grad(dice_loss(p, q), p); I, U = (p*q).sum(), (p + q).sum()
    assert_close(g, (-2*(q*U - I)/U**2).detach(), atol=1e-6, rtol=0)
    assert (g[q > 0] < 0).all() and (g[q == 0] > 0).all()
    assert torch.autograd.gradcheck(lambda t: dice_loss(t, q), (p,))

def test_SADN_E10_empty_masks_are_finite_and_pull_on_nothing():
    none = torch.zeros(2, 1, 4, 4)
    for p in (none, none + .3, none + 1):
        p = p.clone().requires_grad_(); loss = dice_loss(p, none); near(loss, 1.)
        assert (torch.autograd.grad(loss, p)[0] == 0).all()
    p = torch.zeros_like(y).requires_grad_()                                  # an empty answer to a real organ is pulled up
    g, = torch.autograd.grad(dice_loss(p, y), p); assert (g[y > 0] < -.4).all() and (g[y == 0] == 0).all()

def test_SADN_E11_dice_works_in_float32_under_autocast():
    p, q = rand(1, 1, 128, 128), (rand(1, 1, 128, 128, seed=1) > .5).float()
    with torch.autocast('cpu', torch.bfloat16): low = dice_loss(p.bfloat16(), q.bfloat16())
    assert low.dtype == torch.float32 and (low - dice_loss(p, q)).abs() < 1e-4
    assert dice_loss(p.half(), q.half()).isfinite()                           # float16 would be coarse at sums of 10^4 pixels

def test_SADN_E10_dice_volumes():
    v = rand(1, 1, 4, 4, 4).round(); near(dice_loss(v, v), 0.)

x_h, x, a = (rand(1, 1, 16, 16, seed=s)*2 - 1 for s in range(3))

def test_SADN_E7_zero_for_perfect_additive_artifact():
    near(artifact_consistency(x + a, x, x_h + a, x_h), 0.)

def test_SADN_E7_as_printed_fines_a_perfect_model():
    assert_close(artifact_consistency(x + a, x, x_h + a, x_h, sign='as_printed'), 2*a.abs().mean())
    near(artifact_consistency(x + a, x, x_h - a, x_h, sign='as_printed'), 0.)

@pytest.mark.parametrize('al,be', [(1, 0), (0, 1), (.5, 2), (0, 0)])
def test_SADN_E7_is_the_difference_of_shares(al, be):
    assert_close(artifact_consistency(x + a, x + a - al*a, x_h + be*a, x_h), abs(al - be)*a.abs().mean(), atol=1e-6, rtol=1e-5)

def test_SADN_E7_gradients_point_away_from_the_artifact():
    q, h = (x + a).requires_grad_(), x_h.clone().requires_grad_()
    g, k = torch.autograd.grad(artifact_consistency(x + a, q, h + a, x_h), (q, h))
    assert_close(g.sign(), a.sign())                                          # descending lowers x_lh where the artifact is bright
    assert_close(k, g)                                                        # and the two images are moved alike

def test_SADN_E7_refuses_another_sign():
    with pytest.raises(XModSegError, match="'corrected' or 'as_printed'"): artifact_consistency(x, x, x, x, sign=-1)

# ---- organs that overlap

z = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
m = (rand(3, 4, 6, 7, seed=4) > torch.tensor([.1, .4, .7, .95]).view(4, 1, 1)).double()

@pytest.mark.parametrize('w', [None, [1., 2., .5, 3.]])
def test_TDGAN_E1_is_the_weighted_sum_of_pairwise_cross_entropies(w):
    p = torch.stack([z[:, i].exp()/(z[:, 0].exp() + z[:, i].exp()) for i in range(1, 5)], 1)
    each = -(m*p.log() + (1 - m)*(1 - p).log()).mean((0, 2, 3))
    assert_close(di2i_loss(z, m, w), (torch.tensor(w or [1.]*4, dtype=torch.float64)*each).sum(), atol=1e-6, rtol=0)
    assert_close(di2i_loss(z, m), 4*F.binary_cross_entropy_with_logits(z[:, 1:] - z[:, :1], m))

def test_TDGAN_E1_by_hand():
    near(di2i_loss(torch.zeros(1, 5, 2, 2), torch.ones(1, 4, 2, 2)), 4*math.log(2))
    near(di2i_loss(torch.tensor([0., math.log(3)]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1)), math.log(4/3))
    near(di2i_loss(torch.tensor([0., math.log(3)]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, 1)), math.log(4))

def test_TDGAN_E1_overlapping_organs_cost_nothing_when_both_are_found():
    v = torch.tensor([-20., 20, 20, -60, -60]).view(1, 5, 1, 1); y2 = torch.tensor([1, 1, 0, 0]).view(1, 4, 1, 1)
    near(di2i_loss(v, y2), 0., 1e-6); assert F.cross_entropy(v, torch.tensor([[[1]]])) > .69

def test_TDGAN_Ea_gradient_and_the_common_offset():
    v = z.clone().requires_grad_(); w = torch.tensor([1., 2., .5, 3.])
    g, = torch.autograd.grad(di2i_loss(v, m, w), v)
    p = (z[:, 1:] - z[:, :1]).sigmoid()
    assert_close(g[:, 1:], w.view(4, 1, 1)*(p - m)/(3*6*7), atol=1e-7, rtol=0); assert_close(g[:, 0], -g[:, 1:].sum(1), atol=1e-7, rtol=0)
    assert_close(di2i_loss(z + 5, m), di2i_loss(z, m), atol=1e-5, rtol=0)

def test_TDGAN_E1_is_finite_at_any_logit_and_in_half_precision():
    assert di2i_loss(1e4*z, m).isfinite() and di2i_loss(z.bfloat16(), m.bool()).dtype == torch.float32
    assert (di2i_loss(z.bfloat16(), m) - di2i_loss(z, m)).abs() < .02

def test_TDGAN_E1_inverse_frequency():
    w, share = inverse_frequency(m), m.mean((0, 2, 3))
    near(w.mean(), 1.); assert_close(w/w[0], (share[0]/share).float(), atol=1e-4, rtol=1e-5); assert w[3] == w.max()
    assert_close(di2i_loss(z, m, 'inverse'), di2i_loss(z, m, w))
    none = m.clone(); none[:, 2] = 0
    assert inverse_frequency(none).isfinite().all() and di2i_loss(z, none, 'inverse').isfinite()

@pytest.mark.parametrize('call,match', [(lambda: di2i_loss(z[:, 1:], m), 'one logit for the background'), (lambda: di2i_loss(z, m[..., :1]), 'one grid'), (lambda: di2i_loss(z, m[:1]), 'one grid'),
    (lambda: di2i_loss(z, m, [1., 2.]), '4 numbers'), (lambda: di2i_loss(z, m, 'frequency'), '4 numbers')])
def test_TDGAN_E1_refuses(call, match):
    with pytest.raises(XModSegError, match=match): call()

def test_SHAPE_E1_by_hand():
    p, y = torch.tensor([.9, .2, .5, .1]).view(2, 1, 2), torch.tensor([1., 0., 1., 0.]).view(2, 1, 2)
    near(dice_ce_loss(p, y), 1 - (2*1.4 + 1)/(1.7 + 2 + 1) - (math.log(.9) + math.log(.8) + math.log(.5) + math.log(.9))/4)
    near(dice_ce_loss(p, y > 0), float(dice_ce_loss(p, y))); near(dice_ce_loss(y, y), 0., 1e-5)
    none = torch.zeros(2, 1, 4, 4); near(dice_ce_loss(none, none), 0., 1e-5)

def test_SHAPE_E1_pools_samples_and_keeps_organs_apart():
    p, q = rand(3, 2, 8, 8), (rand(3, 2, 8, 8, seed=1) > .6).float()
    each = [dice_ce_loss(p[:, j:j+1], q[:, j:j+1]) for j in range(2)]
    assert_close(dice_ce_loss(p, q), torch.stack(each).mean())

def test_SHAPE_E1_a_false_alarm_on_an_empty_slice_is_pulled_down():
    p, q = torch.full((2, 1, 4, 4), .5, requires_grad=True), torch.cat([y, torch.zeros_like(y)])
    g, old = torch.autograd.grad(dice_ce_loss(p, q), p)[0], torch.autograd.grad(dice_loss(p, q), p)[0]
    S, I = 16 + 4 + 1, 2*2 + 1
    assert_close(g[1], torch.full((1, 4, 4), I/S**2 + 2/32)); assert (old[1] == 0).all() and (g[0][y[0] > 0] < 0).all()   # 2/32: cross entropy, 1/(1 - p) over 32 pixels

def test_SHAPE_E1_stays_finite_and_in_float32():
    p = torch.ones(1, 1, 8, 8, requires_grad=True); l = dice_ce_loss(p, torch.zeros_like(p)); assert l.isfinite() and torch.autograd.grad(l, p)[0].isfinite().all()
    with torch.autocast('cpu', torch.bfloat16): low = dice_ce_loss(rand(1, 1, 128, 128).bfloat16(), rand(1, 1, 128, 128, seed=1) > .5)
    assert low.dtype == torch.float32
    with pytest.raises(XModSegError, match='one grid'): dice_ce_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 1))

def test_TDGAN_E1_an_absent_organ_counts_as_one_pixel():
    y = torch.zeros(1, 2, 10, 10); y[:, 0, :5] = 1; w = inverse_frequency(y); assert float(w[1]/w[0]) == pytest.approx(50)

def test_SHAPE_E1_the_surest_error_is_pulled_too():
    for logit, truth in ((-14., 1.), (-16., 1.), (14., 0.)):
        z = torch.full((1, 1, 4, 4), logit, requires_grad=True)
        dice_ce_loss(z.sigmoid(), torch.full((1, 1, 4, 4), truth)).backward()
        assert z.grad.abs().sum() > .05 and (z.grad.sign() == (1 - 2*truth)).all()
