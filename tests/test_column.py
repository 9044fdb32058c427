"One crooked column: its angle, its landmarks, its echoes, and how a volume is made ready for a net. Numbers in names are rows of the fault table."
import numpy as np
import pytest
import torch
from xmodseg.column import (PERCENT, PLACES, _around, _rays, bent, cobb_angle, digitise, fat_share, find_bone, intensity_range, landmarks, pad_to, render_echo, spoiled_echo, stretch, turned, up_axis)
from xmodseg.core import Bag, XModSegError
from xmodseg.implicit import LABELS, LEVELS, draw_params, spine, vertebra_sdf
from xmodseg.phantom import patient, render_mr
from xmodseg.volume import Volume, unwindow

def near(a, b, tol): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=tol)
def refuses(words, call):
    with pytest.raises(XModSegError, match=words) as e: call()
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)

@pytest.fixture(scope='module')
def who():
    c = np.stack([v.centre_mm - 20*v.axes[:, 1] for v in spine(draw_params(4, cobb=50.))])
    return patient(4, (52, 44, 172), 3., (c.min(0) + c.max(0))/2, cobb=50.)

@pytest.fixture(scope='module')
def lying(who): return {v.name: landmarks(v) for v in who.vertebrae}

# ---- the angle

@pytest.mark.parametrize('cobb', [0., 15., 45., 70.])
def test_COLUMN_E1_the_built_spine_has_the_angle_asked_for(cobb):
    for seed in range(6): near(cobb_angle({v.name: v.axes[:, 2] for v in spine(draw_params(seed, cobb=cobb))}).degrees, cobb, 1e-9)

@pytest.mark.parametrize('seed, cobb', [(0, 70.), (7, 25.)])
def test_COLUMN_E1_landmarks_alone_say_the_same(seed, cobb):
    near(cobb_angle({v.name: up_axis(landmarks(v)) for v in spine(draw_params(seed, cobb=cobb))}).degrees, cobb, 1e-5)

def test_COLUMN_E1_and_so_do_planes_through_voxels(who):
    disc, ups = who.labels.data == LABELS['disc'], {}
    def normal(p):
        n = np.linalg.svd(p - p.mean(0), full_matrices=False)[2][2]
        return n*np.sign(n[2])
    for n in LEVELS:
        faces = [np.argwhere((who.labels.data == LABELS[n]) & np.roll(disc, -s, 2))*3. for s in (1, -1)]
        ups[n] = sum(normal(f) for f in faces if len(f) > 12)
    seen, true = cobb_angle(ups), cobb_angle({v.name: v.axes[:, 2] for v in who.vertebrae})
    assert abs(seen.degrees - 50) < 2.5 and abs(LEVELS.index(seen.upper) - LEVELS.index(true.upper)) <= 1

def test_COLUMN_E1_end_vertebrae_come_from_the_top_and_length_does_not_matter():
    tilt = lambda d, k=1.: k*np.array([np.sin(np.radians(d)), .3, np.cos(np.radians(d))])
    r = cobb_angle(dict(T4=tilt(5), T8=tilt(-20, 3.), L1=tilt(17, .2)))
    assert (r.upper, r.lower) == ('T8', 'L1'); near(r.degrees, 37, 1e-9)
    refuses('two levels', lambda: cobb_angle({}))
    for wrong in ((0, 0, -1.), (.5, 0, -1), (np.nan, 0, 1), (np.inf, 0, 1), (0, 0, 0), (1., 0, 0), (0, 1)): refuses('do not point up: found T8', lambda: cobb_angle(dict(T4=tilt(5), T8=wrong, L1=tilt(17))))

@pytest.mark.parametrize('seed', [1, 2, 6])
def test_a_curve_turns_about_the_own_axis_too_and_to_the_other_side(seed):
    p = draw_params(seed, cobb=60., rotation=.5)
    v = spine(p)[int(round(p.apex))]
    coronal, sagittal = np.arctan2(v.axes[0, 2], v.axes[2, 2]), np.arcsin(v.axes[1, 2])
    near(np.degrees(np.arcsin(v.axes[1, 0]/np.cos(sagittal))), -30*p.side, 6); assert abs(np.degrees(coronal)) < 12

