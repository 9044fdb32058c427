"""Patients and their scans: determinism, mixing, contrast, agreement with real CT, refusals."""
import os, time
from pathlib import Path
import numpy as np, pytest, torch
from xmodseg.core import XModSegError
from xmodseg import phantom
from xmodseg.phantom import LABELS, LEVELS, patient, render_ct, render_mr, spin_echo, tissue_hu, vertebra_mask

@pytest.fixture(scope='module')
def q(): return patient(4, (96, 72, 64), 3.5)

def test_the_same_seed_is_the_same_patient_bit_for_bit(q):
    again = patient(4, (96, 72, 64), 3.5)
    assert np.array_equal(q.labels.data, again.labels.data) and np.array_equal(render_ct(q).data, render_ct(again).data) and np.array_equal(render_mr(q).data, render_mr(again).data)
def test_another_seed_is_another_patient(q): assert (patient(5, (96, 72, 64), 3.5).labels.data != q.labels.data).mean() > .05

def test_frames_sit_in_their_vertebrae_in_ras(q):
    assert q.labels.axes == 'RAS' and q.labels.kind == 'label'
    z = [v.centre_mm[2] for v in q.vertebrae]; assert z == sorted(z, reverse=True)
    for v in q.vertebrae:
        i = np.round(np.linalg.inv(q.labels.affine) @ np.r_[v.centre_mm, 1])[:3].astype(int)
        if all(2 < a < n - 2 for a, n in zip(i, q.labels.shape)): assert q.labels.data[tuple(i)] == v.label == LABELS[v.name]

def test_vertebra_mask_is_the_seventeen_labels(q):
    assert np.array_equal(vertebra_mask(q).data > 0, np.isin(q.labels.data, [LABELS[k] for k in LEVELS]))

@pytest.mark.parametrize('shape,spacing', [((40, 30, 20), (9., 8., 7.)), ((8, 9, 10), 5.), ((64, 8, 16), (4., 4., 12.))])
def test_any_grid_works(shape, spacing):
    p = patient(0, shape, spacing); assert p.labels.shape == shape and render_ct(p).shape == shape and np.isfinite(render_mr(p).data).all()

def test_views_of_one_patient_agree():
    big, part = patient(2, (60, 48, 60), 4., centre=(0, 28, 40)), patient(2, (30, 48, 20), 4., centre=(0, 28, 40))
    assert (big.labels.data[15:45, :, 20:40] == part.labels.data).mean() > .999

@pytest.mark.parametrize('bad,match', [(dict(shape=(64, 64)), 'three sizes'), (dict(shape=(4, 64, 64)), 'three sizes'), (dict(spacing=0), 'above 0'), (dict(spacing=(2, -2, 2)), 'above 0'), (dict(cob=3), 'cobb'), (dict(cobb=170), '0 to 90')])
def test_impossible_requests_are_refused(bad, match):
    with pytest.raises(XModSegError, match=match): patient(0, **bad)
def test_unknown_phase_and_sequence_are_refused(q):
    with pytest.raises(XModSegError, match='portal'): render_ct(q, phase='late')
    with pytest.raises(XModSegError, match='t1 or t2'): render_mr(q, 'pd')

def test_ct_is_the_mixture_of_tissue_means(q):
    ct, mean = render_ct(q, noise=0, texture=0).data, tissue_hu(q.params)
    for i in ((48, 20, 30), (40, 36, 30), (60, 50, 40), (47, 24, 12), (30, 40, 50)):
        v = -1000.
        for box, tissue, share in q.layers:
            if all(b.start <= k < b.stop for b, k in zip(box, i)):
                a = float(share[tuple(k - b.start for b, k in zip(box, i))])/255; v = (1 - a)*v + a*mean[tissue][0]
        assert abs(ct[i] - v) < .1

def test_noise_and_texture_are_as_large_as_asked(q):
    inside = q.labels.data > 0; flat = render_ct(q, noise=0).data
    for sd in (5, 40): assert abs((render_ct(q, noise=sd).data - flat)[inside].std()/sd - 1) < .06
    assert (render_ct(q, noise=0, texture=0).data - flat)[q.labels.data == LABELS['liver']].std() > 4

