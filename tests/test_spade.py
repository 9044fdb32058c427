"The shape-aware norm against its formula, its limits and its gradients; the decoder's size and road back to the map."
import pytest, torch, torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from xmodseg.core import XModSegError, count_params
from xmodseg.generators import Decoder
from xmodseg.spade import ShapeAwareDecoder, ShapeAwareNorm

torch.set_num_threads(1)
rand = lambda *s, seed=0: torch.rand(*s, generator=torch.Generator().manual_seed(seed))
randn = lambda *s, seed=0: torch.randn(*s, generator=torch.Generator().manual_seed(seed))

def layer(c=6, hidden=10, seed=0, **kw):
    torch.manual_seed(seed); return ShapeAwareNorm(c, hidden, **kw)

def silence(n, which='both'):
    half = n.read.out_channels//2; rows = dict(gamma=slice(0, half), beta=slice(half, None), both=slice(None))[which]
    with torch.no_grad(): n.read.weight[rows] = 0; n.read.bias[rows] = 0
    return n

f, m = randn(2, 6, 12, 12)*3 + 1, rand(2, 1, 48, 48)

def test_SADN_E3_norm_equals_the_formula():
    n = layer(); g, b = n.maps(m, (12, 12))
    mean, var = f.mean((2, 3), keepdim=True), f.var((2, 3), unbiased=False, keepdim=True)
    assert_close(n(f, m), (f - mean)/(var + 1e-5).sqrt()*(1 + g) + b, atol=1e-5, rtol=1e-4)
    assert g.shape == b.shape == f.shape and g.abs().max() > .05

def test_SADN_E3_maps_are_three_convolutions_of_the_bilinear_map():
    n = layer(); near = lambda x, w, b: F.conv2d(F.pad(x, (1,)*4, 'replicate'), w, b)
    small = m.unflatten(2, (12, 4)).unflatten(4, (12, 4))[:, :, :, 1:3, :, 1:3].mean((3, 5))   # bilinear at 1/4 is the middle 2x2 of each 4x4
    seen = near(small, n.look.weight, n.look.bias).relu(); g, b = n.maps(m, (12, 12))
    assert_close(g, near(seen, n.read.weight[:6], n.read.bias[:6]), atol=1e-5, rtol=1e-4); assert_close(b, near(seen, n.read.weight[6:], n.read.bias[6:]), atol=1e-5, rtol=1e-4)

def test_SADN_E3_silent_readings_are_pure_normalisation():
    assert_close(silence(layer())(f, m), F.instance_norm(f))
    n = silence(layer(), 'gamma'); assert_close(n(f, m), F.instance_norm(f) + n.maps(m, (12, 12))[1])
    n = silence(layer(), 'beta'); assert_close(n(f, m), F.instance_norm(f)*(1 + n.maps(m, (12, 12))[0]))

def test_SADN_E3_constant_map_modulates_evenly_up_to_the_rim():
    n = layer(); g, b = n.maps(torch.full((1, 1, 48, 48), .7), (12, 12))
    for t in (g, b): assert_close(t, t[..., :1, :1].expand_as(t), atol=1e-6, rtol=0)
    other = n.maps(torch.zeros(1, 1, 48, 48), (12, 12))[0]; assert (other - g).abs().max() > .05

def test_SADN_E3_gradient_reaches_a_soft_map_and_not_a_thresholded_one():
    n, q = layer(), m.clone().requires_grad_()
    g, = torch.autograd.grad(n(f, q).square().sum(), q); assert g.abs().max() > 0 and (g != 0).float().mean() == 1/4   # 2x2 of each 4x4
    assert not (q > .5).float().requires_grad
    g, = torch.autograd.grad(n(randn(2, 6, 48, 48), q).square().sum(), q); assert (g != 0).float().mean() > .95

