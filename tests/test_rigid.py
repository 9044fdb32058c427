"Known motions come back, mirrors and scales do not exist, and the printed table follows from its rows."
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from xmodseg.core import XModSegError
from xmodseg.geometry import Surface, surface
from xmodseg.rigid import icp, kabsch, measure_levels, p2s_table, prealign, stray

def thing(spacing=(1., 1.2, .9), grow=0., front=1.):
    "A lopsided body with two arms, smooth, about 30 mm long; `front` is the share of it that is there."
    p = np.indices((46, 40, 34)).T*spacing
    d = lambda c, r: np.linalg.norm((p - c)/r, axis=-1)*min(r) - min(r)
    s = np.minimum.reduce([d((20, 24, 15), (12, 9, 7)), d((32, 30, 18), (9, 4, 4)), d((14, 14, 12), (4, 9, 3)), d((22, 24, 22), (3, 4, 6))]).T
    return surface(np.clip(.5 - (s - grow)/3, 0, 1)*(np.arange(40) < front*40)[:, None], spacing)

def on(s, n=74, seed=0):
    r, size = np.random.default_rng(seed), np.linalg.norm(s.normals, axis=1)
    return np.einsum('nk,nkd->nd', r.dirichlet((1, 1, 1), n), s.corners[r.choice(len(size), n, p=size/size.sum())])

S = thing()

@pytest.mark.parametrize('seed', range(5))
def test_RIGID_E1_gives_a_known_motion_back(seed):
    r = np.random.default_rng(seed)
    a, R, t = r.normal(0, 20, (30, 3)), Rotation.random(random_state=seed).as_matrix(), r.normal(0, 50, 3)
    m = kabsch(a, a @ R.T + t)
    assert np.allclose(m.R, R, atol=1e-12) and np.allclose(m.t, t, atol=1e-10)

def test_RIGID_E1_never_mirrors_and_never_scales():
    a = on(S)
    for b in (a*[-1, 1, 1], a*[1, 1, -1], -a, 3*a, a*[1, 1, 0]):
        R = kabsch(a, b).R
        assert np.linalg.det(R) == pytest.approx(1) and np.allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.allclose(kabsch(a, 3*a).R, np.eye(3), atol=1e-12)

def test_RIGID_E1_no_small_turn_or_shift_does_better():
    r = np.random.default_rng(0)
    a = r.normal(0, 10, (20, 3)); b = a @ Rotation.from_rotvec([1, .5, -.4]).as_matrix().T + r.normal(0, 4, (20, 3))
    m = kabsch(a, b)
    cost = lambda R, t: ((a @ R.T + t - b)**2).sum()
    for w, u in r.normal(0, .02, (200, 2, 3)): assert cost(Rotation.from_rotvec(w).as_matrix() @ m.R, m.t + u) > cost(m.R, m.t)

@pytest.mark.parametrize('step', ['point', 'plane'])
@pytest.mark.parametrize('seed', range(4))
def test_RIGID_E2_E3_known_motions_within_a_thousandth_of_a_millimetre(step, seed):
    p, R, t = on(S, 74, seed), Rotation.random(random_state=seed).as_matrix(), np.array([30., -200, 9])
    f = icp((p - t) @ R, S, step=step)
    assert abs((p - t) @ R @ f.R.T + f.t - p).max() < 1e-3 and f.rmse < 1e-3 and f.p2s <= f.rmse
    assert len(f.history.rmse) <= 101 and (np.diff(f.history.rmse) < 1e-9).all() and np.linalg.det(f.R) == pytest.approx(1)
    assert f.history.rmse[-1] == f.rmse and (f.history.R[-1] == f.R).all() and (f.history.t[-1] == f.t).all()

def test_RIGID_E2_iterations_bound_the_steps_and_say_so():
    p = on(S) + [4, 3, -2]
    f = icp(p, S, dict(R=np.eye(3), t=np.zeros(3)), iterations=3)
    assert len(f.history.rmse) == 4 and not f.converged
    assert f.history.rmse[0] == pytest.approx(np.sqrt((S.nearest(p).distance**2).mean()))

