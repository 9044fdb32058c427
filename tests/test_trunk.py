"""Organs around the spine: where they are, how large, and what moves them."""
import numpy as np, pytest, torch
from xmodseg.implicit import LABELS, Canvas, draw_params, paint_spine, spine
from xmodseg.trunk import Trunk, paint_trunk

def trunk(seed=1, mm=5., shape=(76, 58, 96), centre=(0, 28, 110), **anatomy):
    p = draw_params(seed, **anatomy); sp = spine(p); cv = Canvas(shape, (mm,)*3, centre)
    found = paint_trunk(cv, p, sp).plaques; paint_spine(cv, p, sp)
    return cv, p, sp, found
def where(cv, name): return [float(a[i].mean()) for a, i in zip(cv.axes, torch.nonzero(cv.labels == LABELS[name], as_tuple=True))]

@pytest.mark.parametrize('seed', [1, 6])
def test_organs_are_on_their_side(seed):
    cv, p, sp, _ = trunk(seed); m = {k: where(cv, k) for k in ('liver', 'spleen', 'lung_l', 'lung_r', 'kidney_l', 'kidney_r', 'LV', 'RA', 'RV', 'LA', 'aorta', 'vein', 'stomach', 'hip_l', 'hip_r')}
    assert m['liver'][0] > 20 > -50 > m['spleen'][0] and m['kidney_r'][0] > 40 > -40 > m['kidney_l'][0] and m['lung_r'][0] > 40 > -40 > m['lung_l'][0]
    assert m['hip_r'][0] > 50 > -50 > m['hip_l'][0] and m['aorta'][0] < m['vein'][0] and m['LV'][0] < m['RA'][0] and m['RV'][1] > m['LA'][1]
    assert m['lung_r'][2] > m['liver'][2] > m['hip_r'][2]

def test_volumes_are_those_of_adults():
    cv = trunk(1)[0]; ml = lambda k: float((cv.labels == LABELS[k]).sum())*cv.width**3/1e3
    for k, lo, hi in (('liver', 900, 2600), ('spleen', 80, 500), ('kidney_l', 80, 300), ('lung_r', 1000, 4500), ('myocardium', 60, 250), ('pancreas', 25, 160)): assert lo < ml(k) < hi, k

def test_place_follows_the_spine_fully_and_the_trunk_partly():
    cv, p, sp, _ = trunk(2, 12., (32, 24, 40)); q = [(3., 4, 9)]
    s0, t0 = [Trunk(cv, p, sp).place(q, f)[0] for f in 'st']
    for v in sp: v.centre_mm = v.centre_mm + (10, 0, 7)
    s1, t1 = [Trunk(cv, p, sp).place(q, f)[0] for f in 'st']
    np.testing.assert_allclose(s1 - s0, (10, 0, 7), atol=1e-9); np.testing.assert_allclose(t1 - t0, (6, 0, 7), atol=1e-9)

def test_number_of_plaques_is_the_one_asked_for_and_nothing_else_moves():
    a, b = trunk(3, plaques=0), trunk(3, plaques=25)
    assert len(a[3]) == 0 and len(b[3]) == 25 and all(15 <= f.volume <= 250 for f in b[3])
    changed = a[0].labels != b[0].labels
    assert changed.any() and (b[0].labels[changed] == LABELS['plaque']).all()

def test_the_same_seed_gives_the_same_voxels_and_layers():
    a, b = trunk(4, 8., (48, 36, 60))[0], trunk(4, 8., (48, 36, 60))[0]
    assert torch.equal(a.labels, b.labels) and all(x[1] == y[1] and torch.equal(x[2], y[2]) for x, y in zip(a.layers, b.layers))

def test_fat_makes_a_patient_wider_and_leaves_the_liver():
    a, b = trunk(5, fat=6)[0], trunk(5, fat=25)[0]
    assert (b.labels > 0).sum() > 1.1*(a.labels > 0).sum() and torch.equal(a.labels == LABELS['liver'], b.labels == LABELS['liver'])

def test_a_view_beside_the_patient_is_empty():
    cv = trunk(1, 4., (16, 16, 16), (600, 0, 0))[0]
    assert not cv.labels.any()

@pytest.mark.parametrize('seed', [0, 3])
def test_the_body_wall_follows_a_crooked_spine_six_tenths_of_the_way(seed):
    cv, p, sp, _ = trunk(seed, 8., (56, 44, 70), cobb=60.)
    body, x, z = cv.labels > 0, *[cv.axes[i].reshape(-1).numpy() for i in (0, 2)]
    c, n = np.array([v.centre_mm for v in sp])[::-1], body.sum((0, 1)).numpy()
    ok = (n > 0) & (z > c[0, 2]) & (z < c[-1, 2])
    middle, course = (body.sum(1).numpy()*x[:, None]).sum(0)[ok]/n[ok], np.interp(z[ok], c[:, 2], c[:, 0])   # mm, of the body and of the spine at each height
    assert course.std() > 10 and np.corrcoef(middle, course)[0, 1] > .9 and abs(np.polyfit(course, middle, 1)[0] - .6) < .12

@pytest.mark.parametrize('seed', [1, 2, 4])
def test_gas_rises_to_the_front_of_a_patient_on_the_back(seed):
    cv, p, sp, _ = trunk(seed, 4., (96, 72, 84), (0, 28, 40))
    seen = 0
    for (box, core, lumen), (at, gas, share) in zip(cv.layers, cv.layers[1:]):
        if gas != 'gas' or share.sum() < 255*20: continue
        assert core in ('chyme', 'stool') and at == box
        front = lambda w: float((w.float()*cv.at(box)[1]).sum()/w.float().sum())      # mm
        assert front(share) > front(lumen) + 1, core
        seen += 1
    assert seen > 1