def test_SADN_E3_gradcheck():
    n = layer(2, 3).double(); x, q = randn(1, 2, 4, 4).double().requires_grad_(), rand(1, 1, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(n, (x, q))

def test_SADN_E3_batch_norm_is_instance_norm_in_training_at_batch_one_only():
    one, run = layer(), layer(norm='batch')
    for s in range(40): assert torch.equal(one(randn(1, 6, 16, 16, seed=s)*(.5 + s/20), m[:1]), run(randn(1, 6, 16, 16, seed=s)*(.5 + s/20), m[:1]))
    assert (one(f, m) - run(f, m)).abs().max() > .01
    one.eval(), run.eval(); x = randn(1, 6, 16, 16)
    assert (one(x, m[:1]) - run(x, m[:1])).abs().max() > .2
    assert run.norm.weight is None and run.norm.bias is None

@pytest.mark.parametrize('x,q,words', [(f, rand(2, 3, 48, 48), 'one shape map'), (f[:, :4], m, 'wrong width'), (f, m[:1], '1 maps'), (f[..., :1, :1], m, 'one pixel')])
def test_SADN_E3_refuses(x, q, words):
    with pytest.raises(XModSegError, match=words): layer()(x, q)

def test_SADN_E3_refuses_other_norms():
    with pytest.raises(XModSegError, match="'instance' or 'batch'"): ShapeAwareNorm(4, norm='layer')

def test_SADN_E3_decoder_count_and_places():
    net = ShapeAwareDecoder(); per = lambda c: 10*128 + 2*(9*128*c + c)
    assert count_params(net) == 11_075_073 == 4_720_640 + 819_328 + 204_864 + 3_137 + 8*per(256) + per(128) + 2*per(64)
    assert [n.read.out_channels//2 for n in net.modules() if isinstance(n, ShapeAwareNorm)] == [256]*8 + [128, 64, 64]
    assert not [n for n in net.modules() if 'LayerNorm' in type(n).__name__]
    plain = [type(n) for n in net.modules() if isinstance(n, nn.InstanceNorm2d)]; assert len(plain) == 11   # each inside a shape-aware one

def test_SADN_E3_decoder_shapes_range_and_road_to_the_map():
    torch.manual_seed(0); net = ShapeAwareDecoder(4, 1, 8); q = rand(2, 1, 32, 48).requires_grad_(); c = randn(2, 16, 8, 12).requires_grad_()
    out = net(c, q); assert out.shape == (2, 1, 32, 48) and out.abs().max() < 1
    g, h = torch.autograd.grad(out.sum(), (q, c)); assert (g != 0).float().mean() > .95 and h.abs().max() > 0
    alone = net(c[:1], q[:1]); assert_close(alone, out[:1], atol=1e-5, rtol=1e-4)                          # instance norm: neighbours do not matter

def test_SADN_E3_decoder_folding_is_the_same_function():
    torch.manual_seed(0); a, b = ShapeAwareDecoder(4, 1, 8).double(), ShapeAwareDecoder(4, 1, 8, fold=False).double(); b.load_state_dict(a.state_dict())
    c, q = randn(1, 16, 8, 8).double(), rand(1, 1, 32, 32).double(); assert_close(a(c, q), b(c, q), atol=1e-10, rtol=0)

def test_SADN_E3_image_losses_reach_G_s_only_through_the_shape(): # trap 5
    torch.manual_seed(0); G_s, c = Decoder(4, 1, act_out='sigmoid'), randn(1, 16, 8, 8)
    def blame(net, hard=False):
        G_s.zero_grad(); q = G_s(c); q = (q > .5).float() if hard else q
        (net(c, q) if isinstance(net, ShapeAwareDecoder) else net(c)).abs().mean().backward()
        return sum(float(p.grad.square().sum()) for p in G_s.parameters() if p.grad is not None)
    assert blame(Decoder(4, 1)) == 0 and blame(ShapeAwareDecoder(4, 1, 8), hard=True) == 0 and blame(ShapeAwareDecoder(4, 1, 8)) > 1e-8

def test_SADN_E3_decoder_refuses():
    net = ShapeAwareDecoder(4, 1, 8)
    with pytest.raises(XModSegError): net(randn(1, 8, 8, 8), rand(1, 1, 32, 32))
    with pytest.raises(XModSegError): net(randn(2, 16, 8, 8), rand(1, 1, 32, 32))
    with pytest.raises(XModSegError): net(randn(1, 16, 8, 8), None)