# ---- landmarks

def test_COLUMN_E2_74_named_places_on_the_surface(who, lying):
    assert len(PLACES) == len(set(PLACES)) == 74
    for v in who.vertebrae:
        assert lying[v.name].shape == (74, 3)
        assert vertebra_sdf(v, list(torch.from_numpy(lying[v.name].T)))[0].abs().max() < 2e-6

def test_COLUMN_E2_every_ray_starts_in_bone_and_ends_where_it_first_leaves_it():
    for seed in (0, 3):
        for v in spine(draw_params(seed, cobb=70.))[::4]:
            q, o = landmarks(v), v.centre_mm + np.stack([r[1] for r in _rays(v)]) @ v.axes.T
            u = np.linspace(0, .999, 40)[:, None, None]
            assert vertebra_sdf(v, list(torch.from_numpy(np.moveaxis(o + u*(q - o), -1, 0))))[0].max() < 0

@pytest.mark.parametrize('anatomy', [dict(size=2.), dict(size=.6), dict(cobb=90.)])
def test_COLUMN_E2_large_and_small_patients_too(anatomy):
    for v in spine(draw_params(0, **anatomy))[::8]: assert vertebra_sdf(v, list(torch.from_numpy(landmarks(v).T)))[0].abs().max() < 1e-5

def test_COLUMN_E2_a_ray_that_leaves_nothing_is_named():
    v = spine(draw_params(0))[16]
    refuses('do not leave the bone: found .* at level L5', lambda: landmarks(Bag(v, size=tuple(9*s for s in v.size))))       # the far side is beyond 90 mm
    refuses('do not leave the bone', lambda: landmarks(Bag(v, wedge=3.)))                                              # no body left where rays start

def test_COLUMN_E2_names_say_where():
    v = spine(draw_params(2, cobb=0., rotation=0.))[8]
    own = dict(zip(PLACES, (landmarks(v) - v.centre_mm) @ v.axes))
    assert own['upper plate 16'][2] > 5 > -5 > own['lower plate 16'][2]
    assert own['transverse tip right'][0] > 20 and own['transverse tip left'][0] < -20      # x runs to the right
    assert own['spinous tip'][1] < own['lamina inner right'][1] < own['back wall high'][1] < 0
    assert own['upper_facet top left'][2] > own['lower_facet below left'][2]
    for n, q in own.items():
        if n.endswith('right') and n.replace('right', 'left') in own: near(own[n.replace('right', 'left')], q*(-1, 1, 1), 1e-5)

def test_COLUMN_E2_landmarks_ride_on_their_vertebra(who, lying):
    v = who.vertebrae[3]
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.]])
    near(landmarks(Bag(v, centre_mm=turn @ v.centre_mm + 5, axes=turn @ v.axes)), lying[v.name] @ turn.T + 5, 1e-5)

def test_up_axis_refuses_other_points(): refuses('landmarks of one vertebra', lambda: up_axis(np.zeros((73, 3))))

# ---- standing

def test_COLUMN_E3_a_level_moves_as_one_piece_and_the_motion_is_told(lying):
    d = digitise(lying, 5, noise=0.)
    assert list(d.points) == list(lying)
    for n, q in lying.items():
        m = d.motion[n]
        near(q @ m[:3, :3].T + m[:3, 3], d.points[n], 1e-9); near(m[:3, :3] @ m[:3, :3].T, np.eye(3), 1e-9); assert np.linalg.det(m) > 0

def test_COLUMN_E3_what_is_above_rides_on_what_is_below(lying):
    "Slips add up to a walk whose steps are alike; turns at the top are larger than at the bottom."
    d = digitise(lying, 5, turn=0., noise=0.)
    shift = {n: d.motion[n][:3, 3] for n in lying}
    steps = np.array([shift[LEVELS[k]] - shift[LEVELS[k + 1]] for k in range(16)])
    assert .6 < steps.std() < 1.4                                           # 1 mm a joint
    assert np.mean([np.linalg.norm(digitise(lying, s, noise=0.).motion['T1'][:3, :3] - np.eye(3)) for s in range(12)]) > \
           1.8*np.mean([np.linalg.norm(digitise(lying, s, noise=0.).motion['L4'][:3, :3] - np.eye(3)) for s in range(12)])

