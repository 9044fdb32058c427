"Otsu against every cut, surfaces against closed forms, exact distances against all triangles, and the refusals."
import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.spatial import cKDTree
from xmodseg import geometry
from xmodseg.core import XModSegError
from xmodseg.geometry import Surface, _foot, bone_mask, component, majority, otsu, otsu_slices, p2s, split_levels, surface

def every_cut(v):
    "The upper class of the best threshold, tried one by one; and how good it is."
    score = lambda t: (v < t).mean()*(v >= t).mean()*(v[v < t].mean() - v[v >= t].mean())**2
    return max((score(t), t) for t in np.unique(v)[1:])

def box(half=(3., 2., 1.), at=(0, 0, 0)):
    p = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])*half + at
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Surface(p, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]))

def box_distance(p, half):
    over = abs(p) - half
    return np.where((over < 0).all(1), -over.max(1), np.linalg.norm(np.maximum(over, 0), axis=1))

def ball(r=12., spacing=(1., 1.5, 2.), centre=(14.3, 15.8, 16.9)):
    d = np.linalg.norm(np.indices((30, 22, 18)).T*spacing - centre, axis=-1).T
    return surface(np.clip(.5 - (d - r)/6, 0, 1), spacing)

def one_triangle(p, a, b, c):
    "The distance to one triangle by cases, in plain Python."
    edges = []
    for x, y in ((a, b), (b, c), (c, a)):
        e = y - x
        t = 0. if not e.any() else min(max(float((p - x) @ e/(e @ e)), 0.), 1.)
        edges.append(np.linalg.norm(p - x - t*e))
    n = np.cross(b - a, c - a)
    if n @ n > 1e-18 and all(np.cross(y - x, p - x) @ n >= 0 for x, y in ((a, b), (b, c), (c, a))): return abs((p - a) @ n)/np.linalg.norm(n)
    return min(edges)

# ---- Otsu

@pytest.mark.parametrize('seed', range(30))
def test_GEO_E1_equals_every_cut(seed):
    r = np.random.default_rng(seed)
    v = np.r_[r.integers(0, 60, 60), r.integers(40, 200, r.integers(5, 90)), 0, 255].astype(float)
    best, t = every_cut(v)
    mine = v >= otsu(v)
    score = mine.mean()*(1 - mine.mean())*(v[mine].mean() - v[~mine].mean())**2
    assert score == pytest.approx(best, rel=1e-12)

def test_GEO_E1_two_bins_are_the_fewest():
    v = np.r_[np.zeros(40), np.ones(20), np.full(40, 10.)]
    assert otsu(v, bins=2) == 10 and otsu(v) == 10

def test_GEO_E1_brightest_class_is_foreground_and_moves_with_the_scale():
    v = np.r_[np.zeros(50), np.full(50, 100.)]
    assert otsu(v) == 100 and otsu(2*v - 7) == 193
    assert otsu(v, 0, 100) == 100                                          # both ends of the range vote
    r = np.random.default_rng(0)
    w = np.r_[r.normal(0, 20, 500), r.normal(300, 20, 60)]
    assert (w >= otsu(w)).sum() == 60

def test_GEO_E1_only_the_range_votes_and_brighter_is_foreground():
    r = np.random.default_rng(1)
    x = np.where(r.random((12, 12, 3)) < .5, 0., 100.) + r.normal(0, 3, (12, 12, 3))
    metal = x.copy(); metal[:2] = 5000.
    free, held = otsu_slices(metal), otsu_slices(metal, hi=400)
    assert (free.thresholds > 1000).all() and (held.thresholds < 100).all()
    assert held.mask[:2].all() and (held.mask[2:] == (x > 50)[2:]).all()
    dark = np.where(x > 50, x, -1000.); dark[::2] = x[::2]
    assert (otsu_slices(dark).thresholds < 50).all() and (otsu_slices(dark, lo=-500).mask == (x > 50) & (dark > -500)).all()

