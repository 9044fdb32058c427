"Blocks, generators, discriminators, segmentors: published sizes, exact rewrites, refusals (chapters 20 to 23)."
import copy, itertools
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from xmodseg.blocks import (ChannelLayerNorm, ConvBlock, Head, NormAct, ResBlock, UpBlock, fold_kernel, init_kaiming, init_normal, make_act,
    make_norm, need_size, row_conv, slice_conv, up_conv, up_conv_folded)
from xmodseg.core import XModSegError, count_params
from xmodseg.discriminators import PatchD, receptive_field
from xmodseg.generators import ArtifactEncoder, ContentEncoder, Decoder, LightUNet3d, ResnetGenerator
from xmodseg.segmentors import DI2I, OrganUNet, UNet, answered, organ_net, settle
from xmodseg.unpaired import Slices

@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    n = torch.get_num_threads()
    torch.set_num_threads(1); torch.manual_seed(0)
    yield
    torch.set_num_threads(n)

def plain_conv(x, w, b=None):
    return (F.conv2d if w.ndim == 4 else F.conv3d)(F.pad(x, [w.shape[-1]//2]*2*(w.ndim - 2), 'reflect'), w, b)

def same_with_gradients(f, g, *args, tol=1e-11):
    args = [a.requires_grad_() for a in args]
    y, z = f(*args), g(*args)
    assert y.shape == z.shape
    assert_close(y, z, atol=tol, rtol=0)
    up = torch.randn_like(y)
    for p, q in zip(torch.autograd.grad(y, args, up), torch.autograd.grad(z, args, up)): assert_close(p, q, atol=10*tol, rtol=0)

# ---- blocks

@pytest.mark.parametrize('k,dim', [*itertools.product((1, 3, 5, 7), (2, 3)), (9, 2)])
def test_folded_doubling_is_the_same_function(k, dim):
    x, w, b = torch.randn(2, 3, *(4, 5, 6)[:dim]), torch.randn(4, 3, *[k]*dim), torch.randn(4)
    same_with_gradients(up_conv, up_conv_folded, x.double(), w.double(), b.double())

def test_folded_doubling_in_single_precision():
    x, w = torch.randn(1, 32, 16, 16), torch.randn(8, 32, 5, 5)/28
    assert_close(up_conv(x, w), up_conv_folded(x, w), atol=1e-5, rtol=0)

def test_folded_kernel_by_hand_and_swapped_places_are_seen():
    w = torch.zeros(1, 1, 3, 3); w[0,0,1] = torch.tensor([1., 2., 3.])
    small = fold_kernel(w)
    assert small[:2,0].sum(1).tolist() == [[1, 5], [3, 3]]
    x = torch.randn(1, 1, 6, 6)
    w5 = torch.randn(1, 1, 5, 5)
    swapped = F.pixel_shuffle(F.conv2d(F.pad(x, [1]*4, 'replicate'), fold_kernel(w5).flip(0)), 2)
    assert (swapped - up_conv(x, w5)).abs().max() > .1

def test_doubling_keeps_flat_flat_where_a_transposed_convolution_does_not():
    w = torch.rand(1, 1, 3, 3)
    x = torch.full((1, 1, 8, 8), .3)
    assert up_conv_folded(x, w).std() < 1e-6
    assert F.conv_transpose2d(x, w, stride=2)[..., 4:-4, 4:-4].std() > .05

def test_folding_changes_no_checkpoint_and_survives_inference_mode_and_autocast():
    f, g = UpBlock(4, 2, k=9), UpBlock(4, 2, k=9, fold=False)
    assert {k: v.shape for k, v in f.state_dict().items()} == {k: v.shape for k, v in g.state_dict().items()}
    g.load_state_dict(f.state_dict())
    x = torch.randn(1, 4, 8, 8)
    with torch.inference_mode(): f(x)
    f(x).sum().backward()
    assert f.conv.weight.grad.abs().sum() > 0
    assert_close(f(x), g(x), atol=1e-5, rtol=0)
    with torch.autocast('cpu', torch.bfloat16): assert (f(x).float() - g(x).float()).abs().max() < .05
    assert fold_kernel(f.conv.weight).dtype == torch.float32

def test_folded_kernel_is_added_in_full_precision_under_autocast():
    w = torch.randn(2, 2, 5, 5)
    with torch.autocast('cpu', torch.bfloat16): small = fold_kernel(w)
    assert_close(small, fold_kernel(w), atol=0, rtol=0)

@pytest.mark.parametrize('dim', (2, 3))
def test_row_and_slice_convolutions_equal_the_plain_one(dim):
    x, w, b = torch.randn(2, 3, *(7, 8, 6)[:dim]), torch.randn(2, 3, *[5]*dim), torch.randn(2)
    same_with_gradients(plain_conv, row_conv, x.double(), w.double(), b.double())
    if dim == 3: same_with_gradients(plain_conv, slice_conv, x.double(), w.double(), b.double())

def test_layer_norm_is_over_channels_and_space_and_finite_on_flat_input():
    ln, x = ChannelLayerNorm(3), torch.randn(2, 3, 5, 4)*3 + 1
    assert 0 <= ln.weight.min() and ln.weight.max() <= 1 and ln.bias.abs().max() == 0
    want = (x - x.mean((1, 2, 3), keepdim=True))/x.var((1, 2, 3), correction=0, keepdim=True).add(1e-5).sqrt()*ln.weight.view(1, 3, 1, 1)
    assert_close(ln(x), want, atol=1e-5, rtol=0)
    flat = torch.full((1, 3, 4, 4), .7, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(ln(flat).sum(), flat)[0]).all()

def test_residual_block_passes_its_input_when_silent():
    f, x = ResBlock(4, norm=None), torch.randn(1, 4, 6, 6)
    for p in f.parameters(): nn.init.zeros_(p)
    assert torch.equal(f(x), x)

class Steered(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.look, self.gain, self.offset = nn.Conv2d(1, 128, 3, padding=1), nn.Conv2d(128, c, 3, padding=1), nn.Conv2d(128, c, 3, padding=1)
    def forward(self, x, m):
        h = self.look(F.interpolate(m, size=x.shape[2:])).relu()
        return F.instance_norm(x)*(1 + self.gain(h)) + self.offset(h)

def test_a_norm_with_two_arguments_gets_the_mask_and_refuses_to_go_without():
    f = NormAct(2, Steered)
    assert f.wants_m and not NormAct(2, nn.BatchNorm2d).wants_m
    with pytest.raises(XModSegError, match='mask'): f(torch.randn(1, 2, 4, 4))
    x, m = torch.randn(1, 2, 4, 4), torch.rand(1, 1, 8, 8, requires_grad=True)
    assert torch.autograd.grad(f(x, m).sum(), m)[0].abs().sum() > 0

def test_conv_block_in_3d_is_the_plain_convolution_on_both_ways():
    f = ConvBlock(3, 5, norm=None, act=None, dim=3)
    for x in (torch.randn(1, 3, 5, 6, 7), torch.randn(2, 3, 5, 6, 7)): assert_close(f(x), plain_conv(x, f.conv.weight, f.conv.bias), atol=1e-5, rtol=1e-4)

def test_head_pads_by_mirror_and_ends_in_its_range():
    f, x = Head(3, norm='layer'), torch.randn(1, 3, 9, 8)
    assert_close(f(x), torch.tanh(plain_conv(F.leaky_relu(f.start.norm(x), .2), f.conv.weight, f.conv.bias)), atol=1e-6, rtol=1e-5)
    assert 0 < Head(3, act_out='sigmoid')(x).min()

def test_first_weights():
    f = init_normal(nn.Conv2d(64, 64, 3), .02)
    assert abs(f.weight.std().item() - .02) < 1e-3 and f.bias.abs().max() == 0
    g = init_kaiming(nn.Conv2d(64, 64, 3))
    assert abs(g.weight.std().item() - (2/576)**.5) < 2e-3 and g.bias.abs().max() == 0

@pytest.mark.parametrize('call,match', [
    (lambda: need_size(torch.zeros(32, 32), 'net'), 'None,None'), (lambda: need_size(torch.zeros(1, 2, 32, 32), 'net'), 'channels'),
    (lambda: need_size(torch.zeros(1, 1, 33, 4), 'net', multiple=4, least=8), r'pad to \(36, 8\)'), (lambda: make_norm('group', 2), 'instance'),
    (lambda: make_norm(nn.BatchNorm2d(3), 3), 'callable'), (lambda: make_act('gelu'), 'lrelu'), (lambda: UpBlock(2, 2, k=4), 'odd'),
    (lambda: ConvBlock(1, 1, dim=4), '2 or 3')])
def test_blocks_refuse(call, match):
    with pytest.raises(XModSegError, match=match): call()

# ---- generators

def test_SADN_E1_encoders_have_the_published_size_and_no_dead_weight():
    assert count_params(ContentEncoder()) == 5_379_584
    assert count_params(ArtifactEncoder()) == 5_379_584 - 8*(9*256*256 + 256)
    for n_res in (0, 1):
        A, x = ArtifactEncoder(4, n_res), torch.randn(1, 1, 16, 24)
        maps = A(x)
        assert [tuple(f.shape[1:]) for f in maps] == [(16, 4, 6), (8, 8, 12), (4, 16, 24)]
        sum((f*torch.randn_like(f)).sum() for f in maps).backward()
        assert all(p.grad.abs().sum() > 0 for n, p in A.named_parameters() if n.endswith('weight'))

def test_SADN_E1_content_ignores_contrast_and_offset():
    E, x = ContentEncoder(4, 1), torch.randn(1, 1, 32, 32)
    assert_close(E(2*x + 1), E(x), atol=5e-3, rtol=0)
    assert (E(-x) - E(x)).abs().max() > .1

def test_SADN_E2_E3_decoders_have_the_published_sizes():
    assert count_params(Decoder(fuse=True)) == 5_920_833
    assert count_params(Decoder(act_out='sigmoid')) == 5_748_353
    assert count_params(Decoder(norm_res=Steered, norm_up=Steered, norm_out=Steered)) == 11_075_073

def test_SADN_E2_artifact_code_reaches_the_image_from_every_map():
    E, A, G, x = ContentEncoder(4, 1), ArtifactEncoder(4), Decoder(4, 1, fuse=True), torch.randn(1, 1, 16, 16)
    c, a = E(x).detach(), [f.detach().requires_grad_() for f in A(x)]
    y = G(c, a)
    assert y.shape == x.shape and y.abs().max() <= 1
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y.square().sum(), a))

def test_SADN_E3_mask_steers_the_decoder_and_gets_gradient():
    G = Decoder(4, 1, norm_res=Steered, norm_up=Steered, norm_out=Steered)
    c, m = torch.randn(1, 16, 4, 4), torch.rand(1, 1, 16, 16, requires_grad=True)
    assert torch.autograd.grad(G(c, m=m).square().sum(), m)[0].abs().sum() > 0

def test_decoder_is_the_same_with_and_without_folding():
    G, c = Decoder(8, 2), torch.randn(1, 32, 8, 8)
    H = Decoder(8, 2, fold=False); H.load_state_dict(G.state_dict())
    assert_close(G(c), H(c), atol=1e-5, rtol=0)

def test_residual_generator_counts_twenty_convolutions():
    G = ResnetGenerator(64, 7)
    assert sum(isinstance(f, nn.Conv2d) for f in G.modules()) == 20 and count_params(G) == 9_005_313
    assert abs(G.net[3].a.conv.weight.std().item() - .02) < 1e-3
    y = ResnetGenerator(4, 2, c_in=2, c_out=3)(torch.randn(1, 2, 16, 20))
    assert y.shape == (1, 3, 16, 20) and y.abs().max() <= 1
    assert ResnetGenerator(4, 1, dim=3)(torch.randn(1, 1, 8, 8, 8)).shape == (1, 1, 8, 8, 8)

def gradients(net, x):
    torch.manual_seed(5); x = x.clone().requires_grad_()
    y = net(x)
    return y.detach(), torch.autograd.grad((y*torch.randn_like(y)).sum(), [x, *net.parameters()])

@pytest.mark.parametrize('make,size', [(lambda: ResnetGenerator(4, 2, dim=3), (8, 8, 12)), (lambda: ResnetGenerator(4, 2), (16, 24)),
    (lambda: LightUNet3d(4), (16, 32, 16)), (lambda: LightUNet3d(4, dim=2), (32, 48))])
def test_checkpointing_changes_no_value_and_no_gradient(make, size):
    net, x = make().double(), torch.randn(2, 1, *size).double()
    net(x)
    net.checkpointing = False; y, g = gradients(net, x)
    net.checkpointing = True; z, h = gradients(net, x)
    assert_close(z, y, atol=1e-12, rtol=0)
    for a, b in zip(g, h): assert_close(a, b, atol=1e-9, rtol=1e-7)
    with torch.no_grad(): assert_close(net(x), y, atol=1e-12, rtol=0)

def test_checkpointing_keeps_less():
    def kept(net):
        held = {}; keep = []
        def note(t): held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); keep.append(t); return t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): net(torch.randn(1, 1, 32, 32, 32))
        return sum(held.values())
    for make in (lambda c: LightUNet3d(4, checkpointing=c), lambda c: ResnetGenerator(4, 2, dim=3, checkpointing=c)): assert kept(make(True)) < .6*kept(make(False))