def test_COLUMN_E3_a_level_turns_about_its_own_middle(lying):
    d, at = digitise(lying, 6, shift=0., noise=0.), lambda m, q: m[:3, :3] @ q + m[:3, 3]
    for n, below in zip(LEVELS, LEVELS[1:]): near(at(d.motion[n], lying[n].mean(0)), at(d.motion[below], lying[n].mean(0)), 1e-9)

def test_COLUMN_E3_spreads_are_what_was_asked(lying):
    still = digitise(lying, 1, turn=0., shift=0., noise=.8).points
    assert abs(np.std([still[n] - lying[n] for n in lying]) - .8) < .04
    joint = lambda m, k: np.linalg.inv(m[LEVELS[k + 1]]) @ m[LEVELS[k]]
    angles = [np.degrees(np.arccos(np.clip((np.trace(joint(digitise({n: lying[n][:4] for n in lying}, s, turn=3., noise=0.).motion, k)[:3, :3]) - 1)/2, -1, 1))) for s in range(25) for k in range(16)]
    near(np.sqrt(np.mean(np.square(angles))), 3*np.sqrt(3), .4)
    near(digitise(lying, 9).points['L2'], digitise(lying, 9).points['L2'], 0); assert not np.array_equal(digitise(lying, 9).points['L2'], digitise(lying, 8).points['L2'])

@pytest.mark.parametrize('bad', [np.zeros((0, 3)), np.zeros((74, 2)), np.full((74, 3), np.nan)])
def test_COLUMN_E3_a_level_without_landmarks_is_named(lying, bad):
    refuses('no landmarks: found T9', lambda: digitise(dict(lying, T9=bad), 0))
    refuses('no landmarks: found 9', lambda: digitise({9: bad}, 0)); refuses('not negative', lambda: digitise(lying, 0, noise=float('nan')))
    refuses('no levels', lambda: digitise({}, 0)); refuses('not negative', lambda: digitise(lying, 0, shift=-1.))

# ---- echoes

def test_COLUMN_E4_steady_state_is_where_pulses_lead():
    m, t1, tr, flip = 0., 700., 12., np.radians(14)
    for _ in range(3000): m = 1 - (1 - m*np.cos(flip))*np.exp(-tr/t1)
    near(m*np.sin(flip)*np.exp(-4/40), spoiled_echo(1., t1, 40., tr, 4., 14.), 1e-9)
    near(spoiled_echo(.7, 900, 1e9, 1e7, 0., 90.), .7, 1e-9); assert spoiled_echo(1., 260, 60, 10., 4., 10.) > spoiled_echo(1., 900, 60, 10., 4., 10.)

def test_COLUMN_E5_water_and_fat_add_up_and_cancel(who):
    p = {k: render_echo(who, k, noise=0., bias=0.).data for k in ('water', 'fat', 'echo', 'opposed')}
    of = lambda k, organ: float(np.median(p[k][who.labels.data == LABELS[organ]]))
    assert of('water', 'fat') < .15*of('echo', 'fat') and of('opposed', 'T12') < .6*of('echo', 'T12') and of('fat', 'disc') < .1*of('echo', 'disc')
    for organ in ('muscle', 'disc', 'fat'): near((of('water', organ) + of('fat', organ))/of('echo', organ), 1, .06)
    near(abs(of('fat', 'fat') - of('water', 'fat'))/of('opposed', 'fat'), 1, .06)