def test_GEO_E1_slices_without_contrast_stay_empty():
    x = np.zeros((8, 8, 4)); x[:4, :, 0] = 9; x[:4, :, 1] = 9; x[:, :, 1] *= 10
    x[:3, :3, 3] = 7                                                       # with lo=1 only nine voxels vote
    found = otsu_slices(x)
    assert np.isnan(found.thresholds[2]) and not found.mask[..., 2].any() and list(found.thresholds[:2]) == [9, 90]
    assert np.isnan(otsu(np.r_[np.zeros(15), np.ones(16)])) and otsu(np.r_[np.zeros(16), np.ones(16)]) == 1
    y = x + np.linspace(0, .5, 64).reshape(8, 8, 1)
    assert np.isnan(otsu_slices(y, lo=1).thresholds[3]) and not otsu_slices(y, lo=1).mask[..., 3].any()

@pytest.mark.parametrize('axis', range(3))
def test_GEO_E1_axis(axis):
    r = np.random.default_rng(axis)
    x = np.moveaxis(np.where(r.random((5, 9, 8)) < .4, 10., 4.)*np.arange(1, 6)[:, None, None], 0, axis)
    found = otsu_slices(x, axis=axis)
    assert list(found.thresholds) == [10, 20, 30, 40, 50]
    assert (np.moveaxis(found.mask, axis, 0) == (np.moveaxis(x, axis, 0)/np.arange(1, 6)[:, None, None] > 4)).all()

@pytest.mark.parametrize('call, words', [
    (lambda: otsu_slices(np.zeros((9, 9, 9))), 'no slice has contrast'), (lambda: otsu_slices(np.ones((9, 9, 9)), 5, 9), 'no slice has contrast'),
    (lambda: otsu_slices(np.zeros((9, 9, 9)), 3, 3), 'range is empty'), (lambda: otsu_slices(np.zeros((9, 9, 9)), float('nan'), 3), 'range is empty'),
    (lambda: otsu(np.r_[np.zeros(40), np.ones(40), np.nan]), '1 NaN or infinite'), (lambda: otsu(np.r_[np.zeros(40), np.inf]), '1 NaN or infinite'),
    (lambda: otsu(np.r_[np.zeros(40), np.ones(40)], bins=1), 'found bins=1'), (lambda: otsu(np.r_[np.zeros(40), np.ones(40)], bins=0), 'found bins=0'),
    (lambda: otsu_slices(np.zeros((9, 9, 9)), axis=-1), 'no such axis'), (lambda: otsu_slices(np.full((9, 9, 9), np.nan)), 'must be finite'),
    (lambda: otsu_slices(np.zeros((9, 9))), 'another form'), (lambda: otsu_slices(np.zeros((0, 9, 9))), 'another form'),
    (lambda: majority(np.full((3, 3, 3), .5)), 'not a mask'), (lambda: component(np.zeros((3, 3, 3))), 'no bone'), (lambda: component(np.eye(3)[None], (0, 0, 1)), 'touches no bone'),
    (lambda: component(np.eye(3)[None], (0, 0, 3)), 'no place'), (lambda: component(np.eye(3)[None], (0, 0, -1)), 'no place'), (lambda: component(np.eye(3)[None], np.zeros((1, 3, 3))), 'empty seed'),
    (lambda: split_levels(np.zeros((3, 3, 3)), dict(a=(0, 0, 0)), (1, 1, 1)), 'no bone'), (lambda: split_levels(np.ones((3, 3, 3)), {}, (1, 1, 1)), 'no level has a centre'),
    (lambda: split_levels(np.ones((3, 3, 3)), dict(a=(0, 0, np.nan)), (1, 1, 1)), 'finite'), (lambda: split_levels(np.ones((3, 3, 3)), dict(a=(1, 1, 1), b=(1, 1, 1)), (1, 1, 1)), 'share one centre'),
    (lambda: surface(np.zeros((3, 3, 3)), (1, 1, 1)), 'no bone'), (lambda: surface(np.ones((3, 3, 3)), (1, 0, 1)), 'no way from voxels'), (lambda: surface(np.ones((3, 3, 3)), (1, -1, 1)), 'no way from voxels'),
    (lambda: surface(np.ones((3, 3, 3)), np.diag([1, 1, 0, 1.])), 'no way from voxels'), (lambda: surface(np.ones((3, 3, 3)), np.full((4, 4), np.nan)), 'no way from voxels'),
    (lambda: surface(np.full((3, 3, 3), np.inf), (1, 1, 1)), 'finite'), (lambda: surface(np.ones((3, 3, 3)), (1, 1, 1), 0.), 'level above 0'),
    (lambda: Surface(np.zeros((3, 3)), [[0, 1, 3]]), 'not there'), (lambda: Surface(np.zeros((3, 3)), [[0, 1, -1]]), 'not there'), (lambda: Surface(np.zeros((3, 3)), [[0., 1, 2]]), 'not there'),
    (lambda: Surface(np.zeros((0, 3)), [[0, 1, 2]]), 'another form'), (lambda: Surface(np.full((3, 3), np.inf), [[0, 1, 2]]), 'finite'),
    (lambda: p2s(np.zeros((0, 3)), box()), 'another form'), (lambda: p2s([[0, 0, np.nan]], box()), 'finite'), (lambda: p2s([[0, 0]], box()), 'another form')])
