"Each effect of a scan against a closed form or a limit."
import math, time
import numpy as np
import pytest, torch
from xmodseg.cbct import (AIR, MU, MU_WATER, cbct, cylinder, detect, field_of_view, hu_to_mu, mu_to_hu, polychromatic,
    random_cbct_settings, scan, scattered, screws, split, truncate, water_correction)
from xmodseg.cbct import _moved, _with_metal
from xmodseg.core import XModSegError
from xmodseg.phantom import patient, vertebra_mask
from xmodseg.rays import Fan, disc, project, reconstruct
from xmodseg.volume import Volume

g = Fan((64, 64), (3., 3.), views=80)
d = disc(g, 70.)*MU_WATER
p = project(d[None], g)
close = torch.testing.assert_close

def ct(slices=2, n=64, spacing=3., bone=False): # a cylinder of water in air
    f = Fan((n, n), (spacing, spacing))
    a = disc(f, 70.)*1000 - 1000
    if bone: a = a + 800*(disc(f, 10., 35.) + disc(f, 10., -35.))
    return Volume(a[..., None].repeat(1, 1, slices).numpy(), np.diag([spacing, spacing, 4., 1.]), name='tube')

ideal = dict(dose=math.inf, scatter=0., hardening=0.)

def test_CBCT_E1_one_energy_is_linear():
    L = torch.linspace(0, 10, 40)
    close(polychromatic(dict(water=L, bone=.5*L, titanium=.1*L), 0.), 1.6*L)

def test_CBCT_E1_thin_and_thick_limits():
    mean = sum(w*m for w, m in zip((.2, .4, .25, .15), MU['bone']))/MU['bone'][1]
    close(float(polychromatic(dict(bone=torch.tensor(1e-3, dtype=torch.float64))))/1e-3, mean, rtol=2e-3, atol=0)
    a, b = polychromatic(dict(water=torch.tensor([1e3, 2e3])))
    close(float(b - a), 1e3*MU['water'][3]/MU_WATER, rtol=1e-3, atol=0)

def test_CBCT_E1_correction_is_right_for_water_and_wrong_behind_bone():
    L = torch.linspace(0, 12, 50)
    close(water_correction(polychromatic(dict(water=L))), L, rtol=1e-3, atol=2e-3)
    close(water_correction(L, 0.), L, rtol=1e-4, atol=1e-3)
    assert water_correction(polychromatic(dict(water=L[30:], bone=L[30:]/2))).lt(1.5*L[30:] - .3).all()

def test_CBCT_E1_split_adds_up():
    hu = torch.tensor([-1000., -500., 0., 100., 101., 900., 1935., 3000.])
    w, b = split(hu)
    close(w + b, hu_to_mu(hu)); close(mu_to_hu(w + b), hu, rtol=1e-4, atol=.01)
    assert (b[:4] == 0).all() and (b[4:] > 0).all() and (w >= -1e-6).all() and hu_to_mu(torch.tensor(-3000.)) == 0

def test_CBCT_E1_hardening_darkens_between_bones():
    a, b = [cbct(ct(1, bone=True), math.inf, 0., h).data for h in (0., 1.)]
    assert b[30:34, 30:34].mean() < a[30:34, 30:34].mean() - 3            # the band between two rods
    assert b[42:45, 31:33].mean() < a[42:45, 31:33].mean() - 50           # and the rods themselves

@pytest.mark.parametrize('r', [.1, .7])
def test_CBCT_E2_a_slab_falls_by_the_log_of_one_plus_ratio(r):
    s = torch.full((4, 3, 50), 3.)
    close(s - detect(s, math.inf, scattered(s, r)), torch.full_like(s, math.log(1 + r)), rtol=1e-4, atol=1e-4)

def test_CBCT_E2_cup_and_lost_contrast():
    dark = cbct(ct(1), math.inf, .2, 0.).data[:, :, 0]
    ring = ((disc(g, 62.) == 1) & (disc(g, 52.) == 0)).numpy()
    assert dark[30:34, 30:34].mean() < dark[ring].mean() - 20 and dark[30:34, 30:34].mean() < -40
    assert scattered(torch.zeros(1, 2, 9), .3).abs().max() == 0

def test_CBCT_E3_variance_is_one_over_the_count():
    rng = torch.Generator().manual_seed(3)
    for level, dose in ((1., 1e3), (3., 1e4)):
        m = detect(torch.full((1, 250, 250), level), dose, rng=rng)
        close(float(m.var())*dose*math.exp(-level), 1., atol=.05, rtol=0)
    assert abs(float(detect(torch.full((1, 5, 5), 90.), 1e3, rng=rng).mean()) - math.log(1e3)) < 1e-4