def test_RIGID_E2_rest_is_part_of_converged_and_tol_decides_it():
    p, near = on(S), dict(R=np.eye(3), t=np.array([.002, 0, 0]))
    assert not icp(p, S, near, iterations=1, tol=1e-9).converged and icp(p, S, near, iterations=1, tol=.1).converged
    assert len(icp(p + 1, S, tol=1e-2).history.rmse) < len(icp(p + 1, S, tol=1e-4).history.rmse)

def test_RIGID_E3_both_steps_reach_the_same_minimum_and_the_plane_step_sooner():
    p = on(S) + np.random.default_rng(3).normal(0, .6, (74, 3))
    a, b = icp(p, S, step='point', iterations=400), icp(p, S, step='plane')
    assert a.rmse == pytest.approx(b.rmse, abs=2e-3) and 2*len(b.history.rmse) < len(a.history.rmse)

def test_RIGID_E3_a_ball_may_turn_as_it_likes():
    d = np.linalg.norm(np.indices((20, 20, 20)).T - 9.5, axis=-1).T
    b = surface(np.clip(.5 - (d - 7)/4, 0, 1), (1, 1, 1))
    f = icp(on(b) + [3, 2, 1], b, step='plane')
    assert f.rmse < .05 and np.isfinite(f.R).all()

def test_RIGID_E4_finds_the_turn_and_promises_its_end():
    p = on(S, 400)                                                          # more than the 200 that take part
    for seed in range(3):
        q = p @ Rotation.random(random_state=seed).as_matrix()
        start = prealign(q, S)
        assert start.rmse < 3 and start.promise < .01 and np.linalg.det(start.R) == pytest.approx(1)
    assert (prealign(p, S, upright=True).R == np.eye(3)).all() and not np.allclose(start.R, np.eye(3), atol=.1)

def test_RIGID_E4_every_turn_is_tried():
    p = on(S)
    axes = np.linalg.eigh(np.cov(p.T))[1]
    for axis in axes.T: assert prealign(p @ Rotation.from_rotvec(np.pi*axis).as_matrix() @ Rotation.from_rotvec([.3, .2, .1]).as_matrix(), S).promise < .01

def test_RIGID_E4_the_start_is_chosen_by_the_steps_that_follow():
    p = on(S, 74, 0)
    q = (p - [30., -200, 9]) @ Rotation.random(random_state=0).as_matrix() + np.random.default_rng(0).normal(0, .6, p.shape)
    a, b, start = icp(q, S), icp(q, S, step='plane'), prealign(q, S, step='point')
    assert a.rmse == pytest.approx(b.rmse, abs=.01) and a.rmse < .6                      # ranked by plane steps it ends at 2.2 mm
    assert start.promise == pytest.approx(b.rmse, abs=.01) and not np.allclose(start.R, prealign(q, S).R)

def test_RIGID_E4_upright_turns_nothing_before_the_first_step():
    p = on(S) @ Rotation.from_rotvec([0, 0, 1.2]).as_matrix()
    assert (icp(p, S, upright=True, iterations=0).R == np.eye(3)).all() and (icp(p, S, upright=True).history.R[0] == np.eye(3)).all()
    assert not np.allclose(icp(p, S, iterations=0).R, np.eye(3), atol=.1)

def test_RIGID_E4_a_start_is_chosen_by_its_end():
    broken, p = thing(front=.55), on(S, 74, 2) @ Rotation.random(random_state=2).as_matrix()
    start = prealign(p, broken)
    assert start.promise < 2.5 and icp(p, broken, start, step='plane').rmse < 2.5       # the start that lies nearest ends at 2.7 mm

def test_RIGID_E4_axes_do_not_depend_on_the_mesh():
    b = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])*[5., 3., 2.]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b_, c, d in quads for t in ((a, b_, c), (a, c, d))])
    tri = b[faces[0]]; mid = tri.mean(0)                                     # one triangle cut in three: more corners on one side
    finer = Surface(np.vstack([b, mid]), np.vstack([faces[1:], [[faces[0][i], faces[0][(i + 1) % 3], 8] for i in range(3)]]))
    R = Rotation.random(random_state=1).as_matrix()
    for s in (Surface(b, faces), finer): assert prealign((b + 9) @ R, s).rmse < 1e-9

def test_a_wrong_start_is_not_called_converged():
    p = on(S)
    for axis in np.eye(3):
        R = Rotation.from_rotvec(np.pi*axis).as_matrix()
        f = icp(p, S, dict(R=R, t=p.mean(0) - R @ p.mean(0)), step='plane')
        assert f.rmse > .5 and not f.converged
    assert icp(p, S, step='plane').converged