def test_refused(call, words):
    with pytest.raises(XModSegError, match=words): call()

# ---- cleaning

def test_GEO_E2_is_the_median():
    for p in (.3, .5, .7):
        m = np.random.default_rng(int(10*p)).random((9, 14, 11)) < p
        assert (majority(m) == (median_filter(m.astype(np.uint8), 3, mode='nearest') == 1)).all()

def test_GEO_E2_thirteen_of_27_are_not_enough():
    m = np.zeros((3, 3, 3), bool); m.flat[:13] = True
    assert not majority(np.pad(m, 2))[3, 3, 3]
    m.flat[13] = True
    assert majority(np.pad(m, 2))[3, 3, 3]

def test_component_connects_corners_and_follows_the_seed():
    m = np.zeros((9, 9, 9), bool); m[:3, :3, :3] = m[3, 3, 3] = True; m[6:8, 6:8, 6:8] = True
    assert component(m).sum() == 28 and component(m)[3, 3, 3]
    assert component(m, (7, 7, 7)).sum() == 8 and component(m, (0, 0, 0)).sum() == 28
    seed = np.zeros_like(m); seed[3, 3, 3] = seed[6, 6, 6] = seed[5, 0, 0] = True
    assert component(m, seed).sum() == 36

def test_bone_mask_cleans_a_noisy_drifting_block():
    r = np.random.default_rng(0)
    truth = np.zeros((20, 20, 12), bool); truth[5:15, 6:16, 1:11] = True
    x = 300.*truth + np.linspace(0, 400, 12) + r.normal(0, 30, truth.shape); x[1, 1, 4] = 3000
    found = bone_mask(x[..., 1:11], hi=1500)
    assert 2*(found & truth[..., 1:11]).sum()/(found.sum() + truth.sum()) > .97 and not found[1, 1].any()

def test_GEO_E3_nearest_centre_in_mm():
    m = np.random.default_rng(0).random((7, 8, 9)) < .6
    a = np.array([[0, -2, 0, 5], [1.5, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1.]])
    centres = dict(low=(0, 2, 4), high=[(-2, 4, 20), (-8, 0, 22)], side=(-6, 7, 9))
    out = split_levels(m, centres, a)
    assert (out > 0).sum() == m.sum() and out.dtype == np.int16
    for v in np.argwhere(m):
        p = a[:3, :3] @ v + a[:3, 3]
        d = [np.linalg.norm(np.atleast_2d(c) - p, axis=1).min() for c in centres.values()]
        assert d[out[tuple(v)] - 1] == pytest.approx(min(d))

