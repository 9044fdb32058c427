"Line integrals and filtered back-projection against closed forms."
import math
import pytest, torch
from xmodseg.core import XModSegError
from xmodseg.rays import Fan, backproject, backproject_cone, disc, filter_sinogram, project, project_cone, reconstruct

g = Fan((64, 64), (3., 3.), views=80)
close = torch.testing.assert_close

def chord(g, R): # (bins,) mm through a disc in the middle
    d = g.source*g.offsets.abs()/(g.source**2 + g.offsets**2).sqrt()
    return 2*(R**2 - d**2).clamp_min(0).sqrt(), d

@pytest.mark.parametrize('source', [300., 1000.])
def test_RAYS_E1_shadow_of_a_disc_is_its_chord(source):
    g = Fan((96, 96), (2., 2.), views=16, source=source)
    p, (c, d) = project(disc(g, 70.)[None], g)[0], chord(g, 70.)
    inner = d < 60
    assert ((p/c - 1).abs()[:, inner] < .01).all()
    assert (p[:, d > 73] == 0).all()

def test_RAYS_E1_a_disc_off_the_centre_throws_its_shadow_where_geometry_says():
    p = project(disc(g, 9., 60., 0.)[None], g)[0]
    mid = (p*g.offsets).sum(1)/p.sum(1)                       # view 0: behind the centre; view 20 (90 degrees): at s = -60
    close(mid[[0, 20, 40, 60]], torch.tensor([0., -60., 0., 60.], dtype=torch.float64), atol=.5, rtol=0)

def test_RAYS_E1_other_spacing_along_y():
    g = Fan((80, 40), (2., 4.), views=16)
    p, (c, d) = project(disc(g, 60.)[None], g)[0], chord(g, 60.)
    assert ((p/c - 1).abs()[:, d < 45] < .03).all()

def test_RAYS_E1_linear_and_differentiable():
    a, b = torch.rand(2, 64, 64), torch.rand(2, 64, 64)
    close(project(2*a - b, g), 2*project(a, g) - project(b, g), rtol=1e-4, atol=1e-2)
    a.requires_grad_()
    project(a, g)[:, 0, g.bins//2].sum().backward()
    assert a.grad.sum() > 0 and (a.grad != 0).sum() < 2*3*64   # one ray touches two pixels per row

def test_RAYS_E1_E2_a_matrix_made_in_inference_mode_still_carries_gradients():
    fresh, x = Fan((20, 20), (5., 5.), views=9, source=777.), torch.rand(1, 20, 20)   # nobody else asks for this scanner
    with torch.inference_mode(): blind = reconstruct(project(x, fresh), fresh)
    x.requires_grad_()
    p = project(x, fresh); r = reconstruct(p, fresh)
    close(r.detach(), blind.clone())
    r.square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad != 0).all()
    q = torch.rand(1, 9, fresh.bins, requires_grad=True)
    backproject(q, fresh)[0, 10, 10].backward(); close(float(q.grad.sum()), math.pi, rtol=.02, atol=0)

@pytest.mark.parametrize('step', [None, 5.])
def test_RAYS_E1_E2_autocast_changes_nothing(step):
    fan, x = Fan((20, 20), (5., 5.), views=9), torch.rand(2, 20, 20)
    call = lambda x: (lambda p: (p, reconstruct(p, fan, step=step)))(project(x, fan) if step is None else project_cone(x, fan, step))
    plain = call(x)
    with torch.autocast('cpu', torch.bfloat16): under = call(x)
    for a, b in zip(plain, under): assert b.dtype == torch.float32 and torch.equal(a, b)
    with torch.autocast('cpu', torch.bfloat16): close(project(x.bfloat16(), fan), project(x.bfloat16().float(), fan))

def test_RAYS_E1_slices_do_not_mix():
    a = torch.zeros(3, 64, 64); a[1] = disc(g, 40.)
    p = project(a, g)
    assert p[0].abs().max() == 0 and p[2].abs().max() == 0 and p[1].max() > 70

def test_RAYS_E2_centre_and_place_return():
    for x0, y0 in ((0, 0), (45, -30)):
        d = disc(g, 40., x0, y0)
        r = reconstruct(project(d[None], g), g)[0]
        close(float(r[disc(g, 28., x0, y0) == 1].mean()), 1., atol=.01, rtol=0)

