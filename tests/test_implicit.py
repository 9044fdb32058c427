"""Shapes from formulas and the spine made of them: closed forms, limits, frames, refusals."""
import numpy as np, pytest, torch
from xmodseg.core import XModSegError
from xmodseg.implicit import LABELS, LEVELS, Canvas, bend, branches, bumps, capsule, draw_params, ellipsoid, local, paint_spine, rotation, smooth_max, smooth_min, spine, vertebra_sdf

def at(*q): return [torch.tensor([float(v)]) for v in q]
def near(a, b, eps=1e-5): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=eps, rtol=0)

def test_smooth_min_adds_a_quarter_of_k_at_the_crease_and_nothing_far_away():
    a, b = torch.tensor([0., 0.]), torch.tensor([0., 9.])
    near(smooth_min(a, b, 4.), [-1, 0]); near(smooth_max(a, b, 4.), [1, 9])

def test_ellipsoid_is_exact_for_a_sphere_also_in_its_middle():
    near(ellipsoid(at(0, 6, 8), (3, 3, 3)), [7]); near(ellipsoid(at(0, 0, 0), (3, 3, 3)), [-3], 1e-3)
    assert ellipsoid(at(19, 0, 0), (20, 5, 5)) < 0 < ellipsoid(at(0, 6, 0), (20, 5, 5))

def test_capsule_measures_to_the_nearest_point_of_its_axis():
    near(capsule(at(5, 0, 4), (0, 0, 0), (0, 0, 10), 2, 2), [3]); near(capsule(at(0, 0, -6), (0, 0, 0), (0, 0, 10), 2, 2), [4])
    near(capsule(at(3, 0, 10), (0, 0, 0), (0, 0, 10), 2, 1), [2])   # the radius at that end

def test_share_of_a_voxel_gives_the_volume_of_a_ball_wherever_it_lies():
    for shift in (0., .7, 1.3):
        cv = Canvas((16, 16, 16), (2.,)*3, (shift, 0, -shift)); box = cv.box((-99,)*3, (99,)*3)
        cv.paint('fat', ellipsoid(cv.at(box), (9., 9, 9)), box)
        assert abs(float(cv.layers[0][2].sum())/255*8/(4/3*np.pi*729) - 1) < .03

def test_canvas_tube_is_the_union_of_its_rods_and_none_outside_the_view():
    cv = Canvas((20, 20, 20), (2.,)*3, (0, 0, 0)); way = np.array([(-9., 0, 0, 2), (0, 5, 0, 3), (9, 0, 4, 2)])
    box, s = cv.tube([way])
    want = torch.minimum(*[capsule(cv.at(box), a[:3], b[:3], a[3], b[3]) for a, b in zip(way, way[1:])])
    near(s[want < 2], want[want < 2], 1e-4)
    assert cv.tube([way + (500, 0, 0, 0)]) == (None, None)

def test_bumps_belong_to_the_patient_not_to_the_grid():
    g = [torch.linspace(-50, 50, 40).reshape(s) for s in ((-1, 1, 1), (1, -1, 1), (1, 1, -1))]
    a, b = bumps(np.random.default_rng(1), g, 2., 30.), bumps(np.random.default_rng(1), [g[0][5:9], g[1], g[2][..., 30:]], 2., 30.)
    near(a[5:9, :, 30:], b, 1e-4)

def test_bend_and_branches_reach_every_corner_and_end():
    q = np.array([(0., 0), (10, 0), (10, 10)]); near(bend(q)[::4], q)
    ends = np.random.default_rng(0).uniform(-30, 30, (20, 3)); tree = branches(np.random.default_rng(1), np.zeros(3), ends, 4.)
    near(np.sort([t[-1, :3] for t in tree], 0), np.sort(ends, 0)); assert all((np.diff(t[:, 3]) <= 1e-9).all() for t in tree)

@pytest.mark.parametrize('cobb', [0, 15, 45, 70])
@pytest.mark.parametrize('seed', [0, 3])
def test_the_cobb_angle_is_the_one_asked_for(cobb, seed):
    tilt = [np.degrees(np.arctan2(v.axes[0, 2], v.axes[2, 2])) for v in spine(draw_params(seed, cobb=cobb))]
    near(np.ptp(tilt), cobb, 1e-6)

def test_vertebrae_do_not_overlap_and_keep_their_order():
    for seed in range(8):
        sp = spine(draw_params(seed)); z = [v.centre_mm[2] for v in sp]
        assert (np.diff(z) < 0).all() and [v.name for v in sp] == LEVELS
        for u, v in zip(sp, sp[1:]): assert np.linalg.norm(u.centre_mm - v.centre_mm) >= (u.size[2] + v.size[2])/2