def test_light_unet_has_the_published_size_and_shape():
    G = LightUNet3d()
    assert count_params(G) == 2_539_641 and sum(isinstance(f, nn.Conv3d) for f in G.modules()) == 21
    assert [f[0].conv.out_channels for f in G.down] == [20, 40, 80, 160] and [f[1].conv.stride for f in G.down] == [(2, 2, 2)]*4
    assert all(isinstance(f.finish.act, nn.ReLU) for f in G.up) and G.down[0][0].finish.act.negative_slope == .2
    L = LightUNet3d(2, c_in=2, c_out=3)
    y = L(torch.randn(1, 2, 16, 32, 16))
    assert y.shape == (1, 3, 16, 32, 16) and y.abs().max() <= 1

def test_light_unet_has_three_skips_and_every_weight_counts():
    L, x = LightUNet3d(2), torch.randn(1, 1, 32, 32, 32)
    L.eval(); y = L(x)
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in L.named_parameters() if n.endswith('original'))
    seen = []
    hooks = [f[0].register_forward_pre_hook(lambda m, a: seen.append(tuple(a[0].shape[1:3]))) for f in L.merge]
    L(x); [h.remove() for h in hooks]
    assert seen == [(16, 4), (8, 8), (4, 16), (2, 32)]               # doubled maps and as many of the way down; none at full size