def test_scale_and_side_are_not_made_up():
    p = on(S)
    assert icp(p, thing(grow=-1.), step='plane').p2s == pytest.approx(1., abs=.25)
    assert icp(p*1.1, S, step='plane').p2s > .3
    assert icp(p*[-1, 1, 1], S, step='plane').p2s > .3

@pytest.mark.parametrize('call, words', [
    (lambda: icp(on(S)[:3], S), 'at least 4'), (lambda: icp(np.zeros((9, 3)), S), 'on a line'), (lambda: icp(np.outer(np.arange(9.), [1, 2, 3]), S), 'on a line'),
    (lambda: icp(on(S)*np.nan, S), 'not finite'), (lambda: icp(on(S)[:, :2], S), r'\(74, 2\)'), (lambda: icp(on(S), Surface(np.eye(3), [[0, 1, 2]])), 'too small a surface'),
    (lambda: icp(on(S), S, step='lines'), 'no such step'), (lambda: icp(on(S), S, dict(R=np.diag([1, 1, -1]), t=np.zeros(3))), 'no rigid motion'),
    (lambda: icp(on(S), S, dict(R=2*np.eye(3), t=np.zeros(3))), 'no rigid motion'), (lambda: icp(on(S), S, dict(R=np.eye(3), t=[0, 0, np.nan])), 'no rigid motion'),
    (lambda: prealign(on(S)[:3], S), 'at least 4'), (lambda: prealign(on(S), S, step='lines'), 'no such step')])
def test_refused(call, words):
    with pytest.raises(XModSegError, match=words): call()

# ---- levels

def stack():
    "Two bodies one above the other, their centres and landmarks."
    p = np.indices((40, 36, 60)).T
    d = lambda c: np.minimum(np.linalg.norm((p - c)/(13, 10, 8), axis=-1) - 1, np.linalg.norm((p - np.add(c, (8, -9, 3)))/(4, 6, 4), axis=-1) - 1).T
    centres = dict(T1=(18., 20., 42.), T2=(18., 20., 16.))
    marks = {k: on(surface(d(c) < 0, (1, 1, 1)), seed=i) @ Rotation.random(random_state=i).as_matrix() for i, (k, c) in enumerate(centres.items())}
    return np.minimum(d(centres['T1']), d(centres['T2'])) < 0, centres, marks

def test_RIGID_E5_each_level_by_itself_in_mm():
    m, centres, marks = stack()
    got = measure_levels(m, (1, 1, 1), centres, marks, step='plane')
    assert list(got) == ['T1', 'T2'] and all(e.p2s < 1e-3 and e.fit.converged and e.surface.closed for e in got.values())
    twice = measure_levels(m, (2, 2, 2), {k: 2*np.array(c) for k, c in centres.items()}, marks, step='plane')
    assert all(e.p2s > 1 for e in twice.values())                          # landmarks do not grow with the voxels
    m[1:3, 1:3, 1:3] = True                                                # a stray part in the cell of T2
    again = measure_levels(m, (1, 1, 1), centres, marks, ['T2'], step='plane')
    assert list(again) == ['T2'] and again.T2.surface.points.min() > 3

def test_RIGID_E5_levels_that_are_missing():
    m, centres, marks = stack()
    low = m.copy(); low[..., 29:] = False
    with pytest.raises(XModSegError, match='no bone at level T1'): measure_levels(low, (1, 1, 1), centres, marks)
    got = measure_levels(low, (1, 1, 1), centres, marks, missing=15, step='plane')
    assert got.T1.p2s == 15 and got.T1.fit is None and got.T2.p2s < 1e-3
    with pytest.raises(XModSegError, match='level without landmarks'): measure_levels(m, (1, 1, 1), centres, dict(T1=marks['T1']))
    with pytest.raises(XModSegError, match='level without landmarks'): measure_levels(m, (1, 1, 1), centres, dict(marks, T2=np.zeros((0, 3))))
    with pytest.raises(XModSegError, match='level without centre'): measure_levels(m, (1, 1, 1), centres, marks, ['T9'])
    with pytest.raises(XModSegError, match='no bone'): measure_levels(0*m, (1, 1, 1), centres, marks)