def test_weak_bone_is_darker_and_only_bone():
    a, b = [render_ct(patient(4, (48, 36, 32), 5., bone=k), noise=0, texture=0).data for k in (.5, 1.5)]; l = patient(4, (48, 36, 32), 5.).labels.data
    assert (b - a)[np.isin(l, [LABELS[k] for k in LEVELS])].mean() > 30 and abs((b - a)[l == LABELS['liver']].mean()) < 1

def test_contrast_goes_where_blood_is(q):
    native, arterial, portal = [render_ct(q, noise=0, texture=0, phase=k).data for k in ('native', 'arterial', 'portal')]
    m = {k: q.labels.data == LABELS[k] for k in ('aorta', 'liver', 'fat', 'kidney_l')}
    rise = lambda x, k: (x - native)[m[k]].mean()
    assert rise(arterial, 'aorta') > 180 and rise(arterial, 'aorta') > rise(portal, 'aorta') + 60 and rise(portal, 'liver') > rise(arterial, 'liver') + 25
    assert rise(arterial, 'kidney_l') > 40 and abs(rise(portal, 'fat')) < 8

def test_spin_echo_recovers_with_tr_and_decays_with_te():
    assert spin_echo(1., 900., 60., 1e9, 0.) == pytest.approx(1) and spin_echo(.8, 1000., 100., 1000., 100.) == pytest.approx(.8*(1 - np.exp(-1))*np.exp(-1))
    assert spin_echo(1., 900., 60., 500., 50.) < spin_echo(1., 900., 60., 800., 50.) and spin_echo(1., 900., 60., 500., 50.) > spin_echo(1., 900., 60., 500., 80.)

def test_t1_and_t2_have_opposite_contrast_and_cortex_is_dark(q):
    t1, t2 = [render_mr(q, k, noise=0, bias=0).data for k in ('t1', 't2')]; m = lambda x, k: x[q.labels.data == LABELS[k]].mean()
    assert m(t1, 'fat') > 1.3*m(t1, 'canal') and m(t2, 'canal') > m(t2, 'fat') and m(t1, 'rib') < m(t1, 'fat')

def test_bias_is_smooth_and_multiplies(q):
    a, b = render_mr(q, noise=0, bias=0).data, render_mr(q, noise=0, bias=.4).data; ratio = b[a > 50]/a[a > 50]
    assert .6 < np.median(ratio) < 1.6 and ratio.std() > .05 and (a.min() >= 0 and b.min() >= 0)

def test_soft_tissue_agrees_with_real_ct():
    real = dict(liver=46, spleen=35, kidney_r=13, kidney_l=23, aorta=44, muscle=28); got = {k: [] for k in real}
    from scipy import ndimage
    for seed in range(3):
        p = patient(seed, (100, 84, 100), 4.); ct = render_ct(p).data
        for k in real: got[k].append(ct[ndimage.binary_erosion(p.labels.data == LABELS[k])].mean())
    for k, v in real.items(): assert abs(np.mean(got[k]) - v) < 25, k

def test_a_threshold_does_not_find_the_spine():
    for seed in (0, 3):
        p = patient(seed, (96, 72, 64), 3.); y = vertebra_mask(p).data > 0; x = render_ct(p).data
        assert .3 < max(2*(y & (x > t)).sum()/(y.sum() + (x > t).sum()) for t in (100, 150, 200, 250)) < .85

def test_a_patient_of_160_cubed_costs_less_than_five_seconds_of_one_core():
    n = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        t = time.process_time(); render_ct(patient(0)); assert time.process_time() - t < 5
    finally: torch.set_num_threads(n)

def test_a_degenerate_disc_is_dark_in_t2():
    grey = []
    for d in (0., 1.):
        p = patient(4, (40, 40, 64), 3., degenerate=d)
        inside = torch.zeros(p.labels.shape, dtype=torch.bool)
        for box, tissue, share in p.layers:                               # what is painted later covers what was there
            if tissue == 'nucleus': inside[box] |= share > 200
            else: inside[box] &= share < 20
        grey.append([render_mr(p, k, noise=0, bias=0).data[inside.numpy()].mean() for k in ('t2', 't1')])
        assert inside.sum() > 50
    (wet, t1), (dry, t1_dry) = grey
    assert dry < .8*wet and abs(t1_dry/t1 - 1) < abs(dry/wet - 1)         # water is lost: T2 tells, T1 hardly