def test_light_unet_weights_are_bounded_and_turn_only_when_moved():
    L, x = LightUNet3d(2), torch.randn(1, 1, 32, 16, 16)
    opt = torch.optim.SGD(L.parameters(), 0.)
    for _ in range(30):
        L(x).sum().backward()
        with torch.no_grad(): [p.mul_(1.001) for p in L.parameters()]   # moves the weights, as an optimiser does, and leaves their directions
        opt.zero_grad()
    for f in L.modules():
        if isinstance(f, nn.Conv3d): assert abs(torch.linalg.matrix_norm(f.weight.flatten(1), 2) - 1) < .05
    one, two = L(x), L(x)
    assert torch.equal(one, two)                                     # a second pass is the same net
    u = L.head.parametrizations.weight[0].u
    L(x); assert L.head.parametrizations.weight[0].u is u
    L.eval()
    with torch.no_grad(): L.head.parametrizations.weight.original.add_(.1)
    L(x); assert L.head.parametrizations.weight[0].u is u            # never in use

def test_light_unet_is_resumed_bit_for_bit():
    x = torch.randn(1, 1, 32, 16, 16)
    def step(L, opt): opt.zero_grad(); L(x).square().mean().backward(); opt.step()
    L = LightUNet3d(2); opt = torch.optim.Adam(L.parameters(), 1e-2)
    for _ in range(2): step(L, opt)
    M = LightUNet3d(2); M.load_state_dict(L.state_dict()); other = torch.optim.Adam(M.parameters(), 1e-2); other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(2): step(L, opt); step(M, other)
    assert all(torch.equal(a, b) for a, b in zip(L.state_dict().values(), M.state_dict().values()))