def test_RIGID_E5_a_lost_level_costs_what_was_said():
    m, centres, marks = stack()
    assert [(e.p2s, e.fit, e.surface) for e in measure_levels(0*m, (1, 1, 1), centres, marks, missing=15).values()] == [(15., None, None)]*2
    dust = m.copy(); dust[..., 29:] = False; dust[10:20:3, 15:25:3, 40] = True                # 16 voxels, none beside another
    with pytest.raises(XModSegError, match='no bone at level T1.*1 voxels'): measure_levels(dust, (1, 1, 1), centres, marks, ['T1'])
    assert measure_levels(dust, (1, 1, 1), centres, marks, ['T1'], missing=15).T1.p2s == 15
    assert np.isnan(measure_levels(dust, (1, 1, 1), centres, marks, ['T1'], missing=float('nan')).T1.p2s)
    with pytest.raises(XModSegError, match='cannot earn'): measure_levels(m, (1, 1, 1), centres, marks, missing=-15)
    with pytest.raises(XModSegError, match='not a mask'): measure_levels(m*.5, (1, 1, 1), centres, marks, missing=15)

def test_RIGID_E5_the_printed_table_follows_from_its_rows():
    rows = {12: [3.68, 2.23, 2.56, 3.02, 2.73, 2.77, 2.64, 3.07, 3.15], 11: [5.42, 3.23, 2.84, 3.12, 2.76, 2.23, 2.01, 2.82, 2.34, 2.89],
            1: [5.78, 5.48, 3.67, 3.61, 3.34, 5.47, 4.59, 3.31, 4.81]}
    t = p2s_table({p: {f'T{i + 2}': e for i, e in enumerate(row)} for p, row in rows.items()})
    assert (round(t.all.mean, 2), round(t.all.sd, 2), t.all.n) == (3.41, 1.06, 28)
    assert [round(t.patients[p].mean, 2) for p in rows] == [2.87, 2.97, 4.45] and np.allclose([t.patients[p].sd for p in rows], [.39, .90, .93], atol=.006)
    assert t.levels['T11'].n == 1 and t.levels['T2'].mean == pytest.approx((3.68 + 5.42 + 5.78)/3) and t.levels['T2'].sd == pytest.approx(np.std([3.68, 5.42, 5.78]))

def test_RIGID_E6_the_way_back():
    m, centres, marks = stack()
    true = surface(m, (1, 1, 1)); level = lambda by: Surface(true.points + by, true.faces)
    assert stray(dict(a=level(0.)), true) == pytest.approx(0, abs=1e-9) and np.isnan(stray({}, true))
    far = stray(dict(a=level((0., 0., 1000.))), true); assert 900 < far < 1000
    assert stray(dict(a=level((0., 0., 1000.)), b=level(0.)), true) == pytest.approx(far/2)                    # levels weigh the same, whatever their number of points
    few = Surface(true.points[true.faces[:5].ravel()], np.arange(15).reshape(-1, 3)); assert stray(dict(a=level((0., 0., 1000.)), b=few), true) == pytest.approx(far/2)
    dice = np.random.default_rng(0).random(m.shape) < .5
    thrown = measure_levels(dice, (1, 1, 1), centres, marks, step='plane')
    assert max(e.p2s for e in thrown.values()) < .6 and stray({k: e.surface for k, e in thrown.items()}, true) > 3  # near every landmark, and nowhere near the bone

def test_RIGID_E5_takes_what_measure_levels_gives():
    m, centres, marks = stack()
    got = measure_levels(m, (1, 1, 1), centres, marks, missing=1., step='plane')
    assert p2s_table(dict(a=got)).all.mean == pytest.approx(np.mean([e.p2s for e in got.values()]))
    with pytest.raises(XModSegError): p2s_table({})

def test_lists_that_have_no_motion_and_surfaces_without_area_are_refused():
    p = np.random.default_rng(0).normal(size=(6, 3))
    for b in (p[:5], p*np.nan, p[:, :2]):
        with pytest.raises(XModSegError, match='no motion between'): kabsch(p, b)
    line = Surface(np.arange(12.).reshape(4, 3), np.array([[0, 1, 2], [1, 2, 3]]))
    with pytest.raises(XModSegError, match='have an area'): icp(p, line)