# ---- surfaces

def test_GEO_E4_box():
    b = box()
    assert (b.area, b.volume, b.closed) == (88., 48., True)
    assert Surface(b.points, b.faces[:, ::-1]).volume == -48 and not Surface(b.points, b.faces[1:]).closed
    assert not Surface(b.points, np.concatenate([b.faces[:-1], b.faces[-1:, ::-1]])).closed        # one triangle inside out
    assert box(at=(100, -50, 30)).volume == pytest.approx(48)

def test_GEO_E4_ball():
    s = ball()
    assert s.closed and s.area == pytest.approx(4*np.pi*144, rel=.01) and s.volume == pytest.approx(4/3*np.pi*1728, rel=.01)
    assert np.allclose(s.points.mean(0), (14.3, 15.8, 16.9), atol=.2)

def test_GEO_E4_closed_at_the_frame_on_any_mask():
    for seed in range(10):                                                 # noise touches itself along edges
        r = np.random.default_rng(seed)
        assert surface(r.random(r.integers(1, 7, 3)) < .6, (1, 1, 1)).closed
    assert surface(np.ones((3, 3, 3)), (1, 1, 1)).closed

def test_GEO_E4_affine_is_applied_and_mirrors_keep_fronts_outside():
    m = np.zeros((6, 7, 8)); m[2:5, 2:4, 3:7] = 1
    plain, r = surface(m, (1, 1, 1)), np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for A in (np.diag([2., 3, 4]), np.diag([-2., 3, 4]), r*[1.5, 1, 2], -r*[1.5, 1, 2]):
        a = np.eye(4); a[:3, :3], a[:3, 3] = A, (5, -6, 7)
        s = surface(m, a)
        assert s.volume == pytest.approx(plain.volume*abs(np.linalg.det(A))) and s.volume > 0 and s.closed
        assert np.allclose(s.points, plain.points @ A.T + (5, -6, 7), atol=1e-4)

def test_GEO_E4_an_affine_that_leads_nowhere_is_refused_and_a_small_voxel_is_not():
    m, a = np.pad(np.ones((1, 1, 1)), 2), np.diag([2., 2, 2, 1]); a[:3, 3] = 10, 20, 30
    flat = np.eye(4); flat[:3, :3] = np.arange(9.).reshape(3, 3)*300
    for bad in (a.T, np.diag([1., 1, 1, 2]), flat, np.diag([1., 0, 1, 1]), a[:3], (1, 1), (1, np.inf, 1)):
        for call in (lambda: surface(m, bad), lambda: split_levels(m, dict(a=(0, 0, 0)), bad)):
            with pytest.raises(XModSegError, match='no way from voxels'): call()
    assert np.allclose(surface(m, a).points.mean(0), (14, 24, 34))
    assert surface(m, (5e-4,)*3).volume == pytest.approx(surface(m, (1, 1, 1)).volume*5e-4**3)

def test_tensors_of_every_kind_are_read():
    v = torch.cat([torch.zeros(40), torch.ones(40)])
    for kind in (torch.bfloat16, torch.float16, torch.float64): assert otsu(v.to(kind)) == 1 == otsu(v.to(kind).requires_grad_())
    for kind in (torch.bfloat16, torch.float16, torch.bool): assert majority(torch.ones(3, 3, 3).to(kind)).all()
    assert majority(torch.ones(3, 3, 3).requires_grad_()).all() and surface(torch.ones(3, 3, 3).bfloat16(), torch.ones(3)).closed