def test_light_unet_divides_in_full_precision_under_autocast():
    L, x = LightUNet3d(2).eval(), torch.randn(1, 1, 32, 16, 16)
    with torch.autocast('cpu', torch.bfloat16): w = L.down[0][0].conv.weight
    assert torch.equal(w, L.down[0][0].conv.weight) and w.dtype == torch.float32

@pytest.mark.parametrize('call,match', [
    (lambda: LightUNet3d(2)(torch.zeros(1, 1, 16, 32, 40)), r'pad to \(16, 32, 48\)'), (lambda: LightUNet3d(2)(torch.zeros(1, 1, 16, 16, 16)), 'at least 32'),
    (lambda: LightUNet3d(2)(torch.zeros(1, 2, 32, 32, 32)), 'channels'), (lambda: LightUNet3d(2, dim=2)(torch.zeros(1, 1, 32, 32, 32)), '2D'),
    (lambda: ContentEncoder(4)(torch.zeros(1, 1, 30, 32)), r'pad to \(32, 32\)'), (lambda: ArtifactEncoder(4)(torch.zeros(1, 1, 4, 4)), 'ArtifactEncoder'),
    (lambda: ResnetGenerator(4, 1)(torch.zeros(1, 1, 32, 31)), r'pad to \(32, 32\)'), (lambda: Decoder(4, 1)(torch.zeros(1, 8, 4, 4)), 'channels'),
    (lambda: Decoder(4, 1, fuse=True)(torch.zeros(1, 16, 4, 4)), 'fuse=True'), (lambda: Decoder(4, 1)(torch.zeros(1, 16, 4, 4), [0, 0, 0]), 'fuse=True'),
    (lambda: Decoder(4, 1)(torch.zeros(1, 16, 4, 4), m=torch.zeros(1, 1, 16, 16)), 'mask'),
    (lambda: Decoder(4, 1, norm_up=Steered)(torch.zeros(1, 16, 4, 4)), 'mask')])
def test_generators_refuse(call, match):
    with pytest.raises(XModSegError, match=match): call()

# ---- discriminators

def test_patch_discriminator_has_the_published_sizes():
    assert [count_params(PatchD(n)) for n in (3, 2)] == [2_762_689, 660_929]
    assert count_params(PatchD(3, c_in=5)) == 2_766_785
    assert [tuple(PatchD(n, 2)(torch.zeros(1, 1, 256, 256)).shape) for n in (3, 2)] == [(1, 1, 30, 30), (1, 1, 62, 62)]
    assert [count_params(PatchD(3, dim=3)), count_params(PatchD(2, 32, dim=3))] == [11_047_873, 665_825]