def test_CBCT_E4_truncation():
    keep, seen = field_of_view(g, 90.)
    q, cut = truncate(p, keep), (g.bins - keep)//2
    assert torch.equal(q[..., cut:-cut], p[..., cut:-cut]) and (q[..., 0] < 1e-5).all() and (q[..., cut-1] > 0).all()
    assert field_of_view(g)[0] == g.bins and field_of_view(g)[1].all() and torch.equal(truncate(p, g.bins), p)
    v = cbct(ct(1), **ideal, fov_mm=90.).data[:, :, 0]
    assert (v[~seen.numpy()] == AIR).all() and (v[seen.numpy()] > -500).all()

def test_ideal_scan_is_projection_and_centre_is_water():
    close(scan(dict(water=d[None]), g, **ideal), p, rtol=1e-3, atol=2e-3)
    for h in (0., 1.): assert abs(cbct(ct(), math.inf, 0., h).data[30:34, 30:34].mean()) < 10
    assert abs(cbct(ct(3, 40, 4.5), **ideal, beam='cone', views=60).data[18:22, 18:22].mean()) < 15

def test_half_the_noise_for_four_times_the_dose():
    a, b = [cbct(ct(), v, 0.).data[24:40, 24:40].std() for v in (1e4, 4e4)]
    assert 1.7 < a/b < 2.3

def test_seed_is_the_scan():
    kw = dict(dose=1e4, motion=4.)
    a, b, c = [cbct(ct(), seed=s, **kw).data for s in (1, 1, 2)]
    assert np.array_equal(a, b) and not np.array_equal(a, c)

def test_motion_spares_the_views_before_it():
    off = dict(water=disc(g, 12., 40., 10.)[None]*MU_WATER)
    a, b = [scan(off, g, **ideal, motion=m, rng=torch.Generator().manual_seed(0)) for m in (0., 9.)]
    change = (a - b).abs().amax((0, 2))
    assert change[:15].max() < 1e-4 and change[-15:].max() > .02

def test_the_patient_moves_where_the_shift_points():
    f = Fan((64, 48), (3., 4.))
    x = disc(f, 15., -10., 5.)[None]
    y = _moved(x, (12., -8.), f)[0]
    for a, want in ((0, 2.), (1, -3.)): close(float((y.sum(1-a)*f.axis(a)).sum()/y.sum()), want, atol=.2, rtol=0)

def test_titanium_displaces_tissue():
    mu = _with_metal(dict(water=torch.tensor([.02, .02]), bone=torch.tensor([.01, .01])), torch.tensor([1., .5]))
    close(sum(mu.values()), torch.tensor([MU['titanium'][1], .015 + MU['titanium'][1]/2]))

def test_numbers_are_scaled_and_shifted():
    a, b = cbct(ct(1), **ideal), cbct(ct(1), **ideal, scale=.9, offset=25.)
    np.testing.assert_allclose(b.data[32, 32], .9*a.data[32, 32] + 25, atol=.05)
    assert b.shape == a.shape and np.array_equal(b.affine, a.affine) and b.data.dtype == np.float32

def test_metal_is_where_it_was_put_and_streaks():
    rods = [((20., 96., 4.), (50., 96., 4.), 3.), ((140., 96., 4.), (170., 96., 4.), 3.)]
    m = cylinder((64, 64, 2), ct().affine, rods[0])
    assert m[12, 32, 1] > .9 and m[12, 20].max() == 0 and m[25, 32].max() == 0
    a, b = cbct(ct(), dose=1e5, scatter=0.), cbct(ct(), dose=1e5, scatter=0., metal=rods)
    assert b.data[12, 32, 1] > 2000 and b.data[30:34, 31:34, 1].mean() < a.data[30:34, 31:34, 1].mean() - 20

def test_screws_in_pairs_from_behind():
    y = np.zeros((40, 40, 10), 'int16'); y[15:25, 15:25] = 3
    rods = screws(Volume(y, np.diag([2., 2., 3., 1.]), 'label'), 2)
    assert len(rods) == 2 and all(a[1] < 39 < b[1] and a[2] == b[2] for a, b, r in rods)      # one block is one vertebra, its middle at (39, 39)
    (l, m, _), (r, s, _) = rods
    assert l[0] < m[0] < 39 < s[0] < r[0] and r[0] - l[0] > 2*(s[0] - m[0])                   # they come from both sides and converge