def test_COLUMN_E5_bone_is_dark_and_spin_echoes_are_chapter_11s(who):
    assert np.array_equal(render_echo(who, 't1', 3).data, render_mr(who, 't1', 3).data)
    assert np.array_equal(render_echo(who, 't2', 3, .1, 40.).data, render_mr(who, 't2', 3, .1, 40.).data)       # bias and noise arrive
    assert not np.array_equal(render_echo(who, 't1', 3, noise=0.).data, render_echo(who, 't1', 3).data)
    for change in (dict(tr=1.), dict(te=50.), dict(flip=90.)):
        refuses('its own timing: found ' + next(iter(change)), lambda: render_echo(who, 't1', **change))
        assert not np.array_equal(render_echo(who, 'water', 3, **change).data, render_echo(who, 'water', 3).data)
    assert np.array_equal(render_echo(who, 'water', 3).data, render_echo(who, 'water', 3, noise=2.5, tr=10., te=4.6, flip=10.).data)
    refuses('flp', lambda: render_echo(who, 'water', flp=10.))
    x = render_echo(who, 'water', 1)
    assert np.array_equal(x.data, render_echo(who, 'water', 1).data) and not np.array_equal(x.data, render_echo(who, 'water', 2).data)
    assert x.data.min() >= 0 and x.axes == 'RAS' and fat_share(Bag(bone=.4))['trabecular'] > fat_share(Bag(bone=1.6))['trabecular'] >= .25
    refuses('no such kind of MR', lambda: render_echo(who, 'flair'))

# ---- ready for a net

def image(data, affine=np.diag([2., 1, 1, 1])): return Volume(np.asarray(data, np.float32), affine)

def test_COLUMN_E6_percentiles_become_plus_and_minus_one():
    v = image(np.arange(10_000).reshape(20, 20, 25))
    near(intensity_range(v, 'mr'), np.percentile(np.arange(10_000), (.1, 99.9)), 1e-3); near(intensity_range(v, 'ct'), np.percentile(np.arange(10_000), (.5, 99.5)), 1e-3)
    x = stretch(v, 'ct')
    assert abs((x.data <= -1 + 1e-6).mean() - .005) < 2e-4 and abs((x.data >= 1 - 1e-6).mean() - .005) < 2e-4
    assert intensity_range(v, 'ct', 5000.) == pytest.approx((5000., intensity_range(v, 'ct')[1])) and np.mean(stretch(v, 'ct', 5000.).data == -1) == pytest.approx(.5001, abs=1e-3)
    near(unwindow(x.data, *intensity_range(v, 'ct')).ravel()[100:-100], v.data.ravel()[100:-100], 1e-2)
    assert PERCENT == dict(mr=(.1, 99.9), ct=(.5, 99.5))

def test_COLUMN_E6_30_orientation_is_read_from_the_affine():
    d = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    flips = np.array([[-1, 0, 0, 5.], [0, -1, 0, 6], [0, 0, 1, 0], [0, 0, 0, 1]])
    ras = image(d)
    lps = Volume(d[::-1, ::-1].copy(), ras.affine @ flips)
    assert lps.axes == 'LPS' and stretch(lps, 'mr').axes == 'RAS' and np.array_equal(stretch(lps, 'mr').data, stretch(ras, 'mr').data)

def test_COLUMN_E6_11_13_holes_and_flat_scans_are_refused():
    d = np.random.default_rng(0).normal(size=(6, 6, 6)); d[0, 0, 0] = np.inf
    refuses('found 1 voxels', lambda: stretch(image(d), 'mr')); refuses('without contrast', lambda: stretch(image(np.ones((5, 5, 5))), 'ct')); refuses('no such modality', lambda: stretch(image(d), 'xr'))