@pytest.mark.parametrize('n,flat,r', [(1, 1, 16), (2, 1, 34), (3, 1, 70), (2, 2, 46)])
def test_receptive_field_measured_by_gradients(n, flat, r):
    assert receptive_field(n, flat) == r
    x, D = torch.randn(1, 1, 128, 128, requires_grad=True), PatchD(n, 4, norm=None, flat=flat)
    y = D(x)
    g = torch.autograd.grad(y[0,0,y.shape[2]//2,y.shape[3]//2], x)[0][0,0]
    i, j = g.nonzero().T
    assert (i.max() - i.min() + 1, j.max() - j.min() + 1) == (r, r)

def test_instance_norm_looks_beyond_the_window():
    x, D = torch.randn(1, 1, 96, 96, requires_grad=True), PatchD(2, 4)
    assert (torch.autograd.grad(D(x)[0,0,10,10], x)[0][0,0] != 0).float().mean() > .95

def test_patch_discriminator_gives_logits_first_layer_without_norm():
    D = PatchD(2, 8)
    assert D.net[1].norm is None and isinstance(D.net[3].norm, nn.InstanceNorm2d)
    assert (D(5*torch.randn(1, 1, 32, 32)) < 0).any() or (D(5*torch.randn(1, 1, 32, 32)) > 1).any()
    assert D.net[1].act.negative_slope == .2

def test_width_stops_at_eight_times_the_first():
    assert [f.out_channels for f in PatchD(5, 2).net if isinstance(f, nn.Conv2d)] == [2, 4, 8, 16, 16, 16, 1]

def test_judge_of_volumes_has_spectral_norm_two_flat_layers_and_46_voxels():
    D = PatchD(2, 32, flat=2, norm=None, spectral=True, dim=3)
    assert count_params(D) == 2_771_425 and receptive_field(2, 2) == 46
    assert [f.out_channels for f in D.net if isinstance(f, nn.Conv3d)] == [32, 64, 128, 256, 1]
    assert all(f.norm is None for f in D.net if isinstance(f, NormAct))
    assert PatchD(2, 4, flat=2, norm=None, spectral=True, dim=3)(torch.zeros(1, 1, 16, 32, 24)).shape == (1, 1, 1, 5, 3)

def test_TDGAN_E2_judge_of_an_image_with_its_maps_answers_to_both():
    D, x, p = PatchD(2, 4, c_in=5), torch.randn(1, 1, 32, 32, requires_grad=True), torch.rand(1, 4, 32, 32, requires_grad=True)
    g, h = torch.autograd.grad(D(torch.cat([x, p], 1)).square().sum(), (x, p))
    assert g.abs().sum() > 0 and (h.abs().sum((0, 2, 3)) > 0).all()
    with pytest.raises(XModSegError, match='c_in=1'): D(x)

def test_spectral_norm_bounds_every_layer():
    D = PatchD(2, 4, norm=None, flat=2, spectral=True, dim=3)
    for _ in range(30): D(torch.randn(1, 1, 16, 16, 16))
    D.eval()
    for f in D.net[::2]: assert torch.linalg.matrix_norm(f.weight.flatten(1), 2) < 1.1

@pytest.mark.parametrize('n', (1, 2, 3))
def test_patch_discriminator_refuses_below_its_least_size_and_works_at_it(n):
    D = PatchD(n, 2)
    assert D.least == 3*2**n and D(torch.randn(1, 1, D.least, D.least)).shape == (1, 1, 1, 1)
    with pytest.raises(XModSegError, match=f'pad to \\({D.least}, {D.least}\\)'): D(torch.zeros(1, 1, D.least, D.least - 1))

# ---- segmentors

def test_SADN_E4_E5_unet_has_the_published_sizes():
    assert [count_params(UNet(b)) for b in (32, 64)] == [8_629_921, 34_512_193]
    assert count_params(UNet(16, 4, c_out=6, dim=3, norm=None)) == 1_604_934

def test_SADN_E4_E5_unet_gives_probabilities_and_logits():
    U, x = UNet(2, 4), torch.randn(2, 1, 16, 32)
    y = U(x)
    assert y.shape == x.shape and 0 < y.min() and y.max() < 1
    assert_close(y, U(x, logits=True).sigmoid())
    M = UNet(2, 3, c_out=3, dim=3)
    assert_close(M(torch.randn(1, 1, 8, 8, 8)).sum(1), torch.ones(1, 8, 8, 8))

def test_every_skip_reaches_the_output():
    U, x = UNet(2, 4), torch.randn(1, 1, 32, 32)
    e = U.encode(x)
    y = U.classify(U.decode(e)[-1])
    for k in range(4): assert (U.classify(U.decode([f*(i != k) for i, f in enumerate(e)])[-1]) - y).abs().max() > 1e-4

def test_features_are_numbered_from_both_ends():
    f = UNet(2).features(torch.randn(1, 1, 32, 48))
    assert len(f) == 9
    assert [tuple(f[k-1].shape) for k in (1, 5)] == [(1, 2, 32, 48), (1, 32, 2, 3)]
    assert all(f[-k].shape == f[k-1].shape and f[-k] is not f[k-1] for k in (1, 2, 3, 4))

def test_unet_all_weights_are_used_and_folding_changes_nothing():
    U, x = UNet(2, 4), torch.randn(1, 1, 32, 32)
    U(x, logits=True).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in U.named_parameters() if n.endswith('weight'))
    V = UNet(2, 4, fold=False); V.load_state_dict(U.state_dict())
    assert_close(U(x), V(x), atol=1e-5, rtol=0)

def test_unet_in_double_precision_and_copied():
    U = copy.deepcopy(UNet(2, 3)).double()
    assert U(torch.randn(1, 1, 8, 8).double()).dtype == torch.float64

@pytest.mark.parametrize('call,match', [
    (lambda: UNet(2)(torch.zeros(1, 1, 40, 56)), r'pad to \(48, 64\)'), (lambda: UNet(2)(torch.zeros(1, 1, 16, 16)), r'pad to \(32, 32\)'),
    (lambda: UNet(2)(torch.zeros(1, 2, 32, 32)), 'channels'), (lambda: UNet(2, dim=3)(torch.zeros(1, 1, 32, 32)), '3D')])
def test_unet_refuses(call, match):
    with pytest.raises(XModSegError, match=match): call()

# ---- DI2I

def test_TDGAN_Ea_channels_and_sizes():
    S = DI2I()
    assert S.widths == [112, 192, 304, 464, 656] and count_params(S) == 4_962_421
    assert count_params(DI2I(growth=12, layers=(4,)*4, bottleneck=4)) == 979_685
    assert S.head.in_channels == 112 + 80 + 64 and S.head.out_channels == 5   # skip, doubled new maps, new maps
    assert [f.in_channels for f in S.grow] == [12*16, 10*16, 7*16, 5*16]      # only new maps are doubled
    assert all(f.p == .2 for f in S.modules() if isinstance(f, nn.Dropout))

def test_TDGAN_Ea_probability_is_the_pairwise_quotient():
    S, x = DI2I(4, 2, (2, 1), 2).eval(), torch.randn(2, 1, 16, 24)
    with torch.no_grad(): z, p = S(x), S.probabilities(x)
    assert z.shape == (2, 5, 16, 24) and p.shape == (2, 4, 16, 24)
    for i in range(4): assert_close(p[:, i], z[:, i + 1].exp()/(z[:, 0].exp() + z[:, i + 1].exp()), atol=1e-6, rtol=0)
    assert (p - z.softmax(1)[:, 1:]).abs().max() > .05                        # not a softmax over five
    assert DI2I(4, 2, (1,), 1, organs=2, c_in=3)(torch.randn(2, 3, 8, 8)).shape == (2, 3, 8, 8)

def test_TDGAN_Ea_a_dense_layer_sees_all_before_it():
    S, x = DI2I(3, 2, (3,), 1, dropout=0.).eval(), torch.randn(1, 3, 8, 8)
    block = S.down[0]
    everything, new = block(x)
    assert torch.equal(everything[:, :3], x) and torch.equal(everything[:, 3:], new) and [f[0].num_features for f in block.layers] == [3, 5, 7]
    assert_close(new[:, 4:], block.layers[2](torch.cat([x, new[:, :4]], 1)))

def test_TDGAN_Ea_frozen_it_passes_gradients_and_keeps_its_statistics():
    S, x = DI2I(4, 2, (2,), 1), torch.randn(2, 1, 8, 8, requires_grad=True)
    S(x)
    S.requires_grad_(False).eval()
    before = copy.deepcopy(S.state_dict())
    assert torch.autograd.grad(S.probabilities(x).sum(), x)[0].abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in S.state_dict().items()) and torch.equal(S(x), S(x))