def test_one_number_changed_by_hand_leaves_the_others():
    a, b = draw_params(5), draw_params(5, cobb=33)
    assert {k for k in a if a[k] != b[k]} == {'cobb'} and b.cobb == 33

@pytest.mark.parametrize('bad', [dict(cobb=-1), dict(cobb=100), dict(size=0), dict(bone=float('nan')), dict(apex=-.1), dict(apex=300), dict(side=0), dict(side=2), dict(side=.5), dict(side=float('nan'))])
def test_impossible_patients_are_refused_by_name(bad):
    with pytest.raises(XModSegError, match=next(iter(bad))): draw_params(0, **bad)
def test_unknown_anatomy_is_refused_with_the_nearest_name():
    with pytest.raises(XModSegError, match="'lordosis'"): draw_params(0, lordosi=1)

def test_vertebra_has_body_pedicles_and_an_open_canal():
    for k in (6, 14):
        v = spine(draw_params(1, osteophyte=0))[k]; a, b, h = v.size
        f = lambda x, y, z: float(vertebra_sdf(v, at(*(v.centre_mm + v.axes @ np.array([x, y, z]))))[0])
        assert f(0, 0, 0) < -5 and f(0, -b - 8*a/23, 0) > 2 and f(.62*a, -b - 3, 3) < 0 and abs(f(7, -b - 20, 1) - f(-7, -b - 20, 1)) < 1e-3
        assert f(0, b + 3, 0) > 0 and f(0, 0, h/2 + 3) > 0

def test_local_is_the_inverse_of_the_frame():
    R = rotation(.4, .2, -.3); near(R.T @ R, np.eye(3), 1e-12); assert np.linalg.det(R) > 0
    q = np.array([3., -4, 5]); near(torch.cat(local(at(*(np.array([1., 2, 3]) + R @ q)), (1, 2, 3), R)), q, 1e-4)

def test_a_finer_grid_shows_the_same_spine():
    def labels(mm, shape):
        p = draw_params(3); cv = Canvas(shape, (mm,)*3, (0, -14, 0)); paint_spine(cv, p, spine(p)); return cv.labels
    assert (labels(1., (120, 90, 90))[1::3, 1::3, 1::3] == labels(3., (40, 30, 30))).float().mean() > .999
    assert LABELS['canal'] in labels(3., (40, 30, 30))

@pytest.mark.parametrize('side', [-1, 1])
@pytest.mark.parametrize('seed', [1, 6])
def test_the_curve_bulges_to_its_side_and_the_bodies_turn_there_too(seed, side):
    p = draw_params(seed, cobb=60., rotation=.5, side=side); sp, k = spine(p), int(round(p.apex))
    c = np.array([v.centre_mm for v in sp])
    lo, hi = max(k - 4, 0), min(k + 4, 16)
    chord = c[lo] + (c[hi] - c[lo])*(c[k, 2] - c[lo, 2])/(c[hi, 2] - c[lo, 2])
    assert side*(c[k] - chord)[0] > 10                                              # side 1: to the right
    assert side*sp[k].axes[0, 1] > .3                                               # the front of the body looks to the convex side, the spinous process away

@pytest.mark.parametrize('seed', [0, 3])
def test_the_chest_bends_backward_and_the_loin_forward(seed):
    sp = spine(draw_params(seed, cobb=0.)); c = np.array([v.centre_mm for v in sp])
    off = lambda i, j, k: (c[k] - c[i] - (c[j] - c[i])*(c[k, 2] - c[i, 2])/(c[j, 2] - c[i, 2]))[1]
    assert off(0, 11, 6) < -5 and off(11, 16, 14) > 2                               # y runs to the front
    assert sp[0].axes[1, 2] > .15 and sp[11].axes[1, 2] < -.03 and sp[16].axes[1, 2] > .1
    flat = spine(draw_params(seed, cobb=0., kyphosis=.6)); bent = spine(draw_params(seed, cobb=0., kyphosis=1.3))
    assert bent[0].axes[1, 2] > flat[0].axes[1, 2] + .1

def test_a_wedge_is_lower_in_front():
    v = spine(draw_params(1, osteophyte=0, wedge=0))[8]; a, b, h = v.size
    def height(v, y):
        z = torch.linspace(-h, h, 801, dtype=torch.float64)[None]
        x, y = torch.zeros_like(z), torch.full_like(z, float(y))
        q = [v.centre_mm[j] + sum(v.axes[j, i]*w for i, w in enumerate((x, y, z))) for j in range(3)]
        return float((vertebra_sdf(v, q)[1] < 0).sum()*2*h/800)
    pressed = type(v)(v, wedge=.4)
    near(height(v, .6*b), height(v, -.6*b), .1)
    assert height(pressed, .6*b) < .8*height(v, .6*b) and height(pressed, -.6*b) > .85*height(v, -.6*b)