def test_two_pairs_of_screws_are_in_two_vertebrae():
    y = np.zeros((30, 30, 46), 'int16')
    for k, at in enumerate(range(2, 46, 12)): y[8:22, 12 - k:26, at:at + 8] = 4 - k; y[14:16, :8, at:at + 11] = 4 - k      # bodies with gaps, and spines that bridge them
    affine = np.diag([2., 2., 3., 1.]); affine[:3, 3] = -5, 7, -40
    where = lambda rod: int(y[15, 20, round((rod[0][2] + 40)/3)])
    for values in (y, (y > 0).astype('int16')*9):
        v = Volume(values, affine, 'label')
        for seed in range(40):
            assert len({where(r) for r in screws(v, 2, seed)} - {0}) == 2
            if seed < 10: assert {where(r) for r in screws(v, 4, seed)} == {1, 2, 3, 4} and len(screws(v, 9, seed)) == 8
        assert {where(r) for s in range(40) for r in screws(v, 1, s)} == {1, 2, 3, 4} and screws(v, 2, 3) == screws(v, 2, 3)
        assert len({r[0][2] for s in range(40) for r in screws(v, 1, s)}) > 8                 # at more than one level of each

@pytest.mark.parametrize('seed', [0, 3])
def test_two_pairs_of_screws_are_in_two_vertebrae_of_a_patient(seed):
    p = patient(seed, (72, 56, 64), 4.)
    for v in (vertebra_mask(p), p.labels.with_data(np.where(p.labels.data <= 17, p.labels.data, 0))):
        for s in range(40):
            rods = screws(v, 2, s)
            levels = [round((r[0][2] - v.affine[2, 3])/4) for r in rods[::2]]
            inside = [np.bincount(y[y > 0]).argmax() for y in (np.where(p.labels.data[:, :, k] <= 17, p.labels.data[:, :, k], 0) for k in levels)]
            assert len(rods) == 4 and len(set(inside)) == 2, (s, inside)

def test_a_rod_beside_the_grid_is_refused():
    inside, outside = ((40., 96., 4.), (60., 96., 4.), 3.), ((40., 96., 400.), (60., 96., 400.), 3.)
    with pytest.raises(XModSegError, match='meets no voxel.*400') as e: cbct(ct(), metal=[inside, outside])
    assert e.value.found == [outside]
    assert cbct(ct(), metal=[inside]).data.max() > 2000

@pytest.mark.parametrize('severity', ['mild', 'paper', 'hard'])
def test_settings_can_be_scanned(severity):
    y = np.zeros((64, 64, 2), 'int16'); y[28:36, 20:36] = 1
    for s in range(3):
        kw = random_cbct_settings(np.random.default_rng(s), severity, Volume(y, ct().affine, 'label'))
        assert kw == random_cbct_settings(np.random.default_rng(s), severity, Volume(y, ct().affine, 'label'))
        assert np.isfinite(cbct(ct(), **kw).data).all()

def test_a_slider_position_is_quick():
    v = ct(1, 96, 3.)
    cbct(v, views=120)
    t = time.process_time(); cbct(v, 1e4, .2, fov_mm=200., views=120); assert time.process_time() - t < .3

def test_refusals_name_the_need():
    with pytest.raises(XModSegError, match='no photons'): cbct(ct(), dose=0)
    with pytest.raises(XModSegError, match='no such field of view'): cbct(ct(), fov_mm=1e4)
    with pytest.raises(XModSegError, match='too few views'): cbct(ct(), views=2)
    with pytest.raises(XModSegError, match='no such beam'): cbct(ct(), beam='parallel')
    with pytest.raises(XModSegError, match='not finite'): cbct(ct().with_data(ct().data*np.nan))
    with pytest.raises(XModSegError, match='along the patient'): cbct(Volume(ct().data, np.diag([3., 3., 4., 1.])[[0, 2, 1, 3]]))
    with pytest.raises(XModSegError, match='length and a radius'): cbct(ct(), metal=[((0, 0, 0), (0, 0, 0), 2.)])
    with pytest.raises(XModSegError, match='no vertebra'): screws(Volume(np.zeros((9, 9, 9), 'int16'), np.eye(4), 'label'))
    with pytest.raises(XModSegError, match='severity'): random_cbct_settings(np.random.default_rng(0), 'worst')
    with pytest.warns(UserWarning, match='do not look like HU'): cbct(ct().with_data(ct().data/1000))

def test_screws_need_an_axis_along_the_patient():
    y = np.zeros((20, 20, 20), np.uint8); y[5:15, 5:15, 4:16] = 1
    with pytest.raises(XModSegError, match='ASR'): screws(Volume(y, np.array([[0, 0, 3., 0], [3., 0, 0, 0], [0, 3., 0, 0], [0, 0, 0, 1]]), 'label'))
    assert len(screws(Volume(y, np.diag([3., 3, 3, 1]), 'label'))) == 2