def test_TDGAN_Ea_every_weight_counts():
    S = DI2I(4, 2, (2, 2), 2)
    S(torch.randn(2, 1, 16, 16)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in S.named_parameters() if n.endswith('weight'))

def test_TDGAN_Ea_a_unet_with_the_outputs_of_di2i():
    torch.manual_seed(0)
    u, x = organ_net(base=4, levels=3, organs=2), torch.randn(2, 1, 16, 24)
    assert type(u) is OrganUNet and type(organ_net(base=4, growth=2, layers=(1,), bottleneck=1)) is DI2I
    with torch.no_grad():
        z = u(x); assert z.shape == (2, 3, 16, 24)
        e = z.exp(); assert_close(u.probabilities(x), torch.stack([e[:, i]/(e[:, 0] + e[:, i]) for i in (1, 2)], 1))     # each organ against the background alone
        assert (u.probabilities(x).sum(1) - z.softmax(1)[:, 1:].sum(1)).abs().max() > 1e-3                              # not the softmax over all
        v = UNet(4, 3, 1, 3); v.load_state_dict(u.state_dict()); assert_close(v(x, logits=True), z)

@pytest.mark.parametrize('call,match', [(lambda: DI2I(4, 2, (1, 1), 1)(torch.zeros(1, 1, 16, 18)), r'pad to \(16, 20\)'),
    (lambda: DI2I(4, 2, (1, 1), 1)(torch.zeros(1, 2, 16, 16)), 'channels'), (lambda: DI2I(4, 2, (1, 1), 1)(torch.zeros(1, 1, 4, 4)), r'pad to \(8, 8\)')])