@pytest.mark.parametrize('shape', [(25, 153, 296), (16, 32, 48), (1, 2, 3), (17, 31, 33)])
@pytest.mark.parametrize('divisor', [1, 8, 16, (4, 16, 8)])
def test_COLUMN_E7_34_padded_and_cropped_back_exactly(shape, divisor):
    x = torch.randn(1, 1, *shape)
    big, back = pad_to(x, divisor)
    want = [-(-n//d)*d for n, d in zip(shape, np.broadcast_to(divisor, 3))]
    assert list(big.shape[2:]) == want and torch.equal(back(big), x) and torch.equal(back(big.expand(-1, 3, -1, -1, -1))[:, 2:], x)

def test_COLUMN_E7_a_volume_stays_in_its_place_and_edges_repeat():
    v = Volume(np.random.default_rng(1).normal(size=(5, 9, 12)), np.array([[0, 2., 0, 3], [3, 0, 0, -4], [0, 0, 1, 7], [0, 0, 0, 1]]))
    big, back = pad_to(v, 8)
    assert big.shape == (8, 16, 16) and np.array_equal(back(big).data, v.data) and np.array_equal(big.data[0, 3:12, 2:14], v.data[0])
    near(back(big).affine, v.affine, 1e-12); near(big.affine @ [1, 3, 2, 1], v.affine @ [0, 0, 0, 1], 1e-12)
    y = Volume(np.arange(60).reshape(3, 4, 5) % 4, np.eye(4), 'label')
    assert np.array_equal(pad_to(y, 4)[1](pad_to(y, 4)[0]).data, y.data) and pad_to(y, 4)[0].kind == 'label'
    refuses('divisor=0', lambda: pad_to(v, 0))

def test_COLUMN_E7_planes_too():
    x = torch.randn(2, 1, 30, 47)
    big, back = pad_to(x, 16)
    assert big.shape == (2, 1, 32, 48) and torch.equal(back(big), x)

# ---- turned and bent

def test_COLUMN_E8_a_quarter_turn_takes_right_to_front():
    d = np.zeros((11, 11, 11), np.float32); d[9, 5, 5] = 1
    assert np.unravel_index(turned(d, (2, 2, 2), (0, 0, np.pi/2)).argmax(), d.shape) == (5, 9, 5)
    assert np.unravel_index(turned(d, (2, 2, 2), (0, np.pi/2, 0)).argmax(), d.shape) == (5, 5, 1)      # right goes down
    near(turned(d, (1, 2, 3), (0, 0, 0)), d, 1e-5)

def test_COLUMN_E8_thick_voxels_keep_millimetres():
    spacing, shape = np.array([4., 1., 2.]), (28, 96, 40)
    mm = (np.indices(shape).transpose(1, 2, 3, 0) - (np.array(shape) - 1)/2)*spacing
    blob = np.exp(-((mm - (24, 0, 0))**2).sum(-1)/2/5**2).astype(np.float32)
    out = turned(blob, tuple(spacing), (0, 0, np.radians(50)))
    near((mm*out[..., None]).sum((0, 1, 2))/out.sum(), (24*np.cos(np.radians(50)), 24*np.sin(np.radians(50)), 0), .3)

def test_COLUMN_E9_a_constant_offset_is_a_shift_in_mm():
    x, shift = np.random.default_rng(0).normal(size=(9, 12, 10)).astype(np.float32), np.zeros((3, 3, 3, 3))
    near(bent(x, (2., 3., 4.), shift), x, 1e-4)
    shift[1] = 6.
    near(bent(x, (2., 3., 4.), shift)[:, :-2], x[:, 2:], 1e-4)

def test_COLUMN_E9_control_points_are_hit_and_the_field_is_smooth():
    ramp = np.broadcast_to(np.arange(41, dtype=np.float32)[:, None, None], (41, 21, 21)).copy()
    d = np.zeros((3, 3, 3, 3)); d[0, 1, 1, 1] = 5.
    out = bent(ramp, (2., 2., 2.), d) - ramp                              # displacement along x, in voxels
    near(out[20, 10, 10], 2.5, 1e-3); near(out[0], 0, 1e-3); near(out[:, 0], 0, 1e-3)
    assert np.abs(np.diff(out[:, 10, 10], 2)).max() < .02                   # a spline, no kink

def test_81_without_monai_the_feature_says_what_to_install(monkeypatch):
    import builtins
    real = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', lambda n, *a, **k: (_ for _ in ()).throw(ImportError(n)) if n.split('.')[0] == 'monai' else real(n, *a, **k))
    refuses('pip install', lambda: turned(np.zeros((4, 4, 4), np.float32), (1, 1, 1), (0, 0, 1)))

def test_arrays_that_run_backwards_and_masks_are_taken_as_they_are():
    v = Volume(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32), np.diag([-1., -1, 1, 1])).to_ras()
    flat = np.ascontiguousarray(v.data)
    near(turned(flat[::-1, ::-1], (1, 1, 1), (0, 0, .1)), turned(flat[::-1, ::-1].copy(), (1, 1, 1), (0, 0, .1)), 0)
    near(bent(flat[::-1], (1, 1, 1), np.zeros((3, 3, 3, 3))), flat[::-1], 1e-5)
    m = torch.rand(1, 1, 5, 6, 7) > .5
    big, back = pad_to(m, 4)
    assert big.dtype == torch.bool and big.shape[2:] == (8, 8, 8) and torch.equal(back(big), m) and torch.equal(big[:, :, 0], big[:, :, 1])

# ---- bone

def ball(c, r, n=48): return ((np.stack(np.indices((n,)*3), -1) - c)**2).sum(-1) < r*r
centres = dict(L1=(24., 24., 35.), L2=(24., 24., 12.))
two = ball((24, 24, 35), 10) | ball((24, 24, 12), 10)

def test_bone_is_what_touches_a_centre_or_is_largest():
    extra = two | ball((8, 8, 24), 5)
    v = Volume(np.where(extra, 500., 30.), np.eye(4))
    near, largest = find_bone(v, centres=centres), find_bone(v)
    assert near.kind == 'label' and near.shape == v.shape and not near.data[8, 8, 24] and near.data[24, 24, 12] and near.data[24, 24, 35]
    assert largest.data.sum() < .6*near.data.sum()
    with pytest.raises(XModSegError, match='no bone near a level'): find_bone(v, centres=dict(L1=(1., 46., 1.)))
    refuses('no level has a centre', lambda: find_bone(v, centres={}))
    refuses('the centre of L1 must be finite', lambda: find_bone(v, centres=dict(L1=(24., np.nan, 35.))))
    refuses('the centre of L1', lambda: find_bone(v, centres=dict(L1=(24., 35.))))
    several = find_bone(v, centres=dict(L1=[(24., 24., 35.), (8., 8., 24.)], L2=(24., 24., 12.)))   # several points of one level
    assert several.data[8, 8, 24] and several.data[24, 24, 12]

def test_near_a_centre_is_measured_in_mm_and_only_in_bone():
    "12 mm are four thick voxels; a large scan with little bone costs as much as its bone."
    import tracemalloc
    m = np.zeros((20, 20, 20), bool); m[2:4, 10, 10] = m[8, 10, 10] = m[17, 10, 10] = True
    a = np.diag([3., 1, 1, 1.]); a[:3, 3] = 100, 0, 0
    assert (np.argwhere(_around(m, a, dict(L1=(113., 10, 10)))) == [(2, 10, 10), (3, 10, 10), (8, 10, 10)]).all()
    big = np.zeros((256, 256, 256), bool); big[100:110, 100:110, 100:110] = True
    tracemalloc.start(); _around(big, np.eye(4), dict(L1=(105., 105, 105))); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 100e6

def test_the_majority_vote_needs_fine_voxels():
    sheet = np.full((40, 40, 40), 30.); sheet[20:22, 5:35, 5:35] = 500.; sheet[19, 10, 10] = 500.
    assert find_bone(Volume(sheet, np.diag([1., 1, 1, 1]))).data[19, 10, 10] == 0 and find_bone(Volume(sheet, np.diag([3., 3, 3, 1]))).data[19, 10, 10] == 1

def test_only_the_range_votes():
    rng = np.random.default_rng(0)
    x = np.where(two, 300., 40.) + rng.normal(0, 5, two.shape); x[:, :8] = -1000.
    assert find_bone(Volume(x, np.eye(4)), centres=centres).data.mean() > .3 and abs(find_bone(Volume(x, np.eye(4)), lo=-50., centres=centres).data[:, :, 30:40].sum()/two[:, :, 30:40].sum() - 1) < .1

def test_slices_that_differ_by_rounding_alone_hold_no_bone():
    "Blending of blocks leaves a few parts in ten million behind; Otsu would call half of them bone."
    x = np.where(two, 300., -124.).astype(np.float32)
    flat = ~two.any((0, 1)); assert flat.sum() > 4
    x *= 1 + 4e-7*np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    assert np.ptp(x[:, :, flat]) > 0
    got = find_bone(Volume(x, np.eye(4)), centres=centres)
    assert not got.data[:, :, flat].any() and got.data.sum() > .9*two.sum()
    refuses('no slice has contrast', lambda: find_bone(Volume(x[:, :, flat][..., :4], np.eye(4))))