def test_RAYS_E2_near_source_still_right():
    n = Fan((64, 64), (3., 3.), views=120, source=250.)
    d = disc(n, 15., 50., 30.)
    r = reconstruct(project(d[None], n), n)[0]
    close(float(r[disc(n, 9., 50., 30.) == 1].mean()), 1., atol=.03, rtol=0)

def test_RAYS_E2_oblique_rays_are_weighed():
    n = Fan((64, 64), (3., 3.), views=120, source=150.)                  # rays up to 36 degrees off
    r = reconstruct(project(disc(n, 80.)[None], n), n)[0]
    ring = (disc(n, 72.) == 1) & (disc(n, 62.) == 0)
    close(r[ring].mean(), r[30:34, 30:34].mean(), atol=.01, rtol=0)
    close(float(r[30:34, 30:34].mean()), 1., atol=.01, rtol=0)

def test_RAYS_E2_weight_of_one_view():
    s = torch.zeros(1, g.views, g.bins); s[0, 0] = 1
    b = backproject(s, g)[0]
    u = 1 - g.axis(0)/g.source
    close(b[:, 32].double(), math.pi/g.views/u**2, rtol=1e-4, atol=0)

def test_RAYS_E3_response_is_the_ramp():
    i = torch.arange(3000.)
    for f in (.02, .1):
        w = torch.cos(2*math.pi*f*i*2)[None, None]
        close(float(filter_sinogram(w, 2., 0)[0, 0, 1500]/w[0, 0, 1500]), f, atol=1e-3, rtol=0)
    assert abs(float(filter_sinogram(torch.ones(1, 1, 3001), 2., 0)[0, 0, 1500])) < 2e-4      # a constant has no ramp

def test_RAYS_E4_ball_and_middle_plane():
    c = Fan((40, 40), (4., 4.), views=12, source=500.)
    z = (torch.arange(25) - 12.)*4
    ball = torch.stack([disc(c, math.sqrt(max(55.**2 - float(v)**2, 0))) for v in z])
    p = project_cone(ball, c, 4.).mean(1)
    s2, t2 = c.offsets**2, z[:, None].double()**2
    d = (c.source**2*(s2 + t2)/(c.source**2 + s2 + t2)).sqrt()
    assert ((p/(2*(55.**2 - d**2).clamp_min(0).sqrt()) - 1).abs()[d < 40] < .025).all()
    tube = disc(c, 50.)[None].repeat(9, 1, 1)
    r = reconstruct(project_cone(tube, c, 4.), c, step=4.)
    assert ((r[:, 18:22, 18:22].mean((1, 2)) - 1).abs() < .02).all()
    close(float(backproject_cone(torch.ones(3, 12, c.bins), c, 4.)[1, 19:21, 19:21].mean()), math.pi, atol=.05, rtol=0)

def test_RAYS_E4_heights_are_magnified():
    c = Fan((40, 40), (4., 4.), views=8, source=400.)
    a = torch.zeros(25, 40, 40); a[18, 30, 20] = 1                       # at z = 24, 42 mm towards the source of view 0
    p = project_cone(a, c, 4.)[:, [0, 4]]                                # seen from near and from far
    z = (torch.arange(25) - 12.)*4
    high = (p.sum(-1)*z[:, None]).sum(0)/p.sum((0, 2))
    close(high, 24/torch.tensor([1 - 42/400, 1 + 42/400]), atol=.4, rtol=0)

def test_refusals_name_the_need():
    with pytest.raises(XModSegError, match='too few views'): Fan((64, 64), views=4)
    with pytest.raises(XModSegError, match='inside the patient'): Fan((64, 64), (9., 9.), source=300.)
    with pytest.raises(XModSegError, match=r'needed \(B,64,64\)'): project(torch.zeros(1, 32, 64), g)
    with pytest.raises(XModSegError, match='does not fit'): backproject(torch.zeros(1, 80, 5), g)

def test_slices_and_sinograms_of_another_scanner_are_refused():
    with pytest.raises(XModSegError, match='slices do not fit'): project_cone(torch.ones(3, 32, 32), g, 2.)
    with pytest.raises(XModSegError, match='slices do not fit'): project_cone(torch.ones(3, 64, 64), g, 0.)
    with pytest.raises(XModSegError, match='sinogram does not fit'): reconstruct(torch.ones(2, 90, g.bins), g)