def test_di2i_refuses(call, match):
    with pytest.raises(XModSegError, match=match): call()

def test_22_2_gradients_in_bfloat16_are_those_of_float32_in_thin_volumes_too():   # torch's own padding reads memory that nobody has written
    for depth in (16, 20, 32):
        D, x = PatchD(2, 8, dim=3, norm=None, flat=2, spectral=True).eval(), torch.randn(1, 1, depth, 32, 48)
        def grads(**how):
            with torch.autocast('cpu', **how): loss = (D(x) - 1).square().mean()
            for n in range(8, 21): torch.full((2**n,), float('nan'))                  # what lies in freed memory must not matter
            return [g.flatten() for g in torch.autograd.grad(loss, [p for p in D.parameters() if p.ndim > 1])]
        for _ in range(3):
            for g, h in zip(grads(enabled=False), grads(dtype=torch.bfloat16)): assert F.cosine_similarity(g, h, 0) > .98

# ---- 23.5: a net's own answers

def films(*x): return Slices([np.asarray(a, np.float32) for a in x], [f'f{k}' for k in range(len(x))], [np.ones((1, *np.shape(a)), np.uint8) for a in x], spacing=(2., 3.))
def steps(x): return torch.cat([x > 0, x > .6], 1).float()*.8 + .1          # two organs, one inside the other

def test_23_5_without_votes_an_answer_is_the_threshold_and_no_mask_is_looked_at():
    x = [np.linspace(-1, 1, 16).reshape(4, 4), np.linspace(1, -1, 16).reshape(4, 4)]
    a = answered(steps, films(*x), votes=0, batch=1)
    assert a.patient == ['f0 (answered)', 'f1 (answered)'] and a.spacing == (2., 3.) and a.y[0].dtype == np.uint8
    for p, y in zip(a.x, a.y): assert (y[0] == (p > 0)).all() and (y[1] == (p > .6)).all()

def test_23_5_votes_are_means_over_rising_curves():
    x = films(np.linspace(-1, 1, 64).reshape(8, 8)); seen = []
    a = answered(lambda v: (seen.append(v), steps(v))[1], x, votes=40, seed=3)
    assert len(seen) == 41 and torch.equal(seen[0][0, 0], torch.from_numpy(x.x[0])) and all((v.flatten().diff() >= 0).all() for v in seen)
    assert len({float(v.mean()) for v in seen}) == 41 and all(v.min() == -1 and v.max() == 1 for v in seen)
    assert (a.y[0] == (torch.stack([steps(v)[0] for v in seen]).mean(0) > .5).numpy()).all() and (answered(steps, x, votes=40, seed=3).y[0] == a.y[0]).all()

def test_23_5_answers_take_the_pieces_and_the_holes_of_true_masks():
    solid, hollow = np.zeros((2, 12, 12), bool); solid[1:6, 1:11] = True; solid[8:11, 1:11] = True
    hollow[:] = solid; hollow[3, 3:5] = False; hollow[7, 0] = hollow[0, 11] = True                     # a hole, and two specks
    x, true = films(hollow*2. - 1), lambda *m: Slices([v.astype(np.float32) for v in m], ['t']*len(m), [v[None].astype(np.uint8) for v in m])
    tidy = lambda like: answered(lambda v: (v > 0).float(), x, like, votes=0).y[0][0].astype(bool)
    assert (tidy(None) == hollow).all() and (tidy(true(solid)) == solid).all() and (tidy(true(solid, hollow, solid)) == solid).all()
    two = hollow.copy(); two[7, 0] = two[0, 11] = False
    assert (tidy(true(two)) == two).all()                                                               # most true masks have the hole: it stays
    one = solid.copy(); one[8:11] = False
    assert (tidy(true(one)) == one).all() and not answered(lambda v: v*0, x, true(one), votes=0).y[0].any()

def test_23_5_fewer_votes_than_none_are_refused():
    with pytest.raises(XModSegError, match='fewer than none'): answered(steps, films(np.zeros((4, 4))), votes=-1)