def test_surface_does_not_change():
    p = np.array([[0., 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    s = Surface(p, [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    p[:] = 9
    assert s.volume == pytest.approx(1/6)
    for array in (s.points, s.faces, s.corners, s.normals):                # what the tree and the distances were made from stays what it was
        with pytest.raises(ValueError, match='read-only'): array[0] = 1
    assert s.moved(np.eye(3), (1, 2, 3)).volume == pytest.approx(1/6) and s.points[0, 0] == 0

# ---- distances

def test_GEO_E5_box_in_closed_form():
    p = np.random.default_rng(0).uniform(-6, 6, (5000, 3))
    assert np.allclose(box().nearest(p).distance, box_distance(p, (3, 2, 1)), atol=1e-12)

def test_GEO_E5_sphere_in_closed_form():
    s, p = ball(), (14.3, 15.8, 16.9) + np.random.default_rng(1).normal(0, 9, (1000, 3))
    assert abs(s.nearest(p).distance - abs(np.linalg.norm(p - (14.3, 15.8, 16.9), axis=1) - 12)).max() < .1
    assert s.nearest([[14.3, 15.8, 16.9]]).distance == pytest.approx([12], abs=.1)          # from the middle every triangle is a rival

@pytest.mark.parametrize('seed', range(12))
def test_GEO_E5_equals_every_triangle_also_where_they_are_slivers(seed):
    r = np.random.default_rng(seed)
    tri = r.normal(size=(40, 3, 3)); tri[:4, 2] = tri[:4, 1]; tri[4] = tri[4, 0]
    tri[5:12, 2] = tri[5:12, :2].mean(1) + 10.**-r.integers(3, 17, (7, 1))*r.normal(size=(7, 3))
    tri[12:20] *= 10.**r.integers(-4, 2, (8, 1, 1))
    s, p = Surface(tri.reshape(-1, 3), np.arange(120).reshape(-1, 3)), r.normal(0, 2, (60, 3))
    near = s.nearest(p)
    d = np.array([[one_triangle(x, *t) for t in tri] for x in p])
    assert np.allclose(near.distance, d.min(1), atol=1e-9)
    assert np.allclose(d[np.arange(60), near.face], near.distance, atol=1e-9)
    assert np.allclose(np.linalg.norm(near.points - p, axis=1), near.distance, atol=1e-12)

def test_GEO_E5_a_triangle_shrunk_to_a_line_is_its_edges():
    r = np.random.default_rng(0)
    a, u, p = r.normal(size=(3, 4000, 3))
    k = r.uniform(.1, 3, 4000)
    end = u*np.maximum(k, 1)[:, None]                                      # the longer of both edges holds the other
    t = np.clip(((p - a)*end).sum(1)/(end**2).sum(1), 0, 1)[:, None]
    assert np.allclose(_foot(p, a, u, u*k[:, None])[1], np.linalg.norm(p - a - t*end, axis=1), atol=1e-6)

def test_GEO_E5_memory_is_bounded_where_every_triangle_is_a_rival(monkeypatch):
    d = np.linalg.norm(np.indices((38,)*3).T - 18.5, axis=-1).T
    s, asked, real = surface(np.clip(.5 - (d - 15)/4, 0, 1), (1, 1, 1)), [], geometry._rivals
    monkeypatch.setattr(geometry, '_rivals', lambda index, p, best: asked.append(len(p)) or real(index, p, best))
    r = np.random.default_rng(0)
    middle, skin = 18.5 + r.normal(0, .1, (700, 3)), s.points[:1500]
    out = s.nearest(middle)
    assert len(s.faces)*700 > 5e6 and sum(asked) == 700 and max(asked)*len(s.faces) < 4.5e6
    a, u, v = s.corners[:, 0], s.corners[:, 1] - s.corners[:, 0], s.corners[:, 2] - s.corners[:, 0]
    assert np.allclose(out.distance[::70], [_foot(p[None], a, u, v)[1].min() for p in middle[::70]], atol=1e-9)
    asked.clear(); assert s.nearest(skin).distance.max() < 1e-9 and asked == [1024, 476]           # the rule: whole blocks

def test_GEO_E5_zero_on_the_surface_and_moves_with_it():
    s, r = ball(), np.random.default_rng(0)
    w = r.dirichlet((1, 1, 1), 3000)
    p = np.einsum('nk,nkd->nd', w, s.corners[r.integers(0, len(s.faces), 3000)])
    assert s.nearest(p).distance.max() < 1e-7
    R = np.linalg.qr(r.normal(size=(3, 3)))[0]
    q = p + r.normal(0, 3, p.shape)
    assert np.allclose(s.moved(R, (1, 2, 3)).nearest(q @ R.T + (1, 2, 3)).distance, s.nearest(q).distance, atol=1e-9)

def test_GEO_E6_is_a_mean_and_never_that_of_the_corners():
    assert p2s([[0, 0, 3], [0, 5, 0]], box()) == 2.5
    s, r = ball(), np.random.default_rng(0)
    p = s.corners.mean(1) + r.normal(0, .3, (len(s.faces), 3))
    corners = cKDTree(s.points).query(p)[0].mean()
    assert p2s(p, s) < .7*corners

def test_files_are_read_back(tmp_path):
    s = ball(6.)
    s.save(tmp_path/'new'/'a.stl'); s.save(tmp_path/'a.PLY')
    raw = (tmp_path/'new'/'a.stl').read_bytes()
    f = np.frombuffer(raw[84:], [('n', '<f4', 3), ('c', '<f4', (3, 3)), ('x', '<u2')])
    assert np.allclose(np.linalg.norm(f['n'], axis=1), 1, atol=1e-6) and np.allclose(np.cross(f['n'], s.normals), 0, atol=1e-5) and ((f['n']*s.normals).sum(1) > 0).all()
    assert len(raw) == 84 + 50*len(s.faces) and int.from_bytes(raw[80:84], 'little') == len(f) and np.allclose(f['c'], s.corners, atol=1e-5)
    head, body = (tmp_path/'a.PLY').read_bytes().split(b'end_header\n', 1)
    n = len(s.points)
    assert f'element vertex {n}'.encode() in head and f'element face {len(s.faces)}'.encode() in head
    assert (np.frombuffer(body[:24*n], '<f8').reshape(-1, 3) == s.points).all()
    faces = np.frombuffer(body[24*n:], [('n', 'u1'), ('i', '<i4', 3)])
    assert (faces['n'] == 3).all() and (faces['i'] == s.faces).all()
    with pytest.raises(XModSegError, match='.stl or .ply'): s.save(tmp_path/'a.vtk')

# ---- edges of the contract

def test_levels_that_share_a_place_are_named_and_a_level_may_repeat_a_point():
    m = np.ones((8, 8, 8))
    with pytest.raises(XModSegError, match='T1, L2'): split_levels(m, dict(T1=(1., 1, 1), T2=(5., 5, 5), L2=[(7., 7, 7), (1., 1, 1)]), np.eye(4))
    twice = split_levels(m, dict(T1=[(1., 1, 1), (1., 1, 1)], T2=(5., 5, 5)), np.eye(4))
    assert (twice == split_levels(m, dict(T1=(1., 1, 1), T2=(5., 5, 5)), np.eye(4))).all()

def test_a_probability_just_at_the_level_leaves_no_hole():
    for seed in range(10):
        p = np.random.default_rng(seed).choice([0, .25, .5, .75, 1.], (9, 9, 9))
        assert surface(p, np.eye(4)).closed

def test_rounding_is_no_contrast():
    rng = np.random.default_rng(0)
    assert np.isnan(otsu(-124 + 2e-4*rng.random(500))) and 0 < otsu(1 + 1e-3*rng.random(500)) < 2

def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(XModSegError, match='cannot write'): surface(np.ones((3, 3, 3)), np.eye(4)).save(tmp_path/'file'/'a.stl')