def test_answered_refuses_habits_of_other_organs():
    x = np.full((32, 32), -1, np.float32); x[8:24, 4:12] = x[8:24, 20:28] = 1; lungs = (x > 0).astype(np.uint8); p = Slices([x], ['a'])
    see = lambda v: (v > .5).float(); assert answered(see, p, Slices([x], ['t'], [lungs[None]]), votes=0).y[0].sum() == 256
    for like in (Slices([x], ['t'], [lungs]), Slices([x], ['t'], [np.stack([lungs]*2)]), p):
        with pytest.raises(XModSegError, match='habits of other organs'): answered(see, p, like, votes=0)

# ---- 23.6

@pytest.mark.parametrize('p', (.2, .5))
def test_236_a_norm_behind_dropout_remembers_too_much_and_settles(p):
    torch.manual_seed(0)
    net, h = nn.Sequential(nn.Dropout(p), nn.BatchNorm2d(1)), [2 + 3*torch.randn(8, 1, 48, 48) for _ in range(80)]
    for v in h: net(v)
    assert abs(net[1].running_var.item() - ((9 + 4)/(1 - p) - 4)) < .4                    # E[h^2]/(1-p) - E[h]^2
    assert settle(net, h) is net and abs(net[1].running_var.item() - 9) < .1 and abs(net[1].running_mean.item() - 2) < .03
    assert not net.training and net[0].p == p and net[1].momentum == .1                   # it can be trained on as before

def test_236_every_batch_counts_alike_and_no_weight_moves():
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Dropout(.3), nn.BatchNorm2d(1)), [torch.full((2, 1, 4, 4), float(k)) for k in range(4)]
    settle(net, iter(batches))
    assert_close(net[1].running_mean, torch.tensor([1.5]))                                # not a running mean that forgets the first
    net, x = DI2I(8, 4, (2, 2), 2), torch.randn(4, 1, 32, 32)
    for _ in range(5): net(x)
    weights, before = {k: v.clone() for k, v in net.named_parameters()}, {k: v.clone() for k, v in net.named_buffers()}
    settle(net, [x])
    assert all(torch.equal(v, weights[k]) for k, v in net.named_parameters()) and any(not torch.equal(v, before[k]) for k, v in net.named_buffers() if 'var' in k)
    with torch.no_grad(): used = net.probabilities(x)
    for m in net.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    with torch.no_grad(): assert (net.train().probabilities(x) - used).abs().mean() < .02  # as in training, but for dropout (and the n-1 of the variance)

def test_236_dropout_comes_back_after_a_bad_image_and_nothing_is_refused():
    net = DI2I(8, 4, (2, 2), 2)
    with pytest.raises(XModSegError, match='pad to'): settle(net, [torch.zeros(1, 1, 30, 32)])
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {.2}
    with pytest.raises(XModSegError, match='nothing to measure'): settle(net, [])

@pytest.mark.parametrize('make', [lambda: UNet(2, 2), lambda: UNet(2, 2, c_out=3)])
def test_23_3_half_precision_still_pulls_on_a_sure_false_alarm(make):
    net = make(); net.head.weight.data.zero_(); net.head.bias.data.zero_(); net.head.bias.data[0] = 12.
    with torch.autocast('cpu', torch.bfloat16): p = net(torch.zeros(1, 1, 8, 8))
    assert p.dtype == torch.float32 and p[:, 0].max() < 1
    (-(1 - p[:, 0]).log()).mean().backward()
    assert abs(float(net.head.bias.grad[0]) - 1) < .01

def test_TDGAN_Ea_soft_maps_stay_soft_in_half_precision():
    net = OrganUNet(2, 2, organs=2); net.head.weight.data.zero_(); net.head.bias.data.copy_(torch.tensor([0., 8., 3.]))
    with torch.autocast('cpu', torch.bfloat16): p = net.probabilities(torch.zeros(1, 1, 8, 8))
    assert p.dtype == torch.float32 and p[0, 0].max() < 1 and abs(float(p[0, 1, 0, 0]) - .9526) < 1e-3

def test_23_5_an_empty_true_mask_has_no_habit():
    m = np.zeros((2, 1, 32, 32), np.uint8); m[0, 0, 4:12, 4:12] = m[0, 0, 4:12, 20:28] = 1
    x = [2*m[0, 0].astype(np.float32) - 1]*2
    like = Slices(x, ['a', 'b'], list(m), spacing=(1., 1.))
    got = answered(lambda v: (v > 0).float(), Slices(x[:1], ['c'], spacing=(1., 1.)), like, votes=0)
    assert got.y[0].sum() == 128      # both lungs, though half of the true masks show none
    with pytest.raises(XModSegError, match='several sizes'): answered(lambda v: v, Slices([x[0], x[0][:16]], ['a', 'b'], spacing=(1., 1.)))
